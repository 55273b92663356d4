"""Reading activations: right-padded batches by length, no gradient, no block past the last hook.

Three rules hold everywhere. Position 0 and rows whose norm is over ten times the median are left
out and counted (attention sinks and massive activations carry no meaning and dominate every mean;
Sun et al. 2024). An activation that is not finite stops the run and names its text, or, where a run
must survive any text, leaves that text out and counts it. And texts are read in an order of their
own, by length and hash, so that nothing depends on how they were listed or on the size of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.data.ragged import Ragged
from tl_transfer.errors import InputError
from tl_transfer.models.batches import in_order, pad
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel

#: Cells of one batch; a few thousand keep the matrix products large and the memory small.
MAX_TOKENS = 4096
#: Rows above this multiple of the median norm are massive activations.
OUTLIER = 10.0
#: Bytes of text from which the median norm is taken: about a thousand tokens are exact enough.
PROBE_BYTES = 4096
#: Texts read first, in random order, for partners of wrong pairs in every fold: at most a fifth.
SAMPLE = 60


@dataclass(frozen=True)
class Rows:
    """Activations of some texts in one model.

    Attributes:
        values: Hook point -> rows.
        text: Index of the text each row came from; rows of a text follow each other.
    """

    values: dict[str, Float[Tensor, "row d_model"]]
    text: Int[Tensor, " row"]


class Reader:
    """Rows of one model at several hook points: chosen tokens, finite, no massive norms.

    Args:
        model: Who reads.
        points: Hook points to read.
        ids: Tokens of every text.
        positions: Rising positions to read in every text; position 0 is left out and counted.
        strict: Raise at an activation that is not finite; else leave the whole text out.

    Attributes:
        dropped: Reason -> number of chosen tokens that were left out for it.
        limits: Hook point -> norm above which a row is massive.
        not_finite: Texts that were left out because an activation of theirs is not finite.
    """

    def __init__(
        self,
        model: HookedModel,
        points: Sequence[HookPoint],
        ids: Sequence[Sequence[int] | np.ndarray],
        positions: Sequence[np.ndarray],
        *,
        strict: bool = True,
    ) -> None:
        self.model, self.points, self.ids, self.strict = model, points, ids, strict
        # Rising, so what is past the sink is the end of a row.
        self.positions = Ragged([row[np.searchsorted(row, 1) :] for row in positions])
        n_sinks = sum(map(len, positions)) - self.positions.size
        self.dropped = {"position_0": n_sinks, "massive_norm": 0}
        if not strict:
            self.dropped["not_finite"] = 0
        self.limits: dict[str, float] = {}
        self.not_finite: set[int] = set()

    def read(self, index: Sequence[int]) -> Rows:
        """All chosen tokens of some texts, massive norms included.

        Raises:
            InputError: an activation is not finite, and the reader is strict.
        """
        counts = torch.tensor([len(self.positions[i]) for i in index])
        row = torch.repeat_interleave(torch.arange(len(index)), counts)
        places = np.concatenate([self.positions[i] for i in index], dtype=np.int64)
        column = torch.from_numpy(places)
        values = _read(self.model, [self.ids[i] for i in index], self.points, row, column)
        text = torch.repeat_interleave(torch.tensor(list(index)), counts)
        if self.strict:
            _require_finite(values, text)
        else:
            bad = torch.stack([~torch.isfinite(v).all(-1) for v in values.values()]).any(0).cpu()
            self.not_finite |= set(text[bad].tolist())
        return Rows(values, text)

    def learn(self, rows: Sequence[Rows]) -> None:
        """Take the limit of each hook point's norms from some rows."""
        parts = [take(part, self._finite(part)) if self.not_finite else part for part in rows]
        for point in self.points:
            found = torch.cat([norms(part.values[point.name]) for part in parts])
            if len(found):
                self.limits[point.name] = OUTLIER * float(found.median())

    def keeps(self, rows: Rows) -> Bool[Tensor, " row"]:
        """Which rows have no massive norm at any hook point, of texts that are finite; counts."""
        finite = kept = self._finite(rows)
        for name, limit in self.limits.items():
            kept = kept.to(rows.values[name].device) & (norms(rows.values[name]) <= limit)
        kept = kept.cpu()
        n_finite = int(finite.sum())
        self.dropped["massive_norm"] += n_finite - int(kept.sum())
        if not self.strict:
            self.dropped["not_finite"] += len(kept) - n_finite
        return kept

    def _finite(self, rows: Rows) -> Bool[Tensor, " row"]:
        """Rows of texts that are not left out."""
        if not self.not_finite:
            return torch.ones(len(rows.text), dtype=torch.bool)
        return ~torch.isin(rows.text, torch.tensor(sorted(self.not_finite)))


def reading_order(
    hashes: Sequence[str], n_bytes: Sequence[int], lengths: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The order in which texts are read, whatever the order in which they are listed.

    Args:
        hashes: Hash of every text.
        n_bytes: Their lengths in bytes.
        lengths: Their lengths in tokens; texts without tokens are not read.

    Returns:
        A random sample, which says what norm is usual and gives the control its wrong pairs, and
        all others; both longest first, so that what does not fit in memory fails early.
    """
    by_hash = sorted((i for i, n in enumerate(lengths) if n), key=hashes.__getitem__)
    probe = by_hash[: min(SAMPLE, len(by_hash) // 5)]
    while len(probe) < len(by_hash) and sum(n_bytes[i] for i in probe) < PROBE_BYTES:
        probe.append(by_hash[len(probe)])
    rest = by_hash[len(probe) :]
    return sorted(probe, key=lambda i: -lengths[i]), sorted(rest, key=lambda i: -lengths[i])


def read_in_order(
    readers: Sequence[Reader],
    order: tuple[list[int], list[int]],
    widths: Sequence[int],
    *,
    max_tokens: int,
    skip: int = 0,
) -> Iterator[tuple[list[int], tuple[Rows, ...]]]:
    """Batches of texts as every reader reads them, once the usual norms are known.

    Args:
        readers: One or two models; those that know their limits keep them (with `skip`, all do).
        order: From `reading_order`.
        widths: Cells that each text needs in a batch.
        max_tokens: Most cells of a batch.
        skip: Batches to leave out, because they were read before.
    """
    probe, rest = (list(in_order(part, widths, max_tokens=max_tokens)) for part in order)
    first = []
    if not skip and not all(reader.limits for reader in readers):
        first = [(index, tuple(reader.read(index) for reader in readers)) for index in probe]
        for number, reader in enumerate(readers):
            reader.learn([rows[number] for _, rows in first])
        skip = len(probe)
    while first:
        yield first.pop(0)
    for index in [*probe, *rest][skip:]:
        yield index, tuple(reader.read(index) for reader in readers)


def mean_rows(rows: Rows, kept: Bool[Tensor, " row"]) -> Rows:
    """One row a text, the mean of its kept rows in float32 (or float64); texts with none go."""
    texts, place = torch.unique_consecutive(rows.text[kept], return_inverse=True)
    number = torch.bincount(place, minlength=len(texts))
    means = {}
    for name, values in rows.values.items():
        dtype = values.dtype if values.dtype == torch.float64 else torch.float32
        here = values[kept.to(values.device)].to(dtype)
        total = here.new_zeros(len(texts), here.shape[1])
        total.index_add_(0, place.to(here.device), here)
        means[name] = total / number.to(here.device)[:, None]
    return Rows(means, texts)


def take(rows: Rows, index: Int[Tensor, " row"] | Bool[Tensor, " all"]) -> Rows:
    """Some of the rows."""
    values = {name: value[index.to(value.device)] for name, value in rows.values.items()}
    return Rows(values, rows.text[index])


def norms(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
    """Norm of every row, added up in float64."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)


def _read(
    model: HookedModel,
    ids: Sequence[Sequence[int] | np.ndarray],
    points: Sequence[HookPoint],
    row: Tensor,
    column: Tensor,
) -> dict[str, Tensor]:
    batch = pad(ids, side="right", pad_id=model.tokenizer.pad_token_id or 0)
    tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
    read = model.residuals(tokens, mask, points)
    # Layers of one model may be on several devices.
    at = {a.device: (row.to(a.device), column.to(a.device)) for a in read.values()}
    return {name: activation[at[activation.device]] for name, activation in read.items()}


def _require_finite(rows: dict[str, Tensor], texts: Tensor) -> None:
    for name, activation in rows.items():
        bad = ~torch.isfinite(activation).all(-1)
        if bool(bad.any()):
            raise InputError(
                f"activations: not finite at {name}",
                got=f"{int(bad.sum())} rows, first in text {int(texts[bad.cpu()][0])}",
                valid="finite activations",
                hint="use dtype='float32', or look at that text and at the model's weights",
            )
