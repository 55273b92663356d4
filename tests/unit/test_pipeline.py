"""The whole job from folders on disk: files, reuse, plan, command line; tiny models, no network."""

import json
from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import tiny
from tests.toy_task import toy_task
from tl_transfer import cli, pipeline, tasks
from tl_transfer.errors import InputError
from tl_transfer.recipe import Recipe

FILES = {
    "report.html",
    "report.json",
    "mapper.safetensors",
    "vector.safetensors",
    "recipe.toml",
    "selection.json",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two tiny models saved as ordinary Hugging Face folders."""
    root = tmp_path_factory.mktemp("models")
    for name, family, kind in (("source", "llama", "bos"), ("target", "gemma3", "nobos")):
        tokenizer = tiny.tiny_tokenizer(kind)
        tiny.tiny_hf(family, seed=3, vocab_size=len(tokenizer)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return str(root / "source"), str(root / "target")


@pytest.fixture
def recipe(folders: Any, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    def build(**settings: Any) -> Any:
        return toy_task(tiny.tiny_tokenizer("nobos"))

    monkeypatch.setitem(tasks.TASKS, "toy", build)
    return Recipe(
        source=folders[0],
        target=folders[1],
        task="toy",
        source_layers=("resid_post@1", "resid_post@2"),
        target_layers=("blocks.1.hook_resid_post",),
        budgets=(0.002,),
        main_budget=0.002,
        n_random=2,
        n_generate=2,
        max_new_tokens=3,
    )


@pytest.mark.usefixtures("no_network")
def test_a_run_writes_its_folder_and_a_second_one_reuses_it(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said: list[str] = []
    first = pipeline.run(recipe, folder, say=said.append, progress=False)
    assert {path.name for path in folder.iterdir()} == FILES
    assert not first.reused
    assert any("choosing the layer pair" in line for line in said)
    selection = first.report["selection"]
    assert len(selection["candidates"]) == 2
    assert selection["split"] == "validation"
    chosen = first.report["pair"]
    assert selection["chosen"] == {side: chosen[side]["hook_point"] for side in chosen}

    again = pipeline.run(recipe, folder, progress=False)
    assert again.reused
    assert again.report.data == first.report.data

    other = pipeline.run(recipe.with_(seed=1), folder, progress=False)
    assert not other.reused
    assert Recipe.read(folder / "recipe.toml") == recipe.with_(seed=1)


def test_what_a_run_saved_steers_again(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # A curved map, which every step must take as it takes an affine one.
    recipe = recipe.with_(method="autoencoder")
    pipeline.run(recipe, folder, progress=False)
    mapper, vector = tt.load(folder / "mapper.safetensors"), tt.load(folder / "vector.safetensors")
    assert isinstance(mapper, tt.ReluMap)
    assert isinstance(vector, tt.SteeringVector)
    target = tt.load_model(recipe.target)
    moved = tt.transfer(vector, mapper)
    with tt.attach(target, tt.Add(moved, 1.0)) as live:
        assert live.generate("the film", max_new_tokens=2).tokens
    source = tt.load_model(recipe.source)
    with pytest.raises(tt.errors.SpaceError, match="weights"), tt.attach(source, tt.Add(moved)):
        pass


def test_an_incomplete_or_damaged_folder_is_computed_again(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pipeline.run(recipe, folder, progress=False)
    for damage in ("missing map", "broken report"):
        if damage == "missing map":
            (folder / "mapper.safetensors").unlink()
        else:
            (folder / "report.json").write_text("{")
        assert not pipeline.run(recipe, folder, progress=False).reused
        assert json.loads((folder / "report.json").read_text())["format"]


def test_an_interrupted_run_goes_on_from_its_map(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.run(recipe, tmp_path / "whole", progress=False).report

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "conclude", interrupt)
        pipeline.run(recipe, folder, progress=False)
    assert not (folder / "report.json").exists()
    said: list[str] = []
    result = pipeline.run(recipe, folder, say=said.append, progress=False)
    assert any("going on from them" in line for line in said)
    assert not any("fitting" in line for line in said)
    assert result.report["matched"] == whole["matched"]
    assert result.report["mapper"] == whole["mapper"]

    # The map of another recipe, or of other models, is not taken for this run's.
    said.clear()
    (folder / "report.json").unlink()
    pipeline.run(recipe.with_(seed=2), folder, say=said.append, progress=False)
    assert any("fitting" in line for line in said)


def test_an_unwritable_folder_fails_before_any_work(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said: list[str] = []
    with pytest.raises(InputError, match="cannot write"):
        pipeline.run(recipe, tmp_path / "file" / "run", say=said.append, progress=False)
    assert said == []


def test_command_line_runs_a_recipe_and_prints_the_table(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    out = str(tmp_path / "run")
    assert cli.main(["run", str(path), "--out", out, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "native" in printed.out
    assert "shuffled" in printed.out
    assert "report.html" in printed.out
    assert cli.main(["report", out]) == 0
    assert "native" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "nothing"], "not a bundled model"),
        (["run", "missing.toml"], "cannot read"),
        (["run", "--task", "nothing", "--plan"], "unknown task"),
        (["report", "nowhere"], "not a readable file"),
    ],
)
def test_command_line_errors_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_plan_lists_and_help_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--plan"]) == 0
    plan = capsys.readouterr().out
    for word in ("smollm2-135m-instruct", "gemma-3-270m", "memory", "MB", "steps"):
        assert word in plan
    assert cli.main(["models"]) == 0
    assert "qwen2.5-coder-1.5b-instruct" in capsys.readouterr().out
    assert cli.main(["tasks"]) == 0
    assert "sentiment" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0


def test_default_layers_lie_in_the_middle() -> None:
    model = tt.load_model(tiny.tiny_bridge("llama"))
    assert pipeline.default_layers(model) == [
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
    ]
