"""Correlation, matching and regression of features, on worlds where the truth is planted."""

from dataclasses import replace

import pytest
import torch

import tl_transfer as tt
from tests.sparse import sums_of, world
from tl_transfer.errors import InputError
from tl_transfer.features.codes import SparseCodes
from tl_transfer.features.match import _random_partners, match_features
from tl_transfer.features.regress import regress_features
from tl_transfer.features.scores import correlation_intervals, correlations, interval_of_correlation


@pytest.fixture(scope="module")
def planted():
    return world(alone=8)


@pytest.fixture(scope="module")
def sums(planted):
    return sums_of(planted)


def test_sparse_codes_are_the_dense_ones(planted) -> None:
    dense = planted.source.encode(planted.x[:50])
    codes = SparseCodes.of(dense)
    assert torch.equal(codes.cpu().dense(torch.arange(80)).float(), dense)
    picked = codes.rows(torch.tensor([7, 3, 3]))
    assert torch.equal(picked.cpu().dense(torch.arange(80)).float(), dense[[7, 3, 3]])
    assert len(SparseCodes.joined([codes, picked])) == 53


@pytest.mark.parametrize("double", [True, False])
def test_streamed_correlations_are_those_of_the_dense_codes(planted, double, monkeypatch) -> None:
    if not double:
        monkeypatch.setattr("tl_transfer.features.correlate.DOUBLE_BYTES", 0)
    sums = sums_of(planted, chunk=333)
    train = planted.document % 5 != 0
    x, y = planted.source.encode(planted.x)[train], planted.target.encode(planted.y)[train]
    dense = torch.corrcoef(torch.cat([x, y], dim=1).double().T)[:80, 80:].nan_to_num(0.0)
    assert sums.n == int(train.sum())
    assert torch.allclose(sums.correlation(), dense, atol=1e-10 if double else 1e-5)
    held = correlations(sums.held_out, torch.arange(80), torch.arange(80))
    x, y = planted.source.encode(planted.x)[~train], planted.target.encode(planted.y)[~train]
    dense = torch.corrcoef(torch.cat([x, y], dim=1).double().T)[:80, 80:].nan_to_num(0.0)
    assert torch.allclose(held, dense.diagonal(), atol=1e-10)


@pytest.mark.parametrize("method", ["mutual", "assignment"])
def test_planted_features_are_found_and_exclusive_ones_are_not_claimed(
    planted, sums, method
) -> None:
    found = match_features(sums, method=method)
    truth = planted.partner[found.source]
    shared = (planted.partner >= 0).sum()
    right = (found.target == truth) & found.above_floor
    assert right.sum() > 0.95 * shared
    assert found.r[right].median() > 0.9
    wrong = found.above_floor & (truth != found.target) & (found.r > 0.5)
    assert not wrong.any()
    assert found.summary["coverage"] == pytest.approx(0.9, abs=0.03)
    if method == "assignment":
        assert len(found.target.unique()) == len(found)


