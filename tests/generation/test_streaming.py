"""What one can do while a model generates: stream, beams, stops, live changes, and what is refused.

Each law on every family and host where the host matters.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.conftest import needs_hooked_transformer
from tests.generation.test_laws import NEW, PROMPTS, count_hooks, texts, vector_for
from tl_transfer.errors import HookError, InputError
from tl_transfer.models.generate import require_whole
from tl_transfer.models.stops import stop_tokens, turn_end

LAYER_HOOK = "blocks.2.hook_resid_post"


@pytest.fixture
def model(host_model: Any) -> tt.HookedModel:
    """Each family on each host."""
    return tt.load_model(host_model)


@pytest.fixture
def bridge(bridge_of: Callable[[str], Any]) -> tt.HookedModel:
    """One model is enough where the host does not matter."""
    return tt.load_model(bridge_of("llama"))


def do_nothing(activation: torch.Tensor, hook: Any) -> None:
    """A hook of somebody else's."""


# ------------------------------------------------------------------------------ the same tokens


def test_streamed_pieces_are_the_generated_text(model: tt.HookedModel) -> None:
    with tt.attach(model, tt.Add(vector_for(model), 3.0)) as live:
        whole = live.generate(PROMPTS, max_new_tokens=NEW)
        pieces = list(live.stream(PROMPTS, max_new_tokens=NEW))
        for i, expected in enumerate(whole):
            assert "".join(step[i].text for step in pieces) == expected.text
            tokens = [step[i].token for step in pieces if step[i].token is not None]
            assert tuple(tokens) == expected.tokens
        assert live.complete(PROMPTS, max_new_tokens=NEW) == [one.text for one in whole]
        assert live.complete(PROMPTS[0], max_new_tokens=NEW) == whole[0].text
        alone = list(live.stream(PROMPTS[0], max_new_tokens=NEW))
        assert "".join(map(str, alone)) == whole[0].text


def test_a_character_of_several_tokens_is_streamed_whole(bridge: tt.HookedModel) -> None:
    from tl_transfer.models.pieces import Pieces

    ids = bridge.tokenizer("naïve 🙂 日本", add_special_tokens=False)["input_ids"]
    growing = Pieces(bridge.tokenizer, stops=[2])
    said = [growing.add(token).text for token in ids]
    assert "".join(said) == bridge.tokenizer.decode(ids)
    assert not any("\ufffd" in text for text in said)
    assert growing.add(ids[0]).token == ids[0]
    assert growing.add(2).token is None and growing.stopped and growing.add(ids[0]).token is None


def test_our_tokens_are_those_of_the_hosts_own_loop(model: tt.HookedModel) -> None:
    ids = torch.tensor([list(model.tokenizer(PROMPTS[0])["input_ids"])])
    out = model.host.generate(
        ids, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False
    )
    with tt.attach(model) as live:
        mine = live.generate(PROMPTS[0], max_new_tokens=NEW, stops=())
    assert mine.tokens == tuple(out[0, ids.shape[1] :].tolist())


def test_bare_and_host_generate_the_same(model: tt.HookedModel) -> None:
    """Somebody's hook sends generation through the host, at every step: it must fire there."""
    calls: list[int] = []
    vector = vector_for(model)
    expected = texts(model, tt.Add(vector, 2.0))
    with model.hooks(fwd_hooks=[(LAYER_HOOK, lambda a, hook: calls.append(a.shape[1]))]):
        got = texts(model, tt.Add(vector, 2.0))
    assert got == expected and calls and calls[1:] == [1] * (len(calls) - 1)


def test_a_hook_put_on_in_the_middle_fires_from_the_next_step_on(model: tt.HookedModel) -> None:
    calls: list[int] = []
    with tt.attach(model, tt.Add(vector_for(model), 2.0)) as live:
        whole = live.generate("a b", max_new_tokens=NEW, stops=()).tokens
        streamed = []
        steps = live.stream("a b", max_new_tokens=NEW, stops=())
        streamed += [next(steps).token, next(steps).token]
        with model.hooks(fwd_hooks=[(LAYER_HOOK, lambda a, hook: calls.append(1))]):
            streamed += [next(steps).token, next(steps).token]
        streamed += [piece.token for piece in steps if piece.token is not None]
    assert tuple(streamed) == whole and len(calls) == 2


# ------------------------------------------------------------------------------------- beams


