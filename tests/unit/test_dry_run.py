"""A recipe is checked without weights: what is wrong in it is found before a GPU is rented."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tl_transfer.errors import InputError
from tl_transfer.experiments import memory, registry
from tl_transfer.experiments.backdoor import BackdoorRecipe
from tl_transfer.experiments.dry_run import dry_run
from tl_transfer.models.published import PUBLISHED
from tl_transfer.models.skeleton import skeleton

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "paper").glob("*.toml"))


def recipe_of(path: Path) -> Any:
    found = registry.read(path)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_papers_size_is_complete(path: Path) -> None:
    """Every model is known by name, its shape has the stated parameters, its layers exist."""
    recipe = recipe_of(path)
    checks = dry_run(recipe)
    failed = [str(check) for check in checks if check.passed is False]
    assert not failed
    shapes = [check for check in checks if check.what.endswith("shape")]
    assert shapes and all(check.passed for check in shapes)
    assert any("hook_resid_post" in check.said for check in checks)
    assert "GB" in checks[-1].said and recipe.plan()


def test_published_shapes_have_the_stated_numbers_of_parameters() -> None:
    for name in PUBLISHED:
        found = skeleton(name)
        assert found is not None and found.n_params == found.stated, name
        assert next(found.model.parameters()).is_meta


def test_a_layer_that_is_not_there_fails() -> None:
    path = next(path for path in RECIPES if path.stem == "backdoor-qwen")
    checks = dry_run(replace(recipe_of(path), target_layers=(8, 28)))
    failed = [check for check in checks if check.passed is False]
    assert len(failed) == 1 and "L from 0 to 27" in failed[0].said


def test_models_of_a_folder_and_unknown_ones(tmp_path: Path) -> None:
    """A folder is read; its trigger is looked for with its own tokenizer; a name is not guessed."""
    tokenizer = tiny.tiny_tokenizer("bos")
    hf = tiny.tiny_hf("llama", vocab_size=len(tokenizer))
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    found = skeleton(folder)
    assert found is not None
    assert found.n_params == sum(parameter.numel() for parameter in hf.parameters())
    checks = dry_run(BackdoorRecipe(source=folder, target="somebody/some-model"))
    said = {check.what.removeprefix(folder): check for check in checks}
    assert said[": shape"].passed and said[": hook points"].passed
    assert said[": |prod|"].passed and "the same in every prompt" in said[": |prod|"].said
    assert said["somebody/some-model: shape"].passed is None
    assert checks[-1].passed is None and "not known" in checks[-1].said


def test_a_damaged_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": []}')
    with pytest.raises(InputError, match="cannot be read"):
        skeleton(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(InputError, match="has no class for"):
        skeleton(str(tmp_path))


def test_a_skeleton_names_the_hook_points_of_the_model() -> None:
    hf = tiny.tiny_hf("llama")
    real = tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="llama")
    found = skeleton("Qwen/Qwen2.5-0.5B")
    assert found is not None
    hooked = found.hooked()
    names = {name.replace("blocks.23", "blocks.3") for name in hooked.host.hook_dict}
    assert {name for name in real.host.hook_dict if name.startswith("blocks.3.hook")} <= names


def test_memory_grows_as_it_must() -> None:
    small, large = skeleton("Qwen/Qwen2.5-0.5B"), skeleton("Qwen/Qwen2.5-1.5B")
    assert small is not None and large is not None
    assert memory.of_weights(small, "bfloat16") == 2 * small.n_params
    assert memory.of_weights(small, "float32") == 4 * small.n_params
    tuning = BackdoorRecipe().tuning
    lora = memory.of_tuning(small, "bfloat16", tuning)
    full = memory.of_tuning(small, "bfloat16", replace(tuning, method="full"))
    assert full - lora > 8 * small.n_params
    assert memory.of_sums(small, large, 1, 5) > memory.of_sums(small, large, 1, 1)


def test_a_backdoor_that_is_there_is_not_trained(tmp_path: Path) -> None:
    """Zero steps take the models as they are; the plan says so."""
    recipe = BackdoorRecipe(source="a", target="b", steps=0)
    assert recipe.plan()[0].startswith("take a and b")
    with pytest.raises(InputError, match="0 steps or more"):
        replace(recipe, steps=-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's free memory is compared there")
def test_memory_is_not_compared_without_a_gpu() -> None:
    check = dry_run(recipe_of(RECIPES[0]))[-1]
    assert check.passed is None and "no GPU" in check.said
