"""`fwd_hooks` in a TransformerLens workflow of the user's own = `attach`, or a refusal."""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests.generation.cases import (
    NEEDS_THE_TEXT,
    OPERATORS,
    PROMPTS,
    WHERES,
    gate_for,
    vector_for,
)
from tl_transfer.data.encode import encode
from tl_transfer.errors import HookError, InputError
from tl_transfer.models.batches import pad

pytestmark = pytest.mark.filterwarnings("ignore::tl_transfer.positions.where.PositionWarning")

#: Every operator once, under rules in turn; every rule has its turn in generation below.
PAIRS = [
    (name, list(WHERES)[i % len(WHERES)])
    for i, name in enumerate(OPERATORS)
    if name not in NEEDS_THE_TEXT
]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_a_padded_batch_gives_the_logits_of_attach(model: Any, name: str, rule: str) -> None:
    prompts = [encode(text, model.tokenizer) for text in PROMPTS[:2]]
    batch = pad([prompt.ids for prompt in prompts], side="left")
    item = OPERATORS[name](model, WHERES[rule](model, (0, 1)), rows=(0, 1))
    hooks = item.fwd_hooks(model, attention_mask=batch.mask, prompts=prompts)
    got = model.run_with_hooks(
        batch.tokens, attention_mask=batch.mask.long(), fwd_hooks=hooks, return_type="logits"
    )
    with tt.attach(model, item) as live:
        seen = live.generate(prompts, max_new_tokens=1)
        if not item.where.needs & {"text", "gate"}:
            logits = live.logits(batch.tokens, batch.mask)
            assert torch.allclose(got[:, -1], logits[:, -1], atol=1e-4)
    assert got[:, -1].argmax(-1).tolist() == [g.tokens[0] for g in seen]


@pytest.mark.parametrize("rule", WHERES)
def test_generation_of_the_host_equals_attach(model: Any, rule: str) -> None:
    where = WHERES[rule](model, (0,))
    item = tt.Add(vector_for(model), 0.5, where)
    prompt = encode(PROMPTS[0], model.tokenizer)
    tokens = torch.tensor([prompt.ids])
    hooks = item.fwd_hooks(model, prompts=[prompt])

    def generate() -> tuple[int, ...]:
        with model.hooks(fwd_hooks=hooks):
            out = model.host.generate(
                tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False
            )
        return tuple(out[0, tokens.shape[1] :].tolist())

    if "tokens" in where.needs:
        with pytest.raises(HookError, match="plain hooks do not see them"):
            generate()
        return
    with tt.attach(model, item) as live:
        expected = live.generate(prompt, max_new_tokens=4).tokens
    assert generate()[: len(expected)] == expected
    assert generate()[: len(expected)] == expected  # the same hooks again


def test_run_with_cache_shows_the_edited_stream(model: Any) -> None:
    vector = vector_for(model)
    name = vector.space.hook_point
    tokens = torch.tensor([encode(PROMPTS[0], model.tokenizer).ids])
    _, plain = model.run_with_cache(tokens)
    item = tt.Add(vector, 0.5)
    with model.hooks(fwd_hooks=item.fwd_hooks(model)):
        _, cache = model.run_with_cache(tokens)
    assert torch.equal(cache[name][:, 0], plain[name][:, 0])
    assert torch.allclose(cache[name][:, 1:], item.edit(plain[name])[:, 1:], atol=1e-5)


def test_what_plain_hooks_cannot_know_is_refused(model: Any) -> None:
    item = tt.Add(vector_for(model), 0.5)
    ids = [encode(text, model.tokenizer).ids for text in PROMPTS[:2]]
    batch = pad(ids, side="left")

    def run(hooks: Any) -> None:
        model.run_with_hooks(batch.tokens, fwd_hooks=hooks)

    with pytest.raises(InputError, match="attention_mask: needed for a batch"):
        run(item.fwd_hooks(model))
    with pytest.raises(InputError, match="not the shape of the tokens"):
        run(item.fwd_hooks(model, attention_mask=batch.mask[:, 1:]))
    with pytest.raises(InputError, match="prompts: one for each row"):
        run(item.fwd_hooks(model, attention_mask=batch.mask, prompts=PROMPTS[:1]))
    text = tt.Add(vector_for(model), 0.5, tt.span("river"))
    with pytest.raises(HookError, match="reads the text"):
        run(text.fwd_hooks(model, attention_mask=batch.mask))


def test_plain_hooks_refuse_growth_without_a_cache(model: Any) -> None:
    intervention = tt.Add(vector_for(model), 0.5, tt.generated())
    tokens = torch.tensor([list(model.tokenizer(PROMPTS[0])["input_ids"])])
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "use_past_kv_cache": False,
        "verbose": False,
        "stop_at_eos": False,
    }
    with (
        pytest.raises(HookError, match="without a KV cache"),
        model.hooks(fwd_hooks=intervention.fwd_hooks(model)),
    ):
        model.host.generate(tokens, **options)
    hooks = intervention.fwd_hooks(model, prompt_lengths=tokens.shape[1])
    with model.hooks(fwd_hooks=hooks):
        out = model.host.generate(tokens, **options)
    with tt.attach(model, intervention) as live:
        expected = live.generate(PROMPTS[0], max_new_tokens=3).tokens
    assert tuple(out[0, tokens.shape[1] :].tolist())[: len(expected)] == expected


def test_a_schedule_or_a_gate_needs_the_prompts_end_too(model: Any) -> None:
    """Taken for a prompt of its own, each longer pass would start the schedule anew."""
    prompt = encode(PROMPTS[0], model.tokenizer)
    tokens = torch.tensor([prompt.ids])
    vector, once = vector_for(model), tt.schedules.first(6.0, k=1)
    for item in (tt.Add(vector, once), tt.Add(vector, 6.0, tt.when(gate_for(model)))):

        def generate(item: Any = item, **known: Any) -> tuple[int, ...]:
            with model.hooks(fwd_hooks=item.fwd_hooks(model, **known)):
                out = model.host.generate(
                    tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False,
                    use_past_kv_cache=False,
                )  # fmt: skip
            return tuple(out[0, tokens.shape[1] :].tolist())

        with pytest.raises(HookError, match="without a KV cache"):
            generate()
        with tt.attach(model, item) as live:
            expected = live.generate(prompt, max_new_tokens=4, stops=()).tokens
        assert generate(prompts=[prompt]) == expected
