"""Every way of loading a model ends in the same space; what changes the space is seen."""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.conftest import needs_hooked_transformer
from tl_transfer.errors import ModelError, SpaceError
from tl_transfer.models import load

TOKENS = tiny.random_tokens(300, 2, 9)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def logits(model: tt.HookedModel) -> torch.Tensor:
    return model.logits(TOKENS, MASK)


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    tokenizer = tiny.tiny_tokenizer("bos")
    tiny.tiny_hf("qwen2", seed=8, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@needs_hooked_transformer
def test_folder_live_model_and_both_hosts_are_one_space(folder: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    live = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    models = [
        tt.load_model(folder),
        tt.load_model(folder, host="hooked_transformer"),
        tt.load_model(live, tokenizer=AutoTokenizer.from_pretrained(folder), name="live"),
    ]
    spaces = [model.at("resid_post@1").space for model in models]
    for model, space in zip(models, spaces, strict=True):
        assert space.differences(spaces[0]) == []
        assert torch.allclose(logits(model), logits(models[0]), atol=1e-4)
    assert tt.load_model(models[0]) is models[0]
    again = tt.load_model(models[0].host)
    assert again.at("resid_post@1").space.differences(spaces[0]) == []


def test_peft_models_are_merged_and_known_as_another_space(folder: Any, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        expected = adapted(TOKENS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    from_folder = tt.load_model(tmp_path / "adapter")
    from_live = tt.load_model(adapted, tokenizer=AutoTokenizer.from_pretrained(folder))
    for model in (from_folder, from_live):
        assert torch.allclose(logits(model), expected, atol=1e-4)
    plain = tt.load_model(folder)
    with pytest.raises(SpaceError, match="weights"):
        plain.at("resid_post@1").space.require(from_live.at("resid_post@1").space, "x")


def test_processed_weights_are_another_space() -> None:
    bridge = tiny.tiny_bridge("llama", seed=9)
    raw = tt.load_model(bridge).at("resid_post@1").space
    bridge.enable_compatibility_mode(disable_warnings=True)
    folded = tt.load_model(bridge).at("resid_post@1").space
    assert (raw.processing, folded.processing) == ("raw", "compatibility_mode")
    with pytest.raises(SpaceError, match="processing: raw != compatibility_mode"):
        raw.require(folded, "vector on this model")


def test_the_self_check_sees_a_host_that_computes_something_else(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap = load._wrap

    def wrong(*arguments: Any) -> tt.HookedModel:
        model = wrap(*arguments)
        with torch.no_grad():
            next(iter(model.host.parameters())).add_(0.5)
        return model

    monkeypatch.setattr(load, "_wrap", wrong)
    with pytest.raises(ModelError, match="differ from Hugging Face") as error:
        tt.load_model(folder)
    assert "relative difference" in str(error.value)
    tt.load_model(folder, check=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_the_parameters_own(folder: Any, dtype: str) -> None:
    model = tt.load_model(folder, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    site = model.at("resid_post@1")
    assert site.space.dtype == dtype
    vector = tt.SteeringVector(torch.ones(model.d_model), site.space, 1.0, "ones")
    with tt.attach(model, tt.Add(vector, 1.0)) as live:
        assert live.logits(TOKENS).dtype == model.dtype
        assert live.generate("a film", max_new_tokens=2).tokens
    # Recorded, not compared: a vector made in float32 steers a bfloat16 model.
    assert site.space.differences(tt.load_model(folder).at("resid_post@1").space) == []


def test_no_block_past_the_last_hook_is_run(folder: Any) -> None:
    model = tt.load_model(folder)
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.host.blocks)
    ]
    model.residuals(TOKENS, MASK, [model.hook_point("resid_post@1")])
    for handle in handles:
        handle.remove()
    # The bridge stops on entering the block after.
    assert set(ran) <= {0, 1, 2}
    assert 3 not in ran
    read = model.residuals(TOKENS, MASK, [model.hook_point("resid_post@3")])
    assert read["blocks.3.hook_resid_post"].shape == (2, 9, model.d_model)
