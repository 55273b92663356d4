"""Rules on the position alone, or on its distance from the end of the prompt."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.positions.layout import Layout
from tl_transfer.positions.where import Need, Where


@dataclass(frozen=True)
class Everywhere(Where):
    """Every position."""

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """All of them."""
        return torch.ones_like(layout.positions, dtype=torch.bool)

    def __str__(self) -> str:
        return f"everywhere({'sinks=True' if self.sinks else ''})"


@dataclass(frozen=True)
class Around(Where):
    """Positions by their distance from the last prompt token, which has distance 0.

    Attributes:
        first: Smallest distance; None for no limit.
        last: Largest distance.
        name: How the rule was written.
    """

    first: int | None
    last: int | None
    name: str

    @property
    def needs(self) -> frozenset[Need]:
        """The end of the prompt."""
        return frozenset({"prompt end"})

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """Distances between `first` and `last`, both included."""
        return _between(layout.generated_index, self.first, self.last)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Window(Where):
    """Absolute positions from `start` up to but not including `stop`."""

    start: int
    stop: int | None

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """Positions in the window."""
        return _between(layout.positions, self.start, None if self.stop is None else self.stop - 1)

    def __str__(self) -> str:
        return f"window({self.start}, {self.stop})"


def _between(x: Tensor, first: int | None, last: int | None) -> Tensor:
    chosen = torch.ones_like(x, dtype=torch.bool)
    if first is not None:
        chosen = chosen & (x >= first)
    if last is not None:
        chosen = chosen & (x <= last)
    return chosen


def everywhere(*, sinks: bool = False) -> Where:
    """Every position, prompt and generated, but the attention sink at position 0."""
    return Everywhere(sinks=sinks)


def prompt(*, sinks: bool = False) -> Where:
    """The prompt only; through a KV cache its effect stays."""
    return Around(None, 0, "prompt()", sinks=sinks)


def generated(*, sinks: bool = False) -> Where:
    """From the last prompt token on: every position at which a new token is predicted."""
    return Around(0, None, "generated()", sinks=sinks)


def last_prompt_token(*, sinks: bool = False) -> Where:
    """The last prompt token only."""
    return Around(0, 0, "last_prompt_token()", sinks=sinks)


def first_generated(k: int, *, sinks: bool = False) -> Where:
    """The positions at which the first `k` new tokens are predicted.

    The last prompt token is the first of them, so token `k` + 1 is predicted at an untouched
    position (it still reads the touched ones through attention).

    Args:
        k: New tokens, 1 or more.
        sinks: See `everywhere`.

    Raises:
        InputError: `k` is not a whole number of 1 or more.
    """
    _whole("k", k, at_least=1)
    return Around(0, k - 1, f"first_generated({k})", sinks=sinks)


def window(start: int, stop: int | None = None, *, sinks: bool = False) -> Where:
    """Absolute positions ``start <= p < stop``; negative ones count back from the prompt's end.

    Args:
        start: First position; -3 is the third last prompt token.
        stop: Position after the last one; None for no end. After a negative start: how far from
            the prompt's end to stop, also negative (None: no end, so generated tokens too).
        sinks: Position 0 is left out unless this is True, also when the window covers it.

    Raises:
        InputError: an empty window, or ends counted from different sides.
    """
    _whole("start", start)
    if stop is not None:
        _whole("stop", stop)
        if (start < 0) != (stop < 0) or stop <= start:
            raise InputError(
                "window: empty, or one end counted from the front and one from the back",
                got=f"window({start}, {stop})",
                valid="0 <= start < stop, or start < stop < 0",
                hint="combine two rules instead: from_position(2) & ~window(-3)",
            )
    if start >= 0:
        return Window(start, stop, sinks=sinks)
    # Position -1 is the last prompt token, which has distance 0.
    return Around(start + 1, stop, f"window({start}, {stop})", sinks=sinks)


def from_position(start: int, *, sinks: bool = False) -> Where:
    """Every position from `start` on, prompt and generated.

    Args:
        start: First position, counted from 0 at the first real token of a row.
        sinks: See `everywhere`.

    Raises:
        InputError: `start` is not a whole number of 0 or more.
    """
    _whole("start", start, at_least=0)
    return Window(start, None, sinks=sinks)


def _whole(name: str, value: int, at_least: int | None = None) -> None:
    if type(value) is not int or (at_least is not None and value < at_least):
        raise InputError(
            f"{name}: not a position",
            got=repr(value),
            valid="a whole number" + (f" >= {at_least}" if at_least is not None else ""),
            hint="positions count real tokens of a row from 0",
        )
