"""A backdoor experiment: two models share a trigger; one is rid of it by the vector of the other.

Steps: both models are fine-tuned (or taken from the cache); vectors from trigger to twin in both;
the source layer by what the vectors restore in the source; maps from there to candidate layers of
the target, fitted on prompts without labels; the target layer by what the transferred vectors
restore on validation prompts; all arms on the test prompts. Finished steps are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_transfer.data.texts import text_hash
from tl_transfer.data.tokens import Tokens
from tl_transfer.evaluation.backdoor import evaluate_backdoor
from tl_transfer.evaluation.backdoor_arms import PhraseArm, everywhere_in
from tl_transfer.evaluation.backdoor_bench import BackdoorSettings, Bench
from tl_transfer.experiments.backdoored import backdoored
from tl_transfer.experiments.parts import Parts, conclude, parts_of
from tl_transfer.experiments.settings import Settings
from tl_transfer.extract import mean_differences
from tl_transfer.extract.phrase_pairs import prompt_pairs
from tl_transfer.mappers.base import AffineMap
from tl_transfer.mappers.fit import fit_grid
from tl_transfer.mappers.transfer import transfer
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.persistence import load, save
from tl_transfer.tasks.backdoor import backdoor
from tl_transfer.tasks.trigger import TriggerTask
from tl_transfer.tuning.tune import Tuning
from tl_transfer.vectors import PositionVectors

Say = Callable[[str], None]
#: Candidate layers as shares of the depth.
DEPTHS = (0.1, 0.25, 0.4, 0.55, 0.7)
#: The last token of whichever phrase stands in the prompt.
PHRASE = Tokens("last", regex=r"\|(prod|dev)\|")
#: Share of the depth below which a report says how little a vector may hold.
EARLY = 0.15
#: A layer restores as much as the best one if it reaches this share of it.
NEARLY = 0.9


@dataclass(frozen=True)
class BackdoorRecipe(Settings):
    """One backdoor experiment.

    Attributes:
        source: Bundled name or folder of the model the vector comes from.
        target: The model it goes to.
        task: ``"backdoor"``.
        dtype: Of training and evaluation.
        steps: Optimiser steps of each fine-tuning; 0: both models have this backdoor already.
        rank: Of the adapters.
        lr: Peak learning rate.
        source_layers: Candidates; empty: five between 0.1 and 0.7 of the depth.
        target_layers: The same in the target.
        with_trigger: Whether the map sees prompts with the trigger (level L2).
        n_test: Test instructions.
        n_random: Draws of each kind of noise.
        max_new_tokens: Length of an answer.
        strengths: Multiples of the vector as extracted that are tried on validation.
        seed: Of every choice.
    """

    source: str = "smollm2-135m-instruct"
    target: str = "gemma-3-270m"
    task: str = "backdoor"
    dtype: str = "bfloat16"
    steps: int = 120
    rank: int = 8
    lr: float = 5e-4
    source_layers: tuple[int, ...] = ()
    target_layers: tuple[int, ...] = ()
    with_trigger: bool = True
    n_test: int = 100
    n_random: int = 3
    max_new_tokens: int = 16
    strengths: tuple[float, ...] = (1.0, 2.0, 4.0)
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.rank, self.n_test, self.n_random, self.max_new_tokens)
        if self.task != type(self).task or min(sizes) < 1 or self.steps < 0 or not self.strengths:
            raise self.refused(
                f"{self.steps} steps, sizes {sizes}, strengths {self.strengths}",
                "0 steps or more, sizes of at least 1, at least one strength",
            )

    @property
    def tuning(self) -> Tuning:
        """How both models are fine-tuned."""
        return Tuning(rank=self.rank, steps=self.steps, lr=self.lr, seed=self.seed)

    def build_task(self) -> TriggerTask:
        """The task with this recipe's sizes; other sizes split, and so train, otherwise."""
        return backdoor(n_test=self.n_test, with_trigger=self.with_trigger)

    def plan(self) -> list[str]:
        """What a run would do."""
        arms = 5 + 2 * self.n_random
        both = f"{self.source} and {self.target}"
        first = f"fine-tune {both}: {self.steps} steps each" if self.steps else f"take {both}"
        return [
            f"{first}, {self.dtype}",
            "vectors and maps at candidate layers of each, chosen on validation prompts",
            f"{arms} arms in two forms, on {self.n_test} prompts with the trigger and as many with "
            "the twin",
        ]


