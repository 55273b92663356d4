"""A named way to fit a map, for experiments that compare several."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One way.

    Attributes:
        title: For people.
        method: Of `fit`.
        options: Of the method.
    """

    title: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
