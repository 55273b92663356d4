"""The tiny models are worth testing on: reproducible, lively, and with two real tokenizers."""

import pytest
import torch

from tests import tiny
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_lively_and_greedy_decoding_wanders(family: str, tied: bool) -> None:
    model = tiny.tiny_hf(family, tied=tied)
    assert model.config.tie_word_embeddings is tied
    tokens = tiny.random_tokens(model.config.vocab_size, 3, 12)
    with torch.no_grad():
        spread = model(tokens).logits.std(-1).mean()
        new = model.generate(
            tokens, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )[:, 12:]
    assert 0.5 < spread < 2.0
    assert max(len(set(row.tolist())) for row in new) >= 8
    assert min(len(set(row.tolist())) for row in new) > 1


def test_same_seed_same_weights_and_the_global_generator_is_untouched(family: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (tiny.tiny_hf(family, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_qwen2_has_biases_and_gemma3_has_both_kinds_of_layers() -> None:
    assert tiny.tiny_hf("qwen2").model.layers[0].self_attn.q_proj.bias.abs().max() > 0
    kinds = tiny.tiny_hf("gemma3").config.layer_types
    assert set(kinds) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("kind", ["bos", "nobos"])
def test_tokenizers_round_trip_and_offset_maps_cover_the_text(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    for text in tiny.prompts():
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
        assert encoded.offset_mapping[-1][1] == len(text)
    starts_with_bos = tokenizer("A").input_ids[0] == 1
    assert starts_with_bos is (kind == "bos")
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_two_tokenizers_cut_differently() -> None:
    first, second = tiny_tokenizer("bos"), tiny_tokenizer("nobos")
    text = "The river rose in the night."
    assert first.tokenize(text) != second.tokenize(text)
    assert first.get_vocab() != second.get_vocab()


def test_callers_get_their_own_tokenizer() -> None:
    tiny_tokenizer("bos").padding_side = "left"
    assert tiny_tokenizer("bos").padding_side == "right"
