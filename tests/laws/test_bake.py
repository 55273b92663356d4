"""A baked checkpoint computes what the hooks compute, or is refused and leaves nothing behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.conftest import needs_hooked_transformer
from tl_transfer.errors import InputError, ModelError, TransferError
from tl_transfer.models import bake as baking
from tl_transfer.models.writes import WRITES, with_biases

EVERYWHERE = tt.everywhere(sinks=True)
PRE_NORM = ("llama", "qwen2", "qwen3", "gpt2", "neox")
POST_NORM = ("gemma2", "gemma3")


def build(family: str, **options: Any) -> Any:
    """A fresh tiny Hugging Face model; two families more than `tiny` has."""
    if family not in ("gpt2", "neox"):
        return tiny.tiny_hf(family, seed=3, **options)
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    vocabulary = len(tiny.tiny_tokenizer("nobos"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "gpt2":
            sizes = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
            hf: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes))
        else:
            wide = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
            config = GPTNeoXConfig(vocab_size=vocabulary, intermediate_size=96, **wide)
            hf = GPTNeoXForCausalLM(config)
        for name, parameter in hf.named_parameters():
            if "ln_" not in name and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return hf.eval()


@pytest.fixture(scope="module")
def model_of() -> Callable[..., tt.HookedModel]:
    """The model of a family, wrapped once."""
    made: dict[str, tt.HookedModel] = {}

    def get(family: str) -> tt.HookedModel:
        if family not in made:
            kind = tiny.TOKENIZER_OF.get(family, "nobos")
            made[family] = tt.load_model(
                build(family), tokenizer=tiny.tiny_tokenizer(kind), name=family
            )
        return made[family]

    return get


def vector(model: tt.HookedModel, point: str, seed: int = 0) -> tt.SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(model.d_model, generator=generator)
    return tt.SteeringVector(direction, model.at(point).space, 5.0, "random")


def plane(model: tt.HookedModel) -> tt.Subspace:
    rows = torch.linalg.qr(
        torch.stack([vector(model, "mlp_out@1", n).direction for n in (3, 4)]).T
    ).Q
    return tt.Subspace(rows.T.contiguous(), model.at("mlp_out@1").space, 5.0, "random")


def axis(model: tt.HookedModel, point: str) -> tt.SteeringVector:
    return replace(vector(model, point), direction=torch.eye(model.d_model)[7])


def write_points(model: tt.HookedModel) -> list[str]:
    kinds = [
        f"{kind}@{layer}" for layer in range(model.n_layers) for kind in ("attn_out", "mlp_out")
    ]
    return ["resid_pre@0", *kinds]


def add(model: tt.HookedModel, point: str, seed: int = 0) -> tt.Add:
    return tt.Add(vector(model, point, seed), 0.5, EVERYWHERE)


def ablate(model: tt.HookedModel, *points: str, strength: float = 1.0) -> list[tt.Ablate]:
    return [tt.Ablate(vector(model, point), strength, EVERYWHERE) for point in points]


def edits(model: tt.HookedModel) -> dict[str, list[Any]]:
    """Every operator at every kind of place, alone and composed."""
    points = write_points(model)
    return {
        "add after a layer": [add(model, "resid_post@1")],
        "add after the last layer": [add(model, f"resid_post@{model.n_layers - 1}")],
        "add to attention": [add(model, "attn_out@2")],
        "add to the MLP": [add(model, "mlp_out@0")],
        "add to the embedding": [add(model, "resid_pre@0")],
        "two adds": [add(model, "resid_post@1"), add(model, "resid_post@1", 9)],
        "ablate everywhere": [tt.Ablate(vector(model, "mlp_out@1"), 1.0, EVERYWHERE, layers="all")],
        "ablate a plane everywhere": [
            tt.Ablate(vector(model, "mlp_out@1", seed), 1.0, EVERYWHERE, layers="all")
            for seed in (1, 2)
        ],
        "ablate a subspace everywhere": [tt.Ablate(plane(model), 1.0, EVERYWHERE, layers="all")],
        "ablate half of it everywhere": ablate(model, *points, strength=0.5),
        "ablate one write": ablate(model, "mlp_out@1"),
        "ablate the embedding": ablate(model, "resid_pre@0"),
        "ablate, then add along it": [*ablate(model, *points), add(model, "resid_post@1")],
        "add and ablate at one write": [add(model, "mlp_out@1"), *ablate(model, *points)],
        "clamp one write, the added part": [
            tt.Clamp(vector(model, "attn_out@1"), 3.0, 1.0, EVERYWHERE)
        ],
        "clamp the embedding": [tt.Clamp(vector(model, "resid_pre@0"), 3.0, 0.7, EVERYWHERE)],
        "ablate all, then clamp, the added part": [
            *ablate(model, *points),
            tt.Clamp(vector(model, "resid_post@1"), 4.0, 1.0, EVERYWHERE),
        ],
        "ablate writes and stream": ablate(model, *points, "resid_post@1"),
    }


def is_refused(family: str, name: str) -> bool:
    """What an ordinary checkpoint of a family cannot express."""
    if family in POST_NORM:
        return "embedding" not in name
    possible = ("add to attention", "add to the embedding", "clamp one write, the added part")
    return family == "qwen3" and "add" in name and name not in possible


@pytest.mark.parametrize("family", PRE_NORM + POST_NORM)
def test_baked_is_hooked(
    family: str, model_of: Callable[..., tt.HookedModel], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = model_of(family)
    tokens = tiny.random_tokens(300, 2, 12)
    before = model.logits(tokens, torch.ones_like(tokens).bool())
    refused = {name for name in edits(model) if is_refused(family, name)}
    for name, given in edits(model).items():
        folder = tmp_path / name
        if name in refused:
            with pytest.raises(ModelError, match="no bias on the output|goes through a norm"):
                tt.bake(model, given, folder)
            continue
        tt.bake(model, given, folder, check=False)
        baked = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        with tt.attach(model, *given) as live:
            expected = live.logits(tokens)
        with torch.no_grad():
            got = baked(tokens).logits
        scale = float(expected.abs().max())
        assert float((got - expected).abs().max()) <= 1e-5 * max(scale, 1.0), name
        # The edit is no small thing, so that a forgotten one would be seen.
        assert float((expected - before).abs().max()) > 1e-2 * scale, name
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(set(edits(model)) - refused)
    assert torch.equal(model.logits(tokens, torch.ones_like(tokens).bool()), before)


@pytest.mark.parametrize("family", POST_NORM)
def test_the_gain_of_a_norm_absorbs_the_ablation_of_a_coordinate(
    family: str, model_of: Callable[..., tt.HookedModel], tmp_path: Path
) -> None:
    model = model_of(family)
    given = [tt.Ablate(axis(model, point), 1.0, EVERYWHERE) for point in write_points(model)]
    tt.bake(model, given, tmp_path / "baked")
    note = json.loads((tmp_path / "baked" / "baked.json").read_text())
    assert note["logits_relative_difference_to_hooks"] < 1e-5
    changed = set(note["parameters_changed"])
    assert not any("o_proj" in name or "down_proj" in name for name in changed)
    assert "model.layers.0.post_attention_layernorm.weight" in changed


def test_projecting_the_matrix_before_a_norm_is_not_the_ablation(
    model_of: Callable[..., tt.HookedModel],
) -> None:
    """Why other directions are refused: the rms by which the norm divides would change."""
    hf = build("gemma3")
    unit = torch.nn.functional.normalize(
        torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0
    )
    layer = hf.model.layers[1]
    x = torch.randn(1, 5, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        term = layer.post_feedforward_layernorm(layer.mlp.down_proj(x))
        wanted = term - (term @ unit)[..., None] * unit
        down = layer.mlp.down_proj.weight
        gain = 1.0 + layer.post_feedforward_layernorm.weight
        # The best a projection can do: take out what the gain turns into u.
        through = torch.nn.functional.normalize(gain * unit, dim=0)
        down.copy_(down - torch.outer(through, through @ down))
        got = layer.post_feedforward_layernorm(layer.mlp.down_proj(x))
    assert float((got @ unit).abs().max()) < 1e-5
    assert float((got - wanted).norm() / wanted.norm()) > 1e-2


@needs_hooked_transformer
def test_greedy_tokens_on_every_host_and_through_load_model(tmp_path: Path) -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    hf = build("llama", tied=True)
    hosts = [tt.load_model(build("llama", tied=True), tokenizer=tokenizer, name="tied")]
    hosts.append(tt.load_model(hf, host="hooked_transformer", tokenizer=tokenizer, name="tied"))
    given = {
        host.host_class: [*ablate(host, *write_points(host)), add(host, "resid_post@2", 4)]
        for host in hosts
    }
    folder = tt.bake(hosts[0], given[hosts[0].host_class], tmp_path / "baked")
    baked = tt.load_model(folder)
    assert baked.weights != hosts[0].weights
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["mlp_bias"] is True
    prompts = tiny.prompts()
    with tt.attach(baked) as live:
        expected = live.generate(prompts, max_new_tokens=12)
    for host in hosts:
        with tt.attach(host, *given[host.host_class]) as live:
            assert live.generate(prompts, max_new_tokens=12) == expected
    with pytest.raises(ModelError, match='host="bridge": the spaces are the same'):
        tt.bake(hosts[1], given[hosts[1].host_class], tmp_path / "other")


def test_low_precision(tmp_path: Path) -> None:
    model = tt.load_model(
        build("llama", dtype=torch.bfloat16), tokenizer=tiny.tiny_tokenizer("bos"), name="low"
    )
    folder = tt.bake(model, ablate(model, *write_points(model)), tmp_path / "baked")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": tt.everywhere()}, "a weight acts on every token, the attention sink"),
        ({"where": tt.generated(sinks=True)}, "a weight acts on every token"),
        ({"strength": torch.tensor([0.1, 0.2])}, "the same for every row"),
        ({"strength": tt.schedules.linear(0.5, over=4)}, "and every step"),
    ],
)
def test_what_weights_cannot_express_is_refused(
    change: dict[str, Any], message: str, model_of: Callable[..., tt.HookedModel], tmp_path: Path
) -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match=message):
        tt.bake(model, replace(add(model, "resid_post@1"), **change), tmp_path / "baked")
    with pytest.raises(InputError, match="nothing to bake"):
        tt.bake(model, [], tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_ablation_of_the_stream_at_one_layer_is_refused(
    model_of: Callable[..., tt.HookedModel], tmp_path: Path
) -> None:
    model = model_of("llama")
    clamp = tt.Clamp(vector(model, "resid_post@1"), 1.0, 1.0, EVERYWHERE)
    with pytest.raises(InputError, match="5 of 5 terms"):
        tt.bake(model, clamp, tmp_path / "baked")
    with pytest.raises(InputError, match="5 of 5 terms write along it, first model.embed_tokens"):
        tt.bake(model, ablate(model, "resid_post@1"), tmp_path / "baked")
    with pytest.raises(InputError, match="this is not one affine map"):
        tt.bake(model, tt.NormKeepingAdd(vector(model, "resid_post@1")), tmp_path / "baked")
    # An addition along the direction after the ablations makes the later one matter again.
    again = [*ablate(model, *write_points(model)), add(model, "resid_post@0")]
    with pytest.raises(InputError, match="1 of 5 terms"):
        tt.bake(model, [*again, *ablate(model, "resid_post@1")], tmp_path / "baked")


def test_other_places_that_cannot_be_baked(
    model_of: Callable[..., tt.HookedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="something is there already"):
        tt.bake(model, add(model, "resid_post@1"), tmp_path / "full")
    monkeypatch.delitem(WRITES, "LlamaForCausalLM")
    with pytest.raises(ModelError, match="not known which weights of this architecture"):
        tt.bake(model, add(model, "resid_post@1"), tmp_path / "baked")


def test_a_sliding_window_is_no_llama() -> None:
    from transformers import MistralConfig

    plain = MistralConfig(sliding_window=None)
    assert with_biases(plain, "MistralForCausalLM", attn=True, mlp=False).attention_bias is True
    with pytest.raises(ModelError, match="with a sliding window"):
        with_biases(MistralConfig(), "MistralForCausalLM", attn=True, mlp=False)


@pytest.mark.parametrize("failure", ["wrong weights", "full disk"])
def test_a_failure_leaves_nothing_behind(
    failure: str,
    model_of: Callable[..., tt.HookedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("gemma3")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if failure == "wrong weights":
        monkeypatch.setattr(baking, "_embedding_scale", lambda hf: 3.0)
    else:
        monkeypatch.setattr(baking, "_provenance", full)
    with pytest.raises((TransferError, OSError), match="does not compute|No space"):
        tt.bake(model, add(model, "resid_pre@0"), tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []
