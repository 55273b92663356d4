"""Placement: at which columns of a batch one intervention acts, and how strongly.

Worked out once for a batch, before it runs; a decoding step then looks up its column in a list.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions.protocol import Intervention, Strength
from tl_transfer.interventions.schedules import Schedule
from tl_transfer.positions.layout import Layout
from tl_transfer.positions.where import PositionWarning

_NOBODY, _EVERYBODY, _SOME = 0, 1, 2


class Decision(NamedTuple):
    """What an intervention does in one pass.

    Attributes:
        mask: Positions to edit, [batch, pos, 1]; None for all of them.
        strength: A float, or a tensor that broadcasts over [batch, pos, 1].
    """

    mask: Tensor | None
    strength: float | Tensor


class Placement:
    """An intervention laid out over a batch.

    Args:
        intervention: Its rule is used, its strength only through `strength`.
        strength: As set now; strengths may change while an intervention is attached.
        layout: The batch, with room for every token that may come.
    """

    def __init__(self, intervention: Intervention, strength: Strength, layout: Layout) -> None:
        self._where = intervention.where
        self._layout = layout
        self._by_token = "tokens" in self._where.needs
        self._strength, self._column_strength = _lay_out_strength(strength, layout)
        self._on = None if isinstance(self._strength, float) else self._strength[..., 0] != 0
        self._off = self._strength == 0 if isinstance(self._strength, float) else False
        if self._off or self._by_token:
            return  # nothing to choose, or what is generated decides: asked again at every pass
        self.chosen = self._choose(layout, slice(None))
        somebody, everybody = self.chosen.any(0).tolist(), self.chosen.all(0).tolist()
        self._warn(nobody=not any(somebody))
        self._columns = [
            _EVERYBODY if every else _SOME if some else _NOBODY
            for some, every in zip(somebody, everybody, strict=True)
        ]

    def _warn(self, *, nobody: bool) -> None:
        """Say so where a rule does nothing, or less than it seems to."""
        where, layout = self._where, self._layout
        single = layout.prompt_lengths == 1
        if not where.sinks and bool(single.any()):
            lost = single & (where.matches(layout) & (layout.positions == 0)).any(1)
            if bool(lost.any()):
                warnings.warn(
                    f"{where}: a prompt of one token is all attention sink, which is left out, so "
                    "its first new token is predicted unsteered (rows "
                    f"{layout.rows[lost].tolist()}); sinks=True steers it",
                    PositionWarning,
                    stacklevel=2,
                )
        if not nobody or len(layout.rows) < layout.n_rows:
            return
        by_place = where.needs <= {"prompt end"} and not bool(single.all())
        if ("text" in where.needs or by_place) and not bool(where.choose(layout).any()):
            warnings.warn(
                f"{where}: chooses no token of any prompt or of what may follow; describe(model, "
                "prompt, ...) shows the tokens",
                PositionWarning,
                stacklevel=2,
            )

    def _choose(self, layout: Layout, columns: slice) -> Bool[Tensor, "batch pos"]:
        chosen = self._where.choose(layout)
        if self._on is not None:
            # A row of strength 0 keeps its very bits: -0.0 + 0 * v is not -0.0.
            chosen = chosen & (self._on[:, columns] if self._on.shape[1] > 1 else self._on)
        return chosen

    def at(self, start: int, stop: int, tokens: Tensor | None = None) -> Decision | None:
        """What to do in the pass over columns ``start:stop``; None for nothing at all."""
        if self._off:
            return None
        if self._by_token:
            columns = self._layout.columns(start, stop, tokens)
            mask = self._choose(columns, slice(start, stop))[..., None]
            return Decision(mask, self._strength_at(start, stop))
        kinds = self._columns[start:stop]
        if not any(kinds):
            return None
        if kinds.count(_EVERYBODY) == len(kinds):
            return Decision(None, self._strength_at(start, stop))
        return Decision(self.chosen[:, start:stop, None], self._strength_at(start, stop))

    def _strength_at(self, start: int, stop: int) -> float | Tensor:
        if self._column_strength is not None:
            values = self._column_strength[start:stop]
            if values.count(values[0]) == len(values):
                return values[0]
        if isinstance(self._strength, float) or self._strength.shape[1] == 1:
            return self._strength
        return self._strength[:, start:stop]


def _lay_out_strength(
    strength: Strength, layout: Layout
) -> tuple[float | Tensor, list[float] | None]:
    """The strength of every row and column, and of every column where all rows agree.

    Returns:
        A float, or [batch or 1, columns or 1, 1] in float32; and one float a column, or None.
    """
    if not isinstance(strength, Schedule):
        return _of_rows(strength, layout), None
    base = _of_rows(strength.strength, layout)
    factors = strength.factors(layout.generated_index)[..., None]
    if isinstance(base, float):
        table = base * factors
        if bool((table == table[:1]).all()):
            return table[:1], table[0, :, 0].tolist()
        return table, None
    return base * factors, None


def _of_rows(strength: float | Tensor, layout: Layout) -> float | Tensor:
    """A float as it is; one number a row as [batch, 1, 1]."""
    if not isinstance(strength, Tensor) or strength.ndim == 0:
        return float(strength)
    if len(strength) != layout.n_rows:
        raise InputError(
            "strength: one number for each row of the batch",
            got=f"{len(strength)} strengths for {layout.n_rows} rows",
            valid="a float, or a tensor as long as the list of prompts",
            hint="pass all prompts in one call, and one strength for each",
        )
    values = strength.to(layout.positions.device, torch.float32)
    return values[layout.rows][:, None, None]
