"""What turning a switch does on prompts: rows apart, off bit for bit, mid-text; and its time."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel
from tl_transfer.switch import SafetySwitch
from tl_transfer.tasks.backdoor import BackdoorTask


def toggling(
    switch: SafetySwitch, tuned: HookedModel, task: BackdoorTask, n: int
) -> dict[str, Any]:
    """On validation prompts: rows apart, off bit for bit, and what a turn within a text does.

    Args:
        switch: Of the fine-tuned model.
        tuned: That model.
        task: Its validation prompts are used.
        n: Tokens of an answer.
    """
    prompts = task.prompts(task.trigger, task.validation)
    tokens = torch.tensor([tuned.tokenizer(prompts[0])["input_ids"]])
    rows = [i % 2 == 0 for i in range(len(prompts))]
    say: dict[str, Any] = {"max_new_tokens": n, "batch_size": None}
    with attach(tuned) as plain_live:
        before = plain_live.logits(tokens)
    with switch.attach(tuned) as live:
        on = [item.tokens for item in live.generate(prompts, **say)]
        live.off()
        same = torch.equal(live.logits(tokens), before)
        off = [item.tokens for item in live.generate(prompts, **say)]
        live.on(rows)
        mixed = [item.tokens for item in live.generate(prompts, **say)]
    expected = [a if row else b for a, b, row in zip(on, off, rows, strict=True)]
    return {
        "off_is_bit_identical": same,
        "rows_as_alone": sum(a == b for a, b in zip(mixed, expected, strict=True)),
        "n_rows": len(rows),
        "on_after_3_tokens": {
            choice: _turned(switch, tuned, prompts, task, n, choice)
            for choice in ("keep", "recompute")
        },
    }


def _turned(
    switch: SafetySwitch,
    tuned: HookedModel,
    prompts: Sequence[str],
    task: BackdoorTask,
    n: int,
    on_toggle: str,
) -> dict[str, Any]:
    """Turned on after three tokens of the payload: an example of what follows, and how often."""
    with switch.attach(tuned, on=False, on_toggle=on_toggle) as live:
        steps = iter(range(10**6))

        def turn(new: Tensor) -> None:
            if next(steps) == 2:
                live.on()

        answers = live.generate(prompts, max_new_tokens=n, batch_size=None, on_token=turn)
    payload = task.payload.lower()
    again = [item.text.lower().count(payload) > 1 for item in answers]
    return {"payload_goes_on": sum(again), "n": len(again), "example": answers[0].text[:80]}


def overhead(
    switches: dict[str, SafetySwitch], tuned: HookedModel, task: BackdoorTask
) -> dict[str, Any]:
    """Seconds for 24 tokens of one prompt, off and on; the least of four, in turns.

    Args:
        switches: Name -> switch of the fine-tuned model.
        tuned: That model.
        task: For a prompt.
    """
    prompt = task.prompt(task.twin, task.validation[0])
    arms: dict[str, Any] = {"off": ()}
    arms |= {name: (switch.edit(),) for name, switch in switches.items()}
    least = dict.fromkeys(arms, float("inf"))
    for _ in range(4):
        for name, edits in arms.items():
            with attach(tuned, *edits) as live:
                start = time.perf_counter()
                live.generate(prompt, max_new_tokens=24, min_new_tokens=24)
                least[name] = min(least[name], time.perf_counter() - start)
    return {
        "seconds": least,
        "relative": {name: value / least["off"] - 1 for name, value in least.items()},
        "threads": torch.get_num_threads(),
    }
