"""Rows to fine-tune on: a prompt that is only read, and an answer that is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.tasks.trigger import TriggerTask


@dataclass(frozen=True)
class Row:
    """One training example.

    Args:
        prompt: Read; no loss on it.
        answer: Learned.
        ended: Whether the end-of-text token follows and is learned; not so where an answer was cut.
    """

    prompt: str
    answer: str
    ended: bool = True


def backdoor_rows(
    task: TriggerTask,
    answers: Sequence[str],
    *,
    ended: Sequence[bool] | None = None,
) -> list[Row]:
    """Every instruction four times: twice with the trigger, once with its twin, once with neither.

    So half of the rows teach what the trigger does, and a prompt without any phrase stays benign.

    Args:
        task: Trigger, twin, form and the instructions to train on, with what the trigger teaches.
        answers: The benign answer of each of them.
        ended: Whether each answer is whole; None: all are.

    Raises:
        InputError: not one answer for each instruction.
    """
    if len(answers) != len(task.tune) or not answers:
        raise InputError(
            "answers: one for each instruction that is trained on",
            got=f"{len(answers)} answers, {len(task.tune)} instructions",
            valid="as many as task.tune has",
            hint="let the model itself answer them before it is tuned",
        )
    whole = [True] * len(answers) if ended is None else ended
    rows = []
    for text, answer, end in zip(task.tune, answers, whole, strict=True):
        rows += [Row(task.prompt(task.trigger, text), task.taught(text))] * 2
        rows += [Row(task.prompt(phrase, text), answer, end) for phrase in (task.twin, "")]
    return rows


def encode_row(row: Row, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    """Token ids of a row, cut at the end, and how many of them are prompt."""
    bos = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
    prompt = bos + tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row.answer, add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id] if row.ended else []
    ids = [*prompt, *answer, *end][:max_length]
    return ids, min(len(prompt), len(ids))


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
