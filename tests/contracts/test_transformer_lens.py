"""What this package takes for granted about TransformerLens, one behaviour a test.

A failure says which behaviour moved and which of our modules leans on it; our own tests would fail
too, but somewhere else. Both host classes on 3.9, the bridge alone on 4.x.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.conftest import needs_hooked_transformer

TOKENS = tiny.random_tokens(300, 1, 9)
FAMILY = (
    "gemma3"  # norms after the sublayers, scaled embedding, two kinds of attention: the hardest
)
LAST = 3


@pytest.fixture
def one(host: str, bridge_of: Callable[[str], Any], hooked_of: Callable[[str], Any]) -> Any:
    """The family on each host."""
    return (bridge_of if host == "bridge" else hooked_of)(FAMILY)


@pytest.fixture
def bridge(bridge_of: Callable[[str], Any]) -> Any:
    return bridge_of(FAMILY)


@torch.no_grad()
def read(model: Any, *names: str, edit: tuple[str, Any] | None = None) -> dict[str, Tensor]:
    """What passes some hook points, perhaps with a hook before them."""
    seen: dict[str, Tensor] = {}
    hooks: list[Any] = [] if edit is None else [edit]
    for name in names:
        hooks.append((name, lambda a, hook, name=name: seen.update({name: a.clone()})))
    seen["logits"] = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    return seen


def resid(layer: int, kind: str = "post") -> str:
    return f"blocks.{layer}.hook_resid_{kind}"


def adding(step: Tensor) -> Callable[..., Tensor]:
    return lambda a, hook: a + step


STEP = 0.5 * torch.randn(48, generator=torch.Generator().manual_seed(0))


# -- loading -----------------------------------------------------------------------------------


def test_a_bridge_boots_from_a_live_model_without_the_network(no_network: None) -> None:
    tiny.tiny_bridge(FAMILY)  # fails with "network use" if the label is looked up: models.load


def test_a_bridge_is_raw_until_asked(hf_of: Any, bridge: Any) -> None:
    with torch.no_grad():
        expected = hf_of(FAMILY)(TOKENS).logits
        got = bridge(TOKENS)
    assert torch.allclose(got, expected, atol=1e-4), (
        "boot_transformers no longer returns the weights as they are: the identity of every space "
        "made by models.load would be wrong"
    )
    assert not getattr(bridge, "compatibility_mode", False)


def test_processed_weights_can_be_told() -> None:
    bridge = tiny.tiny_bridge("llama", seed=9)
    bridge.enable_compatibility_mode(disable_warnings=True)
    assert bridge.compatibility_mode is True, (
        "a bridge no longer says that its weights were processed: models.load reads this"
    )


@needs_hooked_transformer
def test_folded_weights_can_be_told() -> None:
    from transformer_lens import HookedTransformer

    raw = tiny.tiny_hooked("llama", seed=9)
    assert raw.cfg.normalization_type == "RMS"
    folded = HookedTransformer(raw.cfg, tokenizer=None, move_to_device=False)
    folded.load_and_process_state_dict(dict(raw.state_dict()), fold_ln=True)
    assert str(folded.cfg.normalization_type).endswith("Pre"), (
        "folding no longer shows in cfg.normalization_type, by which models.load tells spaces apart"
    )


def test_the_configuration_has_the_fields_that_are_read(one: Any) -> None:
    assert (one.cfg.n_layers, one.cfg.d_model, one.cfg.n_ctx) == (4, 48, 256)


# -- hook points -------------------------------------------------------------------------------


def test_hook_points_have_their_classic_names(one: Any) -> None:
    from tl_transfer.models.bare import hook_points

    missing = {resid(layer) for layer in range(4)} | {resid(0, "pre"), "blocks.1.hook_attn_out"}
    missing |= {"blocks.1.hook_mlp_out", "blocks.1.attn.hook_pattern"}
    missing -= set(hook_points(one))
    assert not missing, f"renamed or gone: {missing} (models.surface, views.attention)"


def test_two_names_of_the_bridge_are_one_object(bridge: Any) -> None:
    points = bridge.hook_dict
    assert points[resid(1)] is points["blocks.1.hook_out"], (
        "classic and canonical name are two points now: a hook on one would miss the other"
    )


def test_a_hook_gets_the_activation_and_hook_by_name(one: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    def record(*args: Any, **kwargs: Any) -> None:
        seen.append((len(args), set(kwargs), args[0].shape, kwargs["hook"].name))

    with torch.no_grad(), one.hooks(fwd_hooks=[(resid(1), record)]):
        one(TOKENS)
    ((n, names, shape, name),) = seen
    assert (n, names) == (1, {"hook"}), "hooks are called differently: every hook of ours breaks"
    assert shape == (1, 9, 48), "a hook no longer gets a plain [batch, pos, d_model] tensor"
    assert name.startswith("blocks.1.")


def test_a_hook_point_keeps_its_hooks_in_a_list_with_handles(one: Any) -> None:
    from tl_transfer.models.bare import hook_points

    point = hook_points(one)[resid(2)]
    before = list(point.fwd_hooks)
    point.add_hook(lambda a, hook: None)
    try:
        assert len(point.fwd_hooks) == len(before) + 1
        assert isinstance(point.fwd_hooks[-1].hook.id, int), "models.bare.add_hook needs the handle"
    finally:
        point.fwd_hooks[-1].hook.remove()
        point.fwd_hooks[:] = before


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_hooks_take_away_their_own_and_no_others(one: Any, error: Any) -> None:
    from tl_transfer.models.bare import hook_points

    calls: list[int] = []
    point = hook_points(one)[resid(1)]
    before = len(point.fwd_hooks)
    with one.hooks(fwd_hooks=[(resid(1), lambda a, hook: calls.append(1))]):
        try:
            with one.hooks(fwd_hooks=[(resid(1), lambda a, hook: None)]):
                if error is not None:
                    raise error
        except RuntimeError:
            pass
        with torch.no_grad():
            one(TOKENS)
    assert calls == [1] and len(point.fwd_hooks) == before, "host.hooks() cleans up differently"


# -- the stream --------------------------------------------------------------------------------


def test_resid_post_is_the_hidden_state_but_for_the_last_one(one: Any, hf_of: Any) -> None:
    with torch.no_grad():
        hidden = hf_of(FAMILY)(TOKENS, output_hidden_states=True).hidden_states
    seen = read(one, *map(resid, range(4)))
    for layer in range(LAST):
        assert torch.allclose(seen[resid(layer)], hidden[layer + 1], atol=1e-4), layer
    assert not torch.allclose(seen[resid(LAST)], hidden[LAST + 1], atol=1e-2), (
        "Hugging Face's last hidden state is no longer behind the final norm: the self-check of "
        "models.load may now include it"
    )


def test_an_edit_of_resid_post_is_an_edit_of_the_next_resid_pre(one: Any) -> None:
    a = read(one, edit=(resid(1), adding(STEP)))["logits"]
    b = read(one, edit=(resid(2, "pre"), adding(STEP)))["logits"]
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, read(one)["logits"], atol=1e-2)


def test_an_edit_of_resid_mid_misses_the_skip_connection_of_a_bridge(bridge: Any) -> None:
    plain = read(bridge, resid(1))[resid(1)]
    steered = read(bridge, resid(1), edit=(resid(1, "mid"), adding(20 * STEP)))[resid(1)]
    mlp = read(bridge, "blocks.1.hook_mlp_out")["blocks.1.hook_mlp_out"]
    changed = read(bridge, "blocks.1.hook_mlp_out", edit=(resid(1, "mid"), adding(20 * STEP)))
    assert torch.allclose(steered - plain, changed["blocks.1.hook_mlp_out"] - mlp, atol=1e-4), (
        "an edit of resid_mid now reaches the stream: interventions.base refuses it for no reason"
    )


# -- partial and padded passes -----------------------------------------------------------------


def test_stopping_at_a_layer_returns_its_input(one: Any) -> None:
    with torch.no_grad():
        stopped = one(TOKENS, stop_at_layer=2)
    assert torch.allclose(stopped, read(one, resid(1))[resid(1)], atol=1e-5), (
        "stop_at_layer=n is no longer the input of block n: models.surface reads past its layer"
    )


def test_stopping_behind_the_last_layer_differs_between_hosts(one: Any, host: str) -> None:
    with torch.no_grad():
        width = one(TOKENS, stop_at_layer=4).shape[-1]
    vocabulary = read(one)["logits"].shape[-1]
    assert width == (vocabulary if host == "bridge" else 48), (
        "stop_at_layer=n_layers changed: models.surface asks the hosts in two different ways"
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_left_padding_with_a_mask_changes_no_real_token(
    family: str, host: str, bridge_of: Any, hooked_of: Any
) -> None:
    model = (bridge_of if host == "bridge" else hooked_of)(family)
    padded = torch.cat([torch.full((1, 3), 7), TOKENS], dim=1)
    mask = torch.tensor([[0, 0, 0] + [1] * 9])
    with torch.no_grad():
        got = model(padded, attention_mask=mask, stop_at_layer=3)[:, 3:]
        assert torch.allclose(got, model(TOKENS, stop_at_layer=3), atol=1e-4), (
            "positions no longer follow the attention mask: padded batches are wrong"
        )


def test_generation_with_a_cache_shows_the_prompt_and_then_single_tokens(one: Any) -> None:
    widths: list[int] = []
    with one.hooks(fwd_hooks=[(resid(1), lambda a, hook: widths.append(a.shape[1]))]):
        one.generate(TOKENS, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert widths == [9, 1, 1], "fwd_hooks counts positions by this shape of a cached decoding"


# -- under the bridge --------------------------------------------------------------------------


def test_a_bridge_shows_the_model_inside_and_a_hooked_transformer_does_not(
    one: Any, host: str
) -> None:
    inner = getattr(one, "original_model", None)
    if host != "bridge":
        assert inner is None, "models.surface tells the hosts apart by this attribute"
        return
    with torch.no_grad():
        logits = inner(TOKENS, logits_to_keep=torch.tensor([2, 8]), use_cache=False).logits
    assert torch.allclose(logits, read(one)["logits"][:, [2, 8]], atol=1e-5)


def test_hooks_of_a_bridge_fire_when_the_model_inside_is_called(bridge: Any) -> None:
    fired: list[int] = []
    hook = (resid(1), lambda a, hook: fired.append(1))
    with torch.no_grad(), bridge.hooks(fwd_hooks=[hook]):
        bridge.original_model(TOKENS, use_cache=False)
    assert fired == [1], "edits would be skipped: models.surface calls the model inside"


def test_components_keep_what_they_wrap_and_their_two_ends(bridge: Any) -> None:
    block = bridge.blocks[1]
    assert {"_original_component", "hook_in", "hook_out"} <= set(block._modules), (
        "models.bare can no longer take a bridge apart: captures run 1.3 times slower"
    )


def test_the_plain_modules_can_stand_in_for_the_bridge() -> None:
    from tl_transfer.models.bare import unwrap

    for family in tiny.FAMILIES:
        bare, reason = unwrap(tiny.tiny_bridge(family, seed=3))
        assert bare is not None, f"{family}: {reason}"
        assert bare.may_run({resid(0)}, set()), f"{family}: hooks of the bridge's own are unknown"


# -- HookedTransformer only --------------------------------------------------------------------


@needs_hooked_transformer
def test_the_cache_of_a_hooked_transformer_is_batch_first(hooked_of: Any) -> None:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    model = hooked_of("llama")
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, torch.device("cpu"), 2)
    tokens = TOKENS.expand(2, -1)
    with torch.no_grad():
        model(tokens, past_kv_cache=cache, stop_at_layer=4)
        step = model(tokens[:, :1], past_kv_cache=cache, stop_at_layer=4)
        whole = model(torch.cat([tokens, tokens[:, :1]], 1), stop_at_layer=4)
    assert {entry.past_keys.shape[0] for entry in cache.entries} == {2}, "beams reorder rows"
    assert torch.allclose(step, whole[:, -1:], atol=1e-5)


@needs_hooked_transformer
def test_the_converters_have_their_names(hooked_of: Any) -> None:
    from transformer_lens.pretrained import weight_conversions

    names = {f"convert_{name}_weights" for name in ("llama", "qwen2", "qwen3", "gemma")}
    missing = {name for name in names if not hasattr(weight_conversions, name)}
    assert not missing, f"models.convert cannot copy weights: {missing}"


def test_without_hooked_transformer_our_error_says_what_to_do() -> None:
    from tests.conftest import HAS_HOOKED_TRANSFORMER
    from tl_transfer.errors import ModelError

    if HAS_HOOKED_TRANSFORMER:
        pytest.skip("this TransformerLens has the class")
    with pytest.raises(ModelError, match="does not exist in the installed TransformerLens"):
        tiny.tiny_hooked("llama")
