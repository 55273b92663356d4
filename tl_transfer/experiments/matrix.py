"""The matrix experiment: harmless directions between every ordered pair of several models.

Every model is read once, at a few layers, into a store of its own; the map of any pair comes from
two stores. What belongs to a model alone (its native vector, its layer, its random directions) is
made once. Only the moved vectors and those of the shuffled maps are measured for each pair, one of
each for every kind of map. One model is in memory at a time, and every finished piece is kept, so
that a run goes on where it stopped.
"""

import gc
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer import tasks
from tl_transfer.data.splits import require_unseen
from tl_transfer.data.store import ActivationStore
from tl_transfer.data.texts import text_hash
from tl_transfer.errors import InputError
from tl_transfer.evaluation.bench import Bench
from tl_transfer.evaluation.mappers import cells_of, summary
from tl_transfer.evaluation.matrix import TargetBench, native_summary
from tl_transfer.evaluation.report import versions
from tl_transfer.evaluation.select import odd_effects
from tl_transfer.experiments.matrix_kept import Kept, pair
from tl_transfer.experiments.matrix_maps import kind, meeting, move
from tl_transfer.experiments.matrix_recipe import MatrixRecipe
from tl_transfer.experiments.parts import Parts, file_stamps
from tl_transfer.extract import mean_differences
from tl_transfer.models.load import load_model
from tl_transfer.models.record import capture
from tl_transfer.models.surface import HookedModel

FORMAT = "tl_transfer.matrix/1"
Say = Callable[[str], None]
CRITERION = (
    "largest odd effect of the model's own vector on the validation prompts at the KL budget; the "
    "same layer is used when the model is the source and when it is the target, and no pair of "
    "models is looked at"
)


