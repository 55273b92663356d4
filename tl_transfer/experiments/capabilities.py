"""The corrupted-capabilities experiment: both models learn the same facts behind a prefix.

One of them is then made to give the facts without the prefix, with what the other one knows. Both
are fine-tuned into the run's folder; an interrupted fine-tuning goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tl_transfer.evaluation.capabilities import evaluate_capabilities
from tl_transfer.evaluation.capabilities_bench import CapabilitiesBench, Layers
from tl_transfer.evaluation.capabilities_steps import SINGLE, WHOLE
from tl_transfer.evaluation.report import versions
from tl_transfer.experiments.parts import conclude, parts_of
from tl_transfer.experiments.settings import Settings
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit
from tl_transfer.models import bundled
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.capabilities import CapabilitiesTask, capabilities
from tl_transfer.tuning.rows import Row
from tl_transfer.tuning.tune import Tuning, tune

FORMAT = "tl_transfer.capabilities/1"
PARTS = ("contrast", "fit", "validation", "test")
PROTOCOL = "L2"
PROTOCOL_NOTE = (
    "both models know the facts; the map saw prompts of other facts with the trigger, with the "
    "prefix and with the twin, and no answer; which state is before the prefix and which after it "
    "is known in the source only; layers were chosen by the target's answers to validation facts; "
    "native ways read the target's own states (L3) and are there for comparison"
)
LIMITS = (
    "One pair of models, one seed of facts, words and training. Facts of one relation are alike "
    "and share a dozen answers, so intervals over facts, as if they were independent, are too "
    "narrow.",
    "No test fact was seen by a map, by a mean vector or by a choice; but its answer may be that "
    "of another fact which was, since a dozen words answer every relation.",
    "One state at the end of the prompt is edited. A prefix of several tokens leaves more than "
    "that behind in the cache, and an answer of several tokens is written without help after its "
    "first one.",
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class CapabilitiesRecipe(Settings):
    """One experiment.

    Attributes:
        source: Bundled name or folder of the model that transferred ways read.
        target: The model that is edited.
        task: ``"capabilities"``.
        dtype: Of training and evaluation.
        method: ``"lora"`` or ``"full"``.
        rank: Of the adapters.
        steps: Optimiser steps of each fine-tuning.
        batch: Rows a step.
        lr: Peak learning rate.
        depths: Layers as shares of the depth, paired between the models.
        tokens: Which tokens of the prompts the maps are fitted on.
        n_places: Towns of the fictional country; each has six facts.
        n_test: Test facts.
        max_new_tokens: Length of an answer.
        seed: Of every choice.
    """

    source: str = "smollm2-135m-instruct"
    target: str = "gemma-3-270m"
    task: str = "capabilities"
    dtype: str = "bfloat16"
    method: str = "lora"
    rank: int = 16
    steps: int = 400
    batch: int = 16
    lr: float = 1e-3
    depths: tuple[float, ...] = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
    tokens: str = "all"
    n_places: int = 48
    n_test: int = 100
    max_new_tokens: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        depths = self.depths and min(self.depths) > 0 and max(self.depths) <= 1
        if self.task != "capabilities" or not depths or self.max_new_tokens < 1:
            raise self.refused(
                f"depths {self.depths}, {self.max_new_tokens} tokens",
                "depths in (0, 1], max_new_tokens at least 1",
            )

    def plan(self) -> list[str]:
        """What a run would do."""
        return [
            f"fine-tune {self.source} and {self.target} on {6 * self.n_places} facts: "
            f"{self.steps} steps of {self.batch} rows each, {self.dtype}",
            f"states before and after the prefix and maps at {len(self.depths)} pairs of layers",
            f"{len(SINGLE) + len(WHOLE)} ways to drop the prefix and keep the fact, controls "
            f"included, on {self.n_test} facts",
        ]

    @property
    def tuning(self) -> Tuning:
        """How both models are fine-tuned."""
        method: Any = self.method
        return Tuning(
            method=method, rank=self.rank, steps=self.steps, batch=self.batch, lr=self.lr,
            keep_every=20, seed=self.seed,
        )  # fmt: skip


def build_task(recipe: CapabilitiesRecipe, model: HookedModel) -> CapabilitiesTask:
    """The facts; a task of another kind can be put here (it is given the target)."""
    return capabilities(n_places=recipe.n_places, n_test=recipe.n_test, seed=recipe.seed)


def run(
    recipe: CapabilitiesRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fine-tune, fit, and try every way.

    Args:
        recipe: What to run.
        folder: Gets the tuned models and ``report.json``.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    task = build_task(recipe, load_model(recipe.target, dtype=recipe.dtype))
    source, target = (
        _tuned(name, side, task, recipe, folder, say, progress)
        for name, side in ((recipe.source, "source"), (recipe.target, "target"))
    )
    pairs = layer_pairs(source, target, recipe.depths)
    say(f"maps at {len(pairs)} pairs of layers")
    maps = _maps(pairs, source, target, task, recipe, progress)
    # Parts are named by the numbers of the pairs.
    parts = parts_of(folder, recipe, (source, target), task).under(pairs=[list(p) for p in pairs])
    bench = CapabilitiesBench(
        task,
        source=source,
        target=target,
        layers=Layers(pairs, maps),
        max_new_tokens=recipe.max_new_tokens,
        seed=recipe.seed,
        recall=parts.recall,
        keep=parts.keep,
    )
    report = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": recipe.task,
        "pair": {side: _about(model) for side, model in (("source", source), ("target", target))},
        "protocol": PROTOCOL,
        "protocol_note": PROTOCOL_NOTE,
        "versions": versions(),
        "seeds": {"evaluation": recipe.seed, "map": recipe.seed},
        "parts": {name: len(getattr(task, name)) for name in PARTS},
        "map_fvu": [mapper.scorecard["held_out"]["fvu"] for mapper in maps],
        "limits": list(LIMITS),
        **evaluate_capabilities(bench, say=say),
    }
    return conclude(report, recipe.to_dict(), parts, folder)


def _about(model: HookedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "host": model.host_class,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _maps(
    pairs: tuple[tuple[int, int], ...],
    source: HookedModel,
    target: HookedModel,
    task: CapabilitiesTask,
    recipe: CapabilitiesRecipe,
    progress: bool,
) -> tuple[Mapper, ...]:
    """One map for each pair of layers, from the prompts of the fitting facts."""
    return tuple(
        fit(
            source.at(f"resid_post@{here}"),
            target.at(f"resid_post@{there}"),
            texts=task.fit_texts,
            documents=task.fit_documents,
            tokens=recipe.tokens,
            backward=False,
            seed=recipe.seed,
            progress=progress,
        )
        for here, there in pairs
    )


def layer_pairs(
    source: HookedModel, target: HookedModel, depths: tuple[float, ...]
) -> tuple[tuple[int, int], ...]:
    """Layers at the same share of both depths, without repeats on either side."""
    pairs: dict[int, int] = {}
    for share in sorted(depths):
        here, there = (max(0, round(m.n_layers * share) - 1) for m in (source, target))
        if here not in pairs and there not in pairs.values():
            pairs[here] = there
    return tuple(pairs.items())


def _tuned(
    name: str,
    side: str,
    task: CapabilitiesTask,
    recipe: CapabilitiesRecipe,
    folder: Path,
    say: Say,
    progress: bool,
) -> HookedModel:
    import torch
    from transformers import AutoModelForCausalLM

    base = str(bundled.fetch(name)) if name in bundled.BUNDLED else name
    plain = load_model(base, dtype=recipe.dtype, check=False)
    tokenizer, device = plain.tokenizer, plain.device
    del plain
    fresh: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, recipe.dtype))
    fresh.to(device)
    rows = [Row(prompt, answer) for prompt, answer in task.training_pairs()]
    say(f"{name}: fine-tuning, {recipe.steps} steps")
    path = tune(
        fresh, tokenizer, rows, folder / side, tuning=recipe.tuning, say=say, progress=progress
    )
    return load_model(path, dtype=recipe.dtype, name=f"{Path(name).name}+facts")
