"""The score card against planted answers: it must not flatter noise, nor a single document."""

import json
from typing import Any

import pytest
import torch

from tl_transfer.intervals import DocumentBootstrap
from tl_transfer.mappers import card_view
from tl_transfer.mappers.scorecard import HeldOut, direction_score, scores, spaces
from tl_transfer.metrics import retrieval
from tl_transfer.statistics import PairedMoments

D_SOURCE, D_TARGET, NOISE = 16, 10, 2.0


def rows(n: int = 4000, seed: int = 0, *, related: bool = True) -> tuple[Any, Any, Any]:
    """Rows y = xA + noise of known variance, in documents of ten rows with a shared shift."""
    g = torch.Generator().manual_seed(seed)
    document = torch.arange(n) // 10
    x = torch.randn(n, D_SOURCE, generator=g)
    weight = torch.randn(D_SOURCE, D_TARGET, generator=torch.Generator().manual_seed(9))
    y = NOISE * torch.randn(n, D_TARGET, generator=g) + 5.0
    return x, (y + x @ weight if related else y), document


def weight() -> torch.Tensor:
    return torch.randn(D_SOURCE, D_TARGET, generator=torch.Generator().manual_seed(9))


def held_out(x: torch.Tensor, y: torch.Tensor, document: torch.Tensor) -> HeldOut:
    moments = PairedMoments.of(x, y)
    return HeldOut(moments, x, y, document)


def test_fvu_is_the_share_of_the_planted_noise() -> None:
    """FVU = noise variance over total variance, pooled and in each dimension, inside the CI."""
    exam = held_out(*rows())
    signal = weight().square().sum(0)
    found = scores(lambda x: x @ weight() + 5.0, exam, affine=(weight(), torch.full((10,), 5.0)))
    pooled = NOISE**2 * D_TARGET / float(signal.sum() + NOISE**2 * D_TARGET)
    mean = float((NOISE**2 / (signal + NOISE**2)).mean())
    for key, value in (("fvu", pooled), ("fvu_mean_dimension", mean)):
        low, high = found[f"{key}_ci95"]
        assert found[key] == pytest.approx(value, rel=0.03)
        assert low < value < high and high - low < 0.1 * value
    u = torch.eye(D_TARGET)[3]
    along = direction_score(lambda x: x @ weight() + 5.0, u, exam)
    assert along["r2"] == pytest.approx(float(signal[3] / (signal[3] + NOISE**2)), rel=0.05)
    assert along["ci95"][0] < along["r2"] < along["ci95"][1]
    assert (along["n_rows"], along["n_documents"]) == (4000, 400)


def test_scores_from_sums_equal_scores_from_rows() -> None:
    exam = held_out(*rows(400))
    exam = HeldOut(exact_moments(exam.x, exam.y), exam.x, exam.y, exam.document)
    bias = torch.full((D_TARGET,), 4.0)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return (x.double() @ weight().double() + 4.0).float()

    sums, direct = scores(predict, exam, affine=(weight(), bias)), scores(predict, exam)
    for key in ("fvu", "fvu_mean_dimension"):
        assert sums[key] == pytest.approx(direct[key], rel=1e-6)
    residual = exam.y.double() - exam.x.double() @ weight().double() - 4.0
    total = exam.y.double() - exam.y.double().mean(0)
    exact = float(residual.square().sum() / total.square().sum())
    assert sums["fvu"] == pytest.approx(exact, rel=1e-9)


def exact_moments(x: torch.Tensor, y: torch.Tensor) -> PairedMoments:
    x, y = x.double(), y.double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    return PairedMoments(
        len(x), x.mean(0), y.mean(0), xc.T @ xc, xc.T @ yc, yc.T @ yc, xc.T @ yc.roll(7, 0)
    )


def test_a_dimension_that_does_not_vary_has_no_share_unexplained() -> None:
    """It used to divide by nothing: a mean FVU of 1e30, and an estimate outside its interval."""
    x, y, document = rows(400)
    still = torch.cat([y, torch.full((400, 1), 7.0)], 1)
    guess = torch.cat([weight(), torch.randn(D_SOURCE, 1)], 1)
    key = "fvu_mean_dimension"
    expected = scores(lambda x: x @ weight() + 5.0, held_out(x, y, document))
    bias = torch.cat([torch.full((D_TARGET,), 5.0), torch.zeros(1)])
    for affine in (None, (guess, bias)):
        found = scores(lambda x: x @ guess + bias, held_out(x, still, document), affine=affine)
        assert found[key] == pytest.approx(expected[key], rel=1e-4)
        assert found[f"{key}_ci95"] == pytest.approx(expected[f"{key}_ci95"], rel=1e-4)


def test_a_map_of_noise_does_not_look_good() -> None:
    """Least squares on unrelated rows, scored on others: every number at its floor."""
    x, y, _ = rows(2000, related=False)
    fitted = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution

    def predict(x: torch.Tensor) -> torch.Tensor:
        return x @ fitted + y.mean(0)

    exam = held_out(*rows(1500, seed=1, related=False))
    found = scores(predict, exam)
    assert found["fvu"] > 1.0 and found["fvu_mean_dimension"] > 1.0
    assert abs(found["cosine"]) < 0.03
    assert found["retrieval_top1"] < 0.005 and found["retrieval_top5"] < 0.01
    assert direction_score(predict, torch.eye(D_TARGET)[0], exam)["r2"] < 0.01
    alike = spaces(PairedMoments.of(x, y), exam)
    assert abs(alike["cka_debiased"]) < 0.01
    assert abs(alike["svcca"]) < 0.05 and alike["mutual_knn"] < 0.03
    assert alike["cka_linear"] == pytest.approx(alike["floor"]["cka_linear"], abs=0.01)


