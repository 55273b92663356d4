"""Alignment of the bundled models' own tokenizers (weights are fetched, but not loaded)."""

import itertools
from typing import Any

import pytest

from tl_transfer.data import corpora
from tl_transfer.data.align import EncodedText, align, encode, pair_many
from tl_transfer.data.chat import align_chat, encode_chat
from tl_transfer.errors import InputError, TransferError

pytestmark = pytest.mark.real

SMOL, GEMMA, QWEN = "smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct"
PAIRS = list(itertools.permutations((SMOL, GEMMA, QWEN), 2))
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "In 1984, Dr. O'Neill's well-known re-examination cost $3,141.59 (about 12 %).",
    "  Indented;\r\nthen\n\n\tcode {\n    return x;\n}",
    "Où est la bibliothèque? Das Wörterbuch liegt auf dem Tisch.",
    "日本語のテキスト и русский текст, عربي.",
    "Family: 👩‍👩‍👧‍👦, flag: 🇫🇷, thumb: 👍🏽.",
    "cafe\u0301 nai\u0308ve … ﬁ ▁ \u2126",
    "<bos> a <|im_start|> b <|endoftext|> <end_of_turn>",
    "\x00a\x07b\u200b\ufeffc",
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    from transformers import AutoTokenizer

    from tl_transfer.models import bundled

    found = {}
    for name in (SMOL, GEMMA, QWEN):
        try:
            folder = bundled.fetch(name, progress=False)
        except TransferError as error:
            pytest.skip(f"{name} cannot be fetched: {error}")
        found[name] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return found


def prose() -> list[str]:
    """800 passages of the general corpus."""
    return [passage.text for passage in corpora.general(800)]


def read_by(text: EncodedText, position: int) -> str:
    start = text.ends[position - 1] if position else 0
    return text.text.encode()[start : text.ends[position]].decode(errors="backslashreplace")


def test_who_adds_bos(tokenizers: dict[str, Any]) -> None:
    first = {name: encode("Hello", tokenizer).special[0] for name, tokenizer in tokenizers.items()}
    assert first == {SMOL: False, GEMMA: True, QWEN: False}
    assert encode("Hello", tokenizers[GEMMA]).ids.count(tokenizers[GEMMA].bos_token_id) == 1


@pytest.mark.parametrize("name", [SMOL, GEMMA, QWEN])
@pytest.mark.parametrize("text", SENTENCES)
def test_every_byte_is_read_and_no_text_is_markup(
    tokenizers: dict[str, Any], name: str, text: str
) -> None:
    encoded = encode(text, tokenizers[name])
    assert encoded.ends[-1] == len(text.encode())
    assert sum(encoded.special) == (name == GEMMA)
    if name != QWEN:  # Qwen composes accents, and may cut inside the composed character
        assert encoded.n_dropped == 0
    if "<" not in text:
        assert list(encoded.ids) == tokenizers[name](text)["input_ids"]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_prose_pairs_almost_fully(
    tokenizers: dict[str, Any], source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = prose()
    assert len(set(texts)) == 800
    paired = pair_many(texts, tokenizers[source], tokenizers[target])
    with capsys.disabled():
        print(f"\n{source} -> {target}: {paired.report}")
    assert paired.report.coverage_source > 0.9
    assert paired.report.coverage_target > 0.9
    assert paired.report.n_dropped == paired.report.n_unpaired == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pairs_have_read_the_same(
    tokenizers: dict[str, Any], source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in SENTENCES:
        a, b = encode(text, tokenizers[source]), encode(text, tokenizers[target])
        pairs = align(a, b)
        positions = list(
            zip(pairs.source_positions.tolist(), pairs.target_positions.tolist(), strict=True)
        )
        assert len(positions) > 3
        assert all(a.ends[i] == b.ends[j] for i, j in positions)
        with capsys.disabled():
            shown = " ".join(f"{read_by(a, i)!r}={read_by(b, j)!r}" for i, j in positions)
            print(f"\n{source} -> {target} {len(positions)}/{a.n_text_tokens}: {shown}")


def test_chats_of_two_models_pair(tokenizers: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "Rome."},
        {"role": "user", "content": "user"},
    ]
    a, b = (encode_chat(messages, tokenizers[n], add_generation_prompt=True) for n in (SMOL, QWEN))
    found = align_chat(a, b)
    assert found.content.coverage_source > 0.8
    assert found.template_names[-2:] == ("end 2", "last")
    assert found.template_source[-1] == len(a.ids) - 1
    assert found.template_target[-1] == len(b.ids) - 1
    for chat, name in ((a, SMOL), (b, QWEN)):
        own = tokenizers[name].apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True
        )
        assert list(chat.ids) == list(own["input_ids"])


def test_the_base_model_says_that_it_has_no_template(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="this model has no chat template"):
        encode_chat(
            [{"role": "user", "content": "Hi"}], tokenizers[GEMMA], add_generation_prompt=True
        )
