"""Reading: the same rows whatever the order and the batches; every token left out is counted."""

import random
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.errors import InputError
from tl_transfer.models.batches import by_length
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.pairs import ModelPairs

TEXTS = random_texts(80, seed=1)


@pytest.fixture(scope="module")
def pair() -> tuple[tt.HookedModel, tt.HookedModel]:
    """Two families with two tokenizers, in float64, so that rounding cannot hide a difference."""
    return tuple(  # type: ignore[return-value]
        tt.load_model(
            tiny.tiny_hf(family, seed=seed, dtype=torch.float64),
            tokenizer=tiny.tiny_tokenizer(kind),
            name=family,
        )
        for seed, family, kind in ((0, "llama", "bos"), (1, "qwen2", "nobos"))
    )


def massive(seed: int = 7) -> tt.HookedModel:
    """A model in which the token " of" has a massive norm wherever it stands."""
    hf = tiny.tiny_hf("llama", seed=seed)
    tokenizer = tiny.tiny_tokenizer("bos")
    (token,) = tokenizer(" of", add_special_tokens=False).input_ids
    with torch.no_grad():
        hf.model.embed_tokens.weight[token] *= 1000.0
    return tt.load_model(hf, tokenizer=tokenizer, name="massive")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_fit_depends_neither_on_the_order_nor_on_the_batches(pair: Any) -> None:
    here, there = pair[0].at("resid_post@1"), pair[1].at("resid_post@2")
    first = tt.fit(here, there, texts=TEXTS, progress=False)
    mixed = random.Random(3).sample(TEXTS, len(TEXTS))
    for texts, max_tokens in ((mixed, 4096), (TEXTS, 300), (mixed, 60)):
        other = tt.fit(here, there, texts=texts, max_tokens=max_tokens, progress=False)
        for one, two in ((other, first), (other.shuffled, first.shuffled)):
            assert relative(one.weight, two.weight) < 1e-6  # maps are float32
        for name in ("mean_x", "xx", "xy", "yy", "xy_shuffled"):
            assert relative(getattr(other.held_out, name), getattr(first.held_out, name)) < 1e-9
        assert other.scorecard["dropped"] == first.scorecard["dropped"]
        assert other.scorecard["held_out"]["fvu_ci95"] == pytest.approx(
            first.scorecard["held_out"]["fvu_ci95"], rel=1e-5
        )


def test_batches_hold_every_text_once_within_the_limit_and_little_padding() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(3, 90) for _ in range(300)]
    batches = list(by_length(lengths, max_tokens=4096))
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    cells = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(cells) <= 4096
    assert sum(cells) < 1.15 * sum(lengths)
    # A text longer than the limit is a batch of its own.
    assert [len(b) for b in by_length([9, 200, 8], max_tokens=100)] == [1, 2]


def test_every_token_is_used_or_counted(pair: Any) -> None:
    model = massive()
    stream = ModelPairs([model.at("resid_post@1")], [pair[1].at("resid_post@1")], TEXTS)
    n_rows = sum(len(batch.text) for batch in stream.batches(progress=False))
    pieces = [token for text in TEXTS for token in model.tokenizer.tokenize(text)]
    assert pieces.count("\u0120of") > 0
    for side in ("source", "target"):
        counts = stream.dropped[side]
        reasons = ("position_0", "massive_norm", "not_paired", "n_rows")
        assert counts["n_tokens"] == sum(counts[name] for name in reasons)
        assert counts["n_rows"] == n_rows > 100
    # "of" at the front of a text follows the BOS token; nothing stands at position 0 itself.
    assert stream.dropped["source"]["massive_norm"] == pieces.count("\u0120of")
    assert stream.dropped["source"]["position_0"] == 0
    # Without BOS the first token of every text is the sink.
    assert stream.dropped["target"]["position_0"] == len(TEXTS)


@pytest.mark.parametrize("positions", ["mean", "last"])
def test_contrasts_are_read_the_same_whatever_the_batches(positions: str) -> None:
    model = massive()
    points = [model.hook_point("resid_post@1")]
    texts = [f"{text} of it" for text in TEXTS[:30]]
    whole = read_texts(model, points, texts, positions=positions)[points[0].name]
    for max_tokens in (1, 64, 200):
        part = read_texts(model, points, texts, positions=positions, max_tokens=max_tokens)
        assert relative(part[points[0].name].rows, whole.rows) < 1e-5
        assert part[points[0].name].median_norm == pytest.approx(whole.median_norm, rel=1e-5)
    mixed = read_texts(model, points, texts[::-1], positions=positions)[points[0].name]
    assert torch.equal(mixed.rows.flip(0), whole.rows)


