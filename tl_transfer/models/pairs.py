"""Paired rows of two models: the same text, the same bytes read.

Either both models read the texts now, batch by batch, or each has read them before into a store;
both give the same rows in the same order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.align import AlignmentReport, match_many
from tl_transfer.data.ragged import Ragged
from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.data.tokens import Reading, Tokens, read_tokens
from tl_transfer.errors import InputError
from tl_transfer.models.capture import (
    MAX_TOKENS,
    Reader,
    Rows,
    mean_rows,
    read_in_order,
    reading_order,
    take,
)
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel, Site

#: Side -> reason -> tokens: ``n_tokens`` chosen, ``n_rows`` used, and those left out.
Dropped = dict[str, dict[str, int]]


@dataclass(frozen=True)
class PairedRows:
    """Aligned activation rows of one batch of texts.

    Attributes:
        x: Source hook point -> rows.
        y: Target hook point -> rows.
        text: Index of the text each row came from; rows of a text follow each other.
    """

    x: dict[str, Float[Tensor, "row d_source"]]
    y: dict[str, Float[Tensor, "row d_target"]]
    text: Int[Tensor, " row"]


class Pairs(ABC):
    """Where paired rows come from.

    Attributes:
        hashes: SHA-256 of every text.
        documents: Document of every text.
        n_pairs: Pairs of chosen tokens in every text.
        report: How much was paired.
        tokens: Which tokens are read.
    """

    hashes: list[str]
    documents: list[str]
    n_pairs: list[int]
    report: AlignmentReport
    tokens: Tokens

    @property
    @abstractmethod
    def dropped(self) -> Dropped:
        """Tokens left out, by side and reason; complete when all batches have been read.

        ``position_0``: the attention sink; ``massive_norm``: over ten times the median;
        ``not_paired``: the partner is missing or was left out.
        """

    @abstractmethod
    def batches(
        self, *, max_tokens: int = MAX_TOKENS, progress: bool = True
    ) -> Iterator[PairedRows]:
        """Read everything once."""


class ModelPairs(Pairs):
    """Pairs that two loaded models read now; nothing is kept. See `Pairs`.

    Args:
        source: Sites of one model.
        target: Sites of one model.
        texts: Plain texts and chats.
        documents: Document of each text; default, each text is its own.
        tokens: Which tokens are read.
        readings: What each model makes of the texts, if that was done before.
        limits: Norms above which a row is massive, of source and target, instead of learning them
            from these texts; see `Reader`.
        strict: Refuse texts in which nothing corresponds, and stop at an activation that is not
            finite; else leave such texts out and count them.

    Raises:
        InputError: no texts, a text that one of the models cannot read, not one pair of tokens.
    """

    def __init__(
        self,
        source: Sequence[Site],
        target: Sequence[Site],
        texts: Sequence[Any],
        *,
        documents: Sequence[str] | None = None,
        tokens: Tokens | None = None,
        readings: Sequence[list[Reading]] | None = None,
        limits: Sequence[dict[str, float]] = ({}, {}),
        strict: bool = True,
    ) -> None:
        self.tokens = tokens or Tokens()
        given = as_texts(texts)
        self.hashes = [text_hash(text) for text in given]
        self.documents = documents_of(self.hashes, documents)
        models = (source[0].model, target[0].model)
        found = readings or [read_tokens(given, m.tokenizer, self.tokens) for m in models]
        matches = list(match_many(*([reading.keys for reading in side] for side in found)))
        self.n_pairs = [len(here) for here, _ in matches]
        self.report = paired_report(found[0], found[1], self.n_pairs)
        if strict:
            require_pairs(self.report)
        for model, side in zip(models, found, strict=True):
            model.require_fits(max(len(reading.ids) for reading in side), "texts")
        # Kept of the readings: ids, positions and places of pairs, four bytes each.
        self._matches = tuple(Ragged([match[side] for match in matches]) for side in (0, 1))
        self._n_chosen = tuple([len(reading.keys) for reading in side] for side in found)
        self._n_bytes = [reading.n_bytes for reading in found[0]]
        self._readers = tuple(
            reader_of(sites[0].model, [site.point for site in sites], side, strict=strict)
            for sites, side in zip((source, target), found, strict=True)
        )
        for reader, known in zip(self._readers, limits, strict=True):
            reader.limits.update(known)
        self._n_used = [0, 0]
        self._n_rows = 0

    @property
    def limits(self) -> tuple[dict[str, float], dict[str, float]]:
        """Hook point -> norm above which a row is massive, of source and target."""
        return self._readers[0].limits, self._readers[1].limits

    @property
    def not_finite(self) -> set[int]:
        """Texts left out because an activation of either model is not finite."""
        return self._readers[0].not_finite | self._readers[1].not_finite

    @property
    def dropped(self) -> Dropped:
        """See `Pairs`."""
        sides = {}
        for side, reader, n_chosen, used in zip(
            ("source", "target"), self._readers, self._n_chosen, self._n_used, strict=True
        ):
            n_tokens = sum(n_chosen)
            sides[side] = {
                "n_tokens": n_tokens,
                "n_rows": self._n_rows,
                **reader.dropped,
                "not_paired": n_tokens - used - sum(reader.dropped.values()),
            }
        return sides

    def batches(
        self, *, max_tokens: int = MAX_TOKENS, progress: bool = True
    ) -> Iterator[PairedRows]:
        """See `Pairs`.

        Raises:
            InputError: an activation is not finite, and the pairs are strict.
        """
        here, there = ([len(row) for row in reader.ids] for reader in self._readers)
        chosen = zip(*self._n_chosen, strict=True)
        lengths = [n if s and t else 0 for n, (s, t) in zip(here, chosen, strict=True)]
        widths = [max(pair) for pair in zip(here, there, strict=True)]
        order = reading_order(self.hashes, self._n_bytes, lengths)
        with tqdm(total=sum(lengths), unit="tok", desc="capture", disable=not progress) as bar:
            for index, (x, y) in read_in_order(self._readers, order, widths, max_tokens=max_tokens):
                yield self._paired(index, x, y)
                bar.update(sum(lengths[i] for i in index))

    def _paired(self, index: Sequence[int], x: Rows, y: Rows) -> PairedRows:
        kept = [reader.keeps(rows) for reader, rows in zip(self._readers, (x, y), strict=True)]
        if self.tokens.keep == "mean":
            counts = [torch.bincount(r.text[k]) for r, k in zip((x, y), kept, strict=True)]
            x, y = mean_rows(x, kept[0]), mean_rows(y, kept[1])
            here, there = torch.isin(x.text, y.text), torch.isin(y.text, x.text)
            for side, count in enumerate(counts):
                self._n_used[side] += int(count[x.text[here]].sum())
        else:
            places = [self._places(side, index) for side in (0, 1)]
            found = (places[0] >= 0) & (places[1] >= 0)
            here, there = places[0][found], places[1][found]
            both = kept[0][here] & kept[1][there]
            here, there = here[both], there[both]
            self._n_used = [used + len(here) for used in self._n_used]
        x, y = take(x, here), take(y, there)
        self._n_rows += len(x.text)
        return PairedRows(x.values, y.values, x.text)

    def _places(self, side: int, index: Sequence[int]) -> Int[Tensor, " pair"]:
        """Row of each pair's token in the rows of a batch; -1 if it is not read (position 0)."""
        places, start = [], 0
        for i in index:
            n_read = len(self._readers[side].positions[i])
            place = self._matches[side][i] - (self._n_chosen[side][i] - n_read)
            places.append(np.where(place >= 0, place + start, -1))
            start += n_read
        return torch.from_numpy(np.concatenate(places, dtype=np.int64))


