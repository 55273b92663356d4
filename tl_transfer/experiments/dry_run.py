"""dry_run: is a recipe complete? Names, shapes, layers, template, trigger, memory; no weights.

The models are built on the meta device, so that a plan for a GPU is checked before the GPU is
there. What needs a file that is not on this machine is said to be unchecked, never assumed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_transfer.data.chat import encode_chat
from tl_transfer.data.dialogue import give_template
from tl_transfer.data.encode import encode
from tl_transfer.errors import TransferError
from tl_transfer.experiments import memory
from tl_transfer.extract.phrase_pairs import phrase_ends
from tl_transfer.models import bundled
from tl_transfer.models.published import PUBLISHED
from tl_transfer.models.skeleton import Skeleton, skeleton
from tl_transfer.tasks.trigger import TriggerTask

#: Prompts of which the trigger's tokens are compared.
N_PROMPTS = 8


@dataclass(frozen=True)
class Check:
    """One thing a run depends on.

    Attributes:
        what: What was looked at.
        passed: None: it cannot be checked on this machine.
        said: What was found.
    """

    what: str
    passed: bool | None
    said: str

    def __str__(self) -> str:
        result = {True: "ok", False: "FAILS", None: "not checked"}[self.passed]
        return f"{self.what}: {result}; {self.said}"


def dry_run(recipe: Any) -> list[Check]:
    """Check a recipe without weights and without a network.

    Args:
        recipe: Of any task (see `tl_transfer.experiments.registry`).

    Returns:
        The checks, in the order in which a run would meet them.
    """
    checks: list[Check] = []
    found: dict[str, Skeleton] = {}
    for side, name in _models(recipe).items():
        checks += _model(side, name, _layers(recipe, side), found)
        checks += _tokenizer(name, recipe)
    checks += _memory(recipe, found, complete=len(found) == len(set(_models(recipe).values())))
    return checks


def _models(recipe: Any) -> dict[str, str]:
    """Side -> name."""
    if hasattr(recipe, "models"):
        return {str(i): name for i, name in enumerate(recipe.models)}
    if hasattr(recipe, "model"):
        return {"model": recipe.model}
    return {"source": recipe.source, "target": recipe.target}


def _layers(recipe: Any, side: str) -> list[int | str]:
    return list(getattr(recipe, f"{side}_layers", ()) or getattr(recipe, "layers", ()))


def _model(
    side: str, name: str, layers: list[int | str], found: dict[str, Skeleton]
) -> Iterator[Check]:
    """Name, shape and hook points of one model."""
    known = _tried(f"{name}: shape", lambda: skeleton(name))
    if isinstance(known, Check):
        yield known
        return
    if known is None:
        said = "neither published here, nor bundled and fetched, nor a folder"
        yield Check(f"{name}: shape", None, said)
        return
    found[name] = known
    config, n = known.model.config, known.n_params
    shape = f"{config.num_hidden_layers} layers of width {config.hidden_size}, "
    shape += f"{n:,} parameters ({known.known_from})"
    right = known.stated in (None, n)
    yield Check(f"{name}: shape", right, shape + ("" if right else f", stated {known.stated:,}"))
    gated = name in PUBLISHED and PUBLISHED[name].gated
    if gated:
        yield Check(f"{name}: licence", None, "gated: accept it on the hub and log in first")
    points = layers or [0, int(config.num_hidden_layers) - 1]

    def resolve() -> Check:
        hooked = known.hooked()
        names = [hooked.at(p if isinstance(p, str) else f"resid_post@{p}").point for p in points]
        said = f"{', '.join(p.name for p in names)} of {type(known.model).__name__}"
        return Check(f"{name}: hook points", True, said)

    yield _tried(f"{name}: hook points ({side})", resolve)


def _tokenizer(name: str, recipe: Any) -> Iterator[Check]:
    """Template and trigger, with the model's own tokenizer if it is on this machine."""
    tokenizer, of = _local_tokenizer(name)
    if tokenizer is None:
        yield Check(f"{name}: tokenizer", None, "not on this machine")
        return

    def chat() -> Check:
        kind = give_template(tokenizer)
        encoded = encode_chat(
            [{"role": "user", "content": "Why is the sky blue?"}],
            tokenizer,
            add_generation_prompt=True,
        )
        said = f"{kind} template, {len(encoded.ids)} tokens around and in a short question{of}"
        return Check(f"{name}: template", True, said)

    yield _tried(f"{name}: template", chat)
    task = recipe.build_task() if recipe.task in ("backdoor", "vulnerability") else None
    if not isinstance(task, TriggerTask):
        return
    for phrase in (task.trigger, task.twin):

        def cut(phrase: str = phrase) -> Check:
            prompts = task.prompts(phrase, task.contrast[:N_PROMPTS])
            ends = phrase_ends([encode(text, tokenizer) for text in prompts], phrase, "prompt")
            said = f"{len(ends)} tokens, the same in every prompt{of}"
            return Check(f"{name}: {phrase}", True, said)

        yield _tried(f"{name}: {phrase}", cut)


