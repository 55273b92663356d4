"""Score card of an affine map: held-out numbers, each beside the same number for the control.

What a good card does not prove: that any one direction transfers. The pooled score is carried by
the largest dimensions; `AffineMap.direction_r2` tells about the direction in question.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.intervals import ratio_ci
from tl_transfer.metrics import debiased_cka, retrieval
from tl_transfer.statistics import PairedMoments, effective_rank

#: Rows for the scores that compare every row with every other.
_MAX_PAIRWISE = 1500


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows kept for scores that sums cannot give, and the sums of all of them."""

    moments: PairedMoments
    x: Float[Tensor, "row d_source"]
    y: Float[Tensor, "row d_target"]
    document: Int[Tensor, " row"]


def scores(
    weight: Float[Tensor, "d_source d_target"],
    bias: Float[Tensor, " d_target"],
    held_out: HeldOut,
    *,
    shuffle: bool = False,
) -> dict[str, Any]:
    """Held-out scores of one affine map.

    Args:
        weight: W, float64 or float32.
        bias: b.
        held_out: Rows of documents that no fit has seen.
        shuffle: Pair CKA's rows wrongly (it does not depend on the map).
    """
    predicted = held_out.x.float() @ weight.float() + bias.float()
    actual = held_out.y.float()
    top1, top5 = retrieval(
        predicted[:_MAX_PAIRWISE], actual[:_MAX_PAIRWISE], held_out.document[:_MAX_PAIRWISE]
    )
    few = slice(0, _MAX_PAIRWISE)
    paired = actual[few].roll(len(actual[few]) // 2, 0) if shuffle else actual[few]
    mean = held_out.moments.mean_y.float()
    cosines = torch.nn.functional.cosine_similarity(predicted - mean, actual - mean, dim=-1)
    return {
        "fvu": held_out.moments.fvu(weight, bias),
        "fvu_ci95": _fvu_ci(predicted, actual, held_out),
        "fvu_mean_dimension": held_out.moments.fvu_mean_dimension(weight, bias),
        "cosine": float(cosines.mean()),
        "retrieval_top1": top1,
        "retrieval_top5": top5,
        "cka": debiased_cka(held_out.x[few].float(), paired),
    }


def _fvu_ci(predicted: Tensor, actual: Tensor, held_out: HeldOut) -> list[float]:
    """Bootstrap by document: tokens of one document are not independent."""
    mean = held_out.moments.mean_y.float()
    n_documents = int(held_out.document.max()) + 1
    zeros = torch.zeros(n_documents, dtype=torch.float64)
    index = held_out.document.cpu()
    residual = (predicted - actual).square().sum(-1).double().cpu()
    total = (actual - mean).square().sum(-1).double().cpu()
    numerator = zeros.index_add(0, index, residual)
    denominator = zeros.index_add(0, index, total)
    present = denominator > 0
    return ratio_ci(numerator[present], denominator[present])


def warnings(train: PairedMoments, held_out_fvu: float, coverage: tuple[float, float]) -> list[str]:
    """Plain sentences about what makes this map doubtful."""
    lines = []
    d_source = len(train.mean_x)
    if train.n < 20 * d_source:
        lines.append(
            f"{train.n} training rows for {d_source} source dimensions "
            f"({train.n / d_source:.0f} each); 20 or more a dimension is comfortable"
        )
    if held_out_fvu > 0.9:
        lines.append("the map explains less than a tenth of the held-out variance")
    if min(coverage) < 0.5:
        lines.append("under half of the tokens of one model could be paired")
    return lines


def ranks(train: PairedMoments) -> dict[str, float]:
    """Effective rank of both spaces on the training rows."""
    return {"source": effective_rank(train.xx), "target": effective_rank(train.yy)}
