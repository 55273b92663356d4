"""Score card of a map: held-out numbers, each with an interval and beside its controls.

What a good card does not prove: that any one direction transfers. The pooled score is carried by
the largest dimensions; `direction_score` tells about the direction in question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.align import AlignmentReport
from tl_transfer.intervals import DocumentBootstrap
from tl_transfer.metrics import retrieval_ranks
from tl_transfer.similarity import CkaSums, Spectrum, mutual_knn, spectrum, svcca
from tl_transfer.statistics import PairedMoments, rank_of_spectrum

#: Rows for the scores that compare every row with every other.
_MAX_PAIRWISE = 1500
#: Random halves of the held-out documents.
_LABELLINGS = 200
Predict = Callable[[Tensor], Tensor]

_ONE_DOCUMENT = "one held-out document: no row of another document to be told from"
_NO_INTERVAL = "one held-out document: nothing to resample"


@dataclass(frozen=True)
class HeldOut:
    """Rows of documents that no fit has seen, and the sums of all of them.

    Attributes:
        moments: Sums over every held-out row.
        x, y: Rows kept for the scores that sums cannot give.
        document: Document of each row kept.
    """

    moments: PairedMoments
    x: Float[Tensor, "row d_source"]
    y: Float[Tensor, "row d_target"]
    document: Int[Tensor, " row"]


def scores(
    predict: Predict,
    held_out: HeldOut,
    *,
    affine: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Held-out scores of one map.

    Args:
        predict: Source rows to target rows, in float32.
        held_out: Rows of documents that no fit has seen.
        affine: Weight and bias, where the map has them: its FVU then comes from the sums of all
            held-out rows, and not only from the rows kept.

    Returns:
        The scores; one that is undefined is None, and ``undefined`` says why.
    """
    predicted, actual = predict(held_out.x.float()), held_out.y.float()
    bootstrap = DocumentBootstrap(held_out.document)
    residual = (predicted - actual).double().square()
    total = (actual.double() - held_out.moments.mean_y).square()
    mean = held_out.moments.mean_y.float()
    cosines = torch.nn.functional.cosine_similarity(predicted - mean, actual - mean, dim=-1)
    fvu, per_dimension = _fvu(residual, total, held_out.moments, affine)
    varies = held_out.moments.varying_y()
    few = slice(0, _MAX_PAIRWISE)
    ranks = retrieval_ranks(predicted[few], actual[few], held_out.document[few])
    found: dict[str, Any] = {
        "fvu": fvu,
        "fvu_ci95": bootstrap.ratio(residual.sum(-1), total.sum(-1)),
        "fvu_mean_dimension": per_dimension,
        "fvu_mean_dimension_ci95": bootstrap.ratio(residual[:, varies], total[:, varies]),
        "cosine": float(cosines.double().mean()),
        "cosine_ci95": bootstrap.ratio(cosines, torch.ones_like(cosines)),
    }
    found |= random_label_cosine(predicted, actual, held_out.document)
    near = DocumentBootstrap(held_out.document[few])
    for name, k in (("retrieval_top1", 1), ("retrieval_top5", 5)):
        hits = None if ranks is None else (ranks < k).double()
        found[name] = None if hits is None else float(hits.mean())
        found[f"{name}_ci95"] = None if hits is None else near.ratio(hits, torch.ones_like(hits))
    if ranks is None:
        found["undefined"] = {"retrieval": _ONE_DOCUMENT, "intervals": _NO_INTERVAL}
    return found