@pytest.mark.parametrize("penalty", [1.0, 0.3])
def test_beams_are_those_of_hugging_face(
    family: str, hf_of: Callable[[str], Any], bridge_of: Callable[[str], Any], penalty: float
) -> None:
    from tl_transfer.models.batches import pad

    model, hf = tt.load_model(bridge_of(family)), hf_of(family)
    batch = pad([list(model.tokenizer(text)["input_ids"]) for text in PROMPTS], side="left")
    with tt.attach(model) as live:
        greedy = live.generate(PROMPTS[0], max_new_tokens=3, stops=()).tokens
        stops = (greedy[2], 2, 7)  # something that is likely enough to end a beam
        mine = live.generate(
            PROMPTS, max_new_tokens=NEW, num_beams=3, stops=stops, length_penalty=penalty
        )
    with torch.no_grad():
        theirs = hf.generate(
            batch.tokens, attention_mask=batch.mask.long(), max_new_tokens=NEW, num_beams=3,
            do_sample=False, eos_token_id=list(stops), pad_token_id=0, length_penalty=penalty,
            early_stopping=False,
        )[:, batch.tokens.shape[1] :]  # fmt: skip
    for row, expected in zip(mine, theirs.tolist(), strict=True):
        assert list(row.tokens) == expected[: len(row.tokens)]
        ended = expected[len(row.tokens) :]
        assert ended[:1] and ended[0] in stops if row.stopped else not any(ended)


def test_beams_keep_positions_and_strengths_of_their_prompt(model: tt.HookedModel) -> None:
    strengths = torch.tensor([0.0, 3.0, -3.0, 1.0])
    add = tt.Add(vector_for(model), strengths, tt.generated())
    options = {"max_new_tokens": NEW, "num_beams": 3}
    with tt.attach(model, add) as live:
        together = [g.tokens for g in live.generate(PROMPTS, **options)]
        uncached = [g.tokens for g in live.generate(PROMPTS, use_cache=False, **options)]
        small = [g.tokens for g in live.generate(PROMPTS, batch_size=3, **options)]
    assert together == uncached == small
    for i, strength in enumerate(strengths.tolist()):
        with tt.attach(model, tt.Add(vector_for(model), strength, tt.generated())) as live:
            assert live.generate(PROMPTS[i], **options).tokens == together[i]
    with tt.attach(model) as live:
        assert [g.tokens for g in live.generate(PROMPTS, **options)] != together


# ------------------------------------------------------------------------------------- stops


def test_stops_come_from_the_chat_template() -> None:
    model = tt.load_model(tiny.tiny_bridge("llama", seed=8))
    tokenizer = model.tokenizer
    assert turn_end(tokenizer) is None or tokenizer.chat_template
    special = next(
        (i, str(token))
        for i, token in sorted(tokenizer.added_tokens_decoder.items(), reverse=True)
        if token.special and i != tokenizer.eos_token_id
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '" + special[1] + "' }}"
        "{% endfor %}"
    )
    assert turn_end(tokenizer) == special[0]
    assert set(stop_tokens(model)) >= {special[0], tokenizer.eos_token_id}
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert turn_end(tokenizer) is None and special[0] not in stop_tokens(model)


def test_stops_of_ones_own_and_a_least_length(bridge: tt.HookedModel) -> None:
    with tt.attach(bridge) as live:
        free = live.generate(PROMPTS[0], max_new_tokens=NEW, stops=())
        assert len(free.tokens) == NEW and not free.stopped
        stop = free.tokens[2]
        n = free.tokens.index(stop)
        ended = live.generate(PROMPTS[0], max_new_tokens=NEW, stops=[stop])
        assert ended.tokens == free.tokens[:n] and ended.stopped
        for beams in (1, 2):
            longer = live.generate(
                PROMPTS[0], max_new_tokens=NEW, stops=[stop], min_new_tokens=5, num_beams=beams
            )
            assert len(longer.tokens) >= 5 and stop not in longer.tokens[:5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stops": [10**9]}, "stops: not token ids"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"num_beams": 0}, "num_beams"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"num_beams": 2, "sampling": tt.Sampling(do_sample=True)}, "num_beams"),
        ({"num_beams": 2, "on_token": print}, "on_token: a beam is known only"),
    ],
)
def test_what_cannot_be_generated_is_said(
    bridge: tt.HookedModel, options: dict[str, Any], message: str
) -> None:
    with tt.attach(bridge) as live, pytest.raises(InputError, match=message):
        live.generate("a b", **options)


@pytest.mark.parametrize("value", [2.5, True, "3", None])
def test_what_counts_nothing_is_refused(value: Any) -> None:
    """In the tests themselves the annotations of `generate` would refuse it before."""
    with pytest.raises(InputError, match="max_new_tokens: must be a whole number"):
        require_whole("max_new_tokens", value)


def test_no_prompts_are_no_answers(bridge: tt.HookedModel) -> None:
    with tt.attach(bridge) as live:
        assert live.generate([]) == [] and list(live.stream([])) == []


# ------------------------------------------------------------------------------ live changes


