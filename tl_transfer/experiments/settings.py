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
            InputError: a key that is no setting.
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
        return cls(
            **{k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; tuples as lists."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return found
