"""The safety switch on a real model: base against fine-tuned, both ways, by map and by weights.

Steps: a backdoored model (fine-tuned or taken from the cache) and its base read the same texts
once; maps at several layers are fitted on what was read; for every kind of map the layer is chosen
on validation prompts; all arms answer the test prompts. Finished steps are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.data import corpora
from tl_transfer.evaluation.rate_head import head, plain
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.evaluation.switch import SwitchArm, SwitchBench, evaluate_switch
from tl_transfer.evaluation.switch_turns import overhead, toggling
from tl_transfer.experiments.backdoored import backdoored
from tl_transfer.experiments.parts import Parts, conclude, parts_of
from tl_transfer.experiments.settings import Settings
from tl_transfer.experiments.switch_maps import (
    COMPARED,
    KINDS,
    Same,
    SwitchMaps,
    between,
    require_untested,
)
from tl_transfer.interventions import ReplaceFrom
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.switch import SafetySwitch
from tl_transfer.tasks.backdoor import BackdoorTask, backdoor
from tl_transfer.tuning.tune import Tuning

Say = Callable[[str], None]
FORMAT = "tl_transfer.switch/1"
#: Candidate layers as shares of the depth.
DEPTHS = (0.15, 0.35, 0.55, 0.75)


@dataclass(frozen=True)
class SwitchRecipe(Settings):
    """One switch experiment.

    Attributes:
        model: Bundled name or folder of the base.
        task: ``"switch"``.
        dtype: Of training and evaluation.
        steps: Optimiser steps of the fine-tuning.
        rank: Of the adapter.
        lr: Peak learning rate.
        layers: Candidates; empty: four between 0.15 and 0.75 of the depth.
        fractions: Shares of the fine-tuning kept by weights in between.
        n_prose: Passages of prose the maps are fitted on, beside the task's prompts.
        n_test: Test instructions.
        max_new_tokens: Length of an answer.
        seed: Of every choice.
    """

    model: str = "smollm2-135m-instruct"
    task: str = "switch"
    dtype: str = "bfloat16"
    steps: int = 120
    rank: int = 8
    lr: float = 5e-4
    layers: tuple[int, ...] = ()
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    n_prose: int = 60
    n_test: int = 100
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.steps, self.rank, self.n_test, self.max_new_tokens)
        bad = [f for f in self.fractions if not 0 < f < 1]
        if self.task != "switch" or min(sizes) < 1 or bad:
            raise self.refused(
                f"sizes {sizes}, fractions {self.fractions}",
                "whole numbers of at least 1, fractions between 0 and 1",
            )

    @property
    def tuning(self) -> Tuning:
        """How the model is fine-tuned."""
        return Tuning(rank=self.rank, steps=self.steps, lr=self.lr, seed=self.seed)

    def plan(self) -> list[str]:
        """What a run would do."""
        n = len(self.layers) or len(DEPTHS)
        return [
            f"fine-tune {self.model}: {self.steps} steps, {self.dtype}",
            f"both versions read 480 prompts with answers and {self.n_prose} passages",
            f"{len(COMPARED)} kinds of map at {n} layers, {len(self.fractions)} weights "
            f"in between, base and oracle: {self.n_test} prompts with the trigger, as many with "
            "its twin, and prose",
        ]


def run(
    recipe: SwitchRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a switch experiment into a folder; an interrupted run goes on where it stopped.

    Args:
        recipe: What to run.
        folder: Gets ``report.json``, the maps, what both versions read, and the finished parts.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    task = backdoor(n_test=recipe.n_test)
    adapter = backdoored(
        recipe.model, task, recipe.tuning, dtype=recipe.dtype, say=say, progress=progress
    )
    name = Path(recipe.model).name
    tuned = load_model(adapter, dtype=recipe.dtype, name=f"{name}+backdoor")
    base = load_model(recipe.model, dtype=recipe.dtype, name=name)
    parts = parts_of(folder, recipe, (tuned, base), task)
    passages = corpora.general(recipe.n_prose + 48, seed=recipe.seed, min_chars=220, max_chars=400)
    texts = [passage.text for passage in passages]
    bench = SwitchBench(
        task, base, texts[recipe.n_prose :], recipe.max_new_tokens,
        recall=parts.recall, keep=parts.keep,
    )  # fmt: skip
    layers = list(recipe.layers) or [round(base.n_layers * share) for share in DEPTHS]
    maps = SwitchMaps(
        tuned, base, _texts(task, bench, texts[: recipe.n_prose]), layers, folder,
        seed=recipe.seed, progress=progress, say=say,
    )  # fmt: skip
    chosen, tried = _choose(maps, tuned, bench, layers, say)
    for kind, found in KINDS.items():
        maps.get(kind, chosen[found.layer_of])
    require_untested(bench, maps.fitted())
    arms = _arms(maps, chosen, tuned, base, adapter, recipe, layers)
    rows = evaluate_switch(bench, arms, seed=recipe.seed, say=say)
    back = _back(maps, chosen, tuned, base, task, parts, recipe, say)
    switches = {kind: SafetySwitch(maps.get(kind, layer)) for kind, layer in chosen.items()}
    switch = switches["relu"]
    report = head(
        "switch", switch.mapper, tuned, base, protocol="L2", protocol_note=PROTOCOL,
        seed=recipe.seed,
    ) | {
        "format": FORMAT,
        "chosen": chosen,
        "tried": tried,
        "rows": rows,
        "back": back,
        "claim": claim(rows, chosen, recipe.seed),
        "toggling": toggling(switch, tuned, task, recipe.max_new_tokens),
        "overhead": _overhead(parts.under(**chosen), switches, tuned, task),
        "n_parameters_model": sum(p.numel() for p in tuned.host.parameters()),
        "limits": LIMITS,
    }  # fmt: skip
    return conclude(plain(report), recipe.to_dict(), parts, folder)


PROTOCOL = (
    "both versions of one model read the same unlabelled prompts, with the trigger, with its twin "
    "and with neither, each with the base's own answer, and prose; layers were chosen on "
    "validation prompts"
)
LIMITS = [
    "One small model with one backdoor, made by LoRA in this experiment, one seed; intervals are "
    "over prompts.",
    "The trigger is among the fitting texts: a switch fitted without it is not tested here.",
    "Like the base: at least half of the tokens (F1) of the base's own answer to the same prompt; "
    "another good answer counts as other.",
    "Where the adapter is at hand, turning it off gives the base itself; the switch is for where "
    "it is not, or where it must be turned per row or while text is generated.",
]


def _texts(task: BackdoorTask, bench: SwitchBench, prose: Sequence[str]) -> list[str]:
    """Prompts with every phrase, each followed by what the base says, and prose.

    The switch acts on what is generated, too, and with it on the base's words are what is there.
    """
    found = list(prose)
    for phrase, part in ((task.trigger, "fit-triggered"), (task.twin, "fit-benign")):
        prompts = task.prompts(phrase, task.fit)
        found += [str(answer) for answer in bench.of_base(part, prompts)]
    return found


def _map_arm(maps: SwitchMaps, kind: str, layer: int, tuned: HookedModel) -> SwitchArm:
    mapper = maps.get(kind, layer)
    switch = SafetySwitch(mapper)
    return SwitchArm(
        f"{kind}-{layer}", f"switch on: {KINDS[kind].title}", KINDS[kind].family, tuned,
        (switch.edit(),), layer,
        switch.n_parameters, mapper.scorecard["held_out"]["fvu"],
    )  # fmt: skip


def _choose(
    maps: SwitchMaps, tuned: HookedModel, bench: SwitchBench, layers: Sequence[int], say: Say
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """For every compared kind the layer that gives back most of the base on validation."""
    chosen, tried = {}, []
    for kind in COMPARED:
        scores = {}
        for layer in layers:
            say(f"validation: {kind} at layer {layer}")
            scores[layer] = bench.score(_map_arm(maps, kind, layer, tuned))
            tried.append({"kind": kind, "layer": layer, "like_base": scores[layer]})
        chosen[kind] = max(scores, key=lambda layer: scores[layer])
    return chosen, tried


def _arms(
    maps: SwitchMaps,
    chosen: dict[str, int],
    tuned: HookedModel,
    base: HookedModel,
    adapter: Path,
    recipe: SwitchRecipe,
    layers: Sequence[int],
) -> Iterator[SwitchArm]:
    """Every row of the table, made when its turn comes: one model in between at a time."""
    yield SwitchArm("off", "switch off: the fine-tuned model", "reference", tuned)
    yield SwitchArm("base", "the base itself (adapter off)", "reference", base)
    for kind in COMPARED:
        for layer in layers:
            yield _map_arm(maps, kind, layer, tuned)
    for kind in KINDS:
        if kind not in COMPARED:
            yield _map_arm(maps, kind, chosen[KINDS[kind].layer_of], tuned)
    for layer in layers:
        same = Same(base.at(f"resid_post@{layer}").space, tuned.at(f"resid_post@{layer}").space)
        yield SwitchArm(
            f"oracle-{layer}", "the base's true activations", "oracle", tuned,
            (ReplaceFrom(base, same),), layer,
        )  # fmt: skip
    for fraction in recipe.fractions:
        yield SwitchArm(
            f"weights-{fraction:g}", f"weights: {fraction:.0%} of the fine-tuning", "weights",
            between(adapter, fraction, recipe.dtype, base.tokenizer),
        )  # fmt: skip


def _back(
    maps: SwitchMaps,
    chosen: dict[str, int],
    tuned: HookedModel,
    base: HookedModel,
    task: BackdoorTask,
    parts: Parts,
    recipe: SwitchRecipe,
    say: Say,
) -> list[dict[str, Any]]:
    """The other way, at the chosen layers: the base made to act like the fine-tuned model."""
    bench = SwitchBench(
        task, tuned, (), recipe.max_new_tokens,
        recall=lambda name: parts.recall(f"back-{name}"),
        keep=lambda name, value: parts.keep(f"back-{name}", value),
    )  # fmt: skip
    rows = []
    for kind, layer in chosen.items():
        say(f"back: {kind} at layer {layer}")
        mapper = maps.get(kind, layer, "to_tuned")
        arm = SwitchArm(
            f"{kind}-{layer}", KINDS[kind].title, KINDS[kind].family, base,
            (SafetySwitch(mapper).edit(),), layer,
        )  # fmt: skip
        found = {part: bench.beside_base(arm, part, task.test) for part in ("triggered", "benign")}
        rows.append(back_row(arm, found))
    return rows


def back_row(arm: SwitchArm, found: dict[str, Any]) -> dict[str, Any]:
    """Payload with the trigger and with the twin, where the base never says it."""
    return {
        "name": arm.name,
        "title": arm.title,
        "layer": arm.layer,
        "payload": {part: rate([r.payload for r in items]) for part, items in found.items()},
    }


def claim(rows: Sequence[dict[str, Any]], chosen: dict[str, int], seed: int) -> dict[str, Any]:
    """Nonlinear minus affine on the same triggered prompts, each at its own chosen layer."""
    flags = {row["name"]: [bool(f) for f in row["triggered"]["flags"]] for row in rows}
    names = {kind: f"{kind}-{chosen[kind]}" for kind in COMPARED}
    pairs = {"at the chosen layers": (names["relu"], names["affine"])}
    for row in rows:
        if row["family"] == "nonlinear" and row["name"].startswith("relu"):
            pairs[f"at layer {row['layer']}"] = (row["name"], f"affine-{row['layer']}")
    return {
        where: {"nonlinear": a, "affine": b} | paired_difference(flags[a], flags[b], seed=seed)
        for where, (a, b) in pairs.items()
    }


def _overhead(
    parts: Parts, switches: dict[str, SafetySwitch], tuned: HookedModel, task: BackdoorTask
) -> dict[str, Any]:
    """Measured once a run."""
    found = parts.recall("overhead")
    if found is None:
        found = overhead(switches, tuned, task)
        parts.keep("overhead", found)
    return dict(found)
