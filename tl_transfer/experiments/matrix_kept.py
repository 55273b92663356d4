"""What a matrix run keeps: parts, vectors and stores, by model, pair, behaviour and map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.data.store import ActivationStore
from tl_transfer.experiments.parts import Parts
from tl_transfer.persistence import load, save
from tl_transfer.vectors import SteeringVector


@dataclass(frozen=True)
class Kept:
    """The files of one run.

    Attributes:
        folder: Of the run.
        parts: Its finished parts.
        models: Names of the models.
    """

    folder: Path
    parts: Parts
    models: Sequence[str]

    def has_store(self, name: str) -> bool:
        """Whether a model was read to the end."""
        return (self.store_folder(name) / "manifest.json").is_file()

    def store(self, name: str) -> ActivationStore:
        """What a model has read."""
        return ActivationStore(self.store_folder(name))

    def store_folder(self, name: str) -> Path:
        """Where that is."""
        return self.folder / "stores" / name

    def choice(self, name: str, behaviour: str) -> Any:
        """The chosen layer of a model, or None."""
        return self.parts.recall(f"{behaviour}-{name}")

    def has_native(self, name: str, behaviour: str) -> bool:
        """Whether a model's own vector was found."""
        return self.choice(name, behaviour) is not None and self._own(name, behaviour).is_file()

    def native(self, name: str, behaviour: str) -> SteeringVector:
        """A model's own vector, at its chosen layer."""
        return _vector(self._own(name, behaviour))

    def keep_native(self, name: str, behaviour: str, vector: SteeringVector, choice: Any) -> None:
        """Both; the part comes last."""
        save(vector, self._own(name, behaviour))
        self.parts.keep(f"{behaviour}-{name}", choice)

    def on(self, behaviour: str) -> Parts:
        """The parts that rest on the chosen layers of a behaviour, of all models."""
        choices = [self.choice(name, behaviour) for name in self.models]
        return self.parts.under(layers=[choice and choice["chosen"] for choice in choices])

    def has_moved(self, source: str, target: str, behaviour: str, mapper: str) -> bool:
        """Whether a vector went through a map."""
        entry = self.map_entry(source, target, behaviour, mapper)
        paths = self._moved(source, target, behaviour, mapper)
        return entry is not None and all(path.is_file() for path in paths)

    def moved(
        self, source: str, target: str, behaviour: str, mapper: str
    ) -> tuple[SteeringVector, SteeringVector]:
        """Through the map, and through that of wrong pairs."""
        right, wrong = self._moved(source, target, behaviour, mapper)
        return _vector(right), _vector(wrong)

    def map_entry(self, source: str, target: str, behaviour: str, mapper: str) -> Any:
        """What is known of the map, or None."""
        return self.on(behaviour).recall(f"map-{pair(source, target, behaviour)}-{mapper}")

    def keep_moved(
        self,
        key: tuple[str, str, str, str],
        vectors: tuple[SteeringVector, SteeringVector],
        entry: dict[str, Any],
    ) -> None:
        """Vectors and entry of (source, target, behaviour, mapper); the part comes last."""
        for vector, path in zip(vectors, self._moved(*key), strict=True):
            save(vector, path)
        source, target, behaviour, mapper = key
        self.on(behaviour).keep(f"map-{pair(source, target, behaviour)}-{mapper}", entry)

    def _own(self, name: str, behaviour: str) -> Path:
        return self.folder / "vectors" / f"{name}--{behaviour}-{name}.safetensors"

    def _moved(self, source: str, target: str, behaviour: str, mapper: str) -> list[Path]:
        stem = f"{target}--{pair(source, target, behaviour)}-{mapper}"
        return [
            self.folder / "vectors" / f"{stem}{ending}.safetensors" for ending in ("", "-shuffled")
        ]


def pair(source: str, target: str, behaviour: str) -> str:
    """Name of a pair in the names of parts."""
    return f"{behaviour}-{source}-{target}"


def _vector(path: Path) -> SteeringVector:
    found = load(path)
    assert isinstance(found, SteeringVector)  # written by this run
    return found
