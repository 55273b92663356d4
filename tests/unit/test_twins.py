"""The oracle itself: twins compute the same function, and the true map is what twin() says."""

import pytest
import torch

from tests import tiny

ORACLE_FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")


@pytest.fixture(scope="module", params=ORACLE_FAMILIES)
def source(request: pytest.FixtureRequest) -> torch.nn.Module:
    # A large eps, so that a wrong rule for eps shows; published ones (1e-6) would hide it.
    return tiny.tiny_hf(request.param, post_norm_constant=True, rms_norm_eps=0.05)


def _read(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the stream before block 0 and after every block."""
    stream: list[torch.Tensor] = []
    layers = model.model.layers
    handles = [layers[0].register_forward_pre_hook(lambda _, args: stream.append(args[0]))]
    for layer in layers:
        handles.append(layer.register_forward_hook(lambda _, args, out: stream.append(_first(out))))
    with torch.no_grad():
        logits = model(tiny.random_tokens(model.config.vocab_size, 2, 24)).logits
    for handle in handles:
        handle.remove()
    return logits, stream


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("d_model", [48, 96])
def test_logits_are_equal_and_the_stream_is_the_rotated_one(
    source: torch.nn.Module, d_model: int, scale: float
) -> None:
    other, rotation = tiny.twin(source, d_model=d_model, scale=scale)
    logits, stream = _read(source)
    twin_logits, twin_stream = _read(other)
    assert rotation.shape == (48, d_model)
    assert logits.std() > 0.3  # else equality would mean little
    torch.testing.assert_close(twin_logits, logits, atol=1e-4, rtol=0)
    assert len(stream) == source.config.num_hidden_layers + 1
    for mine, theirs in zip(stream, twin_stream, strict=True):
        torch.testing.assert_close(theirs, scale * mine @ rotation, atol=1e-4, rtol=0)


def test_rotation_has_orthonormal_rows_and_depends_on_the_seed(source: torch.nn.Module) -> None:
    _, rotation = tiny.twin(source, d_model=96, seed=1)
    _, other = tiny.twin(source, d_model=96, seed=2)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(48), atol=1e-5, rtol=0)
    assert (rotation - other).abs().max() > 0.1


def test_rotating_without_folding_the_gains_is_wrong(source: torch.nn.Module) -> None:
    other, _ = tiny.twin(source, fold=False)
    assert (_read(source)[0] - _read(other)[0]).abs().max() > 0.1


def test_the_source_is_left_unchanged(source: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in source.state_dict().items()}
    config = source.config.to_dict()
    tiny.twin(source, d_model=96, scale=1.7)
    assert source.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_scattered_gains_after_the_sublayers_are_refused() -> None:
    with pytest.raises(ValueError, match="not constant"):
        tiny.twin(tiny.tiny_hf("gemma3"))


def test_a_narrower_twin_is_refused() -> None:
    with pytest.raises(ValueError, match="at least as wide"):
        tiny.twin(tiny.tiny_hf("llama"), d_model=32)


def test_hosts_read_the_twins_stream(family: str, host: str) -> None:
    """A widened twin has head_dim != d_model / n_heads, which a host could get wrong."""
    source = tiny.tiny_hf(family, post_norm_constant=True)
    other, rotation = tiny.twin(source, d_model=96, scale=1.7)
    _, stream = _read(source)
    make = tiny.tiny_bridge if host == "bridge" else tiny.tiny_hooked
    hosted = make(family, hf_model=other)
    with torch.no_grad():
        tokens = tiny.random_tokens(source.config.vocab_size, 2, 24)
        _, cache = hosted.run_with_cache(tokens, names_filter="blocks.2.hook_resid_post")
    expected = 1.7 * stream[3] @ rotation
    torch.testing.assert_close(cache["blocks.2.hook_resid_post"], expected, atol=1e-4, rtol=0)
