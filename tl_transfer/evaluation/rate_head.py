"""What every report of rates begins and ends with: models, level, map, versions, seeds."""

import json
from datetime import UTC, datetime
from typing import Any

from tl_transfer.evaluation.report import versions
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.surface import HookedModel

FORMAT = "tl_transfer.rates/1"


def head(
    task: str,
    mapper: Mapper,
    source: HookedModel,
    target: HookedModel,
    *,
    protocol: str,
    protocol_note: str,
    seed: int,
) -> dict[str, Any]:
    """The part of a report that does not depend on the task.

    Args:
        task: Its name.
        mapper: From the source's hook point to the target's.
        source: Where the vector comes from.
        target: Where it acts.
        protocol: Level (L0 to L3).
        protocol_note: What of the target was used, in one sentence.
        seed: Of controls and bootstraps.
    """
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task,
        "pair": {
            "source": model_entry(source, mapper.source.hook_point),
            "target": model_entry(target, mapper.target.hook_point),
        },
        "spaces": {"source": mapper.source.to_json(), "target": mapper.target.to_json()},
        "protocol": protocol,
        "protocol_note": protocol_note,
        "mapper": {
            "method": mapper.method,
            "strength": mapper.settings.get("strength"),
            "scorecard": mapper.scorecard,
        },
        "versions": versions(),
        "seeds": {"evaluation": seed, "map": mapper.settings.get("seed")},
    }


def model_entry(model: HookedModel, hook_point: str) -> dict[str, Any]:
    """A model and the hook point it is read or steered at."""
    point = model.hook_point(hook_point)
    return {
        "model": model.name,
        "host": model.host_class,
        "hook_point": point.name,
        "layer": point.layer,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "note": model.note,
    }


def plain(report: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON gives it back; a number that is none is an error here, not in a reader."""
    found: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    return found
