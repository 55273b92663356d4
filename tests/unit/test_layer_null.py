"""The permutation null: scores equal the direct computation, unrelated models are not found."""

import pytest
import torch

from tl_transfer.layers import null as layer_null
from tl_transfer.layers.null import STRENGTH, DocumentSample, permutation_null
from tl_transfer.similarity import CkaSums

PER = 4


def rows(*, related: bool, n: int = 240, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three source and two target hook points; with `related`, source 1 drives target 0.

    Rows of a document share a shift that depends on the place in the text in both models.
    """
    g = torch.Generator().manual_seed(seed)
    place = torch.arange(n) % PER
    x, y = torch.randn(n, 3, 8, generator=g) + 5, torch.randn(n, 2, 6, generator=g) - 3
    x[:, :, 0] += place[:, None]
    y[:, :, 0] += place[:, None]
    if related:
        y[:, 0] += x[:, 1] @ torch.randn(8, 6, generator=g)
    return x, y


def measured(x: torch.Tensor, y: torch.Tensor, permutations: int = 39, seed: int = 0):
    v = torch.randn(8, generator=torch.Generator().manual_seed(7))
    return permutation_null(x, y, PER, vectors={1: v}, permutations=permutations, seed=seed), v


def test_the_smallest_p_value_is_exact() -> None:
    """1 / 20 in float32 is above 0.05, and every pair would be called chance."""
    null, _ = measured(*rows(related=True), permutations=19)
    values = [p for entry in null["measures"].values() for row in entry["p"] for p in row]
    assert min(p for p in values if p == p) == 1 / 20


def test_the_scores_are_those_of_a_fit_on_the_sample() -> None:
    x, y = rows(related=True)
    null, v = measured(x, y, permutations=1)
    scores = {name: entry["observed"] for name, entry in null["measures"].items()}
    fit, test = slice(0, 180), slice(180, 240)
    for s in range(3):
        for t in range(2):
            a, b = x[:, s].double(), y[:, t].double()
            ac, bc = a[fit] - a[fit].mean(0), b[fit] - b[fit].mean(0)
            own = ac.T @ ac
            own += STRENGTH * own.diagonal().mean() * torch.eye(8)
            weight = torch.linalg.solve(own, ac.T @ bc)
            residual = b[test] - b[fit].mean(0) - (a[test] - a[fit].mean(0)) @ weight
            total = b[test] - b[test].mean(0)
            explained = 1 - residual.square().sum() / total.square().sum()
            assert scores["explained"][s][t] == pytest.approx(float(explained), abs=1e-4)
            assert scores["cka"][s][t] == pytest.approx(CkaSums.of(a, b).debiased(), abs=1e-4)
            if s == 1:
                u = v.double() @ weight
                r2 = 1 - (residual @ u).square().sum() / (total @ u).square().sum()
                assert scores["direction_r2"][s][t] == pytest.approx(float(r2), abs=1e-4)


def test_a_related_pair_is_found_and_the_others_are_not() -> None:
    null, _ = measured(*rows(related=True))
    for name in ("explained", "cka", "direction_r2"):
        p = torch.tensor(null["measures"][name]["p"])
        assert float(p[1, 0]) == pytest.approx(1 / 40)
        assert float(p[2, 0].nan_to_num(1.0)) > 0.05


def test_unrelated_models_are_seldom_called_related() -> None:
    """The best of all pairs has p <= 0.05 in about one data set of twenty, position effect and all.

    Rows of a text share what their places say: a permutation of rows would find that, and call
    nearly every data set related. Documents keep it in the null.
    """
    found = 0
    for seed in range(40):
        null, _ = measured(*rows(related=False, seed=seed), permutations=19, seed=seed)
        found += min(p for row in null["measures"]["cka"]["p"] for p in row) <= 0.05
    assert found <= 6


def test_the_sample_takes_whole_places_of_one_text_a_document() -> None:
    x = torch.arange(40.0)[:, None, None].expand(40, 1, 2)
    text = torch.tensor([0] * 10 + [1] * 3 + [2] * 10 + [3] * 17)
    document = torch.tensor([0] * 13 + [1] * 10 + [2] * 17)
    sample = DocumentSample(layer_null.MAX_ROWS // 4)
    sample.add(x[:13], x[:13], text[:13], document[:13])
    sample.add(x[13:], x[13:], text[13:], document[13:])
    kept, _ = sample.rows()
    assert kept[:, 0, 0].tolist() == [0, 3, 6, 9, 13, 16, 19, 22, 23, 28, 34, 39]
    assert sample.n_documents == 3
