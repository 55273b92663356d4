"""One table of laws for every mapping method, on rows whose true map is known.

A method says what it must recover: everything linear, only rotations, or nothing (controls).
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests import tiny
from tests.maps import (
    D_SOURCE,
    D_TARGET,
    HERE,
    THERE,
    N,
    built,
    exact,
    fvu,
    predict,
    relative,
    rows,
    slope,
    sums,
)
from tests.words import random_texts
from tl_transfer.errors import InputError
from tl_transfer.mappers.registry import METHODS, solve
from tl_transfer.mappers.relu import RULES
from tl_transfer.mappers.scorecard import HeldOut
from tl_transfer.mappers.training import Training
from tl_transfer.statistics import merge


@dataclass(frozen=True)
class Law:
    """What a method recovers without noise, with options that do not regularise."""

    recovers: str  # "linear", "rotation", "nothing"
    options: dict[str, Any]
    square: bool = False


LAWS: dict[str, Law] = {
    "ridge": Law("linear", {"strength": 1e-12}),
    "ols": Law("linear", {}),
    "procrustes": Law("rotation", {}),
    "whitened_procrustes": Law("linear", {"strength": 1e-12}),
    "cca": Law("linear", {"strength": 1e-12, "rank": D_SOURCE}),
    "soft_cca": Law("linear", {"strength": 1e-12, "kappa": 0.0}),
    "reduced_rank": Law("linear", {"strength": 1e-12, "rank": D_SOURCE}),
    "ridge_to_identity": Law("linear", {"strength": 1e-12}, square=True),
    "anchors": Law("rotation", {"k": 40}),
    "embeddings": Law("linear", {"strength": 1e-12}),
    "autoencoder": Law("linear", {"strength": 1e-12, "hidden": 8}),
    "mean_only": Law("nothing", {}),
    "random_orthogonal": Law("nothing", {}),
    "identity": Law("nothing", {}),
    "untrained_autoencoder": Law("nothing", {"hidden": 8}),
    "gradient_affine": Law("nothing", {"epochs": 1}),
}
WORKING = [name for name, law in LAWS.items() if law.recovers != "nothing"]


def test_every_method_has_its_laws() -> None:
    assert set(LAWS) == set(METHODS)
    assert {name for name in METHODS if METHODS[name].control} == set(METHODS) - set(WORKING)


# -- recovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", ["rotation", "linear"])
def test_recovery(name: str, kind: str) -> None:
    """Linear methods recover any linear map, rigid ones only a rotation, controls nothing."""
    law = LAWS[name]
    x, y, true = rows(kind, square=law.square)
    solution = solve(name, sums(x[:1200], y[:1200]), **law.options)
    held_out = fvu(solution, x[1200:], y[1200:])
    if law.recovers == "linear" or law.recovers == kind:
        assert relative(slope(solution, x, y), true) < 1e-5
        assert held_out < 1e-9
    else:
        assert held_out > 0.05
        assert relative(slope(solution, x, y), true) > 0.1


@pytest.mark.parametrize("name", WORKING)
def test_noise_costs_what_it_must(name: str) -> None:
    """With chosen hyperparameters the held-out error is near the noise, and the control at 1."""
    law = LAWS[name]
    x, y, _ = rows("rotation", square=law.square, noise=1.7)
    training = sums(x[:1200], y[:1200])
    x_test, y_test = x[1200:], y[1200:]
    floor = 1.7**2 * y_test.numel() / float((y_test - y_test.mean(0)).square().sum())
    solution = solve(name, training, **({"k": 60} if name == "anchors" else {}))
    wrong = solve(name, training.shuffled(), **solution.options)
    # Methods that do not shrink pay the noise of what they carry, too.
    unshrunk = {"whitened_procrustes": 1.6, "cca": 1.6, "anchors": 3.0}
    assert fvu(solution, x_test, y_test) < floor * unshrunk.get(name, 1.05)
    assert fvu(wrong, x_test, y_test) > 0.9


# -- the choice and its record ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_recorded_options_give_the_same_map(name: str) -> None:
    x, y, _ = rows("linear", square=LAWS[name].square, noise=0.5)
    chosen = solve(name, sums(x, y))
    again = solve(name, sums(x, y), **chosen.options)
    a, b = built(chosen, x, y).tensors(), built(again, x, y).tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert set(chosen.options) <= set(METHODS[name].options)
    for step in chosen.path:
        assert 0 <= step.get("fvu_validation", step.get("fvu_training", -1.0)) < 2


@pytest.mark.parametrize("name", LAWS)
def test_neither_order_nor_batches_nor_machines_matter(name: str) -> None:
    x, y, _ = rows("linear", square=LAWS[name].square, noise=0.5)
    one, parts = sums(x, y), sums(x, y, batch=37)
    a = solve(name, one, **LAWS[name].options)
    b = solve(name, replace(parts, rows=one.rows), **LAWS[name].options)
    # What is trained runs in float32, and rounding grows with every step.
    close = 1e-9 if a.affine is not None and METHODS[name].reads != "rows" else 1e-3
    assert relative(slope(a, x, y), slope(b, x, y)) < close or name == "mean_only"
    assert relative(predict(a, x, y), predict(b, x, y)) < close


def test_two_machines_sum_to_one() -> None:
    x, y, _ = rows("linear", noise=0.5)
    whole = exact(x, y)
    parts = merge([exact(x[:700], y[:700]), exact(x[700:], y[700:])])
    for field in ("mean_x", "mean_y", "xx", "xy", "yy"):
        assert relative(getattr(parts, field), getattr(whole, field)) < 1e-12


@pytest.mark.parametrize(
    "name", [n for n in LAWS if n not in ("gradient_affine", "untrained_autoencoder")]
)
def test_the_map_does_not_see_a_shift_of_the_activations(name: str) -> None:
    """T is invariant to adding a constant to either model's activations; only b changes."""
    x, y, _ = rows("linear", square=LAWS[name].square, noise=0.5)
    a = solve(name, sums(x, y), **LAWS[name].options)
    shift = torch.arange(float(D_SOURCE)).double()
    moved = replace(sums(x + shift, y - 3.0), embeddings=lambda: (x, y))
    b = solve(name, moved, **LAWS[name].options)
    close = 1e-7 if a.affine is not None else 1e-3
    assert relative(slope(b, x, y), slope(a, x, y)) < close or name == "mean_only"
    assert relative(predict(b, x + shift, y), predict(a, x, y) - 3.0) < close


