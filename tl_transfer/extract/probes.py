"""Probes: logistic regression, and the mass-mean probe that is linear discriminant analysis.

Both *read* with weights that discount what the classes have in common, and *write* with the
difference of the class means. Solved here in closed form or by Newton's method in float64, in the
span of the rows, so that thousands of dimensions cost no more than there are texts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.extract.contrast import Contrast, Positions, read_contrast
from tl_transfer.extract.steerability import steerability
from tl_transfer.models.surface import Site
from tl_transfer.vectors import Probe

#: (rows of both sides) -> (weights, intercept)
Solver = Callable[[Tensor, Tensor], tuple[Tensor, float]]


def logistic_probe(
    source: Site | Contrast,
    *,
    positive: Sequence[Any] | None = None,
    negative: Sequence[Any] | None = None,
    positions: Positions = "last",
    c: float = 1.0,
) -> Probe:
    """Logistic regression with a squared penalty; the score is the log-odds of the positive class.

    Minimises ``|w|^2 / 2 + c sum log(1 + exp(-y (x.w + b)))`` over rows that are centred and
    divided by one number, their root mean square, so that `c` has no unit and the solution turns
    with the basis. On such rows it is scikit-learn's ``LogisticRegression(C=c)``.

    Args:
        source: Site or contrast.
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
        positions: Token of each text that is read; see `read_contrasts`.
        c: Inverse strength of the penalty.

    Returns:
        A probe in the units of the activations, with held-out statistics of its read direction.

    Raises:
        InputError: `c` is not positive; or see `read_contrasts`.
    """
    if not c > 0:
        raise InputError(
            "c: must be positive", got=c, valid="0.001 to 100", hint="leave it out for 1.0"
        )
    contrast = read_contrast(source, positive=positive, negative=negative, positions=positions)
    return _probe(contrast, "logistic", lambda a, b: logistic(a, b, c=c), {"c": c})


def lda_probe(
    source: Site | Contrast,
    *,
    positive: Sequence[Any] | None = None,
    negative: Sequence[Any] | None = None,
    positions: Positions = "last",
    shrinkage: float | None = None,
) -> Probe:
    """Mass-mean probe (Marks and Tegmark 2023): read with ``S^-1 (mean+ - mean-)``, which is LDA.

    S is the covariance within the classes, shrunk towards a multiple of the identity:
    ``(1 - r) S + r tr(S)/d I``. The score is 0 halfway between the class means.

    Args:
        source: Site or contrast.
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
        positions: Token of each text that is read; see `read_contrasts`.
        shrinkage: r between 0 and 1; None: by the formula of Ledoit and Wolf (2004).

    Returns:
        A probe, with held-out statistics of its read direction.

    Raises:
        InputError: `shrinkage` is out of range; or see `read_contrasts`.
    """
    if shrinkage is not None and not 0.0 < shrinkage <= 1.0:
        raise InputError(
            "shrinkage: out of range",
            got=shrinkage,
            valid="above 0, at most 1",
            hint="leave it out for the Ledoit-Wolf estimate",
        )
    contrast = read_contrast(source, positive=positive, negative=negative, positions=positions)
    used = _shrinkage(contrast.plus, contrast.minus) if shrinkage is None else shrinkage
    return _probe(contrast, "lda", lambda a, b: lda(a, b, shrinkage=shrinkage), {"shrinkage": used})


def _probe(contrast: Contrast, method: str, solve: Solver, settings: dict[str, float]) -> Probe:
    if min(len(contrast.plus), len(contrast.minus)) < 2:
        raise InputError(
            "positive, negative: too few texts for a probe",
            got=f"{len(contrast.plus)} and {len(contrast.minus)}",
            valid="two or more a side, and better fifty",
            hint="use mean_difference",
        )
    read, bias = solve(contrast.plus, contrast.minus)
    statistics = steerability(contrast.plus, contrast.minus, lambda a, b: solve(a, b)[0])
    return Probe(
        read.float(),
        bias,
        contrast.difference,
        contrast.space,
        contrast.median_norm,
        method,
        {**contrast.provenance, **statistics, **settings},
        0.0,
        contrast.origin,
    )


def lda(
    plus: Float[Tensor, "positive d_model"],
    minus: Float[Tensor, "negative d_model"],
    *,
    shrinkage: float | None = None,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weights and intercept of shrunk LDA with equal priors."""
    a, b = plus.double(), minus.double()
    r = _shrinkage(a, b) if shrinkage is None else shrinkage
    rows = _within(a, b)
    n, d = rows.shape
    scale = float(rows.square().sum()) / (n * d)
    difference = a.mean(0) - b.mean(0)
    ridge, factor = r * scale, (1 - r) / n
    if ridge <= 0.0:
        raise InputError(
            "positive, negative: the rows of a class do not differ",
            got="no variance within the classes",
            valid="texts that vary",
            hint="use mean_difference",
        )
    weights = difference / ridge
    if factor > 0.0:
        # (ridge I + factor R^T R)^-1 v with an n by n system (Woodbury): d may be thousands.
        inner = rows @ rows.T
        inner.diagonal().add_(ridge / factor)
        weights = weights - rows.T @ torch.linalg.solve(inner, rows @ weights)
    return weights, -float(weights @ (a.mean(0) + b.mean(0))) / 2