def test_off_after_the_second_token(model: tt.HookedModel) -> None:
    """What is in the cache stays steered; without a cache everything is computed anew."""
    vector = vector_for(model)
    options = {"max_new_tokens": NEW, "stops": ()}

    def switched(use_cache: bool) -> list[int]:
        tokens: list[int] = []
        with tt.attach(model, tt.Add(vector, 4.0)) as live:
            for piece in live.stream(PROMPTS[0], use_cache=use_cache, **options):
                tokens.append(piece.token)
                live.on = len(tokens) < 2
        return tokens

    with tt.attach(model, tt.Add(vector, 4.0)) as live:
        steered = list(live.generate(PROMPTS[0], **options).tokens)
        live.on = False
        ids = torch.tensor([[*model.tokenizer(PROMPTS[0])["input_ids"], *steered[:2]]])
        expected = int(live.logits(ids)[0, -1].argmax())
    for use_cache in (True, False):
        tokens = switched(use_cache)
        assert tokens[:2] == steered[:2] and tokens != steered
        # Recomputed without steering, the third token is that of the plain model.
        assert use_cache or tokens[2] == expected


def test_the_strength_may_change_between_steps(model: tt.HookedModel) -> None:
    vector, weak = vector_for(model), 0.5
    options = {"max_new_tokens": NEW, "stops": ()}
    with tt.attach(model, tt.Add(vector, weak)) as live:
        low = live.generate(PROMPTS[0], **options).tokens
        tokens: list[int] = []

        def stronger(chosen: torch.Tensor) -> None:
            tokens.append(int(chosen[0]))
            if len(tokens) == 2:
                live.set_strength(0, 6.0)

        changed = live.generate(PROMPTS[0], on_token=stronger, **options).tokens
        assert changed[:2] == low[:2] and list(changed) == tokens
        assert live.strength(0) == 6.0
        high = live.generate(PROMPTS[0], **options).tokens
        live.set_strength(0, weak)
        assert live.generate(PROMPTS[0], **options).tokens == low
    with tt.attach(model, tt.Add(vector, 6.0)) as live:
        assert live.generate(PROMPTS[0], **options).tokens == high != low
    assert changed != low


def test_a_strength_that_does_not_fit_leaves_the_old_one(bridge: tt.HookedModel) -> None:
    with tt.attach(bridge, tt.Add(vector_for(bridge), 2.0)) as live:
        steps = live.stream(PROMPTS[:2], max_new_tokens=4, stops=())
        next(steps)
        with pytest.raises(InputError, match="3 strengths for 2 rows"):
            live.set_strength(0, torch.ones(3))
        with pytest.raises(InputError, match="must be finite"):
            live.set_strength(0, float("nan"))
        with pytest.raises(InputError, match="no intervention of this number"):
            live.set_strength(1, 1.0)
        assert live.strength(0) == 2.0
        live.set_strength(0, torch.tensor([0.0, 2.0]))
        assert len(list(steps)) == 3


# ----------------------------------------------------------------------------- what is refused


def test_two_generations_at_once_are_refused(bridge: tt.HookedModel) -> None:
    with tt.attach(bridge, tt.Add(vector_for(bridge), 1.0)) as live:
        open_stream = live.stream("a b", max_new_tokens=4, stops=())
        next(open_stream)
        with pytest.raises(HookError, match="another generation is still running"):
            live.generate("a b", max_new_tokens=2)
        open_stream.close()
        assert live.generate("a b", max_new_tokens=2, stops=()).tokens
        for _ in live.stream("a b", max_new_tokens=4, stops=()):
            break  # an iterator that is dropped is over
        with pytest.raises(HookError, match="another generation is still running"):
            live.generate("a b", on_token=lambda chosen: live.generate("a b", max_new_tokens=2))
        assert live.generate("a b", max_new_tokens=2, stops=()).tokens


def test_a_stream_does_not_outlive_its_block(bridge: tt.HookedModel) -> None:
    """It would go on without hooks: other tokens, and nobody would see it."""
    with tt.attach(bridge, tt.Add(vector_for(bridge), 4.0)) as live:
        begun = live.stream("a b", max_new_tokens=4, stops=())
        next(begun)
    with tt.attach(bridge, tt.Add(vector_for(bridge), 4.0)) as other:
        new = other.stream("a b", max_new_tokens=4, stops=())
        # The one that was left open does not stand in the way.
        assert other.generate("a b", max_new_tokens=2, stops=()).tokens
    tokens = torch.tensor([[5, 6]])
    for use in (
        lambda: next(begun),
        lambda: next(new),
        lambda: live.generate("a b", max_new_tokens=2),
        lambda: live.logits(tokens),
    ):
        with pytest.raises(HookError, match="its with block is over"):
            use()