UNSHRUNK = ("cca", "whitened_procrustes", "ridge_to_identity")
PATHS = [n for n in LAWS if "strength" in METHODS[n].options and METHODS[n].reads == "sums"]


@pytest.mark.parametrize("name", [n for n in PATHS if n not in UNSHRUNK])
def test_ends_of_the_ridge_path(name: str) -> None:
    x, y, _ = rows("linear", noise=0.5)
    training = sums(x, y)
    more = {k: v for k, v in LAWS[name].options.items() if k != "strength"}
    assert float(solve(name, training, strength=1e12, **more).weight.norm()) < 1e-6
    ols = solve("ols", training).weight
    assert relative(solve(name, training, strength=0.0, **more).weight, ols) < 1e-8


def test_ridge_to_identity_shrinks_to_the_identity() -> None:
    x, y, _ = rows("linear", square=True, noise=0.5)
    far = solve("ridge_to_identity", sums(x, y), strength=1e12).weight
    assert relative(far, torch.eye(D_SOURCE, dtype=torch.float64)) < 1e-6
    same = solve("ridge_to_identity", sums(x, x))
    assert relative(same.weight, torch.eye(D_SOURCE, dtype=torch.float64)) < 1e-9
    switch = solve("ridge_to_identity", sums(x, y), rank=2).weight
    change = torch.linalg.svdvals(switch - torch.eye(D_SOURCE, dtype=torch.float64))
    assert change[1] > 1e-3 > 1e-9 > change[2]


def test_rank_and_correlations() -> None:
    x, y, _ = rows("linear", noise=0.5)
    for name in ("reduced_rank", "cca"):
        values = torch.linalg.svdvals(solve(name, sums(x, y), rank=3).weight)
        assert values[2] > 1e-3 and values[3] < 1e-9
    # In the CCA metric the gain of a direction is its correlation: the truncated least squares.
    full = solve("reduced_rank", sums(x, y), strength=1e-12, rank=D_SOURCE, metric="cca")
    assert relative(full.weight, solve("ols", sums(x, y)).weight) < 1e-8


