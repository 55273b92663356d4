"""Ridge towards the identity: the map between two versions of one model is 1 + a small change."""

from dataclasses import replace

import torch

from tl_transfer.errors import InputError
from tl_transfer.mappers.reduced_rank import reduced_rank
from tl_transfer.mappers.ridge import ridge
from tl_transfer.mappers.solution import Solution
from tl_transfer.mappers.training import Training
from tl_transfer.statistics import PairedMoments


def ridge_to_identity(
    training: Training, *, strength: float | None = None, rank: int | str | None = None
) -> Solution:
    """Minimise |y - x - xD - b|^2 + l t |D|^2; the map is I + D.

    For base and fine-tuned models, where the difference is what must be learned and little data
    should mean "no change". A D of low rank is a compact switch between the two.

    Args:
        training: Sums by fold; equal widths.
        strength: Of the penalty on D, unit-free; default, chosen on document folds.
        rank: Rank of D: a number, ``"folds"`` to have it chosen, None for no limit.

    Returns:
        A solution whose path scores the share of y - x, not of y, that is left unexplained.

    Raises:
        InputError: the widths differ.
    """
    d_source, d_target = training.total.xy.shape
    if d_source != d_target:
        raise InputError(
            "method: ridge towards the identity needs two spaces of one width",
            got=f"d_source {d_source}, d_target {d_target}",
            valid="two versions of one model",
            hint='use method="ridge"',
        )
    change = replace(training, folds=tuple(_change(fold) for fold in training.folds), back_bases={})
    if rank is None:
        solution = ridge(change, strength=strength)
    else:
        if isinstance(rank, str) and rank != "folds":
            raise InputError(
                "rank: unknown", got=repr(rank), valid='a number, or "folds"', hint="leave it out"
            )
        wanted = None if isinstance(rank, str) else rank
        solution = reduced_rank(change, strength=strength, rank=wanted)
    eye = torch.eye(d_source, dtype=torch.float64, device=solution.weight.device)
    options = dict(solution.options)
    options.pop("metric", None)
    return replace(solution, weight=solution.weight + eye, options=options)


def _change(m: PairedMoments) -> PairedMoments:
    """Moments of (x, y - x)."""
    return replace(
        m,
        mean_y=m.mean_y - m.mean_x,
        xy=m.xy - m.xx,
        yy=m.yy - m.xy - m.xy.T + m.xx,
        xy_shuffled=m.xy_shuffled - m.xx,
    )
