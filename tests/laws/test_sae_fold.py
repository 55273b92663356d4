"""Folding: through inverse maps it is the same SAE, to 1e-5; the wrong way round it is not."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests.sae import KINDS, rows, sae_lens_sae
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.mappers.base import AffineMap
from tl_transfer.sae.folder import write_folder

FOLDABLE = [k for k in KINDS if "norm" not in k or "decoder" in k]
FOLDABLE.remove("matching_pursuit")


def space(name: str, d_model: int = 24) -> tt.ActivationSpace:
    return tt.ActivationSpace(
        name, name, "blocks.1.hook_resid_post", d_model, "raw", "t", "c", "float32"
    )


def affine(weight: Tensor, bias: Tensor, source: Any, target: Any, **more: Any) -> AffineMap:
    return AffineMap(
        weight.float(),
        bias.float(),
        source=source,
        target=target,
        source_norm=1.0,
        target_norm=1.0,
        method="planted",
        **more,
    )


def inverse_pair(d: int = 24) -> AffineMap:
    """A map that stretches and turns, with its inverse as the way back."""
    g = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    weight = turn * torch.linspace(0.5, 2.0, d, dtype=torch.float64)
    bias = torch.randn(d, generator=g, dtype=torch.float64)
    inverse = torch.linalg.inv(weight)
    back = affine(inverse, -bias @ inverse, space("t"), space("s"))
    return affine(weight, bias, space("s"), space("t"), backward=back)


def at_home(kind: str) -> tt.Dictionary:
    from dataclasses import replace

    return replace(tt.Dictionary.of(sae_lens_sae(kind)), space=space("s"))


@pytest.mark.parametrize("kind", FOLDABLE)
def test_through_inverse_maps_codes_are_the_same_and_rows_are_mapped(
    kind: str, tmp_path: Any
) -> None:
    sae, mapper, x = at_home(kind), inverse_pair(), rows(256)
    folded = tt.fold_sae(sae, mapper)
    y = mapper.map_points(x)
    codes = sae.encode(x)
    assert float((folded.encode(y) - codes).abs().max()) < 1e-5 * float(codes.abs().max())
    rebuilt = mapper.map_points(sae.reconstruct(x))
    assert float((folded.reconstruct(y) - rebuilt).abs().max()) < 1e-5 * float(rebuilt.abs().max())
    assert folded.origin["folded"]["exact"] and folded.space == mapper.target
    assert torch.allclose(folded.directions, mapper.map_direction(sae.directions), atol=1e-5)
    # It is an SAE like any other: it can be written, and read by sae-lens.
    from sae_lens import SAE

    again = SAE.load_from_disk(write_folder(folded, tmp_path))
    with torch.no_grad():
        assert torch.allclose(again.encode(y), folded.encode(y), atol=1e-5)


@pytest.mark.parametrize("kind", ["jumprelu", "gated", "topk"])
def test_fitted_maps_fold_their_chain_and_are_called_approximate(kind: str) -> None:
    sae, g = at_home(kind), torch.Generator().manual_seed(0)
    wide = space("t", 30)
    weight, back = (torch.randn(a, b, generator=g) / 5 for a, b in ((24, 30), (30, 24)))
    bias, offset = torch.randn(30, generator=g), torch.randn(24, generator=g)
    way_back = affine(back, offset, wide, space("s"))
    mapper = affine(weight, bias, space("s"), wide, backward=way_back)
    y = rows(128, 30)
    folded = tt.fold_sae(sae, mapper)
    chain = mapper.map_points(sae.reconstruct(way_back.map_points(y)))
    assert torch.allclose(folded.reconstruct(y), chain, atol=1e-4)
    assert not folded.origin["folded"]["exact"]
    assert folded.origin["folded"]["round_trip"]["source"] > 0.1


def test_the_wrong_way_round_is_another_sae() -> None:
    """The test above can fail: reading with the forward map is wrong unless it is a rotation."""
    sae, mapper, x = at_home("topk"), inverse_pair(), rows(128)
    wrong = affine(mapper.weight.T, mapper.bias, space("t"), space("s"))
    y = mapper.map_points(x)
    right, other = tt.fold_sae(sae, mapper), tt.fold_sae(sae, mapper, backward=wrong)
    codes = sae.encode(x)
    assert (right.encode(y) - codes).norm() < 1e-4 * codes.norm()
    assert (other.encode(y) - codes).norm() > 0.5 * codes.norm()


def test_what_cannot_be_folded_is_refused_by_name() -> None:
    mapper = inverse_pair()
    for kind, said in (
        ("standard, layer_norm", "normalises every row .layer_norm."),
        ("matching_pursuit", "matching_pursuit is not affine"),
    ):
        with pytest.raises(InputError, match=said):
            tt.fold_sae(at_home(kind), mapper)
    with pytest.raises(SpaceError, match="not known which activations"):
        tt.fold_sae(tt.Dictionary.of(sae_lens_sae("topk")), mapper)
    one_way = affine(mapper.weight, mapper.bias, space("s"), space("t"))
    with pytest.raises(InputError, match="needs a map from target to source"):
        tt.fold_sae(at_home("topk"), one_way)
