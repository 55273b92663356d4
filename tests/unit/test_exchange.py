"""Vectors of other tools come in and go out with their layers, units and spaces right."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tl_transfer import exchange
from tl_transfer.errors import ArtefactError, InputError, ModelError, SpaceError

TEXTS = tiny.prompts()[:3]


@pytest.fixture(scope="module")
def model() -> tt.HookedModel:
    return tt.load_model(tiny.tiny_bridge("llama", seed=3), name="llama")


def vector(model: tt.HookedModel, point: str, seed: int = 0, **fields: Any) -> tt.SteeringVector:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return tt.SteeringVector(direction, model.at(point).space, 5.0, "random", **fields)


def two(model: tt.HookedModel) -> tt.VectorSet:
    return tt.VectorSet.of(
        vector(model, "resid_post@1", provenance={"texts": ["ab"]}),
        vector(model, "resid_post@3", 1),
    )


def same(here: tt.VectorSet, there: tt.VectorSet) -> None:
    assert list(here) == list(there)
    for name in here:
        a, b = here[name], there[name]
        assert torch.equal(a.direction, b.direction)
        assert (a.space, a.median_norm, a.method) == (b.space, b.median_norm, b.method)
        assert a.provenance == b.provenance


# --------------------------------------------------------------------------- control vectors


def test_a_control_vector_comes_back_with_its_identity(model: Any, tmp_path: Path) -> None:
    path = exchange.write_control_vector(two(model), tmp_path / "v.gguf")
    same(exchange.read_control_vector(path), two(model))
    same(exchange.read_control_vector(path, model), two(model))
    other = tt.load_model(tiny.tiny_bridge("llama", seed=4), name="other")
    with pytest.raises(SpaceError, match="weights"):
        exchange.read_control_vector(path, other)


def test_the_gguf_package_reads_what_we_write(model: Any, tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = exchange.write_control_vector(
        two(model), tmp_path / "v.gguf", strength=0.5, model_hint="llama"
    )
    reader = GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    found = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    assert sorted(found) == ["direction.1", "direction.3"]
    unit = two(model)["blocks.1.hook_resid_post"].unit
    assert torch.allclose(found["direction.1"], 0.5 * 5.0 * unit)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_we_read_what_the_gguf_package_writes(dtype: str, model: Any, tmp_path: Path) -> None:
    path = foreign(tmp_path, {0: np.ones(48, dtype), 2: np.full(48, 2, dtype), 3: np.zeros(48)})
    with pytest.raises(InputError, match="does not say which model"):
        exchange.read_control_vector(path)
    read = exchange.read_control_vector(path, model, texts=TEXTS)
    assert list(read) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]  # 3 is empty
    first, second = read.values()
    assert torch.equal(second.direction, torch.full((48,), 2.0))
    assert first.provenance["model_hint"] == "tiny"
    # Measured layer by layer, and no constant of the layer is guessed.
    assert first.median_norm != second.median_norm
    stated = exchange.read_control_vector(path, model, median_norm=3.0)
    assert {v.median_norm for v in stated.values()} == {3.0}
    with pytest.raises(InputError, match="exactly one is needed"):
        exchange.read_control_vector(path, model)


def foreign(folder: Path, directions: dict[int, np.ndarray], arch: str = "controlvector") -> Path:
    from gguf import GGUFWriter

    path = folder / "foreign.gguf"
    writer = GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", "tiny")
    writer.add_array("an.array", [1, 2, 3])
    writer.add_array("words", ["a", "b"])
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_llama_cpp_would_refuse_is_refused(model: Any, tmp_path: Path) -> None:
    for point in ("resid_post@0", "attn_out@2"):
        with pytest.raises(InputError, match="blocks 1 and later"):
            exchange.write_control_vector(vector(model, point), tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_strength_of_nothing_is_not_written(model: Any, tmp_path: Path) -> None:
    """Every tool would read the file, ours would refuse it, and nothing would be steered."""
    for strength in (0.0, float("nan")):
        for write in (exchange.write_control_vector, exchange.write_tensors):
            with pytest.raises(InputError, match="strength: must be finite and not zero"):
                write(vector(model, "resid_post@1"), tmp_path / "v", strength=strength)
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_for_other_models_are_refused(model: Any, tmp_path: Path) -> None:
    path = foreign(tmp_path, {1: np.ones(40, np.float32)})
    with pytest.raises(InputError, match="another width"):
        exchange.read_control_vector(path, model, median_norm=1.0)
    path = foreign(tmp_path, {9: np.ones(48, np.float32)})
    with pytest.raises(InputError, match="no residual hook point"):
        exchange.read_control_vector(path, model, median_norm=1.0)
    path = foreign(tmp_path, {1: np.ones(48, np.float32)}, arch="llama")
    with pytest.raises(ArtefactError, match="no control vector"):
        exchange.read_control_vector(path, model, median_norm=1.0)
    with pytest.raises(ArtefactError, match="no such file"):
        exchange.read_control_vector(tmp_path / "missing.gguf")


# --------------------------------------------------------------------------- plain tensors


def test_tensors_there_and_back(model: Any, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = exchange.write_tensors(two(model), tmp_path / "v.safetensors")
    names = list(two(model))
    assert sorted(load_file(path)) == names
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["spaces"])[names[0]]["median_norm"] == 5.0
    back = exchange.read_tensors(path, {n: model.at(n) for n in names}, median_norm=5.0)
    for name in names:
        assert torch.equal(back[name].direction, two(model)[name].direction)
        assert back[name].space == two(model)[name].space
    with pytest.raises(InputError, match="each needs its place"):
        exchange.read_tensors(path, model.at("resid_post@1"), median_norm=5.0)
    with pytest.raises(InputError, match="not in the file"):
        exchange.read_tensors(path, {"x": model.at("resid_post@1")}, median_norm=5.0)
    single = exchange.write_tensors(vector(model, "attn_out@1"), tmp_path / "one", strength=2.0)
    (one,) = exchange.read_tensors(single, model.at("attn_out@1"), texts=TEXTS).values()
    assert torch.allclose(one.direction, 10.0 * vector(model, "attn_out@1").unit)
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ArtefactError, match="a pickle"):
        exchange.read_tensors(tmp_path / "pickle", model.at("attn_out@1"), texts=TEXTS)


@pytest.mark.parametrize("kind", ["list", "float64", "float16 tensor"])
def test_arrays(kind: str, model: Any) -> None:
    numbers = np.arange(1, 49) / 7
    array: Any = {"list": numbers.tolist(), "float64": numbers}.get(
        kind, torch.tensor(numbers).half()
    )
    read = exchange.from_array(array, model.at("resid_post@2"), texts=TEXTS)
    assert read.direction.dtype == torch.float32 and read.space == model.at("resid_post@2").space
    measured = tt.mean_difference(
        model.at("resid_post@2"), positive=TEXTS[:2], negative=TEXTS[2:]
    ).median_norm
    assert read.median_norm == pytest.approx(measured, rel=0.1)


def test_arrays_that_are_no_direction(model: Any) -> None:
    site = model.at("resid_post@2")
    for bad, message in (
        (np.ones(47), "wrong shape"),
        (np.full(48, np.nan), "finite"),
        (np.zeros(48), "not zero"),
        ("words", "not numbers"),
        ([[1.0], [1.0, 2.0]], "not numbers"),
    ):
        with pytest.raises(InputError, match=message):
            exchange.from_array(bad, site, median_norm=1.0)


# ------------------------------------------------------------------------ steering-vectors


class Theirs:
    """The two fields of a `steering_vectors.SteeringVector` (the real one: test_foreign_tools)."""

    def __init__(self, layer_activations: dict[int, Any], layer_type: str) -> None:
        self.layer_activations, self.layer_type = layer_activations, layer_type


def test_layer_types_become_hook_points(model: Any) -> None:
    rows = {1: torch.ones(1, 48), 2: torch.ones(48)}
    for theirs, ours in (("decoder_block", "resid_post"), ("mlp", "mlp_out")):
        read = exchange.from_steering_vectors(Theirs(rows, theirs), model, median_norm=2.0)
        assert list(read) == [f"blocks.1.hook_{ours}", f"blocks.2.hook_{ours}"]
    with pytest.raises(InputError, match="whose place in the stream is known"):
        exchange.from_steering_vectors(Theirs(rows, "input_layernorm"), model, median_norm=2.0)
    with pytest.raises(InputError, match="counted from 0"):
        exchange.from_steering_vectors(
            Theirs({-1: rows[2]}, "decoder_block"), model, median_norm=2.0
        )


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_module_before_a_norm_is_no_write(family: str) -> None:
    gemma = tt.load_model(tiny.tiny_bridge(family), name=family)
    rows = {1: torch.ones(48)}
    with pytest.raises(ModelError, match="a norm follows the module"):
        exchange.from_steering_vectors(Theirs(rows, "mlp"), gemma, median_norm=2.0)
    exchange.from_steering_vectors(Theirs(rows, "decoder_block"), gemma, median_norm=2.0)


def test_without_their_package_the_way_out_is_named(model: Any) -> None:
    if __import__("importlib").util.find_spec("steering_vectors"):
        pytest.skip("steering-vectors is installed here; see test_foreign_tools")
    with pytest.raises(ModelError, match="write_tensors makes a file"):
        exchange.to_steering_vectors(two(model))


# ---------------------------------------------------------------------------- hook recipes

#: With it no rule makes a tiny model stop early.
SEED = 4
RULES = {
    "everywhere": tt.everywhere(),
    "sinks": tt.everywhere(sinks=True),
    "prompt": tt.prompt(),
    "generated": tt.generated(),
    "last": tt.last_prompt_token(),
    "first two": tt.first_generated(2),
    "window": tt.window(2, 6),
    "end": tt.window(-3, -1),
    "from": tt.from_position(4),
}


def test_a_recipe_runs_without_this_package(tmp_path: Path) -> None:
    """Plain Hugging Face generation gives the tokens that `attach` gives, in a padded batch."""
    families = ("llama", "gemma3")
    for family in families:
        _expect(family, tmp_path / family)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "run_recipes.py"), *families],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == sorted(RULES) * len(families)


def _expect(family: str, folder: Path) -> None:
    """Save a model, recipes for it, and the tokens that they should give."""
    from safetensors.torch import save_file

    tiny.tiny_hf(family, seed=SEED).save_pretrained(folder / "model")
    model = tt.load_model(tiny.tiny_bridge(family, seed=SEED), name=family)
    prompts = ["The river rose in the night.", "Why do cats sleep so much?"]
    model.tokenizer.padding_side = "left"
    batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
    tensors = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for name, rule in RULES.items():
        given = [
            tt.Add(vector(model, "resid_post@1"), 0.8, rule),
            tt.Ablate(vector(model, "mlp_out@2", 1), 1.0, rule),
            tt.Add(vector(model, "attn_out@2", 2), 0.4, rule),
            tt.Add(vector(model, "resid_pre@0", 3), 0.2, rule),
            tt.Clamp(vector(model, "mlp_out@0", 4), 0.5, 0.9, rule),
            tt.Ablate(vector(model, "mlp_out@2", 5), 1.0, rule),
        ]
        exchange.write_hook_recipe(given, model, folder / name)
        files = sorted(path.name for path in (folder / name).iterdir())
        assert files == ["recipe.json", "steer.py", "vectors.safetensors"]
        with tt.attach(model, *given) as live:
            steered = live.generate(prompts, max_new_tokens=6)
        # A short answer would have stopped early; then the comparison needs another seed.
        assert [len(one.tokens) for one in steered] == [6, 6]
        tensors[name] = torch.tensor([one.tokens for one in steered])
    assert len({tuple(t.flatten().tolist()) for t in tensors.values()}) > len(RULES) // 2
    save_file(tensors, folder / "batch.safetensors")


def test_a_recipe_under_transformer_lens(model: Any, tmp_path: Path) -> None:
    given = [tt.Add(vector(model, "resid_post@1"), 0.8), tt.Ablate(vector(model, "mlp_out@2", 1))]
    folder = exchange.write_hook_recipe(given, model, tmp_path / "recipe")
    names: dict[str, Any] = {"__file__": str(folder / "steer.py")}
    exec(compile((folder / "steer.py").read_text(), "steer.py", "exec"), names)
    tokens = tiny.random_tokens(300, 1, 9)
    got = model.run_with_hooks(tokens, fwd_hooks=names["Steering"]().fwd_hooks())
    with tt.attach(model, *given) as live:
        assert torch.allclose(got, live.logits(tokens), atol=1e-5)


def test_what_a_recipe_cannot_hold(model: Any, tmp_path: Path) -> None:
    v = vector(model, "resid_post@1")
    for item, message in (
        (tt.Add(v, 1.0, tt.span("x")), "needs the text"),
        (tt.Add(v, torch.ones(2)), "of one strength"),
        (tt.Add(v, tt.schedules.first(1.0, k=2)), "of one strength"),
        (tt.NormKeepingAdd(v), "affine edits"),
        ([], "interventions: none"),
    ):
        with pytest.raises(InputError, match=message):
            exchange.write_hook_recipe(item, model, tmp_path / "recipe")
    assert list(tmp_path.iterdir()) == []