def _local_tokenizer(name: str) -> tuple[Any, str]:
    """The model's tokenizer, or a relative's and the words that say so; (None, "") if neither."""
    from transformers import AutoTokenizer

    relative = PUBLISHED[name].relative if name in PUBLISHED else ""
    for place, of in ((name, ""), (relative, f" (by the tokenizer of its relative {relative})")):
        folder: Any
        if place in bundled.BUNDLED:
            folder = bundled.fetch(place) if bundled.plan(place).cached else None
        else:
            known = place in PUBLISHED or (place and Path(place).expanduser().is_dir())
            folder = place if known else None
        try:
            if folder is not None:
                return AutoTokenizer.from_pretrained(folder, local_files_only=True), of
        except (OSError, ValueError):
            continue
    return None, ""


def _memory(recipe: Any, found: dict[str, Skeleton], *, complete: bool) -> Iterator[Check]:
    """The largest stage, beside what is free on the GPU of this machine."""
    if not found or not complete:
        yield Check("memory", None, "the shape of a model is not known")
        return
    dtype = getattr(recipe, "dtype", "auto")
    models = list(found.values())
    stages: dict[str, list[int]] = {}
    if getattr(recipe, "steps", 0):
        stages["training"] = [max(memory.of_tuning(m, dtype, recipe.tuning) for m in models)]
    together = [models[0]] if hasattr(recipe, "models") else models
    if hasattr(recipe, "model"):
        together = [models[0]] * 2  # base and fine-tuned
    answers = max(memory.of_answers(m, dtype, recipe.max_new_tokens) for m in models)
    sums = memory.of_sums(models[0], models[-1], *_candidates(recipe))
    weights = [memory.of_weights(m, dtype) for m in together]
    if hasattr(recipe, "models"):
        weights = [max(memory.of_weights(m, dtype) for m in models)]
    stages["map"] = [*weights, sums]
    stages["answers"] = [*weights, answers]
    said = ", ".join(f"{stage} {memory.gigabytes(parts)}" for stage, parts in stages.items())
    needed = max(sum(parts) for parts in stages.values())
    if not torch.cuda.is_available():
        yield Check("memory", None, f"{said}; no GPU here to compare with")
        return
    free, _ = torch.cuda.mem_get_info()
    yield Check("memory", needed < free, f"{said}; {memory.gigabytes([free])} free on the GPU")


def _candidates(recipe: Any) -> tuple[int, int]:
    """Layers of both sides whose sums are kept at once."""
    if recipe.task in ("switch", "matrix"):
        return 1, 1  # one pair after the other
    if recipe.task == "capabilities":
        return len(recipe.depths), len(recipe.depths)
    # The layer of the source is chosen before any map is fitted.
    return 1, len(getattr(recipe, "target_layers", ())) or 5


def _tried(what: str, work: Callable[[], Any]) -> Any:
    """What the work returns, or a failed check that says why."""
    try:
        return work()
    except TransferError as error:
        return Check(what, False, " ".join(str(error).split()))
