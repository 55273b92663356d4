"""to_hooked_transformer equals eager Hugging Face everywhere, offline, and changes nothing."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.conftest import needs_hooked_transformer
from tl_transfer.errors import ModelError
from tl_transfer.models.convert import to_hooked_transformer

pytestmark = [needs_hooked_transformer, pytest.mark.usefixtures("no_network")]

CONVERTIBLE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _hf_stream(model: nn.Module, tokens: Tensor, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Logits and the output of every block, read with plain hooks."""
    stream: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        stream.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    with torch.no_grad():
        logits = model(tokens, **inputs).logits
    for handle in handles:
        handle.remove()
    return logits, stream


def _assert_same(hf_model: nn.Module, hooked: Any, tokens: Tensor) -> None:
    logits, stream = _hf_stream(hf_model, tokens)
    with torch.no_grad():
        hooked_logits, cache = hooked.run_with_cache(tokens)
    torch.testing.assert_close(hooked_logits, logits, atol=1e-4, rtol=0)
    for layer, expected in enumerate(stream):
        found = cache[f"blocks.{layer}.hook_resid_post"]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1, 5, 40])  # 40: far beyond Gemma's window of 8
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_logits_and_stream_equal_hugging_face(name: str, tied: bool, length: int) -> None:
    hf_model = tiny.tiny_hf(name, tied=tied)
    hooked = tiny.tiny_hooked(name, hf_model=hf_model)
    _assert_same(hf_model, hooked, tiny.random_tokens(hooked.cfg.d_vocab, 2, length))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"n_kv_heads": 4}),  # every head has its own keys and values
        ("qwen2", {"n_kv_heads": 4}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"rope_theta": 123.0, "rms_norm_eps": 0.05}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
        ("gemma3", {"sliding_window": 3, "rms_norm_eps": 0.05}),
        ("gemma3", {"final_logit_softcapping": 2.0}),
        ("llama", {"vocab_size": 450}),  # more rows than the tokenizer has tokens
    ],
    ids=str,
)
def test_options_of_the_live_configuration_are_honoured(name: str, options: dict) -> None:
    hf_model = tiny.tiny_hf(name, **options)
    hooked = tiny.tiny_hooked(name, hf_model=hf_model)
    _assert_same(hf_model, hooked, tiny.random_tokens(hooked.cfg.d_vocab, 2, 40))


def test_gemma3_with_linear_scaling_in_the_full_layers() -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
    }
    hf_model = tiny.tiny_hf("gemma3", rope_parameters=rope)
    hooked = tiny.tiny_hooked("gemma3", hf_model=hf_model)
    _assert_same(hf_model, hooked, tiny.random_tokens(hooked.cfg.d_vocab, 2, 40))


def test_a_left_padded_batch_equals_single_prompts(
    family: str, hf_of: Callable[[str], Any], hooked_of: Callable[[str], Any]
) -> None:
    hf_model, hooked = hf_of(family), hooked_of(family)
    rows = [tiny.random_tokens(hooked.cfg.d_vocab, 1, n, seed=n) for n in (3, 14, 20)]
    batch = torch.full((3, 20), hooked.tokenizer.pad_token_id)
    mask = torch.zeros_like(batch)
    for index, row in enumerate(rows):
        batch[index, 20 - row.shape[1] :] = row
        mask[index, 20 - row.shape[1] :] = 1
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(batch, attention_mask=mask)
    for index, row in enumerate(rows):
        expected_logits, stream = _hf_stream(hf_model, row)
        real = slice(20 - row.shape[1], 20)
        torch.testing.assert_close(logits[index, real], expected_logits[0], atol=1e-4, rtol=0)
        for layer, expected in enumerate(stream):
            found = cache[f"blocks.{layer}.hook_resid_post"][index, real]
            torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=0)


def test_text_in_text_out(family: str, hooked_of: Callable[[str], Any]) -> None:
    hooked = hooked_of(family)
    tokenizer = tiny.tiny_tokenizer(tiny.TOKENIZER_OF[family])
    text = tiny.prompts()[2]
    assert hooked.to_tokens(text)[0].tolist() == tokenizer(text).input_ids
    bare = tokenizer(text, add_special_tokens=False).input_ids
    assert hooked.to_tokens(text, prepend_bos=False)[0].tolist() == bare
    assert hooked.to_string(bare) == text
    with_bos = hooked.to_tokens(text, prepend_bos=True)[0].tolist()
    assert with_bos == [hooked.tokenizer.bos_token_id, *bare]


@pytest.mark.parametrize("cache", [True, False])
def test_greedy_generation_equals_hugging_face(
    family: str, cache: bool, hf_of: Callable[[str], Any], hooked_of: Callable[[str], Any]
) -> None:
    hf_model, hooked = hf_of(family), hooked_of(family)
    tokens = hooked.to_tokens(tiny.prompts()[0])
    settings = {"max_new_tokens": 12, "do_sample": False}
    found = hooked.generate(
        tokens,
        stop_at_eos=False,
        use_past_kv_cache=cache,
        return_type="tokens",
        verbose=False,
        **settings,
    )
    expected = hf_model.generate(tokens, eos_token_id=None, pad_token_id=0, **settings)
    assert found.tolist() == expected.tolist()


