"""Regressing the features of one dictionary on few features of another.

A feature of the target may be split over several of the source's, or be one of their parts. Each
target activation is written as a sparse, non-negative combination of source activations, greedily
(orthogonal matching pursuit; Pati et al. 1993) with all weights solved again at each step. How many
terms are kept is decided on folds of the training documents; the score is on held-out documents.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Sample
from tl_transfer.features.correlate import FeatureSums
from tl_transfer.intervals import DocumentBootstrap

#: Folds of training documents on which the number of terms is chosen.
N_FOLDS = 4


@dataclass(frozen=True)
class Regression:
    """One target feature as a combination of source features.

    Attributes:
        target: The feature.
        sources: Source features, in the order in which they were chosen.
        weights: Target activation for each unit of each of them.
        intercept: What is added.
        r2: Share of variance explained on held-out documents.
        ci95: Its interval over documents; None with fewer than two, or where the feature is silent.
        single: The same with the one best source feature.
        floor: The same, fitted again on wrongly paired rows, from the same candidates (which the
            right rows proposed).
        n: Held-out rows.
    """

    target: int
    sources: tuple[int, ...]
    weights: tuple[float, ...]
    intercept: float
    r2: float
    ci95: list[float] | None
    single: float
    floor: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain fields."""
        return asdict(self)


def regress_features(
    sums: FeatureSums,
    targets: list[int] | Int[Tensor, " target"],
    *,
    candidates: int = 24,
    terms: int = 4,
    seed: int = 0,
) -> list[Regression]:
    """Write features of the target as few features of the source.

    Args:
        sums: From `correlate_features`; its sample of training rows is fitted on.
        targets: Features of the target.
        candidates: Source features considered for each: those most correlated with it.
        terms: Most terms.
        seed: Of the folds and the interval.

    Raises:
        InputError: no such feature.
    """
    wanted = torch.as_tensor(targets, dtype=torch.long)
    if not len(wanted) or not 0 <= int(wanted.min()) <= int(wanted.max()) < sums.target.d_sae:
        raise InputError(
            "targets: features of the target dictionary",
            got=wanted.tolist()[:8],
            valid=f"one or more numbers from 0 to {sums.target.d_sae - 1}",
            hint="feature_map.target has the matched ones",
        )
    pairs = (sums.train, sums.held_out)
    wrong = tuple(part.shifted(1, 1) for part in pairs)
    bootstrap = DocumentBootstrap(sums.held_out.document, seed=seed)
    near = _nearest(sums, wanted, candidates)
    found = []
    for target, sources in zip(wanted.tolist(), near, strict=True):
        chosen, weights, intercept = _fit(sums.train, target, sources, terms, seed)
        error, total = _errors(sums.held_out, target, chosen, weights, intercept)
        one = _fit(sums.train, target, sources, 1, seed)
        fooled = _fit(wrong[0], target, sources, terms, seed)
        found.append(
            Regression(
                target=target,
                sources=tuple(chosen.tolist()),
                weights=tuple(weights.tolist()),
                intercept=intercept,
                r2=_r2(error, total),
                ci95=bootstrap.ratio(total - error, total) if float(total.sum()) > 0 else None,
                single=_r2(*_errors(sums.held_out, target, *one)),
                floor=_r2(*_errors(wrong[1], target, *fooled)),
                n=len(sums.held_out),
            )
        )
    return found


def _nearest(sums: FeatureSums, targets: Tensor, k: int) -> Int[Tensor, "target k"]:
    """The source features most correlated with each target feature over all training rows."""
    best = torch.cat(
        [
            sums.correlation(slice(first, first + 1024))[:, targets]
            for first in range(0, sums.source.d_sae, 1024)
        ]
    )
    return best.topk(min(k, len(best)), dim=0).indices.T


Fitted = tuple[Int[Tensor, " term"], Float[Tensor, " term"], float]


