"""Training: what a fitting method may look at.

A method sees the sums of the training folds and nothing of the held-out part, so no choice can
leak into the score. The shuffled-pair control and the backward map of *every* method are the same
method on `Training.shuffled` and `Training.reversed`: the same sums with other names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.mappers.affine import Eigenbasis
from tl_transfer.mappers.factors import Rest, leave_one_out
from tl_transfer.mappers.rows import Rows
from tl_transfer.similarity import Spectrum
from tl_transfer.statistics import PairedMoments, merge

#: Key of the basis of all training rows, beside those of the folds.
ALL = -1


@dataclass(frozen=True, eq=False)
class Training:
    """Sums of the training rows by document fold, and what some methods need besides.

    Attributes:
        folds: Moments of each training fold; no document is in two folds.
        seed: Of whatever a method draws.
        bases: Eigenbases of the source covariances by fold, shared by every target of a source.
        back_bases: The same for the target covariances.
        rows: Training rows, for methods that sums cannot serve.
        embeddings: Embedding rows of the tokens both vocabularies share, when asked for.
        checkpoint: Folder in which methods that train leave their state, to go on after a crash.
        progress: Show progress bars.
    """

    folds: tuple[PairedMoments, ...]
    seed: int = 0
    bases: dict[int, Eigenbasis] = field(default_factory=dict)
    back_bases: dict[int, Eigenbasis] = field(default_factory=dict)
    rows: Rows | None = None
    embeddings: Callable[[], tuple[Tensor, Tensor]] | None = None
    checkpoint: Path | None = None
    progress: bool = False

    @cached_property
    def total(self) -> PairedMoments:
        """Moments of all training rows."""
        return merge(self.folds)

    @cached_property
    def rests(self) -> list[Rest]:
        """Every fold with rows, beside all rows outside it."""
        return leave_one_out(self.folds, self.total)

    def require_rows(self, method: str) -> Rows:
        """The training rows; refused when only sums are there."""
        if self.rows is None:
            raise InputError(
                f"method: {method!r} needs rows, not sums",
                got="sums only",
                valid=f'fit(source, target, method="{method}")',
                hint='use method="ridge" with sums',
            )
        return self.rows

    def basis(self, key: int, moments: PairedMoments) -> Eigenbasis:
        """Eigenbasis of the source covariance of a fold's rest (or `ALL`), made once."""
        if key not in self.bases:
            self.bases[key] = Eigenbasis.of(moments.xx)
        return self.bases[key]

    def back_basis(self, key: int, moments: PairedMoments) -> Eigenbasis:
        """The same of the target covariance."""
        if key not in self.back_bases:
            self.back_bases[key] = Eigenbasis.of(moments.yy)
        return self.back_bases[key]

    @property
    def spectra(self) -> tuple[Spectrum, Spectrum]:
        """Eigenvalues and eigenvectors of both covariances of all training rows."""
        here, there = self.basis(ALL, self.total), self.back_basis(ALL, self.total)
        return (here.values, here.vectors), (there.values, there.vectors)

    def intercept(self, weight: Float[Tensor, "d_source d_target"]) -> Float[Tensor, " d_target"]:
        """b that sends the mean to the mean."""
        return self.total.mean_y - self.total.mean_x @ weight

    def shuffled(self) -> "Training":
        """Wrongly paired rows: the control that every method shares."""
        return replace(
            self,
            folds=tuple(replace(fold, xy=fold.xy_shuffled) for fold in self.folds),
            rows=None if self.rows is None else self.rows.shuffled(self.seed),
            embeddings=None if self.embeddings is None else self._shuffled_embeddings,
            checkpoint=None if self.checkpoint is None else self.checkpoint / "shuffled",
        )

    def reversed(self) -> "Training":
        """Source and target exchanged: the backward fit."""
        return Training(
            tuple(fold.reversed() for fold in self.folds),
            self.seed,
            self.back_bases,
            self.bases,
            None if self.rows is None else self.rows.reversed(),
            None if self.embeddings is None else self._reversed_embeddings,
        )

    def _shuffled_embeddings(self) -> tuple[Tensor, Tensor]:
        assert self.embeddings is not None
        x, y = self.embeddings()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))
        return x, y[order]

    def _reversed_embeddings(self) -> tuple[Tensor, Tensor]:
        assert self.embeddings is not None
        x, y = self.embeddings()
        return y, x
