"""The main job: recipe in, report and artefacts out; a second run reuses what is still valid.

Steps: load both models, build the task, extract the source vectors, fit every candidate pair from
one capture, choose the pair on validation, evaluate it on test, write the folder.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer import tasks
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.evaluation.evaluate import Settings
from tl_transfer.evaluation.report import evaluate, versions
from tl_transfer.evaluation.result import TransferReport
from tl_transfer.evaluation.select import select_layers
from tl_transfer.experiments.parts import file_stamps
from tl_transfer.extract import mean_differences
from tl_transfer.files import require_writable, write_atomic
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit_grid
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.persistence import load, save
from tl_transfer.recipe import Recipe
from tl_transfer.sealed import read_json, write_json
from tl_transfer.vectors import SteeringVector

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What a run leaves: its folder, report, map and transferred vector's source."""

    folder: Path
    report: TransferReport
    reused: bool


def run(
    recipe: Recipe, folder: str | Path, *, say: Say | None = None, progress: bool = True
) -> Run:
    """Run a recipe into a folder, or return what is there if it is the same recipe's.

    Args:
        recipe: What to run.
        folder: Where to write ``report.html``, ``report.json``, ``mapper.safetensors``,
            ``vector.safetensors`` and ``recipe.toml``.
        say: Told what is happening, a line at a time.
        progress: Show progress bars.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    found = _reusable(recipe, folder)
    if found is not None:
        say(f"{folder}: same recipe, versions and files; nothing to compute")
        return Run(folder, found, reused=True)
    require_writable(folder)
    say(f"loading {recipe.source} and {recipe.target}")
    source = load_model(recipe.source, host=recipe.source_host)
    target = load_model(recipe.target, host=recipe.target_host)
    task = build_task(recipe)
    fitted = _resume(recipe, folder, source, target)
    if fitted is None:
        fitted = prepare(recipe, task, source, target, say=say, progress=progress)
        _keep(recipe, folder, fitted)
    else:
        say(f"{folder}: the map and the chosen layers are there; going on from them")
    report = conclude(recipe, task, fitted, source, target, say=say, progress=progress)
    write_atomic(
        folder / "recipe.toml", lambda path: path.write_text(recipe.to_toml(), encoding="utf-8")
    )
    report.save_html(folder / "report.html")
    # Last: its presence says that the run is complete.
    report.save_json(folder / "report.json")
    return Run(folder, report, reused=False)


def _reusable(recipe: Recipe, folder: Path) -> TransferReport | None:
    """The report in the folder, if recipe and versions are the same and every file is there."""
    names = ("report.html", "mapper.safetensors", "vector.safetensors", "recipe.toml")
    if not all((folder / name).is_file() for name in names):
        return None
    try:
        report = TransferReport.load(folder / "report.json")
        stage = _stage(folder)
        # Loading checks the checksums: a damaged artefact must not be handed out as a result.
        load(folder / "mapper.safetensors")
        load(folder / "vector.safetensors")
    except (ArtefactError, OSError, ValueError):
        return None
    if stage.get("paths") != _paths(recipe):
        return None
    same = report.data.get("recipe") == recipe.to_dict()
    return report if same and report.data.get("versions") == versions() else None


def _paths(recipe: Recipe) -> dict[str, list[list[Any]]]:
    return file_stamps((recipe.source, recipe.target))


@dataclass(frozen=True)
class Fitted:
    """What is known before the test split is touched.

    Attributes:
        vector: Source vector at the chosen hook point.
        mapper: Map of the chosen pair.
        selection: What was tried on validation.
        timings: Seconds of each step.
        native: The target's own vector there; None: to be made again.
    """

    vector: SteeringVector
    mapper: Mapper
    selection: dict[str, Any]
    timings: dict[str, float]
    native: SteeringVector | None = None


def _keep(recipe: Recipe, folder: Path, fitted: Fitted) -> None:
    """Write the map, the vector and how they were chosen; the last file says they are complete."""
    # What is there belongs to another recipe, or is incomplete: it must not pass for this run's.
    for name in ("report.json", "selection.json"):
        (folder / name).unlink(missing_ok=True)
    save(fitted.mapper, folder / "mapper.safetensors")
    save(fitted.vector, folder / "vector.safetensors")
    stage = {
        "recipe": recipe.to_dict(),
        "versions": versions(),
        "paths": _paths(recipe),
        "selection": fitted.selection,
        "timings": fitted.timings,
    }
    write_json(folder / "selection.json", stage, indent=1, allow_nan=False)


def _stage(folder: Path) -> dict[str, Any]:
    return read_json(folder / "selection.json", written_by="run", hint="it is made again")


def _resume(
    recipe: Recipe, folder: Path, source: HookedModel, target: HookedModel
) -> Fitted | None:
    """The map and vector of an interrupted run of this recipe on these very models, or None."""
    try:
        stage = _stage(folder)
        if (stage["recipe"], stage["versions"]) != (recipe.to_dict(), versions()):
            return None
        if stage["paths"] != _paths(recipe):
            return None
        vector = load(folder / "vector.safetensors")
        mapper = load(folder / "mapper.safetensors")
        if not isinstance(vector, SteeringVector) or not isinstance(mapper, Mapper):
            return None
        source.at(mapper.source.hook_point).space.require(mapper.source, "map of an earlier run")
        target.at(mapper.target.hook_point).space.require(mapper.target, "map of an earlier run")
        return Fitted(vector, mapper, stage["selection"], stage["timings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def experiment(
    recipe: Recipe,
    source: HookedModel,
    target: HookedModel,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> tuple[TransferReport, Mapper, SteeringVector]:
    """The same job on two loaded models, with nothing written.

    Returns:
        The report, the map of the chosen pair, and the source vector that was transferred.
    """
    say = say or (lambda line: None)
    task = build_task(recipe)
    fitted = prepare(recipe, task, source, target, say=say, progress=progress)
    report = conclude(recipe, task, fitted, source, target, say=say, progress=progress)
    return report, fitted.mapper, fitted.vector


def build_task(recipe: Recipe) -> tasks.Task:
    """The recipe's task with the recipe's sizes."""
    return tasks.build(
        recipe.task,
        n_contrast=recipe.n_contrast,
        n_fit=recipe.n_fit,
        n_neutral=recipe.n_neutral,
        seed=recipe.seed,
    )


def prepare(
    recipe: Recipe,
    task: tasks.Task,
    source: HookedModel,
    target: HookedModel,
    *,
    say: Say,
    progress: bool,
) -> Fitted:
    """Extract, fit every candidate pair from one capture, choose the pair on validation."""
    sources = [source.at(name) for name in recipe.source_layers or default_layers(source)]
    targets = [target.at(name) for name in recipe.target_layers or default_layers(target)]
    for site in targets:
        if site.point.kind != "resid_post":
            raise InputError(
                "target_layers: an evaluation steers after a block",
                got=site.point.name,
                valid="blocks.L.hook_resid_post",
                hint="use the resid_post of that block",
            )
    timings: dict[str, float] = {}
    plus, minus = task.positive, task.negative
    say(f"extracting the vector at {len(sources)} source and {len(targets)} target hook points")
    with _timed(timings, "extract"):
        vectors = mean_differences(sources, positive=plus, negative=minus)
        natives = mean_differences(targets, positive=plus, negative=minus)
    n_maps = len(sources) * len(targets)
    say(f"fitting {n_maps} maps from one pass over {len(task.fit_texts)} texts")
    with _timed(timings, "fit"):
        mappers = fit_grid(
            sources,
            targets,
            texts=task.fit_texts,
            documents=task.fit_documents,
            method=recipe.method,
            seed=recipe.seed,
            progress=progress,
        )
    say("choosing the layer pair on validation prompts")
    with _timed(timings, "select"):
        chosen, selection = select_layers(
            task, vectors, natives, targets, mappers, budget=recipe.main_budget
        )
    return Fitted(vectors[chosen[0]], mappers[chosen], selection, timings, natives[chosen[1]])


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 2)


def conclude(
    recipe: Recipe,
    task: tasks.Task,
    fitted: Fitted,
    source: HookedModel,
    target: HookedModel,
    *,
    say: Say,
    progress: bool,
) -> TransferReport:
    """Evaluate the chosen pair; the only step that touches the test split."""
    chosen = fitted.selection["chosen"]
    say(f"evaluating {chosen['source']} -> {chosen['target']} on test prompts")
    return evaluate(
        task,
        fitted.vector,
        fitted.mapper,
        source=source,
        target=target,
        native=fitted.native,
        settings=evaluation_settings(recipe),
        selection=fitted.selection,
        recipe=recipe.to_dict(),
        timings=fitted.timings,
        progress=progress,
    )


def evaluation_settings(recipe: Recipe) -> Settings:
    """The part of a recipe that an evaluation needs."""
    return Settings(
        budgets=recipe.budgets,
        main_budget=recipe.main_budget,
        strengths=recipe.strengths,
        n_random=recipe.n_random,
        n_generate=recipe.n_generate,
        max_new_tokens=recipe.max_new_tokens,
        seed=recipe.seed,
    )


def default_layers(model: HookedModel) -> list[str]:
    """Three candidates around the middle, where directions are formed but not yet spent."""
    picks = sorted({round(model.n_layers * share) - 1 for share in (0.4, 0.53, 0.67)})
    return [f"blocks.{max(layer, 0)}.hook_resid_post" for layer in picks]


def plan(recipe: Recipe) -> list[str]:
    """What a run would download, need and do; nothing is run or fetched."""
    from tl_transfer.models import bundled

    tasks.require(recipe.task)
    lines = []
    memory, known = 0.0, 0
    for name in (recipe.source, recipe.target):
        if name in bundled.BUNDLED:
            known += 1
            entry = bundled.plan(name)
            memory += 4 * bundled.BUNDLED[name].n_params
            lines.append(f"{name}: {entry}")
        else:
            lines.append(f"{name}: a path or hub id; size unknown before it is opened")
    total = f"{memory / 1e9 * 1.3 + 2:.1f} GB"
    if memory == 0.0:
        lines.append(f"memory: about {total}, and 5.2 GB for each billion parameters in float32")
    else:
        sizes = "" if known == 2 else ", and the other model (5.2 GB for each billion parameters)"
        lines.append(f"memory: about {total} (float32 weights and logits){sizes}")
    lines.append(
        f"steps: extract at the source layers, fit on {recipe.n_fit} texts, choose the layers on "
        f"validation, {2 * recipe.n_random} random directions at {len(recipe.budgets)} budgets, "
        f"{recipe.n_generate} prompts x {recipe.max_new_tokens} tokens for every arm"
    )
    return lines
