"""The folder reader gives what sae-lens gives on its own saved SAEs, and sae-lens reads ours."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tl_transfer as tt
from tests.sae import rows, sae_lens_sae
from tests.tiny import tiny_bridge
from tl_transfer.errors import ArtefactError, FetchError, InputError, SpaceError
from tl_transfer.sae.coder import ACTIVATIONS
from tl_transfer.sae.folder import write_folder

SAVED = (
    "standard",
    "standard, no b_dec at the input",
    "standard, layer_norm",
    "topk",
    "topk, decoder norms",
    "topk, constant norm",
    "abstopk",
    "jumprelu",
    "gated",
    "batchtopk*",
    "matryoshka*",
)


def save(kind: str, folder: Path, **cfg: object) -> None:
    sae = sae_lens_sae(kind, **cfg)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    getattr(sae, "save_inference_model", sae.save_model)(folder)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_folder_reads_as_sae_lens_reads_it(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path / "theirs")
    from sae_lens import SAE

    sae, x = SAE.load_from_disk(tmp_path / "theirs"), rows(256)
    found = tt.load_sae(tmp_path / "theirs")
    with torch.no_grad():
        codes = sae.encode(x)
        decoded = sae.decode(codes)
    assert close(found.encode(x), codes)
    assert close(found.decode(codes, at=x), decoded)
    assert found.hook_point == "blocks.1.hook_resid_post"
    # And back: what we write, sae-lens reads.
    write_folder(found, tmp_path / "ours", metadata={"note": "kept"})
    again, ours = SAE.load_from_disk(tmp_path / "ours"), tt.load_sae(tmp_path / "ours")
    with torch.no_grad():
        assert close(again.encode(x), codes)
        assert close(again.decode(codes if "norm" not in kind else again.encode(x)), decoded)
    assert again.cfg.metadata.note == "kept"
    assert ours.identity == found.identity


def test_a_folder_of_version_5_reads(tmp_path: Path) -> None:
    save("topk", tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    old = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": cfg["k"]},
        "d_in": 24,
        "d_sae": 40,
        "dtype": "torch.float32",
        "device": "cpu",
        "hook_point": "blocks.1.hook_resid_post",
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    from sae_lens import SAE

    x = rows()
    found = tt.load_sae(tmp_path)
    with torch.no_grad():
        assert close(found.encode(x), SAE.load_from_disk(tmp_path).encode(x))
    assert (found.architecture, found.hook_point) == ("topk", "blocks.1.hook_resid_post")


def test_reading_does_not_import_sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("jumprelu", tmp_path)
    monkeypatch.setitem(sys.modules, "sae_lens", None)  # as on TransformerLens 4
    assert tt.load_sae(tmp_path).d_sae == 40
    with pytest.raises(InputError, match=r"needs sae-lens[\s\S]*transformer-lens<4"):
        tt.load_sae(("gpt2-small-res-jb", "blocks.8.hook_resid_pre"))


def test_what_is_no_sae_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"not an SAE folder[\s\S]*cfg.json"):
        tt.load_sae(tmp_path / "nothing")
    save("jumprelu", tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    save_file({"W_dec": tensors["W_dec"]}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match="a jumprelu SAE needs W_enc, b_dec, b_enc, threshold"):
        tt.load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ArtefactError, match="damaged SAE folder"):
        tt.load_sae(tmp_path)


def test_the_registry_names_near_releases_and_says_when_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sae_lens")
    with pytest.raises(InputError, match=r"release: not in the registry[\s\S]*gpt2-small-res"):
        tt.load_sae(("gpt2-smal-res-jb", "blocks.8.hook_resid_pre"))
    with pytest.raises(InputError, match=r"id: not in the registry[\s\S]*blocks.8"):
        tt.load_sae(("gpt2-small-res-jb", "blocks.88.hook_resid_pre"))
    monkeypatch.setenv("TL_TRANSFER_OFFLINE", "1")
    with pytest.raises(FetchError, match="TL_TRANSFER_OFFLINE forbids"):
        tt.load_sae(("gpt2-small-res-jb", "blocks.8.hook_resid_pre"))


def test_a_site_refuses_another_width_hook_point_and_space(tmp_path: Path) -> None:
    model = tt.load_model(tiny_bridge("llama", seed=3, d_model=24))
    save("topk", tmp_path)
    found = tt.load_sae(tmp_path, site=model.at("resid_post@1"))
    with pytest.raises(InputError, match="trained on another hook point"):
        tt.load_sae(tmp_path, site=model.at("resid_post@2"))
    wide = tt.load_model(tiny_bridge("llama", seed=3))
    with pytest.raises(InputError, match="wrong width for this model"):
        tt.load_sae(tmp_path, site=wide.at("resid_post@1"))
    scaled = sae_lens_sae("topk, decoder norms")  # its codes are rescaled: so are its directions
    direction = tt.sae_feature(model.at("resid_post@1"), scaled, 3, median_norm=1.0).direction
    assert torch.equal(direction, tt.Dictionary.of(scaled).directions[3])
    assert not torch.allclose(direction, scaled.W_dec[3].detach())
    with pytest.raises(InputError, match="trained on another hook point"):
        tt.sae_feature(model.at("resid_post@2"), found, 3, median_norm=1.0)
    # A space that was kept beside the weights is known again, and refuses another model.
    write_folder(replace(found, space=model.at("resid_post@1").space), tmp_path / "known")
    assert tt.load_sae(tmp_path / "known").space == model.at("resid_post@1").space
    other = tt.load_model(tiny_bridge("llama", seed=4, d_model=24))
    with pytest.raises(SpaceError, match="SAE and site"):
        tt.load_sae(tmp_path / "known", site=other.at("resid_post@1"))
    with pytest.raises(SpaceError, match="SAE and site"):
        tt.sae_feature(other.at("resid_post@1"), tt.load_sae(tmp_path / "known"), 3, texts=["a b"])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_written_is_read_without_sae_lens_at_all(
    activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    g = torch.Generator().manual_seed(0)
    bias = torch.randn(24, generator=g)
    more = {
        "jumprelu": {"threshold": torch.rand(40, generator=g)},
        "topk": {"k": 3},
        "abstopk": {"k": 3},
        "gated": {"b_gate": torch.randn(40, generator=g), "r_mag": torch.rand(40, generator=g)},
    }
    coder = tt.SparseCoder(
        torch.randn(24, 40, generator=g),
        torch.randn(40, generator=g),
        torch.randn(40, 24, generator=g),
        bias,
        bias,
        activation,
        **more.get(activation, {}),
    )
    found, x = tt.Dictionary.of(coder), rows()
    again = tt.load_sae(write_folder(found, tmp_path))
    assert again.identity == found.identity and again.architecture == found.architecture
    assert torch.equal(again.reconstruct(x), found.reconstruct(x))
