"""Recipes of experiments: frozen settings from a TOML table, and back to plain values."""

import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from tl_transfer.errors import InputError

R = TypeVar("R", bound="Settings")


class Settings:
    """Base of the recipes' dataclasses: every field has a default, unknown keys are refused."""

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """From the plain values of a TOML file.

        Raises:
            InputError: a key that is no setting, or a value of another kind than its default.
        """
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                "recipe: unknown keys",
                got=", ".join(unknown),
                valid=", ".join(sorted(known)),
                hint="see docs/reference/recipe.md",
            )
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        default = cls()
        for key, value in given.items():
            _check_kind(key, value, getattr(default, key))
        return cls(**given)

    def refused(self, got: str, valid: str) -> InputError:
        """The error of a recipe with values that its experiment cannot take.

        Args:
            got: What it says.
            valid: What it may say besides its task.
        """
        task = type(self).task  # type: ignore[attr-defined]
        return InputError(
            f"recipe: not a {task} experiment",
            got=f"task {self.task!r}, {got}",  # type: ignore[attr-defined]
            valid=f'task "{task}", {valid}',
            hint="see docs/reference/recipe.md",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; tuples as lists."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return found


def _check_kind(key: str, value: Any, default: Any) -> None:
    if default is None or _alike(value, default):
        return
    raise InputError(
        f"recipe: {key} is of another kind",
        got=repr(value),
        valid=f"such as {default!r}",
        hint="see docs/reference/recipe.md",
    )


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(
            not default or _alike(item, default[0]) for item in value
        )
    # In Python a truth value is an integer; in a recipe it is a mistake.
    if isinstance(value, bool) != isinstance(default, bool):
        return False
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
