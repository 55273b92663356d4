"""Laws of steering while generating, on every family and host."""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.conftest import needs_hooked_transformer
from tests.generation.cases import NEW, OPERATORS, PROMPTS, count_hooks, texts, vector_for
from tl_transfer.errors import HookError, InputError, SpaceError

#: Rules in one word, for laws that do not depend on the rule.
RULES = {
    "everywhere": tt.everywhere(),
    "everywhere with sinks": tt.everywhere(sinks=True),
    "prompt": tt.prompt(),
    "generated": tt.generated(),
    "last prompt token": tt.last_prompt_token(),
}

pytestmark = pytest.mark.filterwarnings("ignore::tl_transfer.positions.where.PositionWarning")


def test_rules_choose_different_tokens(model: Any) -> None:
    """Laws hold for rules that do nothing, too; these do something, and not the same."""
    vector = vector_for(model)
    strong = [texts(model, tt.Add(vector, 4.0, where)) for where in RULES.values()]
    assert all(result != texts(model) for result in strong)
    assert len({str(result) for result in strong}) >= 3


@pytest.mark.parametrize("name", OPERATORS)
def test_strength_zero_is_no_hook(model: Any, name: str) -> None:
    """To the last bit: one strength, a strength a row, and a schedule that has run out."""
    tokens = torch.tensor([list(model.tokenizer(PROMPTS[0])["input_ids"])] * 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    plain = model.logits(tokens, mask)
    make, where = OPERATORS[name], tt.everywhere()
    rows = tuple(range(2))
    needs_text = name.startswith("add at") or name.endswith("two tokenizers")
    for off in (0.0,) if needs_text else (0.0, torch.zeros(2)):
        with tt.attach(model, make(model, where, off, rows=rows)) as live:
            assert torch.equal(live.logits(tokens, mask), plain)
    if not needs_text:
        half = make(model, where, torch.tensor([0.0, 1.0]), rows=rows)
        with tt.attach(model, half) as live:
            logits = live.logits(tokens, mask)
        assert torch.equal(logits[0], plain[0]) and not torch.equal(logits[1], plain[1])
    every = tuple(range(len(PROMPTS)))
    off = make(model, tt.generated() & ~tt.prompt(), tt.schedules.first(3.0, k=1), rows=every)
    assert texts(model, off, new=3) == texts(model, new=3)


def test_a_schedule_does_not_depend_on_the_cache_or_on_what_ran_before(model: Any) -> None:
    """Without a cache a pass has a strength for each column, and the next prompt again only one."""
    options = {"max_new_tokens": NEW, "stops": ()}
    fading = tt.schedules.linear(2.0, over=3)
    for item in (tt.Add(vector_for(model), fading), tt.NormKeepingAdd(vector_for(model), fading)):
        with tt.attach(model, item) as live:
            expected = [g.tokens for g in live.generate(PROMPTS, **options)]
            for size in (None, 3):
                got = live.generate(PROMPTS, use_cache=False, batch_size=size, **options)
                assert [g.tokens for g in got] == expected


def test_hooks_are_gone_after_the_block_and_after_exceptions(model: Any) -> None:
    tokens = tiny.random_tokens(300, 1, 7)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    before, plain = count_hooks(model), model.logits(tokens, mask)
    vector = vector_for(model)
    items = (tt.Add(vector, 3.0), tt.Ablate(vector, layers="all"))
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), tt.attach(model, *items):
            assert count_hooks(model) == before + 1 + (1 + 2 * model.n_layers)
            raise error
        assert count_hooks(model) == before
        assert torch.equal(model.logits(tokens, mask), plain)


