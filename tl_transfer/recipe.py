"""Recipe: everything a run depends on, from a TOML file or flags, checked when it is built."""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tl_transfer.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """One transfer experiment.

    Attributes:
        source: Source model (anything `load_model` takes as text).
        target: Target model.
        task: Task name.
        source_layers: Candidate source hook points; empty: spread over the middle of the model.
        target_layers: Candidate target hook points; empty: the same.
        source_host: Host class of the source.
        target_host: Host class of the target.
        method: How the map is fitted, see `tl_transfer.mapping_methods`.
        n_contrast: Contrast texts of each pole.
        n_fit: Texts the map is fitted on.
        n_neutral: Neutral passages on validation and on test each.
        budgets: KL budgets in nats per neutral token.
        main_budget: The budget of the verdict.
        strengths: Sweep of strengths in median residual norms, both signs; empty: around the
            strength at which the native vector reaches the main budget.
        n_random: Directions of each random kind.
        n_generate: Prompts continued by every arm.
        max_new_tokens: Length of a continuation; 0: none.
        seed: Of every random choice.
    """

    source: str = "smollm2-135m-instruct"
    target: str = "gemma-3-270m"
    task: str = "sentiment"
    source_layers: tuple[str, ...] = ()
    target_layers: tuple[str, ...] = ()
    source_host: str = "bridge"
    target_host: str = "bridge"
    method: str = "ridge"
    n_contrast: int = 150
    n_fit: int = 600
    n_neutral: int = 16
    budgets: tuple[float, ...] = (0.02, 0.05, 0.1)
    main_budget: float = 0.05
    strengths: tuple[float, ...] = ()
    n_random: int = 20
    n_generate: int = 16
    max_new_tokens: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_contrast", "n_fit", "n_neutral", "n_random", "n_generate"):
            if getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "a whole number of at least 1")
        if self.method != "ridge":
            # Only now: the registry of methods loads torch.
            from tl_transfer.mappers.registry import find

            find(self.method)
        if self.n_random < 2:
            _refuse("n_random", self.n_random, "at least 2; a range needs more than one direction")
        if self.max_new_tokens < 0:
            _refuse("max_new_tokens", self.max_new_tokens, "0 or more")
        if not self.budgets or min(self.budgets) <= 0 or self.main_budget not in self.budgets:
            _refuse(
                "budgets",
                f"{self.budgets}, main_budget {self.main_budget}",
                "positive numbers that contain main_budget",
            )
        if self.strengths and min(self.strengths) <= 0:
            _refuse("strengths", self.strengths, "positive numbers; both signs are run")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Recipe from plain values; unknown names and wrong types are refused."""
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            _refuse("recipe", ", ".join(unknown), "keys: " + ", ".join(known))
        cleaned: dict[str, Any] = {}
        for name, value in values.items():
            _check_items(name, value)
            default = known[name].default
            if isinstance(default, tuple):
                if not isinstance(value, list | tuple):
                    _refuse(name, repr(value), "a list")
                cleaned[name] = tuple(value)
            elif isinstance(default, float):
                if isinstance(value, bool) or not isinstance(value, int | float):
                    _refuse(name, repr(value), "a number")
                cleaned[name] = float(value)
            else:
                if isinstance(value, bool) or not isinstance(value, type(default)):
                    _refuse(name, repr(value), type(default).__name__)
                cleaned[name] = value
        return cls(**cleaned)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Recipe from a TOML file.

        Raises:
            InputError: no such file, not TOML, or an unknown or impossible setting.
        """
        return cls.from_dict(read_toml(path))

    def with_(self, **changes: Any) -> "Recipe":
        """A changed copy (command-line flags over a file)."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain values; tuples as lists."""
        return json.loads(json.dumps(asdict(self)))

    def to_toml(self) -> str:
        """The resolved recipe as TOML; `read` takes it back."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.to_dict().items()]
        return (
            "# Every setting of this run; tl-transfer run takes this file back.\n"
            + "\n".join(lines)
            + "\n"
        )

    @property
    def key(self) -> str:
        """Hash that names what a run with these settings may reuse."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a recipe file, whatever its task.

    Raises:
        InputError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"recipe: cannot read {path}",
            got=str(error),
            valid="a TOML file",
            hint="see docs/reference/recipe.md",
        ) from error


def _check_items(name: str, value: Any) -> None:
    """Lists hold numbers, but layers are names."""
    if not isinstance(value, list | tuple):
        return
    kind: Any = str if name.endswith("_layers") else (int, float)
    if not all(isinstance(item, kind) and not isinstance(item, bool) for item in value):
        _refuse(name, repr(value), "hook points in quotes" if kind is str else "numbers")


def _refuse(name: str, got: Any, valid: str) -> None:
    raise InputError(
        f"{name}: not valid in a recipe", got=got, valid=valid, hint="see docs/reference/recipe.md"
    )
