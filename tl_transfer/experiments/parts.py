"""Parts: finished pieces of a long run, kept as JSON, so that an interrupted run goes on.

A part is used again only under the very same recipe, models and texts, and, behind a choice made on
the way (of a layer, of a map), under the same choice; the code that wrote it is recorded beside it,
and a report lists every code that took part.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tl_transfer.data.texts import text_hash
from tl_transfer.errors import ArtefactError
from tl_transfer.evaluation.report import versions
from tl_transfer.experiments.settings import Settings
from tl_transfer.models.surface import HookedModel
from tl_transfer.sealed import read_json, write_json


@dataclass
class Parts:
    """Named JSON values in a folder.

    Attributes:
        folder: Where they are; made when the first one is kept.
        key: Whatever decides whether a part may be used again.
        codes: Part -> hash of the package that wrote it.
    """

    folder: Path
    key: dict[str, Any]
    codes: dict[str, str] = field(default_factory=dict)

    def recall(self, name: str) -> Any:
        """What was kept under this name and key, or None."""
        try:
            stored = read_json(self._path(name), written_by="a run", hint="it is made again")
        except ArtefactError:
            return None
        if stored.get("key") != self.key:
            return None
        self.codes[name] = stored["code"]
        return stored["value"]

    def keep(self, name: str, value: Any) -> None:
        """Write a part; whole or not at all."""
        code = self.codes[name] = versions()["code"]
        part = {"key": self.key, "code": code, "value": value}
        write_json(self._path(name), part, allow_nan=False)

    def under(self, **choices: Any) -> "Parts":
        """The parts that rest on choices made on the way: another choice, other parts.

        Args:
            choices: What was chosen, plain values.
        """
        made = {**self.key.get("choices", {}), **choices}
        return Parts(self.folder, self.key | {"choices": made}, self.codes)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def parts_of(folder: Path, recipe: Settings, models: Sequence[HookedModel], texts: Any) -> Parts:
    """The parts of an experiment.

    Args:
        folder: Of the run.
        recipe: Its settings.
        models: By their weights.
        texts: Dataclass of all that is read, by its values.
    """
    key = {
        "recipe": recipe.to_dict(),
        "weights": [model.weights for model in models],
        "texts": text_hash(json.dumps(asdict(texts))),
    }
    return Parts(folder / "parts", key)


def conclude(
    report: dict[str, Any], recipe: dict[str, Any], parts: Parts, folder: Path
) -> dict[str, Any]:
    """Add the recipe and the code of every part to a report, and write it."""
    report = report | {
        "recipe": recipe,
        "codes": sorted({*parts.codes.values(), report["versions"]["code"]}),
    }
    write_json(folder / "report.json", report, indent=1, allow_nan=False, ensure_ascii=False)
    return report


def file_stamps(names: Sequence[str]) -> dict[str, list[list[Any]]]:
    """Size and time of the files of models given as paths: other files, another run."""
    found: dict[str, list[list[Any]]] = {}
    for name in names:
        path = Path(name).expanduser()
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        found[name] = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return found