def _fit(sample: Sample, target: int, sources: Tensor, terms: int, seed: int) -> Fitted:
    """Terms, weights and intercept; as many terms as predict other training documents best."""
    z = torch.cat([sample.x.dense(sources), sample.y.dense(torch.tensor([target]))], dim=1)
    fold = _folds(sample.document, seed)
    sums = [_Moments.of(z[fold == k]) for k in range(N_FOLDS)]
    total = sum(sums[1:], start=sums[0])
    paths = [_pursue(total - part, terms) for part in sums]
    n_terms = min(terms, len(sources))
    errors = [
        sum(part.error(*_cut(path, n)) for part, path in zip(sums, paths, strict=True))
        for n in range(1, n_terms + 1)
    ]
    best = 1 + int(np.argmin(errors))
    picked, weights, intercept = _cut(_pursue(total, best), best)
    return sources[picked], weights, intercept


def _folds(document: Tensor, seed: int) -> Tensor:
    """Whole documents to folds, whatever their numbers."""
    names, place = document.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(len(names), generator=generator) % N_FOLDS)[place]


@dataclass(frozen=True)
class _Moments:
    """Rows, sums and products of candidate features and, last, the target feature."""

    n: int
    total: Tensor
    product: Tensor

    @classmethod
    def of(cls, z: Tensor) -> "_Moments":
        return cls(len(z), z.sum(0), z.T @ z)

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.n + other.n, self.total + other.total, self.product + other.product)

    def __sub__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.n - other.n, self.total - other.total, self.product - other.product)

    @property
    def covariance(self) -> Tensor:
        mean = self.total / max(self.n, 1)
        return self.product - self.n * torch.outer(mean, mean)

    def error(self, picked: Tensor, weights: Tensor, intercept: float) -> float:
        """Squared error of a combination on these rows."""
        w = torch.zeros(len(self.total), dtype=torch.float64)
        w[picked], w[-1] = -weights, 1.0
        return float(
            w @ self.product @ w - 2 * intercept * (w @ self.total) + self.n * intercept**2
        )


#: After each step: what is picked, and the weights.
Path = list[tuple[Tensor, Tensor, float]]


def _pursue(sums: _Moments, terms: int) -> Path:
    """Orthogonal matching pursuit with non-negative weights, from sums."""
    covariance, mean = sums.covariance, sums.total / max(sums.n, 1)
    gram, right = covariance[:-1, :-1], covariance[:-1, -1]
    scale = gram.diagonal().clamp(min=0).sqrt()
    usable = scale > 0
    picked = torch.zeros(0, dtype=torch.long)
    weights = torch.zeros(0, dtype=torch.float64)
    path: Path = []
    for _ in range(min(terms, len(right))):
        rest = right - gram[:, picked] @ weights
        gain = torch.where(usable, rest / scale.clamp(min=1e-300), -torch.inf)
        gain[picked] = -torch.inf
        best = int(gain.argmax())
        if gain[best] > 0:
            picked = torch.cat([picked, torch.tensor([best])])
            weights = _non_negative(gram[picked][:, picked], right[picked])
        path.append((picked, weights, float(mean[-1] - mean[:-1][picked] @ weights)))
    return path


def _non_negative(gram: Tensor, right: Tensor) -> Tensor:
    """Non-negative least squares from the Gram matrix."""
    from scipy.optimize import nnls

    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-10 * values[-1]
    root = vectors[:, kept] * values[kept].sqrt()
    goal = torch.linalg.lstsq(root, right).solution
    return torch.from_numpy(nnls(root.T.numpy(), goal.numpy())[0])


def _cut(path: Path, n: int) -> tuple[Tensor, Tensor, float]:
    return path[min(n, len(path)) - 1]


def _errors(
    sample: Sample, target: int, sources: Tensor, weights: Tensor, intercept: float
) -> tuple[Tensor, Tensor]:
    """Squared error and squared deviation of every row."""
    y = sample.y.dense(torch.tensor([target]))[:, 0]
    predicted = sample.x.dense(sources) @ weights + intercept
    return (y - predicted) ** 2, (y - y.mean()) ** 2


def _r2(error: Tensor, total: Tensor) -> float:
    """0 where the feature is silent on these rows: there is nothing to explain."""
    whole = float(total.sum())
    return 1 - float(error.sum()) / whole if whole > 0 else 0.0
