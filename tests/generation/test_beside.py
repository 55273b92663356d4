"""ReplaceFrom: another model reads along, whatever its tokenizer."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.generation.cases import PROMPTS, map_into, other_model, recording, texts, vector_for
from tl_transfer.data.encode import encode
from tl_transfer.errors import HookError, SpaceError
from tl_transfer.interventions.beside import partners
from tl_transfer.space import ActivationSpace

POINT = "blocks.1.hook_resid_post"

pytestmark = pytest.mark.filterwarnings("ignore::tl_transfer.positions.where.PositionWarning")


@dataclass(frozen=True)
class Linear:
    source: ActivationSpace
    target: ActivationSpace
    weight: torch.Tensor

    def map_points(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def load(hf: Any, name: str) -> tt.HookedModel:
    return tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name=name)


@pytest.fixture(scope="module")
def twins() -> tuple[tt.HookedModel, tt.HookedModel, Linear]:
    """A model, its exact twin in another basis, and the map that is exact between them."""
    size = len(tiny.tiny_tokenizer("bos"))
    hf = tiny.tiny_hf("llama", seed=2, vocab_size=size)
    other, rotation = tiny.twin(hf, d_model=64, scale=1.7, seed=1)
    source, target = load(hf, "source"), load(other, "target")
    spaces = source.at(POINT).space, target.at(POINT).space
    return source, target, Linear(*spaces, 1.7 * rotation)


def test_the_exact_map_between_twins_changes_nothing(twins: Any) -> None:
    source, target, exact = twins
    item = tt.ReplaceFrom(source, exact, where=tt.everywhere(sinks=True))
    plain = texts(target)
    assert texts(target, item) == plain == texts(source)
    tokens = torch.tensor([encode(PROMPTS[0], target.tokenizer).ids])
    with tt.attach(target, item) as live:
        logits = live.logits(tokens)
    assert torch.allclose(logits, target.logits(tokens, tokens >= 0), atol=2e-3)
    wrong = Linear(exact.source, exact.target, exact.weight.flip(0))
    assert texts(target, tt.ReplaceFrom(source, wrong)) != plain


def test_a_model_may_read_beside_itself(twins: Any) -> None:
    source, _, _ = twins
    space = source.at(POINT).space
    same = Linear(space, space, torch.eye(source.d_model))
    vector = vector_for(source, 0)
    push = tt.Add(vector, 3.0)
    # What is put in place is the unsteered stream, so a push before it does nothing after it.
    item = tt.ReplaceFrom(source, same, where=tt.everywhere(sinks=True))
    assert texts(source, push, new=3) != texts(source, new=3)
    pushed_early = texts(source, push, item, new=3)
    with recording(source, POINT) as bare, tt.attach(source) as live:
        live.logits(torch.tensor([[1, 30, 40]]))
    with tt.attach(source, push, item) as live, recording(source, POINT) as seen:
        live.logits(torch.tensor([[1, 30, 40]]))
    assert torch.allclose(seen[0], bare[0], atol=1e-5)
    assert len(pushed_early) == len(PROMPTS)


def test_two_tokenizers_meet_at_the_text_they_have_read() -> None:
    here = encode("The river rose", tiny.tiny_tokenizer("nobos"))
    there = encode("The river rose", tiny.tiny_tokenizer("bos"))
    found = partners(here, there)
    assert found, "no pair at all"
    for position, partner in found.items():
        assert here.ends[partner] <= there.ends[position]
        later = [p for p in here.pairable() if here.ends[p] <= there.ends[position]]
        assert partner == max(later)
    assert 0 not in found  # BOS has read nothing
    chat = [{"role": "user", "content": "Why? Because."}]
    chats = [tt.encode_chat(chat, tiny.tiny_tokenizer(kind), add_generation_prompt=True)
             for kind in ("nobos", "bos")]  # fmt: skip
    found = partners(*chats)
    assert found[len(chats[1].ids) - 1] == len(chats[0].ids) - 1


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_states_of_another_tokenizer_are_those_of_the_text_so_far(use_cache: bool) -> None:
    """Checked against a source that is run alone on exactly that text."""
    target = other_model("bos")
    source, mapper = map_into(target, "nobos")
    item = tt.ReplaceFrom(source, mapper)
    prompt = PROMPTS[1]
    with tt.attach(target, item) as live, recording(target, POINT) as seen:
        out = live.generate(prompt, max_new_tokens=5, use_cache=use_cache)
    ids = encode(prompt, target.tokenizer).ids
    stream = torch.cat(seen, 1)[0] if use_cache else seen[-1][0]
    source_ids = list(encode(prompt, source.tokenizer).ids)
    point = source.hook_point(mapper.source.hook_point)

    def state(ids_: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids_])
        read = source.residuals(tokens, torch.ones_like(tokens, dtype=torch.bool), [point])
        return mapper.map_points(read[point.name])[0, -1]

    assert torch.allclose(stream[len(ids) - 1], state(source_ids), atol=1e-4)
    for k in range(1, 5):
        text = target.tokenizer.decode(out.tokens[:k], skip_special_tokens=True)
        if "�" in text:  # half a character: the text before it counts
            continue
        more = list(encode(text, source.tokenizer, add_bos=False).ids) if text else []
        assert torch.allclose(stream[len(ids) + k - 1], state(source_ids + more), atol=1e-4)


def test_beams_take_their_states_with_them(twins: Any) -> None:
    """The exact map changes nothing, also when rows change places; a stale row would."""
    source, target, exact = twins
    with tt.attach(target) as live:
        plain = live.generate(PROMPTS[:2], max_new_tokens=5, num_beams=3)
    for use_cache in (True, False):
        with tt.attach(target, tt.ReplaceFrom(source, exact)) as live:
            moved = live.generate(PROMPTS[:2], max_new_tokens=5, num_beams=3, use_cache=use_cache)
        assert [g.tokens for g in moved] == [g.tokens for g in plain]


def test_chats_and_batches_of_them(twins: Any) -> None:
    target = other_model("bos")
    source, mapper = map_into(target, "nobos")
    chats = [
        tt.encode_chat([{"role": "user", "content": text}], target.tokenizer,
                       add_generation_prompt=True)
        for text in PROMPTS[:3]
    ]  # fmt: skip
    with tt.attach(target, tt.ReplaceFrom(source, mapper)) as live:
        together = [g.tokens for g in live.generate(chats, max_new_tokens=3)]
        assert together == [live.generate(chat, max_new_tokens=3).tokens for chat in chats]
        assert together == [g.tokens for g in live.generate(chats, max_new_tokens=3, batch_size=2)]
    with tt.attach(target) as live:
        assert together != [g.tokens for g in live.generate(chats, max_new_tokens=3)]


def test_positions_that_no_source_token_stands_for_are_left_as_they_are() -> None:
    """The target's BOS, where the source has none; to the last bit, though it may be edited."""
    target = other_model("bos")
    source, mapper = map_into(target, "nobos")
    ids = encode(PROMPTS[0], target.tokenizer).ids
    tokens = torch.tensor([ids])
    point = target.hook_point(POINT)
    plain = target.residuals(tokens, tokens >= 0, [point])[point.name][0]
    item = tt.ReplaceFrom(source, mapper, where=tt.everywhere(sinks=True))
    with tt.attach(target, item) as live, recording(target, POINT) as seen:
        live.generate(PROMPTS[0], max_new_tokens=1)
    stream = seen[0][0]
    assert torch.equal(stream[0], plain[0])
    assert not torch.isclose(stream[1:], plain[1:]).all(-1).any()


def test_what_cannot_read_along_is_refused(twins: Any) -> None:
    source, target, exact = twins
    with pytest.raises(SpaceError, match="source model of this map"):
        tt.ReplaceFrom(target, exact)
    item = tt.ReplaceFrom(source, exact)
    tokens = torch.tensor([[1, 30, 40]])
    with pytest.raises(HookError, match="tokens are unknown"):
        target.run_with_hooks(tokens, fwd_hooks=item.fwd_hooks(target))
    with pytest.raises(HookError, match="unknown here"):
        item.edit(torch.zeros(1, 3, target.d_model))
    mixed = other_model("bos")
    two = tt.ReplaceFrom(*map_into(mixed, "nobos"))
    with pytest.raises(HookError, match="cut them differently"), tt.attach(mixed, two) as live:
        live.logits(tokens)
