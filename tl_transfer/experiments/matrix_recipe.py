"""MatrixRecipe: everything a matrix depends on, checked when it is built."""

from dataclasses import dataclass
from pathlib import Path

from tl_transfer import tasks
from tl_transfer.errors import InputError
from tl_transfer.evaluation.matrix import MatrixSettings
from tl_transfer.experiments.matrix_maps import kind
from tl_transfer.experiments.settings import Settings
from tl_transfer.models.pins import BUNDLED


@dataclass(frozen=True)
class MatrixRecipe(Settings):
    """One matrix.

    Attributes:
        models: Anything `load_model` takes as text; every ordered pair of them is run. The last
            parts of their names must differ.
        task: ``"matrix"``.
        behaviours: Names of tasks (``tl-transfer tasks``).
        dtype: Of all models; bfloat16 halves the time on a CPU that has it.
        depths: Candidate layers as shares of the depth.
        mappers: How the maps are fitted: methods of `fit` and the names in
            `tl_transfer.experiments.matrix_maps`; all others are compared with the first.
        n_contrast: Contrast texts of each pole.
        n_fit: Texts of each behaviour for the maps; all behaviours share their general prose.
        n_neutral: Passages of prose for damage, on validation and on test each.
        budget: KL in nats a token of prose at which all arms are compared.
        n_random: Directions of each random kind.
        n_examples: Prompts continued by the native and the moved vectors, to be read; 0: none.
        max_new_tokens: Length of a continuation.
        seed: Of every choice.
    """

    models: tuple[str, ...] = tuple(BUNDLED)
    task: str = "matrix"
    behaviours: tuple[str, ...] = ("sentiment", "french")
    dtype: str = "bfloat16"
    depths: tuple[float, ...] = (0.4, 0.53, 0.67)
    mappers: tuple[str, ...] = ("ridge",)
    n_contrast: int = 100
    n_fit: int = 400
    n_neutral: int = 12
    budget: float = 0.05
    n_random: int = 6
    n_examples: int = 2
    max_new_tokens: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.n_contrast, self.n_fit, self.n_neutral, self.max_new_tokens)
        wrong = {
            "models": len(self.models) < 2 or len(set(self.labels)) < len(self.models),
            "task": self.task != "matrix",
            "behaviours": not self.behaviours,
            "mappers": not self.mappers or len(set(self.mappers)) < len(self.mappers),
            "depths": not self.depths or not all(0 < share <= 1 for share in self.depths),
            "budget": not self.budget > 0,
            "n_random": self.n_random < 2,
            "n_contrast, n_fit, n_neutral, max_new_tokens": min(sizes) < 1,
            "n_examples": self.n_examples < 0,
        }
        for name, bad in wrong.items():
            if bad:
                raise InputError(
                    f"{name}: not valid in a matrix recipe",
                    got=self.to_dict(),
                    valid='task "matrix", two or more models of different names, '
                    "at least one behaviour, different mappers, depths in (0, 1], a positive "
                    "budget, two or more random directions",
                    hint="see docs/reference/recipe.md",
                )
        for behaviour in self.behaviours:
            tasks.require(behaviour)
        for mapper in self.mappers:
            kind(mapper)

    def plan(self) -> list[str]:
        """What a run would do."""
        n, b = len(self.models), len(self.behaviours)
        arms = 1 + 2 * self.n_random + 2 * (n - 1) * len(self.mappers)
        return [
            f"read up to {self.n_fit * b} texts once with each of {n} models ({self.dtype}), "
            f"at {len(self.depths)} layers",
            f"choose the layer of each model for {', '.join(self.behaviours)}",
            f"fit {n * (n - 1)} maps for each behaviour from the stores, "
            f"each by {', '.join(kind(name).title for name in self.mappers)}",
            f"{arms} directions in each model and behaviour, both signs, at KL {self.budget:g}",
        ]

    @property
    def settings(self) -> MatrixSettings:
        """The part that an evaluation needs."""
        return MatrixSettings(self.budget, self.n_random, self.seed)

    @property
    def labels(self) -> dict[str, str]:
        """Label -> model: the last part of its name, for files and tables."""
        return {Path(name).name: name for name in self.models}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Labels of every (source, target)."""
        return [(s, t) for s in self.labels for t in self.labels if s != t]
