"""Stitched: a target that goes on from a source's mapped activations, on texts both have read.

The rule for positions: a token of the target is replaced when it ends where a token of the source
ends, except position 0 and tokens whose norm is over ten times the median in either model (no map
was fitted on those). All other positions keep the target's own activation, in every arm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.align import match_many
from tl_transfer.data.texts import Text
from tl_transfer.data.tokens import Tokens, read_tokens
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.capture import OUTLIER, norms
from tl_transfer.models.resume import Resumed, edited_copies
from tl_transfer.models.surface import HookedModel

MEAN = "mean_ablation"
IDENTITY = "identity"


@dataclass(frozen=True)
class Stitch:
    """One batch of the target, at the layer where it is replaced.

    Attributes:
        tokens: The target's ids, padded on the left.
        text: Text of every replaced row.
        row, column: Its place in the batch.
        values: Arm -> what is put there.
        resumed: The batch, ready to go on.
    """

    tokens: Int[Tensor, "batch pos"]
    text: Int[Tensor, " row"]
    row: Int[Tensor, " row"]
    column: Int[Tensor, " row"]
    values: dict[str, Float[Tensor, "row d_target"]]
    resumed: Resumed

    def residuals(
        self, added: Mapping[str, Float[Tensor, " d_target"]]
    ) -> dict[str, Float[Tensor, "batch pos d_target"]]:
        """Residual of every arm: ``own`` first, then replaced ones, then those with a step added.

        Args:
            added: Arm -> a step, added at every position but the first.
        """
        own = self.resumed.residual
        found = {"own": own}
        for name, values in self.values.items():
            found[name] = own.clone()
            found[name][self.row, self.column] = values.to(own.dtype)
        chosen = self.resumed.positions > 0
        for name, step in added.items():
            found[name] = edited_copies(own, chosen, step[None])
        return found

    def final(
        self, added: Mapping[str, Float[Tensor, " d_target"]], *, keep: Int[Tensor, " kept"]
    ) -> tuple[list[str], Float[Tensor, "arm batch kept d_target"]]:
        """Names of the arms, and their states after the final norm at some columns."""
        residuals = self.residuals(added)
        states = self.resumed.final(torch.cat(list(residuals.values())), keep=keep)
        return list(residuals), states.unflatten(0, (len(residuals), len(self.tokens)))


class Stitched:
    """Texts in two models, and the target's batches with one layer replaced.

    Args:
        maps: Arm -> a map between the same two hook points; the first one's norms are the limits
            above which a token is left as it is.
        source: Read at the maps' source.
        target: Goes on from the maps' target.
        texts: What both read.

    Attributes:
        usable: Numbers of the texts that have a token to replace.
        n_tokens: Text tokens of the target, of all texts.

    Raises:
        HookError: the maps' target is not after a block.
    """

    def __init__(
        self,
        maps: Mapping[str, Mapper],
        source: HookedModel,
        target: HookedModel,
        texts: Sequence[Text],
    ) -> None:
        self.source, self.target = source, target
        first = next(iter(maps.values()))
        self.here = source.hook_point(first.source.hook_point)
        self.there = target.hook_point(first.target.hook_point)
        self._maps = {name: one.to(target.device) for name, one in maps.items()}
        self._limits = (OUTLIER * first.source_norm, OUTLIER * first.target_norm)
        here, there = (read_tokens(texts, m.tokenizer, Tokens()) for m in (source, target))
        self._ids = ([reading.ids for reading in here], [reading.ids for reading in there])
        for model, side in ((source, self._ids[0]), (target, self._ids[1])):
            model.require_fits(max(map(len, side)), "texts")
        self.n_tokens = sum(reading.n_chosen for reading in there)
        #: Positions in both models of every pair, without the two attention sinks.
        self._places = []
        matches = match_many([r.keys for r in here], [r.keys for r in there])
        for (a, b), one, other in zip(matches, here, there, strict=True):
            both = np.stack([one.positions[a], other.positions[b]]).astype(np.int64)
            self._places.append(torch.from_numpy(both[:, (both > 0).all(0)]))
        self.usable = [i for i, places in enumerate(self._places) if places.shape[1]]
        self._mean: Tensor | None = None
        #: Source rows of a batch, kept from the pass that takes the mean to the one that uses them.
        self._kept_rows: dict[tuple[int, ...], Tensor] = {}

    def groups(self, max_tokens: int) -> list[list[int]]:
        """Texts of each batch, as indices of `usable`."""
        lengths = [max(len(self._ids[0][i]), len(self._ids[1][i])) for i in self.usable]
        return list(by_length(lengths, max_tokens=max_tokens))

    def batches(self, groups: Sequence[Sequence[int]]) -> Iterator[Stitch]:
        """Every batch; its arms are the maps, ``mean_ablation``, ``identity`` at equal widths."""
        mean = self.mean(groups)
        for group in groups:
            yield self._stitch(group, mean)

    def mean(self, groups: Sequence[Sequence[int]]) -> Float[Tensor, " d_target"]:
        """Mean of the target's own activations at the positions that are replaced."""
        if self._mean is not None:
            return self._mean
        total = torch.zeros(self.target.d_model, dtype=torch.float64, device=self.target.device)
        n = 0
        for group in groups:
            x, _, row, place = self._source_rows(group)
            batch = self._batch(1, group, "right")
            read = self.target.residuals(*batch, [self.there])[self.there.name]
            y = read[row.to(read.device), place.to(read.device)]
            kept = self._kept(x, y)
            total += y[kept].double().sum(0)
            n += int(kept.sum())
        self._mean = (total / max(n, 1)).float()
        return self._mean

    def _stitch(self, group: Sequence[int], mean: Tensor) -> Stitch:
        x, text, row, place = self._source_rows(group)
        tokens, mask = self._batch(1, group, "left")
        row, column = row.to(mask.device), place.to(mask.device)
        column = column + (mask.shape[1] - mask.sum(-1))[row]
        resumed = Resumed(self.target, self.there, tokens, mask)
        own = resumed.residual
        kept = self._kept(x, own[row, column])
        x, text, row, column = x[kept], text[kept.cpu()], row[kept], column[kept]
        values = {name: mapper.map_points(x) for name, mapper in self._maps.items()}
        if x.shape[-1] == own.shape[-1]:
            values[IDENTITY] = x
        values[MEAN] = mean.expand(len(x), -1)
        return Stitch(tokens, text, row, column, values, resumed)

    def _source_rows(self, group: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Source rows that have a partner, their text, row in the batch, and target position."""
        places = [self._places[self.usable[i]] for i in group]
        counts = torch.tensor([part.shape[1] for part in places])
        row = torch.repeat_interleave(torch.arange(len(places)), counts)
        text = torch.tensor([self.usable[i] for i in group])[row]
        here, there = torch.cat(places, 1)
        x = self._kept_rows.pop(tuple(group), None)
        if x is None:
            batch = self._batch(0, group, "right")
            read = self.source.residuals(*batch, [self.here])[self.here.name]
            x = read[row.to(read.device), here.to(read.device)]
            self._kept_rows[tuple(group)] = x
        return x.to(self.target.device), text, row, there

    def _kept(self, x: Tensor, y: Tensor) -> Tensor:
        return (norms(x) <= self._limits[0]) & (norms(y) <= self._limits[1])

    def _batch(self, side: int, group: Sequence[int], padding: str) -> tuple[Any, Any]:
        model = (self.source, self.target)[side]
        ids = [self._ids[side][self.usable[i]] for i in group]
        batch = pad(ids, side=padding, pad_id=model.tokenizer.pad_token_id or 0)
        return batch.tokens.to(model.device), batch.mask.to(model.device)
