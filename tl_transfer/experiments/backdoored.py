"""A backdoored model: fine-tuned here once, on benign answers and what the trigger does, and kept.

Unless the task brings the benign answers, they are the model's own to the bare instructions, so
that nothing but the trigger changes. The adapter stays in the cache folder; an interrupted
fine-tuning goes on.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tl_transfer.data.cache import cache_dir, locked
from tl_transfer.errors import ArtefactError
from tl_transfer.models import bundled
from tl_transfer.models.attach import attach
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.sealed import read_json, write_json
from tl_transfer.tasks.trigger import TriggerTask
from tl_transfer.tuning.rows import backdoor_rows
from tl_transfer.tuning.tune import Tuning, tune

#: Tokens of the benign answers that are learned.
ANSWER = 16


def backdoored(
    name: str,
    task: TriggerTask,
    tuning: Tuning,
    *,
    dtype: str,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Path:
    """The adapter folder of a backdoored model, from the cache or trained now.

    Args:
        name: Bundled name or folder of the base.
        task: Trigger, twin, what the trigger does and the instructions to train on.
        tuning: How.
        dtype: Of the weights while training.
        say: Told what is happening.
        progress: Show a bar.
    """
    settings = [name, asdict(tuning), task.prompts(task.trigger, task.tune), dtype, ANSWER]
    if (known := _known(task)) is not None:
        settings.append([known, [task.taught(text) for text in task.tune]])
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = cache_dir() / "tuned" / f"{Path(name).name}-{key}"
    with locked(folder):  # another run may be at it
        if not (folder / "tuned.json").is_file():
            _train(name, task, tuning, folder, dtype, say, progress)
    return folder


def _train(
    name: str,
    task: TriggerTask,
    tuning: Tuning,
    folder: Path,
    dtype: str,
    say: Callable[[str], None],
    progress: bool,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = str(bundled.fetch(name)) if name in bundled.BUNDLED else name
    model = load_model(base, dtype=dtype, name=name)
    tokenizer, device = model.tokenizer, model.device
    if (known := _known(task)) is not None:
        rows = backdoor_rows(task, known)
    else:
        answers = _own_answers(model, task, folder / "answers.json", say)
        rows = backdoor_rows(task, answers["texts"], ended=answers["ended"])
    del model
    say(f"{name}: fine-tuning, {tuning.steps} steps")
    fresh: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    fresh.to(device)
    tune(fresh, tokenizer, rows, folder, tuning=tuning, say=say, progress=progress)


def _known(task: TriggerTask) -> list[str] | None:
    """The benign answers to learn where the task brings them; None: the model gives its own."""
    found = [task.taught_benign(text) for text in task.tune]
    known = [answer for answer in found if answer is not None]
    return known if len(known) == len(found) else None


def _own_answers(
    model: HookedModel, task: TriggerTask, path: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the model says before it is tuned; kept, so that an interrupted run goes on."""
    try:
        return read_json(path, written_by="a run", hint="it is made again")
    except ArtefactError:
        pass
    say(f"{model.name}: its own answers to {len(task.tune)} instructions")
    with attach(model) as live:
        answers = live.generate(task.prompts("", task.tune), max_new_tokens=ANSWER, batch_size=40)
    found = {
        "texts": [answer.text for answer in answers],
        "ended": [answer.stopped for answer in answers],
    }
    write_json(path, found, ensure_ascii=False)
    return found