def test_generation_from_a_list_of_strings_equals_one_by_one(
    family: str, hooked_of: Callable[[str], Any]
) -> None:
    hooked = hooked_of(family)
    settings = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    texts = tiny.prompts()[:2]
    together = hooked.generate(texts, **settings)
    assert together == [hooked.generate(text, **settings) for text in texts]


def test_model_and_tokenizer_given_are_left_unchanged(family: str) -> None:
    hf_model = tiny.tiny_hf(family)
    tokenizer = tiny.tiny_tokenizer(tiny.TOKENIZER_OF[family])
    tokenizer.pad_token = None
    weights = {name: value.clone() for name, value in hf_model.state_dict().items()}
    config, special = hf_model.config.to_dict(), copy.deepcopy(tokenizer.special_tokens_map)
    state = torch.random.get_rng_state()
    hooked = to_hooked_transformer(hf_model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        for parameter in hooked.parameters():
            parameter.zero_()
    assert hf_model.config.to_dict() == config
    assert tokenizer.special_tokens_map == special
    assert tokenizer.pad_token is None
    assert hooked.tokenizer.pad_token is not None
    assert all(torch.equal(value, weights[name]) for name, value in hf_model.state_dict().items())
    assert not hooked.training


def test_tied_embeddings_become_two_independent_matrices() -> None:
    hooked = tiny.tiny_hooked("llama", tied=True)
    before = hooked.unembed.W_U.detach().clone()
    with torch.no_grad():
        hooked.embed.W_E.add_(1.0)
    assert torch.equal(hooked.unembed.W_U, before)


def test_shared_memory_really_is_shared_and_computes_the_same(family: str) -> None:
    hf_model = tiny.tiny_hf(family)
    tokenizer = tiny.tiny_tokenizer(tiny.TOKENIZER_OF[family])
    hooked = to_hooked_transformer(hf_model, tokenizer, share_memory=True)
    _assert_same(hf_model, hooked, tiny.random_tokens(hooked.cfg.d_vocab, 2, 12))
    assert hooked.unembed.W_U.data_ptr() == hf_model.lm_head.weight.data_ptr()
    projection = hf_model.model.layers[1].mlp.down_proj.weight
    assert hooked.blocks[1].mlp.W_out.data_ptr() == projection.data_ptr()


def test_unembedding_keeps_the_layout_that_needs_no_copy_per_forward(family: str) -> None:
    # HookedTransformer computes F.linear(x, W_U.T.contiguous()): free only in this layout.
    assert tiny.tiny_hooked(family).unembed.W_U.T.is_contiguous()


def test_bfloat16_stays_bfloat16(family: str) -> None:
    hf_model = tiny.tiny_hf(family, dtype=torch.bfloat16)
    hooked = tiny.tiny_hooked(family, hf_model=hf_model)
    assert {parameter.dtype for parameter in hooked.parameters()} == {torch.bfloat16}
    tokens = tiny.random_tokens(hooked.cfg.d_vocab, 2, 12)
    with torch.no_grad():
        found, expected = hooked(tokens).float(), hf_model(tokens).logits.float()
    assert (found - expected).pow(2).mean().sqrt() < 0.1 * expected.std()


def test_it_works_without_a_tokenizer() -> None:
    hf_model = tiny.tiny_hf("llama")
    hooked = to_hooked_transformer(hf_model, None)
    _assert_same(hf_model, hooked, tiny.random_tokens(hooked.cfg.d_vocab, 1, 5))


def test_unsupported_architecture_is_named_with_the_way_out() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(ModelError) as caught:
        to_hooked_transformer(gpt2, None)
    message = str(caught.value)
    assert "GPT2LMHeadModel" in message
    assert "LlamaForCausalLM" in message
    assert "Gemma3ForCausalLM" in message
    assert 'use host="bridge"' in message


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("llama", {"attention_bias": True}, "LlamaForCausalLM with attention_bias=True"),
        ("llama", {"mlp_bias": True}, "LlamaForCausalLM with mlp_bias=True"),
        ("gemma3", {"attention_bias": True}, "Gemma3ForCausalLM with attention_bias=True"),
        ("llama", {"hidden_act": "tanh"}, "LlamaForCausalLM with activation tanh"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "qwen2 with rope_type dynamic",
        ),
    ],
    ids=str,
)
def test_options_the_converter_would_drop_are_refused(name: str, options: dict, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        to_hooked_transformer(tiny.tiny_hf(name, **options), None)
    assert named in str(caught.value)
    assert 'use host="bridge"' in str(caught.value)


def test_packed_weights_are_refused_and_dequantised_ones_are_not() -> None:
    hf_model = tiny.tiny_hf("llama")
    hf_model.is_quantized = True  # what transformers says of weights that came from a GGUF file
    to_hooked_transformer(hf_model, None)
    packed = torch.zeros(4, 4, dtype=torch.uint8)
    hf_model.model.layers[0].mlp.up_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM with weights stored as torch\.uint8"):
        to_hooked_transformer(hf_model, None)


def test_transformer_lens_4_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutHookedTransformer:
        """What TransformerLens 4 looks like from outside."""

        __version__ = "4.3.0"

    monkeypatch.setitem(sys.modules, "transformer_lens", WithoutHookedTransformer())
    with pytest.raises(ModelError) as caught:
        to_hooked_transformer(tiny.tiny_hf("llama"), None)
    assert "transformer-lens 4.3.0" in str(caught.value)
    assert 'install "transformer-lens<4"' in str(caught.value)