def in_a_thread(work: Callable[[], Any]) -> Any:
    """Result of `work`, or what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_a_second_thread_is_refused_while_something_is_attached(bridge: tt.HookedModel) -> None:
    vector = vector_for(bridge)

    def steer() -> Any:
        with tt.attach(bridge.host, tt.Add(vector, 1.0)) as other:
            return other.generate("a b", max_new_tokens=2, stops=()).tokens

    alone = in_a_thread(steer)
    assert len(alone) == 2
    with tt.attach(bridge.host, tt.Add(vector, 1.0)) as live:
        for work in (steer, lambda: live.generate("a b", max_new_tokens=2)):
            error = in_a_thread(work)
            assert isinstance(error, HookError) and "another thread" in str(error)
        tokens = torch.tensor([[5, 6]])
        steps = live.stream("a b", max_new_tokens=4, stops=())
        next(steps)
        error = in_a_thread(lambda: bridge.logits(tokens, torch.ones_like(tokens).bool()))
        assert isinstance(error, HookError) and "another thread" in str(error)
        assert len(list(steps)) == 3
    assert in_a_thread(steer) == alone


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_interruption_in_the_middle(
    model: tt.HookedModel, error: type[BaseException]
) -> None:
    tokens = tiny.random_tokens(300, 1, 7)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    vector, before, plain = vector_for(model), count_hooks(model), model.logits(tokens, mask)

    def interrupt(chosen: torch.Tensor) -> None:
        raise error

    bare = model.bare()
    for use in ("generate", "stream", "edit"):
        with pytest.raises(error), tt.attach(model, tt.Add(vector, 3.0)) as live:
            if use == "generate":
                live.generate("a b", on_token=interrupt)
            elif use == "stream":
                for _ in live.stream("a b"):
                    raise error
            else:
                with model.hooked([(LAYER_HOOK, lambda a, hook: interrupt(a))]):
                    live.generate("a b", max_new_tokens=3)
        assert count_hooks(model) == before and not model._hooks
        assert model.bare() is bare
        if bare is not None:
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in bare.tree.modules())
        assert torch.equal(model.logits(tokens, mask), plain)
        assert texts(model, tt.Add(vector, 3.0))


# --------------------------------------------------------------------------- hosts with an SAE


@needs_hooked_transformer
@pytest.mark.parametrize("host_name", ["HookedSAETransformer", "SAETransformerBridge"])
def test_a_host_with_an_sae_on_it(host_name: str) -> None:
    """Edits act where the SAE reads, with the SAE attached, without it, and again with it."""
    sae_lens = pytest.importorskip("sae_lens", reason="the extra 'sae' is not installed")
    host = sae_host(host_name)
    model = tt.load_model(host)
    vector = vector_for(model)
    name = vector.space.hook_point
    sae = tiny_sae(sae_lens, model.d_model, name)
    tokens = tiny.random_tokens(300, 1, 6)

    def moved() -> float:
        plain = model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
        add = tt.Add(vector, 3.0)
        with tt.attach(model, add) as live:
            steered = live.logits(tokens)
            assert len(live.generate(PROMPTS[:2], max_new_tokens=3, stops=())) == 2
        if host_name == "SAETransformerBridge":  # it would never call them
            with pytest.raises(HookError, match="does not call hooks given by name"):
                add.fwd_hooks(model)
        else:  # under the name that the host has for the point when an SAE is there
            hooked = host.run_with_hooks(tokens, fwd_hooks=add.fwd_hooks(model))
            assert torch.allclose(hooked, steered, atol=1e-4)
        return float((steered - plain).norm() / plain.norm())

    without = moved()
    before = model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with host.saes(saes=[sae], use_error_term=False):
        spliced = model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert not torch.allclose(spliced, before, atol=1e-3)
        assert torch.allclose(spliced, host(tokens), atol=1e-4)
        with_sae = moved()
    assert moved() == without > 1e-2 and with_sae > 1e-3
    assert torch.equal(model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool)), before)


def sae_host(name: str) -> Any:
    """A tiny model of the class."""
    from sae_lens import HookedSAETransformer

    if name == "HookedSAETransformer":
        plain = tiny.tiny_hooked("llama", seed=9)
        host = HookedSAETransformer(plain.cfg, tokenizer=plain.tokenizer, move_to_device=False)
        host.load_state_dict(plain.state_dict(), strict=False)
        return host.eval()
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    return SAETransformerBridge.boot_transformers(
        "tiny/llama", hf_model=tiny.tiny_hf("llama", seed=9),
        tokenizer=tiny.tiny_tokenizer("bos"), device="cpu",
    ).eval()  # fmt: skip


def tiny_sae(sae_lens: Any, d_in: int, hook: str) -> Any:
    """Random SAE at a hook point."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = StandardSAEConfig(
            d_in=d_in, d_sae=2 * d_in, dtype="float32", device="cpu",
            metadata=SAEMetadata(hook_name=hook),
        )  # fmt: skip
        sae = StandardSAE(config)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.normal_(std=0.3)
    return sae.eval()
