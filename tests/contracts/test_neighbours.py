"""What this package takes for granted about transformers, SAELens and circuitsvis."""

import json
from typing import Any

import pytest
import torch

from tests import tiny
from tests.conftest import needs_hooked_transformer


def test_the_model_is_the_last_field_of_a_tokenizer_as_json() -> None:
    text = tiny.tiny_tokenizer("bos").backend_tokenizer.to_str()
    assert list(json.loads(text))[-1] == "model", (
        "tokenizers orders its JSON differently: tokenizer fingerprints (models.surface) change, "
        "and with them the identity of every space"
    )


def test_logits_to_keep_takes_indices(hf_of: Any) -> None:
    model, tokens = hf_of("gemma3"), tiny.random_tokens(300, 1, 9)
    with torch.no_grad():
        kept = model(tokens, logits_to_keep=torch.tensor([8])).logits
        assert torch.allclose(kept, model(tokens).logits[:, 8:], atol=1e-5)


def test_the_cache_of_transformers_reorders_its_rows(hf_of: Any) -> None:
    model, tokens = hf_of("llama"), tiny.random_tokens(300, 2, 9)
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 1]))
        step = model(tokens[[1, 1], :1], past_key_values=cache).logits
    assert torch.equal(step[0], step[1]), "beam search (models.beams) reorders rows this way"


def test_ids_of_a_text_come_without_special_tokens_when_asked() -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    bare = tokenizer("The river", add_special_tokens=False)["input_ids"]
    assert tokenizer("The river")["input_ids"] == [tokenizer.bos_token_id, *bare]


# -- SAELens -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sae() -> Any:
    sae_lens = pytest.importorskip("sae_lens", reason="the extra 'sae' is not installed")
    from sae_lens.saes.sae import SAEMetadata

    config = sae_lens.StandardSAEConfig(
        d_in=48, d_sae=96, device="cpu", metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post")
    )
    return sae_lens.StandardSAE(config)


def test_decoder_rows_are_features(sae: Any) -> None:
    assert sae.W_dec.shape == (96, 48), "sae_feature takes rows of W_dec [feature, d_model]"


def test_the_hook_point_of_an_sae_is_in_its_metadata(sae: Any) -> None:
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post", (
        "sae_feature refuses an SAE of another hook point by this field"
    )


@needs_hooked_transformer
def test_an_sae_in_its_place_shows_its_output_as_a_hook_point(sae: Any) -> None:
    from sae_lens import HookedSAETransformer

    plain = tiny.tiny_hooked("llama", seed=9)
    host = HookedSAETransformer(plain.cfg, tokenizer=plain.tokenizer, move_to_device=False)
    with host.saes(saes=[sae], use_error_term=False):
        assert "blocks.1.hook_resid_post.hook_sae_output" in host.hook_dict, (
            "models.surface finds the place of an attached SAE by this name"
        )


# -- circuitsvis -------------------------------------------------------------------------------


def test_the_script_of_circuitsvis_is_in_the_package_and_defines_what_is_drawn() -> None:
    pytest.importorskip("circuitsvis", reason="the extra 'viz' is not installed")
    import base64
    import gzip

    from tl_transfer.views.circuits import packed_script

    code = gzip.decompress(base64.b64decode(packed_script())).decode()
    missing = [name for name in ("CircuitsVis", "AttentionHeads", "render") if name not in code]
    assert not missing, f"views.circuits runs this script and calls {missing}"
    properties = ("attentionHeadNames", "minValue", "maxValue", "maskUpperTri")
    assert all(name in code for name in properties), "properties of AttentionHeads were renamed"