def logistic(
    plus: Float[Tensor, "positive d_model"],
    minus: Float[Tensor, "negative d_model"],
    *,
    c: float,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weights and intercept of penalised logistic regression, by Newton with step halving."""
    rows = torch.cat([plus, minus]).double()
    labels = torch.cat([torch.ones(len(plus)), -torch.ones(len(minus))]).to(rows)
    centre = rows.mean(0)
    rows = rows - centre
    scale = float(rows.square().mean().sqrt())
    if not scale > 0:
        raise InputError(
            "positive, negative: all rows are equal",
            got="no variance",
            valid="texts that vary",
            hint="look at the texts",
        )
    # The penalised solution lies in the span of the rows: solve there, at most n unknowns.
    left, values, basis = torch.linalg.svd(rows / scale, full_matrices=False)
    coordinates = torch.cat([left * values, torch.ones_like(labels)[:, None]], dim=1)
    solution = _newton(coordinates, labels, c)
    weights = (basis.T @ solution[:-1]) / scale
    return weights, float(solution[-1] - weights @ centre)


def _newton(x: Tensor, y: Tensor, c: float, *, steps: int = 100) -> Tensor:
    """Minimise |w|^2 / 2 + c sum log(1 + exp(-y x.w)); the last coordinate is not penalised."""
    penalty = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    penalty[-1] = 0.0

    def loss(w: Tensor) -> Tensor:
        margins = torch.nn.functional.softplus(-y * (x @ w))
        return 0.5 * (penalty * w * w).sum() + c * margins.sum()

    w = torch.zeros_like(penalty)
    now = loss(w)
    for _ in range(steps):
        p = torch.sigmoid(-y * (x @ w))
        gradient = penalty * w - c * (x.T @ (y * p))
        if float(gradient.abs().max()) < 1e-9 * max(1.0, c):
            break
        hessian = c * (x.T * (p * (1 - p))) @ x
        hessian.diagonal().add_(penalty + 1e-12)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while float(loss(w - size * step)) > float(now) and size > 1e-8:
            size /= 2
        w = w - size * step
        now = loss(w)
    return w


def _within(plus: Tensor, minus: Tensor) -> Tensor:
    """Rows about the mean of their own class."""
    a, b = plus.double(), minus.double()
    return torch.cat([a - a.mean(0), b - b.mean(0)])


def _shrinkage(plus: Tensor, minus: Tensor) -> float:
    """Ledoit and Wolf's (2004) shrinkage of the covariance within the classes."""
    rows = _within(plus, minus)
    n, d = rows.shape
    # Every product is taken in the smaller Gram matrix: tr(S^2) = |R R^T|^2 / n^2.
    gram = rows @ rows.T if n < d else rows.T @ rows
    trace = float(rows.square().sum()) / n
    squared = float(gram.square().sum()) / n**2
    fourth = float(rows.square().sum(1).square().sum()) / n
    distance = squared - trace**2 / d
    error = (fourth - squared) / n
    if distance <= 0:
        return 1.0
    return min(max(error / distance, 1e-6), 1.0)
