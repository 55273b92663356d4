"""Every kind of vector through affine and bent maps: what goes forward, comes back, is a point."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests.maps import HERE, THERE, built, curved, exact, rows, sums
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.mappers.cycle import cycle_fvu
from tl_transfer.mappers.norms import NORMS
from tl_transfer.mappers.registry import solve
from tl_transfer.mappers.transfer import transfer_level
from tl_transfer.vectors import PositionVectors, Probe, Subspace, VectorSet

D = 12


def fitted(method: str = "ridge", kind: str = "linear", noise: float = 0.5, **more: Any) -> Any:
    x, y, _ = rows(kind, noise=noise)
    training = sums(x[:1200], y[:1200])
    held_out = exact(x[1200:], y[1200:])
    common: dict[str, Any] = {"fit_texts": frozenset({"seen"}), "method": method}
    back = solve(method, training.reversed()).build(
        source=THERE, target=HERE, source_norm=9.0, target_norm=3.0,
        held_out=held_out.reversed(), **common,
    )  # fmt: skip
    return solve(method, training).build(
        source=HERE, target=THERE, source_norm=3.0, target_norm=9.0,
        held_out=held_out, backward=back, **{**common, **more},
    )  # fmt: skip


def vector(seed: int = 0, **more: Any) -> tt.SteeringVector:
    g = torch.Generator().manual_seed(seed)
    return tt.SteeringVector(torch.randn(D, generator=g), HERE, 3.0, "mean_difference", **more)


def test_norm_rules_are_their_formulas() -> None:
    mapper, v = fitted(), vector()
    mapped = v.direction @ mapper.weight
    unit = torch.nn.functional.normalize(mapped.double(), dim=0)
    there = float((unit @ mapper.held_out.yy @ unit / mapper.held_out.n).sqrt())
    here = float(
        (v.unit.double() @ mapper.held_out.xx @ v.unit.double() / mapper.held_out.n) ** 0.5
    )
    length, raw = float(v.norm), float(mapped.norm())
    expected = {
        "relative": length * 9.0 / 3.0,
        "raw": raw,
        "r2": raw / mapper.direction_r2(mapped) ** 0.5,
        "effect": length * there / here,
    }
    for norm in NORMS:
        moved = tt.transfer(v, mapper, norm=norm)
        assert float(moved.norm) == pytest.approx(expected[norm], rel=1e-5)
        assert moved.cosine(tt.transfer(v, mapper)) == pytest.approx(1.0)
        assert moved.provenance["norm"] == norm and moved.provenance["rule"] == "affine"
        assert moved.provenance["gain"] == pytest.approx(raw / expected[norm], rel=1e-5)
    assert expected["r2"] > expected["raw"]  # shrinkage undone
    with pytest.raises(InputError, match="relative, raw, r2, effect"):
        tt.transfer(v, mapper, norm="native")
    with pytest.raises(InputError, match="needs the held-out sums"):
        tt.transfer(v, replace(mapper, held_out=None), norm="effect")
    hopeless = fitted("random_orthogonal")
    with pytest.raises(InputError, match="explains nothing along this direction"):
        tt.transfer(v, hopeless, norm="r2")


def test_sign_offset_and_arithmetic() -> None:
    mapper, v = fitted(), vector(origin=torch.arange(12.0))
    moved, turned = tt.transfer(v, mapper), tt.transfer(-v, mapper)
    assert torch.equal(turned.direction, -moved.direction)
    assert moved.origin is not None
    assert torch.equal(moved.origin, mapper.map_points(v.origin[None])[0])
    doubled = tt.transfer(2 * v, mapper)
    assert float(doubled.norm / moved.norm) == pytest.approx(2.0, rel=1e-5)
    for bad, error in ((replace(mapper, source=THERE, target=HERE, weight=mapper.weight.T,
                                bias=torch.zeros(12)), SpaceError),
                       (fitted("mean_only"), InputError)):  # fmt: skip
        with pytest.raises(error):
            tt.transfer(v, bad)


def test_contrast_texts_seen_by_the_map_are_refused_for_every_kind() -> None:
    mapper, provenance = fitted(), {"texts": ["seen"]}
    for kind in kinds(provenance):
        with pytest.raises(InputError, match="among the texts the map was fitted on"):
            tt.transfer(kind, mapper)


def kinds(provenance: dict[str, Any]) -> list[Any]:
    v = replace(vector(), provenance=provenance)
    return [
        v,
        replace(Subspace.spanned_by([vector(1), vector(2)]), provenance=provenance),
        Probe(v.direction, 0.5, v.direction, HERE, 3.0, "logistic", provenance),
        PositionVectors(torch.randn(2, D), "ab", (1, 2), HERE, 3.0, "prompt_pair", provenance),
        VectorSet.of(v),
    ]


def test_a_subspace_keeps_its_span_and_order() -> None:
    mapper = fitted()
    source = Subspace.spanned_by([vector(1), vector(2), vector(3)])
    moved = tt.transfer(source, mapper)
    assert moved.space == THERE and len(moved) == 3
    rows_ = (source.basis @ mapper.weight).double()
    inside = rows_ @ moved.basis.double().T @ moved.basis.double()
    torch.testing.assert_close(inside, rows_, atol=1e-4, rtol=1e-4)
    first = tt.transfer(source.vector(0), mapper)
    assert float(first.unit @ moved.basis[0]) == pytest.approx(1.0, abs=1e-5)
    assert 0 < moved.provenance["independence"] <= 1
    assert len(moved.provenance["direction_r2"]) == 3
    narrow = replace(mapper, weight=torch.outer(torch.ones(12), torch.ones(16)))
    with pytest.raises(InputError, match="fewer dimensions"):
        tt.transfer(source, narrow)


def test_a_moved_probe_says_what_the_source_probe_says() -> None:
    """On rows of the target alone; pushing the read direction forward would not do."""
    mapper = fitted(noise=0.1)
    x, y, _ = rows("linear", noise=0.1)
    read = vector(4).direction
    probe = Probe(read, -3.0, read, HERE, 3.0, "logistic", threshold=0.7)
    moved = tt.transfer(probe, mapper)
    truth, said = probe.score(x[1200:].float()), moved.score(y[1200:].float())
    error = float((truth - said).square().mean() / truth.var())
    assert error < 0.1
    assert moved.threshold == 0.7 and moved.space == THERE
    pushed = Probe(read @ mapper.weight, 0.0, read @ mapper.weight, THERE, 9.0, "wrong")
    wrong = pushed.score(y[1200:].float())
    correlation = float(torch.corrcoef(torch.stack([truth, wrong]))[0, 1])
    assert correlation < 0.9 < float(torch.corrcoef(torch.stack([truth, said]))[0, 1])
    # A rotation is the one case where both ways agree.
    rigid = fitted("procrustes", "rotation", noise=0.0)
    a, b = rigid.pull_back(read), rigid.map_direction(read)
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="no way back"):
        tt.transfer(probe, replace(mapper, backward=None))
    turned = replace(mapper.backward, weight=-mapper.backward.weight)
    with pytest.raises(InputError, match="behind this map, writing no longer raises what is read"):
        tt.transfer(probe, replace(mapper, backward=turned))


def test_directions_of_a_phrase_move_one_by_one() -> None:
    mapper = fitted()
    g = torch.Generator().manual_seed(0)
    source = PositionVectors(
        torch.randn(3, D, generator=g), "trigger", (2, 4, 7), HERE, 3.0, "prompt_pair"
    )
    moved = tt.transfer(source, mapper)
    assert (moved.phrase, moved.ends, moved.space) == (source.phrase, source.ends, THERE)
    for row, original in zip(moved.directions, source.directions, strict=True):
        single = tt.transfer(replace(vector(), direction=original), mapper)
        torch.testing.assert_close(row, single.direction)
    assert len(moved.provenance["gain"]) == 3


def test_a_set_needs_one_map_for_each_hook_point() -> None:
    deep = replace(HERE, hook_point="blocks.2.hook_resid_post")
    deep_there = replace(THERE, hook_point="blocks.3.hook_resid_post")
    one, two = fitted(), fitted()
    two = replace(two, source=deep, target=deep_there)
    vectors = VectorSet.of(vector(), replace(vector(1), space=deep))
    moved = tt.transfer(vectors, [one, two])
    assert set(moved) == {THERE.hook_point, deep_there.hook_point}
    by_name = {("a", "b"): one, ("c", "d"): two}
    assert set(tt.transfer(vectors, by_name)) == set(moved)
    with pytest.raises(InputError, match="no map starts at"):
        tt.transfer(vectors, [one])
    with pytest.raises(InputError, match="two maps start"):
        tt.transfer(vectors, [one, one, two])
    with pytest.raises(InputError, match="SteeringVector through list"):
        tt.transfer(vector(), [one])


def test_clamp_levels_are_estimated_again() -> None:
    mapper = fitted()
    x, _, _ = rows("linear")
    v = vector()
    moved = tt.transfer(v, mapper)
    rows_ = x[:50].float()
    expected = float((mapper.map_points(rows_) @ moved.unit).mean())
    assert transfer_level(moved, mapper, rows_) == pytest.approx(expected, rel=1e-4)
    # The mean suffices for an affine map, and the source's own level is another number.
    assert transfer_level(moved, mapper, rows_.mean(0)[None]) == pytest.approx(expected, rel=1e-4)
    assert float((rows_ @ v.unit).mean()) != pytest.approx(expected, rel=0.01)
    with pytest.raises(SpaceError):
        transfer_level(v, mapper, rows_)


# -- maps that are not affine ---------------------------------------------------------------------


def bent() -> tuple[Any, Tensor]:
    x, y = curved(2000)
    mapper = built(solve("autoencoder", sums(x, y), hidden=16), x, y)
    return mapper, x.float()


def test_the_rule_is_the_callers_and_is_recorded() -> None:
    mapper, x = bent()
    origin, plus = x[:1000].mean(0), x[:300].mean(0) + 20
    v = tt.SteeringVector(plus - origin, mapper.source, 1.0, "mean_difference", {}, origin)

    def direction(v: tt.SteeringVector, **options: Any) -> tuple[Tensor, str]:
        moved = tt.transfer(v, mapper, norm="raw", **options)
        return moved.direction, moved.provenance["rule"]

    means, rule = direction(v)
    assert rule == "class_means"
    expected = (mapper.map_points(plus[None]) - mapper.map_points(origin[None]))[0]
    torch.testing.assert_close(means, expected, atol=1e-2, rtol=1e-3)
    local, rule = direction(replace(v, origin=None))
    assert rule == "local_mean"
    assert torch.equal(local, mapper.map_direction(v.direction))
    jacobian, rule = direction(v, rule="jacobian")
    assert rule == "jacobian"
    torch.testing.assert_close(jacobian, v.direction @ mapper.jacobian())
    there, rule = direction(v, at=x[:7])
    assert rule == "local_mean"
    torch.testing.assert_close(there, mapper.map_direction(v.direction, at=x[:7]))
    zero, rule = direction(v, rule="through_zero")
    assert rule == "through_zero"
    assert len({tuple(t.tolist()) for t in (means, local, jacobian, there, zero)}) == 5
    with pytest.raises(InputError, match="class_means needs the point"):
        tt.transfer(replace(v, origin=None), mapper, rule="class_means")


# -- there and back -------------------------------------------------------------------------------


def test_cycles() -> None:
    exact_map = fitted(kind="rotation", noise=0.0)
    noisy = fitted(noise=2.0)
    x, _, _ = rows("linear", noise=2.0)
    assert cycle_fvu(exact_map) < 1e-5
    assert 0.01 < cycle_fvu(noisy) < 1
    held_out = x[1200:].float()
    assert cycle_fvu(noisy, held_out) == pytest.approx(cycle_fvu(noisy), rel=1e-3)
    with pytest.raises(InputError, match="no way back"):
        cycle_fvu(replace(noisy, backward=None))
    mapper, rows_ = bent()
    back = tt.AffineMap(
        torch.zeros(6, 8), rows_.mean(0),
        source=mapper.target, target=mapper.source, source_norm=1.0, target_norm=1.0, method="m",
    )  # fmt: skip
    assert cycle_fvu(replace(mapper, backward=back), rows_) == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(InputError, match="pass activations"):
        cycle_fvu(replace(mapper, backward=back))


def test_composed_affine_maps_are_both_maps_in_turn() -> None:
    first = fitted()
    far = replace(THERE, model="c", weights="u" * 64, d_model=12)
    last = replace(first.backward, target=far, backward=None)
    joined = first.then(last)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        joined.map_points(x), last.map_points(first.map_points(x)), atol=1e-3, rtol=1e-4
    )
    v = vector()
    stepwise = tt.transfer(tt.transfer(v, first), last)
    assert tt.transfer(v, joined).cosine(stepwise) == pytest.approx(1.0, abs=1e-6)
    assert joined.method == "ridge then ridge" and joined.fit_texts == {"seen"}
    assert joined.backward is None and joined.direction_r2(v.direction) is None
    assert "no held-out scores and no control" in repr(joined)
    ring = first.then(replace(first.backward, backward=replace(first, backward=None)))
    assert ring.backward is not None
    with pytest.raises(SpaceError):
        first.then(first)
