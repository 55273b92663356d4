"""Schedules: strengths that change while tokens are generated.

A schedule multiplies a strength by a factor of g, the number of the new token that is predicted at
a position: 0 at the last prompt token, 1 at the first generated token, and so on. The prompt has
the factor of g = 0. Combine with `generated()` to leave the prompt alone.

========== ===========================================
constant   1
linear     max(0, 1 - g / over)
cosine     (1 + cos(pi min(g, over) / over)) / 2
first      1 for g < k, then 0
every      1 where g is a multiple of n, else 0
========== ===========================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError


def is_strength(value: object) -> bool:
    """Whether a value is one finite number, or a finite tensor with one number a row."""
    if not isinstance(value, Tensor | Real):
        return False
    numbers = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return numbers.ndim <= 1 and bool(torch.isfinite(numbers).all())


@dataclass(frozen=True, eq=False)
class Schedule:
    """A strength times a factor of the number of the new token.

    Attributes:
        strength: One number, or one a row.
        factor: From numbers of new tokens (an integer tensor, 0 and up) to factors.
        name: For people.
    """

    strength: float | Tensor
    factor: Callable[[Tensor], Tensor]
    name: str

    def __post_init__(self) -> None:
        if not is_strength(self.strength):
            raise InputError(
                "strength: must be finite, one number or one a row",
                got=repr(self.strength)[:80],
                valid="a float, or a 1-d tensor with one number a row",
                hint="the schedule multiplies it; torch.tensor([...]) for a list",
            )

    def factors(self, generated_index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The factor at each position, given its distance from the last prompt token."""
        return self.factor(generated_index.clamp(min=0)).float()

    def __repr__(self) -> str:
        return self.name


def constant(strength: float | Tensor) -> Schedule:
    """The same strength everywhere."""
    return Schedule(strength, torch.ones_like, f"constant({strength})")


def linear(strength: float | Tensor, *, over: int) -> Schedule:
    """Falls to 0 in a straight line over `over` new tokens."""
    _count("over", over)
    return Schedule(
        strength, lambda g: (1 - g / over).clamp(min=0), f"linear({strength}, over={over})"
    )


def cosine(strength: float | Tensor, *, over: int) -> Schedule:
    """Falls to 0 along half a cosine over `over` new tokens."""
    _count("over", over)
    return Schedule(
        strength,
        # Exactly 0 at the end, where float32 rounds the cosine of pi to -1.
        lambda g: (1 + torch.cos(math.pi * g.clamp(max=over) / over)) / 2,
        f"cosine({strength}, over={over})",
    )


def first(strength: float | Tensor, *, k: int) -> Schedule:
    """For the prompt and the first `k` new tokens, then 0."""
    _count("k", k)
    return Schedule(strength, lambda g: (g < k).float(), f"first({strength}, k={k})")


def every(strength: float | Tensor, *, n: int) -> Schedule:
    """For the prompt and every `n`-th new token, starting with the first."""
    _count("n", n)
    return Schedule(strength, lambda g: (g % n == 0).float(), f"every({strength}, n={n})")


def _count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise InputError(
            f"{name}: not a number of tokens",
            got=repr(value),
            valid="a whole number, 1 or more",
            hint="it counts new tokens",
        )