def test_related_spaces_stand_above_their_floor() -> None:
    x, y, _ = rows(2000)
    alike = spaces(PairedMoments.of(x, y), held_out(*rows(1500, seed=1)))
    for key in ("cka_linear", "cka_debiased", "svcca", "mutual_knn"):
        assert alike[key] > 0.05 + 2 * abs(alike["floor"][key]), key


def test_one_held_out_document_gives_reasons_and_no_numbers() -> None:
    """A single document used to give a retrieval of 1.0 and an interval of no width."""
    x, y, document = rows(50)
    exam = held_out(x, y, torch.zeros_like(document))
    found = scores(lambda x: x @ weight(), exam)
    assert found["retrieval_top1"] is None and found["retrieval_top5"] is None
    assert found["fvu_ci95"] is None and found["cosine_ci95"] is None
    assert "one held-out document" in found["undefined"]["retrieval"]
    assert direction_score(lambda x: x @ weight(), torch.eye(D_TARGET)[0], exam)["ci95"] is None
    json.dumps(found, allow_nan=False)


def test_the_order_of_rows_does_not_matter() -> None:
    x, y, document = rows(600)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(4))
    one = scores(lambda x: x @ weight(), held_out(x, y, document))
    other = scores(lambda x: x @ weight(), held_out(x[order], y[order], document[order]))
    for key in ("fvu", "cosine", "retrieval_top1", "random_label_cosine", "fvu_ci95"):
        assert other[key] == pytest.approx(one[key], rel=1e-5), key


def test_retrieval_counts_ties_against_the_map_and_leaves_out_copies() -> None:
    actual = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    document = torch.arange(40) // 2
    assert retrieval(actual, actual, document) == (1.0, 1.0)
    constant = torch.ones_like(actual)
    assert retrieval(constant, actual, document)[0] == pytest.approx(0.0, abs=0.1)
    actual[2] = actual[0]  # another document that begins with the same words
    assert retrieval(actual, actual, document) == (1.0, 1.0)
    assert retrieval(actual, actual, torch.zeros_like(document)) == (None, None)


def test_documents_and_not_rows_are_resampled() -> None:
    """Ten documents that each repeat one value a hundred times are ten things, not a thousand."""
    values = torch.randn(10, generator=torch.Generator().manual_seed(0)).repeat_interleave(100)
    one = torch.ones_like(values)
    low, high = DocumentBootstrap(torch.arange(10).repeat_interleave(100)).ratio(values, one)
    narrow = DocumentBootstrap(torch.arange(1000)).ratio(values, one)
    assert (high - low) > 5 * (narrow[1] - narrow[0])
    assert DocumentBootstrap(torch.zeros(9, dtype=torch.long)).ratio(values[:9], one[:9]) is None
    paired = DocumentBootstrap(torch.arange(10).repeat_interleave(100))
    shifted = paired.ratio_difference(values + 0.5, values, one)
    assert shifted == pytest.approx([0.5, 0.5])


def test_a_map_shows_its_card_with_the_control_beside_every_score() -> None:
    card = {
        "held_out": scores(lambda x: x @ weight(), held_out(*rows(200))),
        "shuffled": {"fvu": 1.02},
        "in_sample": {"fvu": 0.1},
        "warnings": ["<b>few rows</b>"],
    }
    text = card_view.as_text("map <script>", card)
    assert "own row found first" in text and "1.020" in text and "FVU on the training rows" in text
    page = card_view.as_html("map <script>", card)
    assert "<script>" not in page and "&lt;b&gt;few rows" in page
    # An in-sample number alone is no card.
    assert "0.1" not in card_view.as_text("title", {"in_sample": {"fvu": 0.1}})


def test_random_labels_say_what_a_cosine_is_worth() -> None:
    exam = held_out(*rows())
    right = scores(lambda x: x @ weight() + 5.0, exam)
    wrong = scores(lambda x: x @ weight().flip(0), exam)
    low, high = right["random_label_cosine_range95"]
    assert low < right["random_label_cosine"] < high and right["random_label_cosine"] > 0.8
    # Of a map that has nothing to do with the target, they are about a mean near nothing.
    assert wrong["random_label_cosine"] < 0.5
    few = scores(lambda x: x @ weight(), held_out(*rows(30)))
    assert few["random_label_cosine"] is None
    shown = card_view.as_text("map", {"held_out": right, "shuffled": wrong})
    assert f"{right['random_label_cosine']:.3f} [{low:.3f}, {high:.3f}]" in shown


def test_a_map_without_scores_says_so_and_how_to_have_them() -> None:
    for shown in (card_view.as_text("composed", {}), card_view.as_html("composed", {})):
        assert "no held-out scores and no control" in shown and "directly" in shown
