"""The matrix on tiny models with known answers: an exact twin, and a stranger to both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.toy_task import toy_task
from tl_transfer import cli, tasks
from tl_transfer.errors import InputError
from tl_transfer.evaluation import matrix as measuring
from tl_transfer.evaluation.bench import Measured
from tl_transfer.experiments import matrix
from tl_transfer.experiments.matrix_recipe import MatrixRecipe

NAMES = ("base", "twin", "stranger")
POINT = "resid_post@3"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tiny_tokenizer("bos")
    base = tiny.tiny_hf("llama", seed=3, vocab_size=len(tokenizer))
    wider, _ = tiny.twin(base, d_model=64, scale=3.0, seed=1)
    stranger = tiny.tiny_hf("llama", seed=8, vocab_size=len(tokenizer))
    for name, model in zip(NAMES, (base, wider, stranger), strict=True):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in NAMES}


@pytest.fixture(scope="module")
def task(folders: dict[str, str]) -> Any:
    """A task whose words are those that the base's own vector promotes and demotes most."""
    model = tt.load_model(folders["base"])
    plain = toy_task(model.tokenizer)
    vector = tt.mean_difference(model.at(POINT), positive=plain.positive, negative=plain.negative)
    tokens = [torch.tensor([model.tokenizer(p)["input_ids"]]) for p in plain.test_prompts]
    shift = torch.zeros(len(model.tokenizer))
    for row in tokens:
        with tt.attach(model, tt.Add(vector, strength=0.2)) as live:
            shift += live.logits(row)[0, -1]
        shift -= model.logits(row, torch.ones_like(row).bool())[0, -1]
    vocabulary = model.tokenizer.get_vocab()
    words = sorted(
        (word for word in vocabulary if word.startswith("Ġ") and len(word) > 1),
        key=lambda word: float(shift[vocabulary[word]]),
    )
    spelled = [model.tokenizer.convert_tokens_to_string([word]) for word in words]
    return toy_task(
        model.tokenizer,
        positive_words=tuple(spelled[-6:]),
        negative_words=tuple(spelled[:6]),
        test_factors=((0, 0, 0, 1, 1, 1), (0, 1, 2, 0, 1, 2)),
    )


@pytest.fixture
def recipe(folders: dict[str, str], task: Any, monkeypatch: pytest.MonkeyPatch) -> MatrixRecipe:
    monkeypatch.setitem(tasks.TASKS, "toy", lambda **settings: task)
    return MatrixRecipe(
        models=tuple(folders.values()),
        behaviours=("toy",),
        dtype="float32",
        depths=(1.0,),
        budget=0.01,
        n_random=4,
        n_examples=1,
        max_new_tokens=3,
    )


@pytest.mark.usefixtures("no_network")
def test_twins_transfer_and_strangers_do_not(recipe: MatrixRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, mappers=("ridge", "procrustes"))
    report = matrix.run(recipe, tmp_path, progress=False)
    every = report["behaviours"]["toy"]["cells"]
    cells = {(e["source"], e["target"]): e for e in every if e["mapper"] == "ridge"}
    assert (len(cells), len(every)) == (6, 12)
    # Between twins the truth is a rotation: the freer map gains nothing by its freedom.
    gaps = {(e["source"], e["target"]): e.get("against_first") for e in every[1::2]}
    assert {gaps["base", "twin"]["verdict"], gaps["twin", "base"]["verdict"]} == {
        "no difference shown"
    }
    for pair in (("base", "twin"), ("twin", "base")):
        assert cells[pair]["status"] == measuring.TRANSFERS
        assert cells[pair]["efficiency"]["value"] == pytest.approx(1.0, abs=0.05)
        assert cells[pair]["map"]["cosine_to_native"] > 0.99
    # The stranger's map must find what random texts have in common; the words are the twins'.
    for pair in (("stranger", "base"), ("stranger", "twin")):
        assert cells[pair]["efficiency"]["value"] < 0.8
        assert cells[pair]["status"] != measuring.TRANSFERS
    for pair in (("base", "stranger"), ("twin", "stranger")):
        assert cells[pair]["status"] == measuring.NOT_STEERABLE
        assert cells[pair]["efficiency"]["value"] is None
    page = (tmp_path / "report.md").read_text()
    assert "2 x transfers" in page
    assert "2 x native not steerable" in page
    assert "plotly" in (tmp_path / "matrix.html").read_text()
    written = json.loads((tmp_path / "report.json").read_text())
    assert written.pop("sha256") and written == report


def test_a_run_stopped_anywhere_goes_on_and_ends_the_same(
    recipe: MatrixRecipe, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, models=(folders["base"], folders["twin"]), n_examples=0, n_random=2)
    whole = matrix.run(recipe, tmp_path / "whole", progress=False)
    folder, runs, loads = tmp_path / "cut", 0, []
    keep, load = matrix.Parts.keep, matrix.load_model

    def stop_after(self: Any, name: str, value: Any) -> None:
        keep(self, name, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        matrix, "load_model", lambda path, **o: loads.append(path) or load(path, **o)
    )
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(matrix.Parts, "keep", stop_after)
            try:
                report = matrix.run(recipe, folder, progress=False)
                break
            except KeyboardInterrupt:
                runs += 1
    assert runs > 6  # every part was a place to stop
    assert report["behaviours"] == whole["behaviours"]
    loads.clear()
    matrix.run(recipe, folder, progress=False)
    assert loads == []  # nothing is left to do
    # Other files under the same path are other models.
    Path(folders["twin"], "extra").touch()
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(matrix.Parts, "keep", stop_after)
        matrix.run(recipe, folder, progress=False)
    assert loads != []


def test_a_native_vector_like_a_random_one_is_a_verdict_of_its_own() -> None:
    settings = measuring.MatrixSettings(0.05, 2, 0)

    def raw(plus: float) -> Any:
        shift = torch.full((8,), plus) + torch.linspace(-0.1, 0.1, 8)
        row = Measured(
            {"plus": 0.1, "minus": 0.1},
            {"plus": shift, "minus": -shift},
            {"plus": None, "minus": None},
        )
        return measuring.to_plain(row)

    def status(native: float, moved: float, random: float = 0.2, wrong: float = 0.1) -> str:
        home = {
            "native": [raw(native)],
            "random_isotropic": [raw(random), raw(-random)],
            "random_covariance": [raw(0.0), raw(random / 2)],
        }
        pair = {"transferred": [raw(moved)], "shuffled_map": [raw(wrong)]}
        found = measuring.cell(home, pair, settings=settings)
        assert (found["efficiency"]["value"] is None) == (
            found["status"] == measuring.NOT_STEERABLE
        )
        return str(found["status"])

    assert status(2.0, 1.9) == measuring.TRANSFERS
    assert status(2.0, 1.0) == measuring.WEAKER
    assert status(2.0, 1.9, wrong=-2.0) == measuring.FAILS
    assert status(2.0, 0.1) == measuring.FAILS
    assert status(0.15, 0.15) == measuring.NOT_STEERABLE  # steers, but as any direction does
    assert status(-2.0, -2.0) == measuring.NOT_STEERABLE  # steers the wrong way
    unreached = measuring.cell(
        {"native": [None], "random_isotropic": [raw(0.1)], "random_covariance": [raw(0.1)]},
        {"transferred": [raw(1.0)], "shuffled_map": [raw(0.0)]},
        settings=settings,
    )
    assert unreached["status"] == measuring.NOT_STEERABLE


def test_prompts_that_another_behaviour_was_fitted_on_are_refused(
    recipe: MatrixRecipe, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(
        task,
        fit_texts=(*task.fit_texts[:-1], task.test_prompts[0]),
        test_prompts=("Something else.",) * 6,
    )
    monkeypatch.setitem(tasks.TASKS, "other", lambda **settings: other)
    recipe = replace(recipe, behaviours=("toy", "other"))
    with pytest.raises(InputError, match="toy.test_prompts: texts that the fit of the maps"):
        matrix.run(recipe, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []  # before anything was read


def test_the_command_line_runs_plans_and_prints(
    recipe: MatrixRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    values = {**recipe.to_dict(), "models": recipe.to_dict()["models"][:2]}
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    assert cli.main(["run", str(path), "--plan"]) == 0
    assert "fit 2 maps" in capsys.readouterr().out
    assert cli.main(["run", str(path), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "every ordered pair" in printed
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert "every ordered pair" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ("a",)},
        {"models": ("a", "a")},
        {"models": ("here/a", "there/a")},
        {"depths": (0.0,)},
        {"behaviours": ("nothing",)},
        {"n_random": 1},
        {"budget": 0.0},
    ],
)
def test_recipes_that_cannot_be_run_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        MatrixRecipe(**wrong)
    with pytest.raises(InputError, match="unknown keys"):
        MatrixRecipe.from_dict({"nothing": 1})