def test_many_anchors_are_the_transpose_of_the_way_back() -> None:
    """Anchor coordinates divide by the covariance of the target, not by that of the source."""
    x, y, _ = rows("linear", square=True, noise=0.5)
    solved = solve("anchors", sums(x, y), k=N, cutoff=1e-12)
    a, b = (torch.nn.functional.normalize(t - t.mean(0), dim=1) for t in (x, y))
    expected = a.T @ b @ torch.linalg.inv(b.T @ b)
    assert relative(solved.weight / solved.weight.norm(), expected / expected.norm()) < 1e-6


def test_whitened_procrustes_keeps_the_covariance_and_least_squares_shrinks() -> None:
    x, y, _ = rows("linear", noise=3.0)
    training = sums(x, y)
    shrunk = solve("ols", training).weight
    kept = solve("whitened_procrustes", training, strength=1e-12).weight
    yy = training.total.yy

    def share(weight: Tensor) -> float:
        return float((weight.T @ training.total.xx @ weight).trace() / yy.trace())

    assert share(shrunk) < share(kept) <= 1 + 1e-6
    square, y2, _ = rows("linear", square=True, noise=3.0)
    both = sums(square, y2)
    weight = solve("whitened_procrustes", both, strength=1e-12).weight
    assert relative(weight.T @ both.total.xx @ weight, both.total.yy) < 1e-6


def test_the_inverse_of_procrustes_is_its_transpose() -> None:
    x, y, _ = rows("rotation", noise=0.5)
    forward = solve("procrustes", sums(x, y), scale=False).weight
    back = solve("procrustes", sums(x, y).reversed(), scale=False).weight
    assert relative(back, forward.T) < 1e-9
    assert relative(forward @ back, torch.eye(D_SOURCE, dtype=torch.float64)) < 1e-9


def test_standardised_procrustes_recovers_what_plain_cannot() -> None:
    x, y, _ = rows("rotation")
    stretched = y * torch.logspace(0, 3, D_TARGET, dtype=torch.float64)
    scaled_x = x.clone()
    same = sums(scaled_x, x * torch.logspace(0, 3, D_SOURCE, dtype=torch.float64))
    test = same.total
    fvu = {}
    for standardise in (False, True):
        solved = solve("procrustes", same, standardise=standardise)
        fvu[standardise] = test.fvu_mean_dimension(solved.weight, solved.bias)
    assert fvu[True] < 1e-9 and fvu[False] > 0.1
    assert stretched.shape == y.shape


# -- degenerate input ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_degenerate_rows_are_refused(name: str) -> None:
    law = LAWS[name]
    x, y, _ = rows("linear", square=law.square)
    with pytest.raises(InputError, match="fewer training rows than source dimensions"):
        solve(name, sums(x[:10], y[:10], folds=2), **law.options)
    bad = x.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        solve(name, sums(bad, y), **law.options)
    with pytest.raises(InputError, match="all target rows are the same"):
        solve(name, sums(x, torch.ones_like(y)), **law.options)