def run(
    recipe: MatrixRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a matrix into a folder; an interrupted run goes on where it stopped.

    Args:
        recipe: What to run.
        folder: Gets ``report.json``, ``report.md``, a page with a heat map for each behaviour
            (``matrix.html``), the stores, the vectors and the finished parts.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.

    Raises:
        InputError: a test prompt was seen by a map or a direction, or no candidate layer of a
            model reaches the damage budget.
    """
    from tl_transfer.experiments import matrix_report

    folder = Path(folder)
    job = _Job(recipe, folder, say or (lambda line: None), progress)
    for name in recipe.labels:
        job.read_model(name)
    job.fit_maps()
    for name in recipe.labels:
        job.measure_target(name)
    report = job.report()
    matrix_report.write(report, folder)
    return report


class _Job:
    """One run: its parts on the disk, and what is left to do."""

    def __init__(self, recipe: MatrixRecipe, folder: Path, say: Say, progress: bool) -> None:
        self.recipe, self.folder, self.say, self.progress = recipe, folder, say, progress
        self.tasks = {
            name: tasks.build(
                name,
                n_contrast=recipe.n_contrast,
                n_fit=recipe.n_fit,
                n_neutral=recipe.n_neutral,
                seed=recipe.seed,
            )
            for name in recipe.behaviours
        }
        documents = {
            text: document
            for task in self.tasks.values()
            for text, document in zip(task.fit_texts, task.fit_documents, strict=True)
        }
        self.texts, self.documents = list(documents), list(documents.values())
        self._require_unseen()
        key = {"recipe": recipe.to_dict(), "files": file_stamps(recipe.models)}
        self.parts = Parts(folder / "parts", key)
        self.kept = Kept(folder, self.parts, list(recipe.labels))

    def _require_unseen(self) -> None:
        """No text of a test part is read for a map or a vector of any behaviour."""
        seen = {"the fit of the maps": {text_hash(text) for text in self.texts}}
        for name, task in self.tasks.items():
            contrast = (*task.positive, *task.negative)
            seen[f"the {name} vector of every model"] = {text_hash(text) for text in contrast}
        for name, task in self.tasks.items():
            tested = {
                f"{name}.test_prompts": task.test_prompts,
                f"{name}.neutral_test": task.neutral_test,
            }
            require_unseen(tested, seen)

    # -- one model alone ---------------------------------------------------------------------

    def read_model(self, name: str) -> None:
        """Store, native vectors and chosen layers of a model."""
        missing = [b for b in self.tasks if not self.kept.has_native(name, b)]
        if not missing and self.kept.has_store(name):
            self.say(f"{name}: read before")
            return
        start = time.perf_counter()
        self.say(f"{name}: reading {len(self.texts)} texts")
        model = self._load(name)
        sites = [model.at(f"resid_post@{layer}") for layer in self._layers(model)]
        capture(
            sites,
            self.texts,
            documents=self.documents,
            store=self.kept.store_folder(name),
            progress=self.progress,
        )
        for behaviour in missing:
            self._choose_layer(name, behaviour, model)
        seconds = round(time.perf_counter() - start, 1)
        self.parts.keep(f"read-{name}", {"seconds": seconds})

    def _choose_layer(self, name: str, behaviour: str, model: HookedModel) -> None:
        self.say(f"{name}: its own {behaviour} vector at {len(self.recipe.depths)} layers")
        task, budget = self.tasks[behaviour], self.recipe.budget
        sites = {
            site.point.name: site
            for site in (model.at(f"resid_post@{layer}") for layer in self._layers(model))
        }
        natives = mean_differences(
            list(sites.values()),
            positive=task.positive,
            negative=task.negative,
        )
        candidates = []
        for point, site in sites.items():
            native = natives[point]
            bench = Bench(site, task, task.validation_prompts, task.neutral_validation)
            (effect,) = odd_effects(native.unit[None], bench, native.median_norm, budget)
            candidates.append(
                {
                    "hook_point": point,
                    "validation_effect": effect,
                    "auroc": native.provenance["auroc"],
                }
            )
        usable = [item for item in candidates if item["validation_effect"] is not None]
        if not usable:
            raise InputError(
                f"{name}: no candidate layer reaches the damage budget for {behaviour}",
                got=f"{len(candidates)} layers, budget {budget}",
                valid="a budget that steering these layers can reach",
                hint="raise the budget, or try other depths",
            )
        best: str = max(usable, key=lambda item: item["validation_effect"])["hook_point"]
        chosen = {
            "chosen": best,
            "candidates": candidates,
            "n_layers": model.n_layers,
            "n_validation": len(task.validation_prompts),
            "note": model.note,
        }
        self.kept.keep_native(name, behaviour, natives[best], chosen)

    # -- pairs, without any model ------------------------------------------------------------

    def fit_maps(self) -> None:
        """Every vector moved through every map of every pair; maps themselves are not kept."""
        stores = {name: self.kept.store(name) for name in self.recipe.labels}
        for source, target in self.recipe.pairs:
            for together in meeting(
                list(self.tasks),
                [(self.kept.native(source, b), self.kept.native(target, b)) for b in self.tasks],
            ):
                for name in self.recipe.mappers:
                    self._fit_map(name, source, target, together, stores)

    def _fit_map(
        self,
        name: str,
        source: str,
        target: str,
        together: Sequence[str],
        stores: dict[str, ActivationStore],
    ) -> None:
        """One map, for the behaviours whose vectors it has not moved yet."""
        left = [b for b in together if not self.kept.has_moved(source, target, b, name)]
        if not left:
            return
        self.say(f"{source} -> {target}: {kind(name).title}, for {', '.join(left)}")
        start = time.perf_counter()
        vectors = [(self.kept.native(source, b), self.kept.native(target, b)) for b in left]
        found = move(name, stores[source], stores[target], vectors, seed=self.recipe.seed)
        for behaviour, moved in zip(left, found, strict=True):
            self.kept.keep_moved(
                (source, target, behaviour, name),
                (moved.vector, moved.wrong),
                moved.entry,
            )
        seconds = round(time.perf_counter() - start, 1)
        self.parts.keep(f"fit-{pair(source, target, together[0])}-{name}", {"seconds": seconds})

    # -- one target at a time ----------------------------------------------------------------

    def measure_target(self, name: str) -> None:
        """Everything that is steered in one model."""
        left = [b for b in self.tasks if self._left(name, b)]
        if not left:
            self.say(f"{name}: measured before")
            return
        start = time.perf_counter()
        model = self._load(name)
        for behaviour in left:
            self._measure(name, behaviour, model)
        seconds = round(time.perf_counter() - start, 1)
        self.parts.keep(f"measured-{name}", {"seconds": seconds})

    def _measure(self, name: str, behaviour: str, model: HookedModel) -> None:
        parts, native = self.kept.on(behaviour), self.kept.native(name, behaviour)
        site = model.at(native.space.hook_point)
        bench = TargetBench(site, self.tasks[behaviour], native, self.recipe.settings)
        home_part = f"home-{behaviour}-{name}"
        home = parts.recall(home_part)
        if home is None:
            self.say(f"{name}: its own {behaviour} vector and {2 * self.recipe.n_random} random")
            own = bench.home(_covariance(self.kept.store(name), native.space.hook_point))
            home = {"arms": own, "words": bench.words, "n_neutral_tokens": bench.n_neutral_tokens}
            parts.keep(home_part, home)
        shown = {"native": (native, home["arms"]["native"][0])}
        for source in self._sources(name):
            part = pair(source, name, behaviour)
            moved = {
                mapper: self.kept.moved(source, name, behaviour, mapper)
                for mapper in self.recipe.mappers
            }
            arms = parts.recall(f"arms-{part}")
            if arms is None:
                self.say(f"{source} -> {name}: {behaviour}")
                arms = bench.pair(moved)
                parts.keep(f"arms-{part}", arms)
            first = self.recipe.mappers[0]
            shown[f"from {source}"] = (moved[first][0], arms[first]["transferred"][0])
        words_part = f"words-{behaviour}-{name}"
        if self.recipe.n_examples and parts.recall(words_part) is None:
            self.say(f"{name}: {behaviour} in words")
            texts = bench.words_of(shown, self.recipe.n_examples, self.recipe.max_new_tokens)
            parts.keep(words_part, texts)

    # -- the report --------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """All cells from the parts; intervals are taken here."""
        behaviours = {name: self._behaviour(name) for name in self.tasks}
        cells = [
            {"behaviour": name, **entry}
            for name, part in behaviours.items()
            for entry in part["cells"]
        ]
        found = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "recipe": self.recipe.to_dict(),
            "versions": versions(),
            "criterion": CRITERION,
            "n_fit_texts": len(self.texts),
            "behaviours": behaviours,
            "mappers": {
                "titles": {name: kind(name).title for name in self.recipe.mappers},
                "overall": summary(cells),
                "by_behaviour": {
                    b: summary([c for c in cells if c["behaviour"] == b]) for b in behaviours
                },
            },
            "seconds": {
                name: [
                    (self.parts.recall(f"{what}-{name}") or {}).get("seconds")
                    for what in ("read", "measured")
                ]
                for name in self.recipe.labels
            },
            "fit_seconds": {name: self._fit_seconds(name) for name in self.recipe.mappers},
        }
        return found | {"codes": sorted({*self.parts.codes.values()})}

    def _fit_seconds(self, mapper: str) -> list[float]:
        """Of every fit by one kind of map, its control included."""
        names = {
            f"fit-{pair(source, target, behaviour)}-{mapper}"
            for source, target in self.recipe.pairs
            for behaviour in self.tasks
        }
        return sorted(found["seconds"] for name in names if (found := self.parts.recall(name)))

    def _behaviour(self, behaviour: str) -> dict[str, Any]:
        task, settings = self.tasks[behaviour], self.recipe.settings
        factors = task.test_factors
        parts = self.kept.on(behaviour)
        homes = {m: parts.recall(f"home-{behaviour}-{m}") for m in self.recipe.labels}
        cells = []
        for source, target in self.recipe.pairs:
            arms = parts.recall(f"arms-{pair(source, target, behaviour)}")
            measured = cells_of(homes[target]["arms"], arms, settings=settings, factors=factors)
            for mapper, found in measured.items():
                key = {"source": source, "target": target, "mapper": mapper}
                entry = self.kept.map_entry(source, target, behaviour, mapper)
                cells.append(key | {"map": entry} | found)
        return {
            "title": task.title,
            "protocol": task.protocol,
            "protocol_note": task.protocol_note,
            "limits": list(task.limits),
            "scorer": task.scorer_name,
            "n_prompts": len(task.test_prompts),
            "models": {
                m: self.kept.choice(m, behaviour)
                | {
                    "words": homes[m]["words"],
                    "n_neutral_tokens": homes[m]["n_neutral_tokens"],
                    "native": native_summary(homes[m]["arms"], seed=settings.seed, factors=factors),
                    "examples": parts.recall(f"words-{behaviour}-{m}"),
                }
                for m in self.recipe.labels
            },
            "cells": cells,
        }

    # -- names -------------------------------------------------------------------------------

    def _load(self, name: str) -> HookedModel:
        gc.collect()  # the model before is gone, its cycles perhaps not
        return load_model(self.recipe.labels[name], name=name, dtype=self.recipe.dtype)

    def _layers(self, model: HookedModel) -> list[int]:
        return sorted({max(0, round(model.n_layers * d) - 1) for d in self.recipe.depths})

    def _left(self, name: str, behaviour: str) -> bool:
        part, parts = f"{behaviour}-{name}", self.kept.on(behaviour)
        wanted = [f"home-{part}", *([f"words-{part}"] if self.recipe.n_examples else [])]
        wanted += [f"arms-{pair(s, name, behaviour)}" for s in self._sources(name)]
        return any(parts.recall(item) is None for item in wanted)

    def _sources(self, target: str) -> list[str]:
        return [name for name in self.recipe.labels if name != target]


def _covariance(store: ActivationStore, hook_point: str) -> Float[Tensor, "d_model d_model"]:
    """Of the rows of a store, in float64."""
    d = store.spaces[hook_point].d_model
    n, total, square = 0, torch.zeros(d).double(), torch.zeros(d, d).double()
    for batch in store.batches(hook_points=[hook_point]):
        rows = batch.values[hook_point].double()
        n, total, square = n + len(rows), total + rows.sum(0), square + rows.T @ rows
    mean = total / n
    return square / n - torch.outer(mean, mean)