def reader_of(
    model: HookedModel,
    points: Sequence[HookPoint],
    readings: Sequence[Reading],
    *,
    strict: bool = True,
) -> Reader:
    """A reader of the chosen tokens; see `Reader`."""
    ids, positions = Ragged([r.ids for r in readings]), [r.positions for r in readings]
    return Reader(model, points, ids, positions, strict=strict)


def paired_report(
    source: Sequence[Reading], target: Sequence[Reading], n_pairs: Sequence[int]
) -> AlignmentReport:
    """Counts over many texts."""
    return AlignmentReport(
        n_texts=len(n_pairs),
        n_failed=0,
        n_unpaired=sum(not n for n in n_pairs),
        n_pairs=sum(n_pairs),
        n_source=sum(reading.n_chosen for reading in source),
        n_target=sum(reading.n_chosen for reading in target),
        n_dropped=sum(reading.n_dropped for reading in (*source, *target)),
    )


def require_pairs(report: AlignmentReport) -> None:
    """Refuse texts in which nothing corresponds."""
    if report.n_pairs == 0:
        raise InputError(
            "texts: not one token of the source corresponds to one of the target",
            got=str(report),
            valid="texts with at least one word, and a choice of tokens that is in them",
            hint="look at a text: is it empty, or without the span or role that was asked for?",
        )