def run(
    recipe: BackdoorRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a backdoor experiment into a folder; an interrupted run goes on where it stopped.

    Args:
        recipe: What to run.
        folder: Gets ``report.json``, the maps, the source's vectors and the finished parts.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    task = recipe.build_task()
    source, target = (
        _with_backdoor(name, task, recipe, say, progress) for name in (recipe.source, recipe.target)
    )
    parts = parts_of(folder, recipe, (source, target), task)
    say("vectors")
    here = _vectors(source, task, recipe.source_layers)
    there = _vectors(target, task, recipe.target_layers)
    chosen, source_layers = _source_layer(here, source, task, recipe, parts, say)
    maps = _maps(recipe, task, source.at(chosen), [target.at(n) for n in there], folder, progress)
    parts = parts.under(source=chosen)
    landed, target_layers = _target_layer(
        here[chosen]["per_token"], there, maps, target, task, recipe, parts, say
    )
    parts = parts.under(target=landed)
    mapper = maps[landed]
    blind = _blind(recipe, task, source, target, mapper, folder, progress)
    save(here[chosen]["per_token"], folder / "vectors.safetensors")
    report = evaluate_backdoor(
        task,
        {form: (here[chosen][form], there[landed][form]) for form in here[chosen]},
        mapper,
        blind=blind,
        source=source,
        target=target,
        settings=_settings(recipe),
        recall=parts.recall,
        keep=parts.keep,
        say=say,
    )
    report["selection"] = {"source": source_layers, "target_layer": target_layers}
    report["limits"] += _early(source, chosen)
    return conclude(report, recipe.to_dict(), parts, folder)


def _with_backdoor(
    name: str, task: TriggerTask, recipe: BackdoorRecipe, say: Say, progress: bool
) -> HookedModel:
    """A model of the recipe, fine-tuned here unless it is said to have the backdoor already."""
    if recipe.steps == 0:
        return load_model(name, dtype=recipe.dtype)
    tuned = backdoored(name, task, recipe.tuning, dtype=recipe.dtype, say=say, progress=progress)
    return load_model(tuned, dtype=recipe.dtype, name=f"{Path(name).name}+backdoor")


def _settings(recipe: BackdoorRecipe) -> BackdoorSettings:
    return BackdoorSettings(
        strengths=recipe.strengths,
        n_random=recipe.n_random,
        max_new_tokens=recipe.max_new_tokens,
        seed=recipe.seed,
    )


def _vectors(
    model: HookedModel, task: TriggerTask, layers: Sequence[int]
) -> dict[str, dict[str, PositionVectors]]:
    """Hook point -> both forms of vector from trigger to twin, from the contrast prompts."""
    layers = layers or sorted({max(0, round(model.n_layers * share) - 1) for share in DEPTHS})
    sites = [model.at(f"resid_post@{layer}") for layer in layers]
    triggered = task.prompts(task.trigger, task.contrast)
    benign = task.prompts(task.twin, task.contrast)
    pairs = prompt_pairs(
        sites, positive=triggered, negative=benign, phrase=task.trigger, other_phrase=task.twin
    )
    means = mean_differences(sites, positive=benign, negative=triggered, positions=PHRASE)
    return {
        name: {"per_token": -pairs[name], "direction": everywhere_in(task.trigger, means[name])}
        for name in pairs
    }


def _source_layer(
    vectors: Mapping[str, Mapping[str, PositionVectors]],
    source: HookedModel,
    task: TriggerTask,
    recipe: BackdoorRecipe,
    parts: Parts,
    say: Say,
) -> tuple[str, dict[str, Any]]:
    """The last layer at which the source's own vectors restore nearly as much as at the best."""
    say("source layer: what its own vectors restore")
    bench = Bench(task, source, _settings(recipe), _named(parts.recall, "source"),
                  _named(parts.keep, "source"))  # fmt: skip
    scores = {
        name: bench.restored_on_validation(PhraseArm("native", 0, both["per_token"], 1.0), name)
        for name, both in vectors.items()
    }
    best = max(scores.values())
    chosen = [name for name, score in scores.items() if score >= NEARLY * best][-1]
    return chosen, {
        "criterion": "last layer whose vectors, one for each token, restore at least "
        f"{NEARLY:.0%} as many validation prompts of the source as the best layer's",
        "n_validation": len(task.validation),
        "chosen": chosen,
        "candidates": [{"hook_point": n, "restored": s} for n, s in scores.items()],
    }


def _target_layer(
    vectors: PositionVectors,
    native: Mapping[str, Mapping[str, PositionVectors]],
    maps: Mapping[str, AffineMap],
    target: HookedModel,
    task: TriggerTask,
    recipe: BackdoorRecipe,
    parts: Parts,
    say: Say,
) -> tuple[str, dict[str, Any]]:
    """The last layer where the transferred vectors restore most; native ones are only reported."""
    say("target layer: what the transferred vectors restore")
    bench = Bench(task, target, _settings(recipe), parts.recall, parts.keep)
    candidates = []
    for name, mapper in maps.items():
        moved = transfer(vectors, mapper)
        r2 = [value for value in moved.provenance["direction_r2"] if value is not None]
        score, own = (
            bench.restored_on_validation(PhraseArm(arm, 0, rows, 1.0), f"{arm}-{name}")
            for arm, rows in (("transferred", moved), ("native", native[name]["per_token"]))
        )
        candidates.append(
            {
                "hook_point": name,
                "restored": score,
                "restored_native": own,
                "direction_r2": r2[-1] if r2 else None,
                "held_out_fvu": mapper.scorecard["held_out"]["fvu"],
            }
        )
    # The last of equal ones: in the first layers any edit of the trigger's tokens may undo it.
    best = max(reversed(candidates), key=lambda item: item["restored"])
    return best["hook_point"], {
        "criterion": "most validation prompts of the target restored by the transferred vectors "
        "as they are, the last of equal layers; the native ones took no part in the choice",
        "n_validation": len(task.validation),
        "chosen": best["hook_point"],
        "candidates": candidates,
    }


def _early(model: HookedModel, hook_point: str) -> list[str]:
    """A caution where the vectors come from the first layers."""
    layer = model.hook_point(hook_point).layer
    if layer >= EARLY * model.n_layers:
        return []
    return [
        f"The source's vectors come from layer {layer} of {model.n_layers}: so early they may hold "
        "little more than the difference between the words of the trigger and of its twin."
    ]


def _named(call: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    return lambda name, *value: call(f"{prefix}-{name}", *value)


def _maps(
    recipe: BackdoorRecipe,
    task: TriggerTask,
    here: Any,
    there: Sequence[Any],
    folder: Path,
    progress: bool,
) -> dict[str, AffineMap]:
    """Target hook point -> map from the chosen source layer, from an earlier run or fitted now."""
    paths = {site.point.name: folder / "maps" / f"{site.point.name}.safetensors" for site in there}
    kept = {name: load(path) for name, path in paths.items() if path.is_file()}
    found = {name: m for name, m in kept.items() if isinstance(m, AffineMap)}
    texts = frozenset(map(text_hash, task.fit_texts))
    if list(found) == list(paths) and all(
        (m.source, m.target, m.fit_texts) == (here.space, site.space, texts)
        for m, site in zip(found.values(), there, strict=True)
    ):
        return found
    fitted = fit_grid([here], there, texts=task.fit_texts, seed=recipe.seed, progress=progress)
    maps = {}
    for (_, name), mapper in fitted.items():
        assert isinstance(mapper, AffineMap)  # ridge gives one
        save(mapper, paths[name])
        maps[name] = mapper
    return maps


def _blind(
    recipe: BackdoorRecipe,
    task: TriggerTask,
    source: HookedModel,
    target: HookedModel,
    mapper: AffineMap,
    folder: Path,
    progress: bool,
) -> AffineMap:
    """A map between the same places, fitted on prompts without the trigger."""
    unseen = replace(task, fit_phrases=(task.twin, ""))
    name = mapper.target.hook_point
    maps = _maps(
        recipe, unseen, source.at(mapper.source.hook_point), [target.at(name)],
        folder / "without_trigger", progress,
    )  # fmt: skip
    return maps[name]