def test_hooks_of_others_are_left_alone(model: Any) -> None:
    calls: list[int] = []
    vector = vector_for(model)

    def mine(activation: torch.Tensor, hook: Any) -> None:
        calls.append(activation.shape[1])

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", mine)]):
        with tt.attach(model, tt.Add(vector, 1.0)) as live:
            live.generate("a b", max_new_tokens=2)
        seen = len(calls)
        model.logits(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    assert seen == 2 and len(calls) == 3


def test_nothing_is_attached_when_one_vector_does_not_fit(model: Any) -> None:
    good = vector_for(model)
    other = tt.load_model(tiny.tiny_bridge("llama", seed=7, d_model=32))
    before = count_hooks(model)
    with (
        pytest.raises(SpaceError, match="d_model: "),
        tt.attach(model, tt.Add(good), tt.Add(vector_for(other))),
    ):
        pass
    assert count_hooks(model) == before


def test_edits_reach_exactly_the_chosen_positions(model: Any) -> None:
    """The stream moves by the vector where the rule says, and nowhere else, to the last bit."""
    vector = vector_for(model)
    tokens = tiny.random_tokens(300, 1, 8)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    point = model.hook_point("resid_post@1")
    plain = model.residuals(tokens, mask, [point])[point.name]
    seen: list[torch.Tensor] = []
    step = vector.unit * vector.median_norm * 1.5
    with (
        tt.attach(model, tt.Add(vector, 1.5)) as live,
        model.hooks(fwd_hooks=[(point.name, lambda a, hook: seen.append(a.clone()))]),
    ):
        live.logits(tokens, mask)
    moved = seen[0] - plain
    assert torch.equal(seen[0][:, 0], plain[:, 0])
    assert torch.allclose(moved[:, 1:], step.expand_as(moved[:, 1:]), atol=1e-5)


def test_rows_may_have_strengths_of_their_own(model: Any) -> None:
    vector = vector_for(model)
    strengths = torch.tensor([0.0, 3.0, -3.0, 1.0])
    together = texts(model, tt.Add(vector, strengths), batch_size=None)
    for i, strength in enumerate(strengths.tolist()):
        with tt.attach(model, tt.Add(vector, strength)) as live:
            assert live.generate(PROMPTS[i], max_new_tokens=NEW).tokens == together[i]
    with (
        pytest.raises(InputError, match="one number for each row"),
        tt.attach(model, tt.Add(vector, strengths)) as live,
    ):
        live.generate(PROMPTS[:2], max_new_tokens=2)


def test_switching_off_inside_the_block(model: Any) -> None:
    with tt.attach(model, tt.Add(vector_for(model), 4.0)) as live:
        steered = live.generate(PROMPTS[0], max_new_tokens=NEW).tokens
        live.on = False
        plain = live.generate(PROMPTS[0], max_new_tokens=NEW).tokens
        live.on = True
        assert live.generate(PROMPTS[0], max_new_tokens=NEW).tokens == steered
    assert plain == texts(model)[0] != steered


def test_a_hook_removed_inside_the_block_is_an_error(model: Any) -> None:
    with (
        pytest.raises(HookError, match="did not fire once"),
        tt.attach(model, tt.Add(vector_for(model))) as live,
    ):
        model.host.reset_hooks(including_permanent=False)
        for point in set(model.host.hook_dict.values()):
            point.remove_hooks(level=None)
        live.generate("a b", max_new_tokens=1)


def test_sampling_is_reproducible_and_leaves_the_global_seed_alone(model: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sampling = tt.Sampling(do_sample=True, temperature=1.5, top_k=50, top_p=0.95, seed=3)
    first = texts(model, sampling=sampling)
    assert torch.equal(torch.rand(3), expected)
    assert first == texts(model, sampling=sampling)
    assert first != texts(model, sampling=tt.Sampling(do_sample=True, temperature=1.5, seed=4))


def test_stop_tokens_end_a_row(model: Any) -> None:
    """Whatever comes first greedily is declared the stop token: the row must end there."""
    from tl_transfer.models import generate

    ids = list(model.tokenizer(PROMPTS[0])["input_ids"])
    first = texts(model)[0][0]
    new = generate.decode(
        model,
        [ids, [*ids, 9]],
        generate.Options(4, stops=(first,)),
        announce=lambda start, stop, tokens: None,
    )
    assert new[0] == [first] and len(new[1]) <= 4


def test_a_pass_nobody_announced_is_refused_also_after_one_that_was(model: Any) -> None:
    """The positions of the last driven pass must not be taken for those of a foreign one."""
    tokens = torch.tensor([list(model.tokenizer(PROMPTS[0])["input_ids"])])
    with tt.attach(model, tt.Add(vector_for(model), 3.0)) as live:
        live.generate(PROMPTS[0], max_new_tokens=2)
        with pytest.raises(HookError, match="positions are unknown"):
            model.host(torch.tensor([[5]]))
        live.logits(tokens)
        with pytest.raises(HookError, match="positions are unknown"):
            model.host(tokens)


def test_logits_want_a_mask_of_the_tokens_shape(model: Any) -> None:
    with (
        pytest.raises(InputError, match="mask: not the shape of the tokens"),
        tt.attach(model, tt.Add(vector_for(model), 1.0)) as live,
    ):
        live.logits(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool))


def test_nested_attach_adds_up(model: Any) -> None:
    first, second = vector_for(model, 1, seed=1), vector_for(model, 2, seed=2)
    both = texts(model, tt.Add(first, 0.5), tt.Add(second, 0.5))
    with tt.attach(model, tt.Add(first, 0.5)) as outer:
        with tt.attach(model, tt.Add(second, 0.5)) as inner:
            assert [g.tokens for g in inner.generate(PROMPTS, max_new_tokens=NEW)] == both
        alone = [g.tokens for g in outer.generate(PROMPTS, max_new_tokens=NEW)]
    assert alone == texts(model, tt.Add(first, 0.5)) != both


def test_strengths_by_row_are_never_spread_over_batches(model: Any) -> None:
    vector = vector_for(model)
    prompts = [PROMPTS[0]] * 5
    strengths = torch.linspace(-4, 4, 5)
    with tt.attach(model, tt.Add(vector, strengths)) as live:
        small = [g.tokens for g in live.generate(prompts, max_new_tokens=3, batch_size=2)]
        assert small == [g.tokens for g in live.generate(prompts, max_new_tokens=3)]
        with pytest.raises(InputError, match="5 strengths for 10 prompts"):
            live.generate(prompts * 2, max_new_tokens=2, batch_size=5)
        with pytest.raises(InputError, match="batch_size"):
            live.generate(prompts, max_new_tokens=2, batch_size=0)


def test_sampled_batches_do_not_repeat(model: Any) -> None:
    sampling = tt.Sampling(do_sample=True, temperature=2.0, seed=1)
    with tt.attach(model) as live:
        drawn = live.generate([PROMPTS[0]] * 8, max_new_tokens=6, sampling=sampling, batch_size=4)
    assert len({g.tokens for g in drawn}) == 8
    for bad in ({"top_p": 0.0}, {"top_k": 0}, {"temperature": float("nan")}):
        with pytest.raises(InputError, match="out of range"):
            tt.Sampling(do_sample=True, **bad)


@needs_hooked_transformer
def test_the_host_of_a_loaded_model_is_recognised() -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    hf = tiny.tiny_hf("qwen2", seed=5, vocab_size=len(tokenizer))
    hf.generation_config.eos_token_id = [2, 77]
    model = tt.load_model(hf, tokenizer=tokenizer, host="hooked_transformer", name="m")
    vector = vector_for(model)
    with tt.attach(model.host, tt.Add(vector, 1.0)) as live:
        assert live.model is model
    assert tt.Add(vector, 1.0).fwd_hooks(model.host)
    from tl_transfer.models.stops import stop_tokens

    assert {2, 77} <= set(stop_tokens(model))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_fit_transfer_and_steer_on_cuda() -> None:
    from tests.words import random_texts

    tokenizer = tiny.tiny_tokenizer("bos")
    hf = tiny.tiny_hf("llama", seed=5, vocab_size=len(tokenizer))
    model = tt.load_model(hf, tokenizer=tokenizer, device="cuda", name="m")
    here, there = model.at("resid_post@1"), model.at("resid_post@2")
    mapper = tt.fit(here, there, texts=random_texts(120, seed=1), progress=False)
    vector = tt.mean_difference(
        here, positive=random_texts(5, seed=2), negative=random_texts(5, seed=3)
    )
    with tt.attach(model, tt.Add(tt.transfer(vector, mapper), 1.0)) as live:
        batched = live.generate(PROMPTS, max_new_tokens=4)
        assert [g.tokens for g in batched] == [
            live.generate(p, max_new_tokens=4).tokens for p in PROMPTS
        ]
