"""Partial: the sums of some units. Only this leaves a worker, and merging it forgets the order.

Moments are merged in float64 by exact algebra, so another order moves the last digits of float64
only; counts, norms and held-out rows come out the same to the last bit.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_transfer.cluster.skips import Skipped
from tl_transfer.data.align import AlignmentReport
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.mappers.scorecard import HeldOut
from tl_transfer.mappers.sums import MAX_HELD_OUT_ROWS, Sums
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import NormHistogram, PairedMoments


@dataclass
class Partial:
    """Sums of the texts of some units.

    Attributes:
        spaces: Source and target, as the worker found them.
        folds: Moments by fold; the last fold is held out.
        norms: Counts of row norms of both sides, see `NormHistogram`.
        x, y: Held-out rows kept, float32.
        document: Document of each of them.
        key: Number of the text of each of them.
        hashes: SHA-256 of every text read, [text, 32] bytes, in several pieces.
        documents: Numbers of their documents, and whether each is held out, [text, 2], likewise.
        report: How many tokens were paired.
        dropped: Tokens left out, by side and reason.
        skipped: Texts left out by the models or their tokenizers.
    """

    spaces: tuple[ActivationSpace, ActivationSpace]
    folds: list[PairedMoments]
    norms: tuple[np.ndarray, np.ndarray]
    x: np.ndarray
    y: np.ndarray
    document: np.ndarray
    key: np.ndarray
    hashes: list[np.ndarray]
    documents: list[np.ndarray]
    report: AlignmentReport
    dropped: dict[str, dict[str, int]]
    skipped: Skipped = field(default_factory=Skipped)

    def packed(self) -> dict[str, Any]:
        """The same with numpy arrays for tensors, which Ray shares without copying."""
        out = {each.name: getattr(self, each.name) for each in fields(self)}
        out["folds"] = [
            {f.name: _array(getattr(fold, f.name)) for f in fields(fold)} for fold in self.folds
        ]
        return out

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> "Partial":
        """Inverse of `packed`; arrays that may not be written to are only read."""
        folds = [
            PairedMoments(**{name: _tensor(value) for name, value in fold.items()})
            for fold in packed["folds"]
        ]
        return cls(**{**packed, "folds": folds})

    def __add__(self, other: "Partial") -> "Partial":
        """Sums of the units of both.

        Raises:
            SpaceError: two workers have loaded different weights or tokenizers.
        """
        for mine, theirs in zip(self.spaces, other.spaces, strict=True):
            mine.require(theirs, "sums of two workers")
        skipped = Skipped()
        skipped.merge(self.skipped)
        skipped.merge(other.skipped)
        x, y, document, key = trimmed([(p.x, p.y, p.document, p.key) for p in (self, other)])
        return Partial(
            spaces=self.spaces,
            folds=[a + b for a, b in zip(self.folds, other.folds, strict=True)],
            norms=(self.norms[0] + other.norms[0], self.norms[1] + other.norms[1]),
            x=x,
            y=y,
            document=document,
            key=key,
            hashes=self.hashes + other.hashes,
            documents=self.documents + other.documents,
            report=self.report + other.report,
            dropped=add_dropped(self.dropped, other.dropped),
            skipped=skipped,
        )

    def sums(self, tokens: Tokens, seed: int) -> Sums:
        """As `fit_sums` and `save` take them."""
        documents = np.concatenate(self.documents)
        out = documents[:, 1] == 1
        return Sums(
            source=self.spaces[0],
            target=self.spaces[1],
            folds=tuple(self.folds[:-1]),
            held_out=HeldOut(
                self.folds[-1],
                torch.tensor(self.x),
                torch.tensor(self.y),
                torch.tensor(self.document),
            ),
            norms=(_histogram(self.norms[0]), _histogram(self.norms[1])),
            hashes=frozenset(row.tobytes().hex() for piece in self.hashes for row in piece),
            documents=(
                frozenset(documents[~out, 0].tolist()),
                frozenset(documents[out, 0].tolist()),
            ),
            report=self.report,
            dropped=self.dropped,
            tokens=tokens.to_json(),
            seed=seed,
        )


def add_dropped(
    one: dict[str, dict[str, int]], two: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """Sum of two counts of tokens by side and reason."""
    return {
        side: {
            reason: one.get(side, {}).get(reason, 0) + two.get(side, {}).get(reason, 0)
            for reason in {**one.get(side, {}), **two.get(side, {})}
        }
        for side in ("source", "target")
    }


def require_rows(partial: Partial | None, skipped: Skipped, n_files: int) -> Partial:
    """Refuse a corpus of which nothing was left.

    Raises:
        InputError: with all that was skipped.
    """
    if partial is None or sum(fold.n for fold in partial.folds) == 0:
        raise InputError(
            "files: not one row of activations was read",
            got=f"{n_files} files; {skipped}",
            valid="texts that both models can read and of which they share a token",
            hint="look at the first of each reason: a wrong text= field, or another format?",
        )
    return partial


#: x, y, document and key of some held-out rows.
Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def trimmed(parts: Sequence[Sample]) -> Sample:
    """Held-out rows in the order of their texts' numbers, and no more than are kept."""
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    order = np.argsort(joined[-1], kind="stable")[:MAX_HELD_OUT_ROWS]
    x, y, document, key = (array[order] for array in joined)
    return x, y, document, key


def _histogram(counts: np.ndarray) -> NormHistogram:
    histogram = NormHistogram()
    histogram.counts = torch.tensor(counts)
    return histogram


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    with warnings.catch_warnings():  # an array in Ray's shared memory is read-only, and so used
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)