def test_constant_dimensions_are_refused_where_they_matter() -> None:
    x, y, _ = rows("linear")
    x[:, 4] = 7.0
    with pytest.raises(InputError, match="1 of 12 source directions do not vary"):
        solve("ols", sums(x, y))
    with pytest.raises(InputError, match="dimension of the source does not vary"):
        solve("procrustes", sums(x, y), standardise=True)
    solved = solve("ridge", sums(x, y))
    assert bool(torch.isfinite(solved.weight).all())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rigde", {}, "valid: ridge, ols"),
        ("ols", {"strength": 1.0}, "strength: not an option of method 'ols'"),
        ("ridge", {"strength": -1.0}, "must not be negative"),
        ("ridge", {"strength": float("nan")}, "must not be negative"),
        ("cca", {"rank": 0}, "from 1 to 12"),
        ("reduced_rank", {"rank": 13}, "from 1 to 12"),
        ("reduced_rank", {"metric": "x"}, '"variance" or "cca"'),
        ("soft_cca", {"kappa": -1.0}, "must not be negative"),
        ("anchors", {"k": 1}, "2 to 1500"),
        ("anchors", {"k": 2.5}, "valid: int or None"),
        ("ridge", {"strength": "1"}, "valid: float or None"),
        ("reduced_rank", {"rank": 2.5}, "valid: int or None"),
        ("cca", {"rank": True}, "valid: int or None"),
        ("procrustes", {"scale": "no"}, "valid: bool"),
        ("ridge_to_identity", {"rank": "x"}, "rank: unknown"),
        ("ridge_to_identity", {}, "one width"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    x, y, _ = rows("linear", square="rank: unknown" in message)
    with pytest.raises(InputError, match=message):
        solve(name, sums(x, y), **options)


def test_methods_that_need_more_than_sums_say_so() -> None:
    x, y, _ = rows("linear")
    bare = Training(sums(x, y).folds)
    for name in (n for n in METHODS if METHODS[n].reads != "sums"):
        with pytest.raises(InputError, match="next:"):
            solve(name, bare)


# -- the mapper made of a solution ----------------------------------------------------------------


def mapper(name: str, **changes: Any) -> tt.Mapper:
    law = LAWS[name]
    x, y, _ = rows("linear", square=law.square, noise=0.5)
    there = replace(THERE, d_model=y.shape[1])
    training = sums(x[:1200], y[:1200])
    common = {"source_norm": 3.0, "target_norm": 5.0, "held_out": exact(x[1200:], y[1200:])}
    solution = solve(name, training, **law.options)
    back_name = METHODS[name].back or name
    back = solve(back_name, training.reversed(), **({} if METHODS[name].back else law.options))
    turned = {**common, "held_out": common["held_out"].reversed(), "source": there, "target": HERE}
    fields = {
        "source": HERE,
        "target": there,
        "method": name,
        "settings": {"options": solution.options},
        "fit_texts": frozenset({"h"}),
        "backward": back.build(**turned, method=back_name, fit_texts=frozenset({"h"})),
    }
    held_out = HeldOut(common["held_out"], x[1200:], y[1200:], torch.arange(len(x) - 1200))
    return solution.build(held_out, **{**common, **fields, **changes})


@pytest.mark.parametrize("name", LAWS)
def test_directions_and_points(name: str) -> None:
    fitted = mapper(name)
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, D_SOURCE, generator=g)
    zero = torch.zeros(D_SOURCE)
    assert torch.equal(fitted.map_direction(zero), torch.zeros(fitted.target.d_model))
    for rule in RULES:
        at = x[:1] if rule == "class_means" else None
        nothing = fitted.map_direction(zero, rule=rule, at=at)
        assert torch.equal(nothing, torch.zeros(fitted.target.d_model))
    linear = partial(fitted.map_direction, rule="jacobian")
    assert torch.equal(linear(-v), -linear(v))
    torch.testing.assert_close(linear(3 * v), 3 * linear(v))
    torch.testing.assert_close(linear(v), v @ fitted.jacobian(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        fitted.map_points(x + v) - fitted.map_points(x),
        torch.stack([fitted.map_direction(a, at=b[None]) for a, b in zip(v, x, strict=True)]),
        atol=1e-3,
        rtol=0,
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert fitted.map_points(x.to(dtype)).dtype == dtype
        assert fitted.map_direction(v.to(dtype)).dtype == dtype
        assert fitted.pull_back(v.to(dtype)).dtype == dtype
    meta = fitted.to("meta")
    assert meta.map_points(x.to("meta")).device.type == "meta"
    assert fitted.map_direction(v.to("meta")).device.type == "meta"
    with pytest.raises(InputError, match="wrong width"):
        fitted.map_direction(torch.ones(3))


@pytest.mark.parametrize("name", WORKING)
def test_a_pulled_back_probe_reads_the_predicted_source(name: str) -> None:
    fitted = mapper(name)
    g = torch.Generator().manual_seed(1)
    y, w = torch.randn(7, fitted.target.d_model, generator=g), torch.randn(D_SOURCE, generator=g)
    assert fitted.backward is not None
    expected = fitted.backward.map_points(y) @ w
    got = y @ fitted.pull_back(w) + fitted.pull_back_offset(w)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(InputError, match="no way back"):
        replace(fitted, backward=None).pull_back(w)


@pytest.mark.parametrize("name", LAWS)
def test_saved_maps_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    before = mapper(name)
    after = tt.load(tt.save(before, tmp_path / "m.safetensors"))
    assert type(after) is type(before)
    for part in (lambda m: m, lambda m: m.backward):
        a, b = part(before), part(after)
        assert a.tensors().keys() == b.tensors().keys()
        assert all(torch.equal(t, b.tensors()[key]) for key, t in a.tensors().items())
        assert (a.source, a.target, a.source_norm, a.target_norm, a.method, a.settings) == (
            b.source, b.target, b.source_norm, b.target_norm, b.method, b.settings,
        )  # fmt: skip
        assert a.fit_texts == b.fit_texts
        u = torch.ones(a.target.d_model)
        assert a.direction_r2(u) == b.direction_r2(u)
    w = torch.ones(D_SOURCE)
    assert torch.equal(before.pull_back(w), after.pull_back(w))


# -- through fit, on models ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins() -> tuple[tt.HookedModel, tt.HookedModel, Tensor]:
    """A tiny model and itself in another basis: the true map is a scaled rotation."""
    original = tiny.tiny_hf("llama")
    moved, rotation = tiny.twin(original, scale=1.7)
    tokenizer = tiny.tiny_tokenizer("bos")
    here = tt.load_model(original, tokenizer=tokenizer, name="original")
    there = tt.load_model(moved, tokenizer=tokenizer, name="twin")
    return here, there, 1.7 * rotation


EXACT = {
    "autoencoder",
    "ridge",
    "ols",
    "procrustes",
    "whitened_procrustes",
    "soft_cca",
    "ridge_to_identity",
}


@pytest.mark.parametrize("name", LAWS)
def test_fit_serves_every_method(twins: Any, name: str, tmp_path: Path) -> None:
    here, there, true = twins
    sites = here.at("resid_post@1"), there.at("resid_post@1")
    options = {"anchors": {"k": 100}, "autoencoder": {"hidden": 16}}.get(name, {})
    fitted = tt.fit(*sites, texts=random_texts(80, seed=1), method=name, progress=False, **options)
    score, wrong = fitted.scorecard["held_out"], fitted.scorecard["shuffled"]
    assert fitted.method == name and fitted.source_norm > 0
    if METHODS[name].control:
        assert score["fvu"] > 0.9
    else:
        assert score["fvu"] < (1e-3 if name in EXACT else 0.5)
        assert wrong["fvu"] > 0.8
        assert fitted.backward is not None and fitted.shuffled is not None
        assert relative(fitted.backward.weight @ true, torch.eye(48)) < (
            0.05 if name in EXACT else 1.0
        )
    loaded = tt.load(tt.save(fitted, tmp_path / "m.safetensors"))
    assert loaded.scorecard == fitted.scorecard and loaded.settings == fitted.settings


@pytest.mark.parametrize("name", ["ridge", "anchors", "embeddings", "autoencoder"])
def test_fit_depends_on_neither_order_nor_batches(twins: Any, name: str) -> None:
    here, there, _ = twins
    sites = here.at("resid_post@1"), there.at("resid_post@2")
    options = {"anchors": {"k": 100}, "autoencoder": {"hidden": 16, "epochs": 2}}.get(name, {})
    texts = random_texts(80, seed=1)
    fitted = tt.fit(*sites, texts=texts, method=name, progress=False, **options)
    again = tt.fit(
        *sites,
        texts=texts[::-1],
        method=name,
        backward=False,
        progress=False,
        max_tokens=300,
        **fitted.settings["options"],
    )
    assert relative(again.jacobian(), fitted.jacobian()) < 1e-3
    assert again.backward is None


def test_weights_of_texts_are_rows_counted_more_often(twins: Any) -> None:
    here, there, _ = twins
    sites = here.at("resid_post@1"), there.at("resid_post@2")
    texts = random_texts(80, seed=1)
    heavy = [3.0 if i % 2 else 1.0 for i in range(80)]
    plain, weighted = (
        tt.fit(*sites, texts=texts, weights=w, strength=1e-3, progress=False) for w in (None, heavy)
    )
    same = tt.fit(*sites, texts=texts, weights=[2.0] * 80, strength=1e-3, progress=False)
    assert weighted.settings["weights"] == {"1": 40, "3": 40} and "weights" not in plain.settings
    assert relative(same.weight, plain.weight) < 1e-5
    assert relative(weighted.weight, plain.weight) > 1e-3
    # A weight is no row: neither the card nor the refusal of too few rows counts it as one.
    assert weighted.scorecard["n_tokens"] == plain.scorecard["n_tokens"]
    with pytest.raises(InputError, match="fewer training rows than source dimensions"):
        tt.fit(*sites, texts=["a b", "c d", "e f", "g h"], weights=[1e6] * 4, progress=False)
    with pytest.raises(InputError, match="gave a map that is not finite"):
        tt.fit(*sites, texts=texts, method="anchors", k=50, scale=float("nan"), progress=False)
    for bad in ([1.0], [0.0] * 80, [float("nan")] * 80):
        with pytest.raises(InputError, match="one positive number for each text"):
            tt.fit(*sites, texts=texts, weights=bad, progress=False)
