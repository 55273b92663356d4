"""Pairs of rows that two models have read before, each into its own store; no model is needed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from tl_transfer.data.align import AlignmentReport, match_many
from tl_transfer.data.store import ActivationStore, StoreSite
from tl_transfer.errors import InputError
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.pairs import Dropped, PairedRows, Pairs, require_pairs


class StorePairs(Pairs):
    """Joins two stores by text and by what was read of it. See `Pairs`.

    Args:
        source: Hook points of one store.
        target: Hook points of another (or the same) one.

    Raises:
        InputError: other tokens were read, or nothing corresponds.
    """

    def __init__(self, source: Sequence[StoreSite], target: Sequence[StoreSite]) -> None:
        self._sites = (list(source), list(target))
        here, there = self._stores = source[0].store, target[0].store
        if here.tokens != there.tokens:
            raise InputError(
                "source, target: two stores of different tokens",
                got=f"{here.tokens} and {there.tokens}",
                valid="stores that were captured with the same tokens=",
                hint="capture one of them again",
            )
        self.tokens = here.tokens
        self._texts = [
            (i, there.number[name]) for i, name in enumerate(here.hashes) if name in there.number
        ]
        _require_same_documents(here, there, self._texts)
        self.hashes = [here.hashes[i] for i, _ in self._texts]
        self.documents = [here.documents[i] for i, _ in self._texts]
        texts = [here.texts, there.texts]
        keys = [[texts[side].keys[text[side]] for text in self._texts] for side in (0, 1)]
        self.n_pairs = [len(matched) for matched, _ in match_many(keys[0], keys[1])]
        self.report = AlignmentReport(
            n_texts=len(self._texts),
            n_failed=0,
            n_unpaired=sum(not n for n in self.n_pairs),
            n_pairs=sum(self.n_pairs),
            n_source=sum(texts[0].n_chosen[i] for i, _ in self._texts),
            n_target=sum(texts[1].n_chosen[j] for _, j in self._texts),
            n_dropped=sum(texts[0].n_dropped[i] + texts[1].n_dropped[j] for i, j in self._texts),
        )
        require_pairs(self.report)
        self._n_rows = 0

    @property
    def dropped(self) -> Dropped:
        """See `Pairs`."""
        return {
            side: {
                **store.counts,
                "n_rows": self._n_rows,
                "not_paired": store.n_rows - self._n_rows,
            }
            for side, store in zip(("source", "target"), self._stores, strict=True)
        }

    def batches(
        self, *, max_tokens: int = MAX_TOKENS, progress: bool = True
    ) -> Iterator[PairedRows]:
        """See `Pairs`; `max_tokens` bounds the rows of a batch."""
        here, there = self._stores
        names = [[site.name for site in sites] for sites in self._sites]
        self._n_rows = 0
        with tqdm(total=sum(self.n_pairs), unit="row", desc="join", disable=not progress) as bar:
            for first, last in self._groups(max_tokens):
                index: list[list[np.ndarray]] = [[], []]
                numbers = []
                texts = self._texts[first:last]
                for number, (text, match) in enumerate(
                    zip(texts, self._matches(texts), strict=True), start=first
                ):
                    for side, store in enumerate(self._stores):
                        index[side].append(match[side] + store.span(text[side])[0])
                    numbers.append(np.full(len(match[0]), number))
                x = here.take(np.concatenate(index[0]), names[0])
                y = there.take(np.concatenate(index[1]), names[1])
                self._n_rows += len(x.text)
                yield PairedRows(x.values, y.values, torch.from_numpy(np.concatenate(numbers)))
                bar.update(len(x.text))

    def _groups(self, most: int) -> Iterator[tuple[int, int]]:
        """Runs of texts with at most so many pairs, or of one text."""
        first, n = 0, 0
        for i, pairs in enumerate(self.n_pairs):
            if n and n + pairs > most:
                yield first, i
                first, n = i, 0
            n += pairs
        if n:
            yield first, len(self.n_pairs)

    def _matches(self, texts: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        keys = [
            [_keys(store, text[side]) for text in texts] for side, store in enumerate(self._stores)
        ]
        return match_many(keys[0], keys[1])


def _require_same_documents(
    source: ActivationStore, target: ActivationStore, texts: Sequence[tuple[int, int]]
) -> None:
    """The split is by document, so both stores must know the same ones."""
    differ = [(i, j) for i, j in texts if source.documents[i] != target.documents[j]]
    if differ:
        i, j = differ[0]
        raise InputError(
            "source, target: two stores with other documents",
            got=f"{len(differ)} of {len(texts)} shared texts, the first in "
            f"{source.documents[i]!r:.40} and {target.documents[j]!r:.40}",
            valid="one document for each text in both",
            hint="capture one of them again with the documents= of the other",
        )


def _keys(store: ActivationStore, text: int) -> np.ndarray:
    start, end = store.span(text)
    return store.take(np.arange(start, end), ()).key.numpy()
