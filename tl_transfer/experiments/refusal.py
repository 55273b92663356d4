"""The refusal experiment: direction chosen in the source alone, carried over, used both ways.

Steps: contrast and choice of the direction in the source; a map fitted on unlabelled requests to
several layers of the target; the target layer at which the map explains most of the direction (no
label is used for it); the target's own direction for comparison; all arms on the test requests.
Every finished step is kept, so that an interrupted run goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.dialogue import give_template
from tl_transfer.data.encode import EncodedText
from tl_transfer.data.requests import labelled_answers
from tl_transfer.data.texts import text_hash
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.evaluation.answers import Answer, opener_ids, opener_log_odds
from tl_transfer.evaluation.rate_report import RateSettings, evaluate_rates
from tl_transfer.evaluation.rates import agreement
from tl_transfer.experiments.parts import Parts, conclude, parts_of
from tl_transfer.experiments.settings import Settings
from tl_transfer.extract import mean_differences
from tl_transfer.extract.reading import encode_prompts, user_messages
from tl_transfer.interventions import Ablate, Add, Intervention
from tl_transfer.mappers.base import AffineMap
from tl_transfer.mappers.fit import fit_grid
from tl_transfer.mappers.transfer import transfer
from tl_transfer.models.attach import attach
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.persistence import load, save
from tl_transfer.positions import everywhere
from tl_transfer.tasks.refusal import RefusalTask, refusal
from tl_transfer.tasks.refusal_scorer import OPENERS, has_refusal_phrase
from tl_transfer.vectors import SteeringVector

Say = Callable[[str], None]

#: The last token before the model answers.
BEFORE_ANSWER = Tokens("last", of="template")

#: Candidate layers, as shares of the depth; past 0.8 a direction is the answer, not its cause.
DEPTHS = (0.42, 0.5, 0.58, 0.66, 0.74)
CRITERION = (
    "largest drop of the first-token refusal odds on harmful validation requests when the "
    "direction is removed, plus rise on harmless ones when it is added as extracted"
)


@dataclass(frozen=True)
class RefusalRecipe(Settings):
    """One refusal experiment.

    Attributes:
        source: Source model (anything `load_model` takes as text).
        target: Target model.
        task: ``"refusal"``.
        dtype: Of both models; bfloat16 halves the time on a CPU that has it.
        source_layers: Candidate source layers; empty: `DEPTHS`.
        target_layers: Candidate target layers; empty: `DEPTHS`.
        n_contrast: Requests of each pole for the directions.
        n_validation: Requests of each pole for choosing them.
        n_fit: Texts of the map.
        n_test: Requests of each test part.
        n_neutral: Passages of prose for damage, on validation and on test each.
        budget: KL on neutral prose at which added directions are compared.
        n_random: Directions of each random kind.
        max_new_tokens: Length limit of an answer.
        seed: Of every choice.
    """

    source: str = "qwen2.5-coder-1.5b-instruct"
    target: str = "qwen2.5-coder-0.5b-instruct"
    task: str = "refusal"
    dtype: str = "bfloat16"
    source_layers: tuple[int, ...] = ()
    target_layers: tuple[int, ...] = ()
    n_contrast: int = 48
    n_validation: int = 16
    n_fit: int = 300
    n_test: int = 100
    n_neutral: int = 16
    budget: float = 0.25
    n_random: int = 2
    max_new_tokens: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("n_contrast", "n_validation", "n_test", "n_neutral", "n_random")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{name}: not valid", got=getattr(self, name), valid="at least 1")
        if self.task != "refusal" or not self.budget > 0 or self.max_new_tokens < 1:
            raise self.refused(
                f"budget {self.budget}, {self.max_new_tokens} tokens",
                "budget above 0, max_new_tokens at least 1",
            )

    def plan(self) -> list[str]:
        """What a run would do."""
        n = self.n_random
        parts = {"harmful": 4 + 2 * n, "harmless": 4 + 4 * n, "edgy": 5}
        return [
            f"load {self.source} and {self.target} in {self.dtype}",
            f"contrast on {2 * self.n_contrast} requests and choice on {2 * self.n_validation} in "
            "each model",
            f"map on {self.n_fit} texts",
            f"answers of {self.max_new_tokens} tokens to {self.n_test} requests under "
            + ", ".join(f"{arms} arms ({part})" for part, arms in parts.items()),
        ]

    def build_task(self) -> RefusalTask:
        """The task with this recipe's sizes."""
        return refusal(
            n_contrast=self.n_contrast,
            n_validation=self.n_validation,
            n_fit=self.n_fit,
            n_test=self.n_test,
            n_neutral=self.n_neutral,
            seed=self.seed,
        )


