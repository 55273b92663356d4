"""Which token positions an intervention acts on: rules on absolute positions, never on indices.

Position 0 is the first real token of a row (padding has none). Rules see the same positions with
and without a KV cache, alone and in a padded batch, so they choose the same tokens.

::

    prompt:     <bos>  The  film  was |            generated:  really  good  .
    position      0     1    2     3  |                          4      5   6
    everywhere          x    x     x                             x      x   x
    prompt              x    x     x
    generated                      x                             x      x   x
    last prompt token              x

`generated` starts at the last prompt token, because that is where the first new token is
predicted. Position 0 is an attention sink (its norm is 10 to 1000 times the others', and adding
to it changes attention everywhere), so it is left out unless ``sinks=True``.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Int
from torch import Tensor

from tl_transfer.errors import InputError

Kind = Literal["everywhere", "prompt", "generated", "last_prompt_token"]
_KINDS = ("everywhere", "prompt", "generated", "last_prompt_token")


@dataclass(frozen=True)
class Where:
    """A rule for choosing positions; build it with the functions below."""

    kind: Kind = "everywhere"
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(
                "where: unknown rule",
                got=repr(self.kind),
                valid=", ".join(_KINDS),
                hint="use everywhere(), prompt(), generated() or last_prompt_token()",
            )

    @property
    def needs_prompt_length(self) -> bool:
        """Whether the rule depends on where the prompt ends."""
        return self.kind != "everywhere"

    @property
    def while_decoding(self) -> bool:
        """What the rule says of every token after the prompt."""
        return self.kind in ("everywhere", "generated")

    def choose(
        self, positions: Int[Tensor, "batch pos"], prompt_lengths: Int[Tensor, " batch"]
    ) -> Bool[Tensor, "batch pos"]:
        """Which positions to act on.

        Args:
            positions: Absolute positions; negative on padding.
            prompt_lengths: Real tokens in each prompt.
        """
        last = (prompt_lengths - 1)[:, None]
        first = 0 if self.sinks else 1
        real = positions >= first
        if self.kind == "everywhere":
            return real
        if self.kind == "prompt":
            return real & (positions <= last)
        if self.kind == "generated":
            return real & (positions >= last)
        return real & (positions == last)


def everywhere(*, sinks: bool = False) -> Where:
    """Every position, prompt and generated, but the attention sink at position 0."""
    return Where("everywhere", sinks)


def prompt(*, sinks: bool = False) -> Where:
    """The prompt only; through a KV cache its effect stays."""
    return Where("prompt", sinks)


def generated(*, sinks: bool = False) -> Where:
    """From the last prompt token on: every position at which a new token is predicted."""
    return Where("generated", sinks)


def last_prompt_token(*, sinks: bool = False) -> Where:
    """The last prompt token only."""
    return Where("last_prompt_token", sinks)
