"""Sums: all that a closed-form fit of one pair of hook points needs, and nothing of the texts.

A few matrices, whatever the number of texts. Sums of different texts are added with ``+``, on one
machine or from files of several, and give the map that one machine would have fitted; a weighted
mix of general and task text is ``general + task.weighted(10)``.
"""

from dataclasses import dataclass, replace

import torch

from tl_transfer.data.align import AlignmentReport
from tl_transfer.errors import InputError
from tl_transfer.mappers.scorecard import HeldOut
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import NormHistogram, PairedMoments

#: Held-out rows kept for retrieval, CKA and document intervals.
MAX_HELD_OUT_ROWS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class Sums:
    """Sums of paired rows of two hook points, by document fold.

    Attributes:
        source: Space of x.
        target: Space of y.
        folds: Moments of each training fold.
        held_out: Moments of the held-out documents, and a bounded sample of their rows.
        norms: Histograms of the row norms of both sides.
        hashes: SHA-256 of every text read.
        documents: Numbers of the training documents with rows, and of the held-out ones.
        report: How many tokens were paired.
        dropped: Tokens left out, by side and reason.
        tokens: Which tokens were read (JSON).
        seed: Of the split; only sums of one seed can be added.
    """

    source: ActivationSpace
    target: ActivationSpace
    folds: tuple[PairedMoments, ...]
    held_out: HeldOut
    norms: tuple[NormHistogram, NormHistogram]
    hashes: frozenset[str]
    documents: tuple[frozenset[int], frozenset[int]]
    report: AlignmentReport
    dropped: dict[str, dict[str, int]]
    tokens: dict[str, str]
    seed: int

    def __add__(self, other: "Sums") -> "Sums":
        """Sums of the texts of both.

        Raises:
            SpaceError: the other sums are of other hook points or models.
            InputError: other seeds or tokens, or texts that both have read.
        """
        self.source.require(other.source, "sums of two sources")
        self.target.require(other.target, "sums of two targets")
        self._require_disjoint(other)
        document = torch.cat([self.held_out.document, other.held_out.document])
        # By document, so that it does not matter which of the two comes first.
        order = document.argsort(stable=True)[:MAX_HELD_OUT_ROWS]
        return replace(
            self,
            folds=tuple(a + b for a, b in zip(self.folds, other.folds, strict=True)),
            held_out=HeldOut(
                self.held_out.moments + other.held_out.moments,
                torch.cat([self.held_out.x, other.held_out.x])[order],
                torch.cat([self.held_out.y, other.held_out.y])[order],
                document[order],
            ),
            norms=(self.norms[0] + other.norms[0], self.norms[1] + other.norms[1]),
            hashes=self.hashes | other.hashes,
            documents=(
                self.documents[0] | other.documents[0],
                self.documents[1] | other.documents[1],
            ),
            report=self.report + other.report,
            dropped={
                side: {
                    reason: counts.get(reason, 0) + other.dropped[side].get(reason, 0)
                    for reason in {**counts, **other.dropped[side]}
                }
                for side, counts in self.dropped.items()
            },
        )

    @property
    def n_rows(self) -> int:
        """Training rows that were read, whatever their weights."""
        return self.dropped["source"]["n_rows"] - int(self.held_out.moments.n)

    def counted(self) -> tuple[PairedMoments, ...]:
        """The folds with the mean weight of a row set to one.

        No map changes, but weights then cannot pass for rows: neither where too few of them are
        refused nor on the score card.
        """
        n = sum(fold.n for fold in self.folds)
        if n == 0 or abs(n - self.n_rows) <= 1e-9 * n:
            return self.folds
        return tuple(fold.weighted(self.n_rows / n) for fold in self.folds)

    def weighted(self, weight: float | int) -> "Sums":
        """Every training row counted `weight` times; the held-out part stays as it is.

        Raises:
            InputError: a weight that is not positive and finite.
        """
        if not 0 < weight < float("inf"):
            raise InputError(
                "weight: must be positive and finite",
                got=weight,
                valid="a number above 0",
                hint="leave these sums out instead of giving them weight 0",
            )
        return replace(self, folds=tuple(fold.weighted(float(weight)) for fold in self.folds))

    def _require_disjoint(self, other: "Sums") -> None:
        for name in ("seed", "tokens"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise InputError(
                    f"sums: made with different {name}",
                    got=f"{mine} and {theirs}",
                    valid=f"one {name} for all machines",
                    hint="collect them again alike",
                )
        both = self.hashes & other.hashes
        if both:
            raise InputError(
                "sums: both have read the same texts",
                got=f"{len(both)} shared texts",
                valid="sums of different texts",
                hint="weighted() counts rows more often",
            )

    def __repr__(self) -> str:
        n = sum(fold.n for fold in self.folds)
        return (
            f"Sums({n:g} rows of {len(self.documents[0])} documents to fit, "
            f"{self.held_out.moments.n:g} of {len(self.documents[1])} held out: "
            f"{self.source.model} {self.source.hook_point} -> "
            f"{self.target.model} {self.target.hook_point})"
        )