def random_label_cosine(
    predicted: Float[Tensor, "row d_target"],
    actual: Float[Tensor, "row d_target"],
    document: Int[Tensor, " row"],
) -> dict[str, Any]:
    """Cosine of mapped to native mean differences when labels mean nothing.

    Half of the held-out documents, drawn at random, against the other half: what a transferred
    mean difference gets for its cosine to the native one whatever it is about. Hence the floor
    under such a cosine; `random_label_cosines` draws labels for the texts of a contrast.

    Returns:
        ``random_label_cosine``, the mean over the draws, and its ``_range95``, where 95 % of the
        draws are; None with fewer than four documents.
    """
    names, place = document.unique(return_inverse=True)
    if len(names) < 4:
        return {"random_label_cosine": None}
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(_LABELLINGS, len(names), generator=generator).argsort(1)
    labels = torch.where(order < len(names) // 2, 1.0, -1.0).double()
    labels /= torch.where(labels > 0, len(names) // 2, -(-len(names) // 2))
    counts = torch.bincount(place).double()[:, None]
    mapped, native = (
        labels @ (rows.new_zeros(len(names), rows.shape[1]).index_add_(0, place, rows) / counts)
        for rows in (predicted.double(), actual.double())
    )
    cosines = torch.nn.functional.cosine_similarity(mapped, native, dim=-1)
    ends = torch.quantile(cosines, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return {
        "random_label_cosine": float(cosines.mean()),
        "random_label_cosine_range95": ends.tolist(),
    }


def _fvu(
    residual: Tensor,
    total: Tensor,
    moments: PairedMoments,
    affine: tuple[Tensor, Tensor] | None,
) -> tuple[float, float]:
    """Pooled FVU and its mean over dimensions, from the sums where they suffice."""
    if affine is not None:
        return moments.fvu(*affine), moments.fvu_mean_dimension(*affine)
    varies = moments.varying_y()
    pooled = residual.sum() / total.sum()
    return float(pooled), float((residual.sum(0) / total.sum(0))[varies].mean())


def spaces(
    train: PairedMoments, held_out: HeldOut, spectra: tuple[Spectrum, Spectrum] | None = None
) -> dict[str, Any]:
    """How alike the two spaces are on held-out rows, and the same for rows paired wrongly.

    The floor pairs every row with one half the sample away, and SVCCA's with the shuffled sums.

    Args:
        train: Sums of the training rows.
        held_out: Rows of documents that no fit has seen.
        spectra: Of both covariances of `train`, where they are known.
    """
    few = slice(0, _MAX_PAIRWISE)
    x, y, document = held_out.x[few], held_out.y[few], held_out.document[few]

    def measured(rows: Tensor, correlation: float) -> dict[str, float | None]:
        sums = CkaSums.of(x, rows)
        return {
            "cka_linear": sums.linear(),
            "cka_debiased": sums.debiased(),
            "svcca": correlation,
            "mutual_knn": mutual_knn(x, rows, document),
        }

    test = held_out.moments
    wrong = PairedMoments(
        test.n, test.mean_x, test.mean_y, test.xx, test.xy_shuffled, test.yy, test.xy_shuffled
    )
    right, floor = svcca(train, test, wrong, spectra=spectra)
    return {
        **measured(y, right),
        "n_rows": len(x),
        "floor": measured(y.roll(len(y) // 2, 0), floor),
    }


def direction_score(
    predict: Predict, direction: Float[Tensor, " d_target"], held_out: HeldOut
) -> dict[str, Any]:
    """Share of held-out variance that a map explains along one target direction.

    Returns:
        ``r2``, its ``ci95`` over documents (None with one document), ``n_rows``, ``n_documents``.
    """
    u = direction.double().cpu()
    actual = (held_out.y.double() - held_out.moments.mean_y) @ u
    predicted = (predict(held_out.x.float()).double() - held_out.moments.mean_y) @ u
    residual, total = (actual - predicted).square(), actual.square()
    bootstrap = DocumentBootstrap(held_out.document)
    bounds = bootstrap.ratio(residual, total)
    return {
        "r2": float(1.0 - residual.sum() / total.sum()),
        "ci95": None if bounds is None else [1.0 - bounds[1], 1.0 - bounds[0]],
        "n_rows": len(actual),
        "n_documents": bootstrap.n,
    }


def score_card(
    predict: Predict,
    control: Predict,
    train: PairedMoments,
    held_out: HeldOut,
    *,
    affine: tuple[Tensor, Tensor] | None = None,
    affine_control: tuple[Tensor, Tensor] | None = None,
    in_sample_fvu: float,
    pairing: AlignmentReport,
    dropped: dict[str, dict[str, int]],
    n_documents: dict[str, int],
    path: Sequence[dict[str, float]] = (),
    spectra: tuple[Spectrum, Spectrum] | None = None,
) -> dict[str, Any]:
    """The whole card of a map (JSON). `docs/concepts/score_card.md` says what each number means.

    Args:
        predict: The map on source rows, float32.
        control: The same method fitted on wrongly paired rows.
        train: Sums of the training rows.
        held_out: Rows of documents that no fit has seen.
        affine: Weight and bias of the map, where it has them (see `scores`).
        affine_control: The same of the control.
        in_sample_fvu: FVU on the training rows; shown beside the held-out one, never alone.
        pairing: How many tokens could be paired.
        dropped: Side -> reason -> tokens left out (see `Pairs`).
        n_documents: ``train`` and ``test``.
        path: Candidates of the method's own choice, scored on training folds.
        spectra: Of both covariances of `train`; default, decomposed here.
    """
    spectra = spectra or (spectrum(train.xx), spectrum(train.yy))
    alike = spaces(train, held_out, spectra)
    right, wrong = alike["cka_debiased"], alike["floor"]["cka_debiased"]
    card: dict[str, Any] = {
        "held_out": scores(predict, held_out, affine=affine) | {"cka": right},
        "shuffled": scores(control, held_out, affine=affine_control) | {"cka": wrong},
        "in_sample": {"fvu": in_sample_fvu},
        "spaces": alike,
        "coverage": {"source": pairing.coverage_source, "target": pairing.coverage_target},
        "dropped_tokens": pairing.n_dropped,
        "dropped": dropped,
        "n_tokens": {"train": round(train.n), "test": held_out.moments.n},
        "rows_per_dimension": train.n / len(train.mean_x),
        "n_documents": n_documents,
        "effective_rank": {
            side: rank_of_spectrum(values)
            for side, (values, _) in zip(("source", "target"), spectra, strict=True)
        },
        "path": list(path),
    }
    coverage = (pairing.coverage_source, pairing.coverage_target)
    return card | {"warnings": warnings(train, card, coverage, n_documents["test"])}


def warnings(
    train: PairedMoments,
    card: dict[str, Any],
    coverage: tuple[float, float],
    n_held_out_documents: int,
) -> list[str]:
    """Plain sentences about what makes this map doubtful."""
    lines = []
    d_source = len(train.mean_x)
    if train.n < 20 * d_source:
        lines.append(
            f"{train.n} training rows for {d_source} source dimensions "
            f"({train.n / d_source:.0f} each); 20 or more a dimension is comfortable"
        )
    if n_held_out_documents < 10:
        lines.append(
            f"{n_held_out_documents} held-out documents: intervals over so few are too narrow"
        )
    held_out, shuffled = card["held_out"]["fvu"], card["shuffled"]["fvu"]
    if held_out > 0.9:
        lines.append("the map explains less than a tenth of the held-out variance")
    if held_out > 0.95 * shuffled:
        lines.append("the map is hardly better than one fitted on wrongly paired rows")
    if card["in_sample"]["fvu"] < 0.5 * held_out:
        lines.append("the error on held-out rows is over twice that on the training rows: overfit")
    if min(coverage) < 0.5:
        lines.append("under half of the tokens of one model could be paired")
    return lines