def run(
    recipe: RefusalRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a refusal experiment into a folder; an interrupted run goes on where it stopped.

    Args:
        recipe: What to run.
        folder: Gets ``report.json``, ``mapper.safetensors``, ``vector.safetensors``,
            ``native.safetensors`` and the finished parts.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    say(f"loading {recipe.target}")
    target = load_model(recipe.target, dtype=recipe.dtype)
    say(f"loading {recipe.source}")
    source = load_model(recipe.source, dtype=recipe.dtype)
    for model in (source, target):
        give_template(model.tokenizer)
    task = recipe.build_task()
    parts = parts_of(folder, recipe, (source, target), task)
    vector, chosen = find_direction(
        source, task, _sites(recipe.source_layers, source), parts, "source", say=say
    )
    native, native_chosen = find_direction(
        target, task, _sites(recipe.target_layers, target), parts, "target", say=say
    )
    parts = parts.under(source=vector.space.hook_point, native=native.space.hook_point)
    mapper, layers = fit_map(recipe, task, vector, source, target, folder, parts, say, progress)
    parts = parts.under(target=mapper.target.hook_point)
    native = _native_at(native, mapper, target, task)
    save(vector, folder / "vector.safetensors")
    save(native, folder / "native.safetensors")
    report = evaluate_rates(
        task,
        vector,
        native,
        mapper,
        source=source,
        target=target,
        settings=RateSettings(recipe.budget, recipe.n_random, recipe.max_new_tokens, recipe.seed),
        selection={"source": chosen, "native": native_chosen, "target_layer": layers},
        recall=lambda name: _answers(parts.recall(name)),
        keep=lambda name, answers: parts.keep(name, [item.to_dict() for item in answers]),
        say=say,
        progress=progress,
    )
    report["scorer_check"] = scorer_check(recipe.seed)
    return conclude(report, recipe.to_dict(), parts, folder)


def scorer_check(seed: int = 0) -> dict[str, Any]:
    """How the refusal phrases agree with people's labels (PyRIT's labelled answers)."""
    rows = labelled_answers()
    on_topic = [row for row in rows if not row.off_topic]
    return {
        name: agreement(
            [has_refusal_phrase(row.answer) for row in part],
            [row.refused for row in part],
            seed=seed,
        )
        for name, part in (("all", rows), ("on_topic", on_topic))
    }


def _answers(stored: Any) -> list[Answer] | None:
    return None if stored is None else [Answer(**item) for item in stored]


def _sites(layers: Sequence[int], model: HookedModel) -> list[int]:
    return list(layers) or sorted({round(model.n_layers * share) - 1 for share in DEPTHS})


def find_direction(
    model: HookedModel,
    task: RefusalTask,
    layers: Sequence[int],
    parts: Parts,
    side: str,
    *,
    say: Say,
) -> tuple[SteeringVector, dict[str, Any]]:
    """The refusal direction of a model: mean difference at the last token before the answer.

    One candidate a layer; the best by `CRITERION` on validation requests is kept.

    Args:
        model: In which it is found; no other model is used.
        task: Its contrast and validation parts.
        layers: Candidates.
        parts: Finished candidates are kept.
        side: ``source`` or ``target``, for their names.
        say: Told what is happening.
    """
    vectors = _candidates(model, task, layers, parts, side, say)
    openers = opener_ids(OPENERS, model)
    bad = encode_prompts(model, user_messages(task.harmful_validation))
    good = encode_prompts(model, user_messages(task.harmless_validation))
    base = parts.recall(f"{side}-unsteered")
    if base is None:
        base = [_odds(model, bad, [], openers), _odds(model, good, [], openers)]
        parts.keep(f"{side}-unsteered", base)
    candidates = []
    for name, vector in vectors.items():
        part = f"{side}-{name}"
        found = parts.recall(part)
        if found is None:
            say(f"{side}: trying {name} on validation requests")
            remove = Ablate(vector, layers="all", where=everywhere(sinks=True))
            add = Add(vector, strength=vector.natural_strength)
            found = [_odds(model, bad, [remove], openers), _odds(model, good, [add], openers)]
            parts.keep(part, found)
        candidates.append(
            {
                "hook_point": name,
                "natural_strength": vector.natural_strength,
                "auroc": vector.provenance.get("auroc"),
                "odds_harmful": [base[0], found[0]],
                "odds_harmless": [base[1], found[1]],
                "score": (base[0] - found[0]) + (found[1] - base[1]),
            }
        )
    best = max(candidates, key=lambda item: item["score"])
    vector = vectors[best["hook_point"]]
    seen = [text_hash(t) for t in (*task.harmful_validation, *task.harmless_validation)]
    provenance = {**vector.provenance, "selection_texts": sorted(seen)}
    section = {
        "criterion": CRITERION,
        "n_validation": len(bad) + len(good),
        "chosen": best["hook_point"],
        "candidates": candidates,
    }
    return replace(vector, provenance=provenance), section


def _candidates(
    model: HookedModel,
    task: RefusalTask,
    layers: Sequence[int],
    parts: Parts,
    side: str,
    say: Say,
) -> dict[str, SteeringVector]:
    """Hook point -> mean difference there, from an earlier run or from one pass."""
    sites = [model.at(f"resid_post@{layer}") for layer in layers]
    paths = {
        site.point.name: parts.folder / f"{side}-{site.point.name}.safetensors" for site in sites
    }
    if parts.recall(f"{side}-contrast") == list(paths):
        kept = {name: load(path) for name, path in paths.items() if path.is_file()}
        vectors = {k: v for k, v in kept.items() if isinstance(v, SteeringVector)}
        if list(vectors) == list(paths):
            return vectors
    say(f"{side}: contrast at layers {', '.join(map(str, layers))}")
    vectors = dict(
        mean_differences(
            sites,
            positive=user_messages(task.harmful),
            negative=user_messages(task.harmless),
            positions=BEFORE_ANSWER,
        )
    )
    for name, path in paths.items():
        save(vectors[name], path)
    parts.keep(f"{side}-contrast", list(paths))
    return vectors


@torch.no_grad()
def _odds(
    model: HookedModel,
    chats: Sequence[EncodedText | EncodedChat],
    interventions: Sequence[Intervention],
    openers: Tensor,
) -> float:
    """Mean first-token refusal odds over requests."""
    total = 0.0
    for index in by_length([len(chat.ids) for chat in chats], max_tokens=2048):
        pad_id = model.tokenizer.pad_token_id or 0
        batch = pad([chats[i].ids for i in index], side="left", pad_id=pad_id)
        tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
        with attach(model, *interventions) as live:
            logits = live.logits(tokens, mask, keep=1)[:, -1]
        total += float(opener_log_odds(logits, openers).sum())
    return total / len(chats)


def fit_map(
    recipe: RefusalRecipe,
    task: RefusalTask,
    vector: SteeringVector,
    source: HookedModel,
    target: HookedModel,
    folder: Path,
    parts: Parts,
    say: Say,
    progress: bool,
) -> tuple[AffineMap, dict[str, Any]]:
    """A map from the direction's layer to every candidate layer of the target; the best is kept.

    The best is where the held-out rows of the direction are explained best: no label is used, so
    the protocol level is that of the fitting texts.
    """
    kept = parts.recall("map")
    path = folder / "mapper.safetensors"
    if kept is not None and path.is_file():
        found = load(path)
        if isinstance(found, AffineMap) and found.source == vector.space:
            return found, kept
    layers = _sites(recipe.target_layers, target)
    say(f"fitting the map on {len(task.fit_texts)} requests and passages")
    maps = fit_grid(
        [source.at(vector.space.hook_point)],
        [target.at(f"resid_post@{layer}") for layer in layers],
        texts=user_messages(task.fit_texts),
        documents=task.fit_documents,
        tokens=Tokens(of="both"),  # the direction was read at a token of the template
        seed=recipe.seed,
        progress=progress,
    )
    candidates = [
        {
            "hook_point": there,
            "held_out_fvu": mapper.scorecard["held_out"]["fvu"],
            "direction_r2": transfer(vector, mapper).provenance["direction_r2"],
        }
        for (_, there), mapper in maps.items()
    ]
    best = max(candidates, key=lambda item: item["direction_r2"])
    section = {
        "criterion": "largest held-out share of variance explained along the moved direction; "
        "no label of the target is used",
        "chosen": best["hook_point"],
        "candidates": candidates,
    }
    mapper = maps[vector.space.hook_point, best["hook_point"]]
    assert isinstance(mapper, AffineMap)  # ridge gives one
    save(mapper, path)
    parts.keep("map", section)
    return mapper, section


def _native_at(
    native: SteeringVector, mapper: AffineMap, target: HookedModel, task: RefusalTask
) -> SteeringVector:
    """The target's own direction at the layer where the moved one acts.

    Removal acts everywhere whatever the layer it was read at, but addition has one place; both
    directions are added there, so that nothing but the direction differs.
    """
    if native.space == mapper.target:
        return native
    here = mean_differences(
        [target.at(mapper.target.hook_point)],
        positive=user_messages(task.harmful),
        negative=user_messages(task.harmless),
        positions=BEFORE_ANSWER,
    )[mapper.target.hook_point]
    selection = {"selection_texts": native.provenance["selection_texts"]}
    return replace(here, provenance={**here.provenance, **selection})
