"""Dictionary: every kind of SAE gives the codes and rows of the library it comes from."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests.sae import KINDS, rows, sae_lens_sae
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.sae.convert import REFUSED, describe


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def for_inference(sae: Any, tmp_path: Any) -> Any:
    """What a training SAE becomes when sae-lens saves it."""
    from sae_lens import SAE

    if not hasattr(sae, "save_inference_model"):
        return sae
    sae.save_inference_model(tmp_path)
    return SAE.load_from_disk(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_rows_are_those_of_sae_lens(kind: str, tmp_path: Any) -> None:
    sae, x = sae_lens_sae(kind), rows()
    before = {name: p.clone() for name, p in sae.state_dict().items()}
    found = tt.Dictionary.of(sae)
    after = sae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # nothing was folded
    reference = for_inference(sae, tmp_path)
    with torch.no_grad():
        codes = reference.encode(x)
        decoded = reference.decode(codes)  # before encode is called again: it keeps row norms
    assert (codes != 0).any(0).sum() > 5 and (codes == 0).any()
    assert close(found.encode(x), codes)
    assert close(found.decode(codes, at=x), decoded)
    assert close(found.reconstruct(x), decoded)
    assert (found.d_sae, found.d_model) == (40, 24)


@pytest.mark.parametrize("kind", [k for k in KINDS if "norm" not in k or "decoder" in k])
def test_directions_are_what_one_unit_of_a_feature_adds(kind: str) -> None:
    found = tt.Dictionary.of(sae_lens_sae(kind))
    codes = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    assert close(found.decode(torch.zeros(1, 40))[0], found.bias)
    assert close(found.decode(codes), codes @ found.directions + found.bias)
    one = codes.clone()
    one[:, 7] += 1.0
    assert close(found.decode(one) - found.decode(codes), found.directions[7].expand(3, -1))


def test_an_expected_norm_that_was_not_folded_needs_its_factor() -> None:
    x = rows()
    folded = sae_lens_sae("topk, decoder norms", apply_b_dec_to_input=True)
    raw = sae_lens_sae("topk, decoder norms", normalize_activations="expected_average_only_in")
    with pytest.raises(InputError, match="mean norm") as error:
        tt.Dictionary.of(raw)
    assert "input_scale = sqrt(24)" in str(error.value)
    found = tt.Dictionary.of(raw, input_scale=0.25)
    with torch.no_grad():
        codes = folded.encode(x * 0.25)
    assert close(found.encode(x), codes)
    assert close(found.decode(codes), folded.decode(codes) / 0.25)
    with pytest.raises(InputError, match="takes raw activations"):
        tt.Dictionary.of(folded, input_scale=0.25)


def test_rows_that_are_normalised_one_by_one_are_needed_to_decode() -> None:
    found, x = tt.Dictionary.of(sae_lens_sae("standard, layer_norm")), rows()
    with pytest.raises(InputError, match=r"decode\(codes, at=x\)"):
        found.decode(found.encode(x))
    # The delta of an edit scales with the row.
    codes = found.encode(x)
    edited = codes.clone()
    edited[:, 3] += 1.0
    delta = found.decode(edited, at=x) - found.decode(codes, at=x)
    assert close(delta, found.directions[3] * x.std(-1, keepdim=True))


def test_heads_are_flattened() -> None:
    sae = sae_lens_sae("standard", reshape_activations="hook_z")
    x = rows().reshape(4, 16, 4, 6)
    with torch.no_grad():
        codes = sae.encode(x)
        decoded = sae.decode(codes)
    found = tt.Dictionary.of(sae)
    assert close(found.encode(x), codes)
    assert close(found.encode(x.flatten(-2)), codes)
    assert close(found.decode(codes).unflatten(-1, (4, 6)), decoded)


class Plain(torch.nn.Module):
    """Somebody's own SAE, whose decoder scales the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.W_dec = torch.nn.Parameter(torch.randn(40, 24, generator=torch.manual_seed(0)))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_dec.T - 1)

    def decode(self, codes: Tensor) -> Tensor:
        return 3 * (codes @ self.W_dec) + 0.5


def test_any_object_is_asked_and_its_directions_measured() -> None:
    with torch.random.fork_rng():
        sae, x = Plain(), rows()
    found = tt.Dictionary.of(sae)
    assert close(found.directions, 3 * sae.W_dec.detach()) and close(found.bias, torch.tensor(0.5))
    assert close(found.encode(x), sae.encode(x).detach())
    assert found.identity == tt.Dictionary.of(sae).identity
    sae.decode = lambda codes: torch.relu(codes @ sae.W_dec)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="not affine"):
        tt.Dictionary.of(sae)
    with pytest.raises(InputError, match="not an SAE with one plain decoder"):
        tt.Dictionary.of(torch.nn.Linear(3, 3))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_plain_decoder_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"a {name} has no plain decoder"):
        describe({"architecture": name, "metadata": {}})


def test_a_transcoder_of_sae_lens_is_refused() -> None:
    sae = sae_lens_sae("Transcoder", d_out=24, apply_b_dec_to_input=False)
    with pytest.raises(InputError, match="a transcoder has no plain decoder"):
        tt.Dictionary.of(sae)


def test_identity_follows_the_parameters_and_wrapping_twice_is_one() -> None:
    one, same, other = (tt.Dictionary.of(sae_lens_sae("jumprelu", seed=s)) for s in (0, 0, 1))
    assert one.identity == same.identity != other.identity
    assert tt.Dictionary.of(one) is one
    assert "not checked" in repr(one)


def test_training_on_changes_nothing_here() -> None:
    sae, x = sae_lens_sae("topk"), rows()
    found = tt.Dictionary.of(sae)
    before = found.encode(x)
    with torch.no_grad():
        sae.W_enc.mul_(2)
    assert torch.equal(found.encode(x), before)


def test_wrong_widths_and_an_unchecked_space_are_refused() -> None:
    found = tt.Dictionary.of(sae_lens_sae("topk"))
    with pytest.raises(InputError, match=r"x: wrong width[\s\S]*\[..., 24\]"):
        found.encode(torch.zeros(2, 25))
    with pytest.raises(InputError, match="wrong number of features"):
        found.decode(torch.zeros(2, 39))
    space = tt.ActivationSpace("m", "w", "blocks.1.hook_resid_post", 24, "raw", "t", "c", "float32")
    with pytest.raises(SpaceError, match="not known which activations"):
        found.require_space(space)


def test_damaged_parameters_are_refused() -> None:
    sae = sae_lens_sae("jumprelu")
    with torch.no_grad():
        sae.W_enc[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        tt.Dictionary.of(sae)