def test_wrong_pairs_score_at_the_floor(planted) -> None:
    turned = planted.y.roll(len(planted.y) // 2 + 17, 0)
    found = match_features(sums_of(planted, y=turned))
    assert found.r.abs().max() < 0.2
    assert found.summary["coverage"] == 0.0
    assert found.above_floor.float().mean() < 0.1


def test_floors_stand_beside_every_match(planted, sums) -> None:
    found = match_features(sums)
    match = found.map(0)[0]
    assert match.target == planted.partner[0] and match.above_floor
    assert match.ci95[0] <= match.r <= match.ci95[1]
    assert match.shuffled < 0.3 and match.random < 0.3
    assert found.floor < 0.3 and len(found.procedure) > 10
    others = [match for i in range(80) for match in found.map(i)[1:]]
    assert others and all(m.r is None and not m.above_floor for m in others)
    assert "coverage" in repr(found)
    with pytest.raises(InputError, match="0 to 79"):
        found.map(80)


def dense_correlations(sample) -> torch.Tensor:
    """Of all features of one side with all of the other, without any of our sums."""
    every = torch.arange(80)
    rows = torch.cat([sample.x.dense(every), sample.y.dense(every)], dim=1)
    return torch.corrcoef(rows.T)[:80, 80:].nan_to_num(0.0)


def mutual_best(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    source, target = torch.arange(len(r)), r.argmax(1)
    kept = (r.argmax(0)[target] == source) & (r[source, target] > 0)
    return source[kept], target[kept]


def test_matches_scores_and_floors_are_those_of_a_dense_reckoning(sums) -> None:
    found = match_features(sums)
    held, train = sums.held_out, sums.train
    assert len(train) == sums.n  # all training rows are in the sample of this small world
    source, target = mutual_best(dense_correlations(train))
    assert torch.equal(found.source, source) and torch.equal(found.target, target)
    assert torch.allclose(found.r_train, dense_correlations(train)[source, target])
    assert torch.allclose(found.r, dense_correlations(held)[source, target])
    turned = [dense_correlations(held.shifted(k, 5))[source, target] for k in range(1, 6)]
    assert torch.allclose(found.shuffled, torch.stack(turned, dim=1))
    # The floor of the procedure: chosen on wrong training pairs, scored on wrong held-out pairs.
    wrong = mutual_best(dense_correlations(train.shifted(1, 1)))
    expected = dense_correlations(held.shifted(1, 1))[wrong]
    assert torch.allclose(found.procedure, expected)


def test_every_floor_alone_takes_a_match_away(sums) -> None:
    found = match_features(sums)
    first = int(found.above_floor.nonzero()[0])
    for name in ("shuffled", "random"):
        high = getattr(found, name).clone()
        high[first, 2] = 0.99
        assert not replace(found, **{name: high}).above_floor[first]
    assert not replace(found, procedure=torch.full((50,), 0.999)).above_floor.any()
    # Coverage is of held-out correlations, whatever the training ones say.
    assert replace(found, r_train=torch.zeros_like(found.r)).summary["coverage"] > 0.8
    assert replace(found, r=torch.zeros_like(found.r)).summary["coverage"] == 0.0


def test_among_few_features_no_match_is_its_own_random_partner() -> None:
    sums = sums_of(world(n_features=20))
    target, live = torch.arange(20), torch.ones(20, dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    drawn = _random_partners(sums.target, live, target, draws)
    assert all(bool((partner != target).all()) for partner in drawn)


def test_intervals_resample_documents(sums) -> None:
    held, index = sums.held_out, torch.tensor([3])
    x, y = held.x.dense(index)[:, 0], held.y.dense(index)[:, 0]
    for document in (held.document, held.document // 4, torch.arange(len(held))):
        (streamed,) = correlation_intervals(replace(held, document=document), index, index)
        plain = interval_of_correlation(x, y, document, seed=0)
        assert streamed.tolist() == pytest.approx(plain, abs=1e-9)
    by_row = interval_of_correlation(x, y, torch.arange(len(held)), seed=0)
    by_document = interval_of_correlation(x, y, held.document, seed=0)
    assert by_row != pytest.approx(by_document, abs=1e-4)


def test_sums_of_two_machines_are_the_sums_of_one(planted, sums) -> None:
    half = 3000
    parts = [
        sums_of(replace(planted, z=planted.z[rows], document=planted.document[rows]), texts=(name,))
        for rows, name in ((slice(0, half), "b"), (slice(half, None), "c"))
    ]
    both = parts[1] + parts[0]
    assert torch.allclose(both.correlation(), sums.correlation(), atol=1e-12)
    assert torch.equal(both.held_out.x.value, sums.held_out.x.value)
    with pytest.raises(InputError, match="shared texts"):
        parts[0] + parts[0]
    stranger = replace(planted, source=replace(planted.source, identity="other"))
    with pytest.raises(InputError, match="another dictionary"):
        sums + sums_of(stranger, texts=("d",))


def test_silent_features_are_left_alone(planted, sums) -> None:
    found = match_features(sums, min_active=10**6)
    assert len(found) == 0 and found.summary["coverage"] == 0.0


def test_an_interval_of_one_document_is_refused(sums) -> None:
    one = replace(sums.held_out, document=torch.zeros_like(sums.held_out.document))
    index = torch.tensor([0])
    assert correlation_intervals(one, index, index).isnan().all()


def test_regression_finds_the_parts_of_a_joined_feature(planted) -> None:
    """A target feature that is active when either of two source features is."""
    a, b = (int(i) for i in (planted.partner >= 0).nonzero()[:2, 0])
    t = int(planted.partner[a])
    directions = planted.target.directions.clone()
    joined = planted.z[:, [a, b]] @ torch.tensor([[1.0], [0.6]])
    y = planted.y - planted.z[:, [a]] * directions[t] + joined * directions[t]
    y -= planted.z[:, [b]] * directions[planted.partner[b]]
    sums = sums_of(planted, y=y)
    (found,) = regress_features(sums, [t])
    assert set(found.sources[:2]) == {a, b}
    weights = dict(zip(found.sources, found.weights, strict=True))
    assert weights[b] / weights[a] == pytest.approx(0.6, abs=0.1)
    assert found.r2 > 0.85 > 0.7 > found.single and found.floor < 0.05
    assert found.ci95[0] < found.r2 < found.ci95[1]
    held = sums.held_out
    predicted = held.x.dense(torch.tensor(found.sources)) @ torch.tensor(found.weights).double()
    rows = held.y.dense(torch.tensor([t]))[:, 0]
    left = (rows - predicted - found.intercept).square().sum() / (rows - rows.mean()).square().sum()
    assert found.r2 == pytest.approx(float(1 - left), abs=1e-9) and found.n == len(held)
    with pytest.raises(InputError, match="0 to 79"):
        regress_features(sums, [80])


def test_a_saved_map_is_the_same(sums, tmp_path) -> None:
    found = match_features(sums)
    path = tt.save(found, tmp_path / "features.safetensors")
    loaded = tt.load(path)
    assert loaded.summary == found.summary and loaded.map(3) == found.map(3)
    assert loaded.source_space == found.source_space and loaded.best == found.best


def test_what_is_refused(sums) -> None:
    with pytest.raises(InputError, match="'mutual', 'assignment'"):
        match_features(sums, method="nearest")
    matched = match_features(sums)
    stranger = world().source
    with pytest.raises(InputError, match="not the one this feature map was made with"):
        matched.require(replace(stranger, identity="x" * 64), world().target)
