"""The real bundled models and texts: intact, loadable, and as good as they were when pinned."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_transfer.data import corpora
from tl_transfer.errors import FetchError
from tl_transfer.models import bundled

pytestmark = pytest.mark.real

NAMES = ("smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct")
PROSE = (
    "The house stood at the end of the road. It had been empty for years, and the children of the "
    "village told stories about it. One evening in autumn, a light appeared in the window."
)
#: Mean cross-entropy of PROSE in nats, measured when the models were pinned.
LOSS = {
    "smollm2-135m-instruct": 3.000,
    "gemma-3-270m": 2.749,
    "qwen2.5-coder-0.5b-instruct": 3.112,
}
TEXTS = (
    "Plain English, with 17 numbers and (brackets).",
    "  two  spaces\n\n\tand a tab ",
    "Café naïve — “quotes”, 20 € each",
    "emoji 😀👩‍👩‍👧 and 日本語",
)


def folder_of(name: str) -> Path:
    try:
        return bundled.fetch(name)
    except FetchError as error:
        pytest.skip(f"{name} cannot be fetched: {error}")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    return folder_of(name)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_files_have_the_hashes_of_their_record(name: str, folder: Path) -> None:
    bundled.verify(name)
    record = json.loads((folder / "bundled.json").read_text())
    assert record["gguf_sha256"] == bundled.BUNDLED[name].sha256
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(record["files"])
    assert bundled.plan(name).cached


def test_model_loads_as_pinned_and_predicts_as_well(
    name: str, folder: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert sum(weight.numel() for weight in model.parameters()) == bundled.BUNDLED[name].n_params
    assert model.config.max_position_embeddings == bundled.BUNDLED[name].context
    assert model.config.architectures == [type(model).__name__]
    stops = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
    tokens = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss.item()
    assert loss == pytest.approx(LOSS[name], abs=0.01)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer_and_offsets_cover_it(tokenizer: Any, text: str) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    covered = {i for start, end in encoded.offset_mapping for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_special_tokens_are_those_of_the_original_models(name: str, tokenizer: Any) -> None:
    first = tokenizer("x").input_ids[0]
    if name.startswith("gemma"):
        assert tokenizer.convert_ids_to_tokens(first) == "<bos>"
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
        assert tokenizer.chat_template is None
        return
    assert tokenizer.convert_ids_to_tokens(first) == "x"
    chat = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"
    if name.startswith("qwen"):
        assert tokenizer.bos_token is None
        assert tokenizer.pad_token == "<|endoftext|>"
        assert tokenizer("Cafe\u0301").input_ids == tokenizer("Café").input_ids
    else:
        assert tokenizer.tokenize("in  1984") == ["in", "ĠĠ", "1", "9", "8", "4"]


# Texts


def _texts(get: Any) -> Any:
    try:
        return get()
    except FetchError as error:
        pytest.skip(f"the corpus cannot be fetched: {error}")


def test_general_prose_is_clean_and_spread() -> None:
    sample = _texts(lambda: corpora.general(2000, min_chars=120, max_chars=400))
    assert Counter(item.source for item in sample) == {"brown": 1000, "factbook": 1000}
    assert len({item.document for item in sample if item.source == "brown"}) == 500
    dirt = re.compile(r"``|''|/[a-z]{2,3}\b(?=[ .,])|<[a-z/]|&[a-z]+;|\ufffd|Ã|â€| ,")
    dirty = [item for item in sample if dirt.search(item.text)]
    assert len(dirty) <= 4, [item.text for item in dirty[:8]]
    assert len({item.text for item in sample}) == 2000


@pytest.mark.parametrize(
    ("kind", "n", "documents", "positive", "negative"),
    [
        ("movie", 10603, 10603, 4538, 4483),
        ("amazon", 3697, 300, 1480, 895),
        ("nyt", 5118, 498, 503, 894),
        ("tweets", 4200, 4200, 1784, 815),
    ],
)
def test_rated_snippets_are_complete(
    kind: str, n: int, documents: int, positive: int, negative: int
) -> None:
    rated = _texts(lambda: corpora.rated_snippets(kind))
    assert len(rated) == n
    assert len({item.document for item in rated}) == documents
    assert sum(item.rating > 1 for item in rated) == positive
    assert sum(item.rating < -1 for item in rated) == negative
    assert all(-4 <= item.rating <= 4 for item in rated)
    assert not [item.text for item in rated if re.search("Ã|â€|\ufffd|&amp;", item.text)]
