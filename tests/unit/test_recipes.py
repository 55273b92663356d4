"""Every recipe of the repository can be read, and says what it would do."""

import tomllib
from pathlib import Path

import pytest

from tl_transfer.experiments import registry

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_read_and_plans(path: Path) -> None:
    found = registry.read(path)
    assert found is not None, "no experiment has this task"
    recipe, run = found
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    # What the file says is what is run.
    assert {key: recipe.to_dict()[key] for key in written} == written
    assert callable(run) and all(recipe.plan())


def test_there_is_a_recipe_for_every_experiment() -> None:
    tasks = {tomllib.loads(path.read_text(encoding="utf-8"))["task"] for path in RECIPES}
    assert tasks == set(registry.EXPERIMENTS)
