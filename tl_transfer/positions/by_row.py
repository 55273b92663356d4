"""Rules on single rows of a batch, and masks made by the caller."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.positions.layout import Layout
from tl_transfer.positions.where import Need, Where


@dataclass(frozen=True)
class Rows(Where):
    """All positions of some rows."""

    chosen: tuple[bool, ...]

    @property
    def needs(self) -> frozenset[Need]:
        """Which prompt a row is."""
        return frozenset({"rows"})

    @property
    def n_rows(self) -> int:
        """One entry a prompt."""
        return len(self.chosen)

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """The chosen rows, wherever they are in the batch."""
        _require_rows("rows", len(self.chosen), layout)
        chosen = torch.tensor(self.chosen, device=layout.rows.device)[layout.rows]
        return chosen[:, None].expand(layout.positions.shape)

    def __str__(self) -> str:
        return f"rows({[int(row) for row in self.chosen]})"


@dataclass(frozen=True)
class TokenMask(Where):
    """Positions ticked off one by one."""

    chosen: tuple[tuple[bool, ...], ...]

    @property
    def needs(self) -> frozenset[Need]:
        """Which prompt a row is."""
        return frozenset({"rows"})

    @property
    def n_rows(self) -> int:
        """One mask a prompt."""
        return len(self.chosen)

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """The ticked positions; none after the end of a mask."""
        _require_rows("token_mask", len(self.chosen), layout)
        table = layout.remember(self, lambda: by_position(self.chosen, layout.positions.device))
        return look_up(table[layout.rows], layout)

    def __str__(self) -> str:
        return f"token_mask({len(self.chosen)} rows)"


def rows(chosen: Iterable[bool | int] | Bool[Tensor, " batch"], *, sinks: bool = False) -> Where:
    """All positions of the chosen rows: ``rows([True, False])`` steers the first of two prompts.

    Args:
        chosen: True or False for each prompt of the batch.
        sinks: See `everywhere`.

    Raises:
        InputError: no rows, or something else than True and False.
    """
    values = chosen.tolist() if isinstance(chosen, Tensor) else list(chosen)
    if not values or any(value not in (True, False) for value in values):
        raise InputError(
            "rows: not a choice of rows",
            got=repr(chosen)[:80],
            valid="True or False for each prompt",
            hint="rows([True, False, True])",
        )
    return Rows(tuple(map(bool, values)), sinks=sinks)


def token_mask(
    chosen: Sequence[Sequence[bool | int]] | Bool[Tensor, "batch pos"], *, sinks: bool = False
) -> Where:
    """The positions that are True in a mask of your own: one sequence of booleans a prompt.

    Entry p of a row is for absolute position p, whatever the padding; rows may differ in length,
    and positions after the end of a row are not chosen.

    Args:
        chosen: For each prompt True or False for each of its positions.
        sinks: See `everywhere`.

    Raises:
        InputError: no rows, or something else than True and False.
    """
    values = chosen.tolist() if isinstance(chosen, Tensor) else [list(row) for row in chosen]
    if not values or any(value not in (True, False) for row in values for value in row):
        raise InputError(
            "token_mask: not a mask",
            got=repr(chosen)[:80],
            valid="for each prompt True or False for each of its positions",
            hint="describe(model, prompt, ...) lists the positions of a prompt",
        )
    return TokenMask(tuple(tuple(map(bool, row)) for row in values), sinks=sinks)


def by_position(
    rows: Sequence[Sequence[bool]], device: torch.device
) -> Bool[Tensor, "row position"]:
    """Rows of different length as one table of absolute positions."""
    table = torch.zeros((len(rows), max(1, *map(len, rows))), dtype=torch.bool)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row, dtype=torch.bool)
    return table.to(device)


def look_up(table: Bool[Tensor, "batch position"], layout: Layout) -> Bool[Tensor, "batch pos"]:
    """What a table of absolute positions says of each column."""
    positions = layout.positions
    inside = (positions >= 0) & (positions < table.shape[1])
    return inside & table.gather(1, positions.clamp(0, table.shape[1] - 1))


def _require_rows(name: str, n: int, layout: Layout) -> None:
    if n != layout.n_rows:
        raise InputError(
            f"{name}: one entry for each prompt",
            got=f"{n} entries for {layout.n_rows} prompts",
            valid="as many as prompts",
            hint="pass all prompts in one call",
        )
