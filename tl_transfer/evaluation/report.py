"""evaluate, the public call: run every arm and put the numbers into one documented report."""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tl_transfer.data.texts import text_hash
from tl_transfer.evaluation.card import random_labels, transfer_card
from tl_transfer.evaluation.evaluate import Evaluation, Settings
from tl_transfer.evaluation.result import FORMAT, TransferReport
from tl_transfer.evaluation.verdict import verdict
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.base import Task
from tl_transfer.vectors import SteeringVector


def evaluate(
    task: Task,
    vector: SteeringVector,
    mapper: Mapper,
    *,
    source: HookedModel,
    target: HookedModel,
    native: SteeringVector | None = None,
    settings: Settings | None = None,
    selection: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    timings: dict[str, float] | None = None,
    progress: bool = True,
) -> TransferReport:
    """Does this vector do in the target what it does at home? Every control is run with it.

    Args:
        task: Prompts, words, neutral text and scorer; its test split is used here and only here.
        vector: The source vector.
        mapper: The map, as returned by `fit` (with its shuffled control and held-out sums).
        source: Source model (named in the report).
        target: Target model, steered at the map's hook point.
        native: The target's own vector; default, made from the task's contrast texts.
        settings: Budgets, strengths, number of controls.
        selection: What was tried on validation, from `select_layers`.
        recipe: Resolved recipe, kept in the report.
        timings: Seconds spent before, kept in the report.
        progress: Show progress bars.

    Raises:
        SpaceError: vector, map and models do not belong together.
        InputError: the map has no controls, or the task does not suit the target.
    """
    settings = settings or Settings()
    source.at(vector.space.hook_point).space.require(mapper.source, "map and source model")
    site = target.at(mapper.target.hook_point)
    evaluation = Evaluation(
        task, vector, mapper, site, native=native, settings=settings, progress=progress
    )
    measured = evaluation.run()
    start = time.perf_counter()
    models: dict[str, Any] = {"source": source, "target": target}
    card = transfer_card(task, vector, mapper, evaluation.moved, progress=progress, **models)
    labels = random_labels(task, vector, mapper, seed=settings.seed, **models)
    evaluation.timings["score card"] = time.perf_counter() - start
    report: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task.name,
        "pair": {
            "source": _model_entry(source, vector.space.hook_point),
            "target": _model_entry(target, evaluation.native.space.hook_point),
        },
        "spaces": {"source": mapper.source.to_json(), "target": mapper.target.to_json()},
        "protocol": task.protocol,
        "protocol_note": task.protocol_note,
        "data": _data_entry(task, measured),
        "mapper": {
            "method": mapper.method,
            "strength": mapper.settings.get("options", {}).get("strength"),
            "scorecard": card,
        },
        "vector": _vector_entry(vector, evaluation) | {"random_labels": labels},
        **measured,
        "selection": selection,
        "limits": _limits(task, source, target),
        "versions": versions(),
        "seeds": {"evaluation": settings.seed, "map": mapper.settings.get("seed")},
        "timings": _timings(timings or {}, evaluation.timings),
        "recipe": recipe,
    }
    report["verdict"] = verdict(report, budget=settings.main_budget)
    # Strict JSON now, so that an undefined number fails here and not in somebody's reader.
    return TransferReport(json.loads(json.dumps(report, allow_nan=False)))


def _timings(before: dict[str, float], evaluation: dict[str, float]) -> dict[str, float]:
    """Seconds of every step and their sum."""
    seconds = before | {name: round(value, 2) for name, value in evaluation.items()}
    return seconds | {"total": round(sum(seconds.values()), 2)}


def _model_entry(model: HookedModel, hook_point: str) -> dict[str, Any]:
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


def _vector_entry(vector: SteeringVector, evaluation: Evaluation) -> dict[str, Any]:
    """The source's vector, and the moved one beside the target's own."""
    moved, home = evaluation.moved, evaluation.native
    shuffled = next(arm for arm in evaluation.arms if arm.name == "shuffled_map")
    kept = ("n_positive", "n_negative", "auroc", "mean_pair_cosine")
    return {
        "method": vector.method,
        **{name: vector.provenance.get(name) for name in kept},
        "cosine_to_native": moved.cosine(home),
        "cosine_to_native_shuffled": float(home.unit @ shuffled.directions[0]),
        "gain": moved.provenance["gain"],
        "norm_ratio": moved.natural_strength / home.natural_strength,
    }


def _texts_entry(texts: Sequence[str]) -> dict[str, Any]:
    joined = "".join(sorted(text_hash(text) for text in texts))
    return {"n": len(texts), "sha256": text_hash(joined)}


def _data_entry(task: Task, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "fit": _texts_entry(task.fit_texts) | {"n_documents": len(set(task.fit_documents))},
        "contrast": _texts_entry((*task.positive, *task.negative)),
        "validation_prompts": _texts_entry(task.validation_prompts),
        "test_prompts": _texts_entry(task.test_prompts),
        "generation_prompts": _texts_entry(task.generation_prompts),
        "neutral_validation": _texts_entry(task.neutral_validation),
        "neutral_test": _texts_entry(task.neutral_test)
        | {"n_tokens": measured["n_neutral_tokens"]},
    }


def _limits(task: Task, source: HookedModel, target: HookedModel) -> list[str]:
    notes = [f"{m.name}: {m.note}." for m in (source, target) if m.note]
    return [
        *task.limits,
        "One pair of models, one pair of layers and one seed; intervals are over prompts and do "
        "not cover the choice of texts, layers or models.",
        "Damage is KL on short neutral passages; other costs (facts, long texts) are not measured.",
        *notes,
    ]


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of this package's sources: another code, another result."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("tl_transfer", "torch", "transformers", "transformer-lens", "numpy", "vaderSentiment")
    found = {"python": platform.python_version(), "code": _code()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
