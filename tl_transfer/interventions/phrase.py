"""Adding a vector of its own to each token of a phrase.

`AddAtPhrase`   x_p <- x_p + s d_k at each position p of the phrase that pairs with token k
                (activation addition; Turner et al. 2023, and the triggers of Oozeer et al. 2025)
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.errors import HookError
from tl_transfer.interventions.base import ADD, Operator
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.positions import everywhere
from tl_transfer.positions.by_row import by_position, look_up
from tl_transfer.positions.layout import Encoded, Layout
from tl_transfer.positions.where import Need, Where
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import PositionVectors

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@dataclass(frozen=True)
class AtPhrase(Where):
    """The tokens of the phrase of some position vectors, wherever it occurs in the prompt."""

    vectors: PositionVectors

    @property
    def needs(self) -> frozenset[Need]:
        """The text of the prompt."""
        return frozenset({"text"})

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """Every occurrence, in every row that has one."""

        def table() -> Tensor:
            rows = [rows_at(self.vectors, prompt) for prompt in _prompts(layout, str(self))]
            return by_position([[k >= 0 for k in row] for row in rows], layout.positions.device)

        return look_up(layout.remember(self, table), layout)

    def __str__(self) -> str:
        return f"at_phrase({self.vectors.phrase!r})"


@dataclass(frozen=True, eq=False)
class AddAtPhrase(Operator):
    """Add to each token of a phrase the direction that was extracted there.

    Args:
        vectors: One direction a token, with the phrase.
        strength: In multiples of the directions as extracted: their lengths differ by token, and
            that is part of what they are.
        where: A further restriction; default none but the attention sink.
    """

    stage: ClassVar[int] = ADD
    vectors: PositionVectors
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        at = AtPhrase(self.vectors, sinks=self.where.sinks)
        object.__setattr__(self, "where", at & self.where)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The one of the vectors."""
        return (self.vectors.space,)

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """One addition; the steps of a batch are laid out once.

        Raises:
            HookError: no `passes`, so the tokens of the phrase are unknown.
        """
        if passes is None:
            raise HookError(
                "AddAtPhrase: the tokens of the phrase are unknown here",
                got="an activation only",
                valid="attach(...).generate with texts, or fwd_hooks(..., prompts=...)",
                hint="vectors.mean() is one vector for every position",
            )
        directions = torch.cat(
            [self.vectors.directions, self.vectors.directions.new_zeros(1, like.shape[-1])]
        )
        directions = directions.to(like.device, torch.float32)
        seen: list[Any] = [None, None]

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            layout = passes.layout
            assert layout is not None
            if seen[0] is not layout:
                seen[:] = [layout, self._rows(layout).to(x.device)]
            steps = directions[seen[1][:, passes.start : passes.stop]]
            return x + (strength * steps).to(x.dtype)

        return edit

    def _rows(self, layout: Layout) -> Int[Tensor, "batch pos"]:
        """For each column the row of the directions; -1, which is zero, outside the phrase."""
        rows = [rows_at(self.vectors, prompt) for prompt in _prompts(layout, str(self.where))]
        table = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.long)
        for i, row in enumerate(rows):
            table[i, : len(row)] = torch.tensor(row)
        positions = layout.positions
        table = table.to(positions.device)
        inside = (positions >= 0) & (positions < table.shape[1])
        found = table.gather(1, positions.clamp(0, table.shape[1] - 1))
        return torch.where(inside, found, -1)


def rows_at(vectors: PositionVectors, prompt: Encoded) -> list[int]:
    """For each token of a prompt the direction that belongs to it, or -1."""
    encoded = prompt.encoded if isinstance(prompt, EncodedChat) else prompt
    found = [-1] * len(encoded.ids)
    if vectors.phrase.encode() not in encoded.text.encode():
        return found
    positions, rows = vectors.places(encoded)
    for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
        found[position] = row
    return found


def _prompts(layout: Layout, what: str) -> tuple[Encoded, ...]:
    if layout.prompts is None:
        raise HookError(
            "where: the phrase is looked up in the text of the prompt, and it is unknown here",
            got=what,
            valid="attach(...).generate with texts, or fwd_hooks(..., prompts=...)",
            hint="vectors.mean() is one vector for every position",
        )
    return layout.prompts
