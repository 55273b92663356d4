"""Models over several devices and quantised ones: run as they lie, or refused with the reason."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tl_transfer as tt
from tests import pretend, tiny
from tests.words import random_texts
from tl_transfer.errors import InputError, ModelError
from tl_transfer.models.placement import devices_of, quantiser_of


def load(hf: Any, **options: Any) -> tt.HookedModel:
    return tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="tiny", **options)


def spread(model: tt.HookedModel, first_away: int) -> None:
    """Put the later layers elsewhere, with hooks that fetch what they are given, as accelerate."""
    for block in list(model.host.blocks)[first_away:]:
        pretend.move(block)
        fetches(block, pretend.DEVICE)
    fetches(model.host.ln_final, torch.device("cpu"))
    # accelerate marks the modules that it has hooked; the bare modules must not run then.
    model.host.original_model._hf_hook = object()


def fetches(module: nn.Module, device: torch.device) -> None:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    def fetch(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(moved, args)), {name: moved(v) for name, v in kwargs.items()}

    module.register_forward_pre_hook(fetch, with_kwargs=True)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_layers_on_two_devices_are_read_where_they_are(family: str) -> None:
    whole, split = (tt.load_model(tiny.tiny_bridge(family, seed=2)) for _ in range(2))
    spread(split, 2)
    texts = random_texts(40, seed=1)
    hooks = ("resid_post@0", "resid_post@2")  # the final norm need not run
    expected = tt.collect(*(whole.at(hook) for hook in hooks), texts=texts, progress=False)
    with pretend.Accelerator() as device:
        assert split.device.type == "cpu" and len(split.devices) == 2 and split.bare() is None
        points = [split.hook_point(hook) for hook in hooks]
        tokens = torch.tensor([[1, 5, 9, 3]])
        read = split.residuals(tokens, tokens >= 0, points)
        places = [read[point.name].device.type for point in points]
        assert places == ["cpu", pretend.DEVICE.type] and device.moves
        found = tt.collect(*(split.at(hook) for hook in hooks), texts=texts, progress=False)
        for a, b in zip(found.folds, expected.folds, strict=True):
            assert a.n == b.n and float((a.xy.cpu() - b.xy).norm() / b.xy.norm()) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_steering_on_two_devices_is_steering_on_one(family: str) -> None:
    whole, split = (tt.load_model(tiny.tiny_bridge(family, seed=2)) for _ in range(2))
    spread(split, 2)
    texts = random_texts(20, seed=3)
    vectors = [
        tt.mean_difference(whole.at(hook), positive=texts[:10], negative=texts[10:])
        for hook in ("resid_post@1", "resid_post@2")
    ]
    edits = (tt.Add(vectors[0], 3.0), tt.Ablate(vectors[1], where=tt.generated()))
    prompts = ["the old house", "a"]
    with tt.attach(whole, *edits) as live:
        expected = [g.tokens for g in live.generate(prompts, max_new_tokens=6, stops=())]
    with pretend.Accelerator(), tt.attach(split, *edits) as live:
        found = [g.tokens for g in live.generate(prompts, max_new_tokens=6, stops=())]
    assert found == expected


def mapped(places: dict[str, Any]) -> nn.Module:
    hf = tiny.tiny_hf("llama")
    hf.hf_device_map = places
    return hf


@pytest.mark.parametrize(
    ("places", "host", "device", "error", "message"),
    [
        ({"model": 0, "lm_head": "cpu"}, "bridge", None, ModelError, "keeps a part of tiny away"),
        ({"": "cpu", "lm_head": "disk"}, "bridge", None, ModelError, "got: +cpu, disk"),
        ({"": "cpu"}, "bridge", "cpu", InputError, "laid out over cpu and stays where it is"),
    ],
)
def test_layouts_that_cannot_be_hooked_are_refused(
    places: dict[str, Any], host: str, device: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(mapped(places), host=host, device=device)


def test_a_part_on_no_device_is_refused() -> None:
    hf = mapped({"": "cpu"})
    hf.lm_head.weight = nn.Parameter(torch.empty_like(hf.lm_head.weight, device="meta"))
    assert devices_of(hf) == ["cpu", "meta"]
    with pytest.raises(ModelError, match="offloaded weights cannot be hooked"):
        load(hf)


def test_a_map_over_one_device_stays_there() -> None:
    hf = mapped({"": "cpu"})
    hf.to = lambda *args: pytest.fail("moved")  # type: ignore[method-assign,assignment]
    model = load(hf)
    assert model.devices == ["cpu"] and model.note == ""


class Int8(nn.Module):
    """A layer with 8-bit weights and a scale a row, as weight-only quantisers make them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantised() -> nn.Module:
    hf = tiny.tiny_hf("llama")
    for block in hf.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(block.mlp, name, Int8(getattr(block.mlp, name)))
    hf.hf_quantizer = SimpleNamespace()
    hf.config.quantization_config = {"quant_method": "int8-rows"}
    return hf


def test_a_quantised_model_is_run_as_it_is() -> None:
    hf = quantised()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("`.to` is not supported for 8-bit models")

    hf.to = refuse  # type: ignore[method-assign,assignment]
    expected = hf(torch.tensor([[1, 5, 9, 3]]), output_hidden_states=True).hidden_states[2]
    model = load(hf)  # with the self-check against Hugging Face
    assert model.note == "weights quantised by int8-rows" and model.dtype == torch.float32
    tokens = torch.tensor([[1, 5, 9, 3]])
    point = model.hook_point("resid_post@1")
    read = model.residuals(tokens, tokens >= 0, [point])[point.name]
    assert torch.allclose(read, expected, atol=1e-4)
    kept = [m for m in model.host.original_model.modules() if isinstance(m, Int8)]
    assert len(kept) == 12 and all(m.weight.dtype == torch.int8 for m in kept)


def test_a_quantised_model_is_not_copied_or_moved() -> None:
    assert quantiser_of(quantised()) == "int8-rows" and quantiser_of(tiny.tiny_hf()) is None
    with pytest.raises(ModelError, match="quantised by int8-rows, and this host copies weights"):
        load(quantised(), host="hooked_transformer")
    with pytest.raises(InputError, match="quantised by int8-rows and stays where it is"):
        load(quantised(), device="cpu")


def test_a_device_map_is_for_weights_that_hugging_face_lays_out(tmp_path: Path) -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    tiny.tiny_hf("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tt.load_model(tmp_path, device_map={"": "cpu"}).devices == ["cpu"]
    for source, device in ((tiny.tiny_hf(), None), ("gemma-3-270m", None), (tmp_path, "cpu")):
        with pytest.raises(InputError, match="device_map: for folders and hub ids"):
            tt.load_model(source, device_map="auto", device=device)