def test_a_mean_is_the_mean_of_the_tokens_that_are_left() -> None:
    model = massive()
    point = model.hook_point("resid_post@1")
    tokens = model.tokenizer("in the of it", return_tensors="pt").input_ids
    read = model.residuals(tokens, torch.ones_like(tokens, dtype=torch.bool), [point])[point.name]
    norms = read[0].norm(dim=-1)
    kept = (norms < 10 * norms[1:].median()) & (torch.arange(len(norms)) > 0)
    assert 0 < int(kept.sum()) < len(kept) - 1
    texts = ["in the of it", *TEXTS[:20]]
    rows = read_texts(model, [point], texts)[point.name].rows
    assert relative(rows[0], read[0, kept].mean(0)) < 1e-5


def test_a_text_of_massive_tokens_alone_is_named() -> None:
    model = massive()
    with pytest.raises(InputError, match="every token of a text has a massive norm") as error:
        tt.mean_difference(
            model.at("resid_post@1"), positive=[*TEXTS[:20], " of of"], negative=TEXTS[20:40]
        )
    assert "text 20: ' of of'" in str(error.value)


def test_a_text_of_one_token_is_named(pair: Any) -> None:
    with pytest.raises(InputError, match="no token to read") as error:
        read_texts(pair[1], [pair[1].hook_point("resid_post@1")], ["to the", "a"])
    assert "text 1: 'a'" in str(error.value)


CHATS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": text[:25]}]
    for text in TEXTS
]


@pytest.mark.parametrize(
    ("tokens", "n_rows"),
    [
        (tt.Tokens(of="template"), 5 * 80),
        (tt.Tokens("last", of="template"), 80),
        (tt.Tokens("mean", role="user"), 80),
        (tt.Tokens("last"), 80),
    ],
)
def test_chats_pair_by_message_and_by_role(pair: Any, tokens: tt.Tokens, n_rows: int) -> None:
    here, there = pair[0].at("resid_post@1"), pair[1].at("resid_post@2")
    pairs = ModelPairs([here], [there], CHATS, tokens=tokens)
    rows = list(pairs.batches(progress=False, max_tokens=500))
    # The first header of the model without BOS stands at position 0 or after it.
    assert sum(len(batch.text) for batch in rows) == pairs.dropped["source"]["n_rows"] == n_rows
    again = ModelPairs([here], [there], CHATS, tokens=tokens)
    whole = torch.cat([b.x[here.point.name] for b in again.batches(progress=False)])
    part = torch.cat([batch.x[here.point.name] for batch in rows])
    assert relative(part, whole) < 1e-9


def test_a_fit_on_chats_and_texts_together(pair: Any) -> None:
    here, there = pair[0].at("resid_post@1"), pair[1].at("resid_post@2")
    mapper = tt.fit(here, there, texts=[*TEXTS, *CHATS], progress=False)
    assert mapper.settings["tokens"] == {"keep": "all", "of": "content"}
    assert mapper.scorecard["held_out"]["fvu"] < 1
    only = tt.fit(here, there, texts=TEXTS, tokens=tt.Tokens(regex=r"\w+"), progress=False)
    assert only.settings["tokens"]["regex"] == r"\w+"
    assert 0 < only.held_out.n < mapper.held_out.n


def test_documents_without_a_row_are_not_counted(pair: Any) -> None:
    """A choice of tokens that few texts have must not borrow the number of all documents."""
    sites = pair[0].at("resid_post@1"), pair[1].at("resid_post@2")
    empty = ["", " ", *(f"{i}" for i in range(10))]  # position 0 alone, where there is no BOS
    mapper, alone = (
        tt.fit(*sites, texts=texts, progress=False) for texts in ([*TEXTS, *empty], TEXTS)
    )
    counts = mapper.scorecard["n_documents"]
    assert sum(counts.values()) == sum(alone.scorecard["n_documents"].values()) == len(TEXTS)
    assert counts["test"] == len(mapper.held_out_rows.document.unique())


def test_a_model_without_a_template_refuses_chats(pair: Any) -> None:
    bare = tiny.tiny_tokenizer("bos")
    bare.chat_template = None
    model = tt.load_model(tiny.tiny_hf("llama"), tokenizer=bare, name="base")
    with pytest.raises(InputError, match="no chat template"):
        tt.fit(model.at("resid_post@1"), pair[1].at("resid_post@1"), texts=CHATS, progress=False)


def test_the_last_token_of_a_template_is_read(pair: Any) -> None:
    model = pair[1]
    point = model.hook_point("resid_post@1")
    chats = [[{"role": "user", "content": text}] for text in TEXTS[:3]]
    rows = read_texts(model, [point], chats, positions=tt.Tokens("last", of="template"))
    for i, chat in enumerate(chats):
        ids = tt.encode_chat(chat, model.tokenizer, add_generation_prompt=True).ids
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        read = model.residuals(tokens, mask, [point])[point.name]
        assert relative(rows[point.name].rows[i], read[0, -1].float()) < 1e-6
    with pytest.raises(InputError, match="one row is read of each text"):
        read_texts(model, [point], chats, positions=tt.Tokens())
    with pytest.raises(InputError, match="no token to read"):
        read_texts(model, [point], ["the dog"], positions=tt.Tokens("last", span="cat"))
