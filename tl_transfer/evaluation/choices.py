"""Multiple-choice questions under full replacement and under steering, from shared passes.

Two scores that part where a model loses the form of an answer: the right option is the likeliest
of the four (knowledge; chance is a quarter), or of the whole vocabulary (what a model that writes
freely is scored by; chance is nearly 0). An option is scored by its first token: a letter, or how
a name begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.encode import encode_many
from tl_transfer.data.questions import LETTERS, Question
from tl_transfer.errors import InputError
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.intervals import mean_ci
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.surface import HookedModel
from tl_transfer.stitched import Stitched

#: Rate of right answers that guessing gives.
CHANCE = 1 / len(LETTERS)
#: Cells of a batch.
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        right: The right option is the likeliest of the four.
        said: It is the likeliest of all tokens.
        on_form: The likeliest of all tokens is one of the four.
        log_p: Log-probability of the right one among the four, in nats (guessing: -1.39).
    """

    right: bool
    said: bool
    on_form: bool
    log_p: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def option_ids(model: HookedModel, questions: Sequence[Question]) -> Int[Tensor, "question option"]:
    """First token of every option.

    Raises:
        InputError: two options of a question begin with the same token.
    """
    rows = []
    for question in questions:
        read = model.tokenizer(list(question.continuations), add_special_tokens=False)["input_ids"]
        rows.append([ids[0] for ids in read])
        if len(set(rows[-1])) < len(rows[-1]):
            raise InputError(
                f"options: {model.name} begins two of them with the same token",
                got=f"{question.continuations} as {rows[-1]}",
                valid="four different first tokens",
                hint="score whole options, or ask with others",
            )
    return torch.tensor(rows, device=model.device)


def choices_of(
    logits: Float[Tensor, "question d_vocab"],
    options: Int[Tensor, "question option"],
    answers: Sequence[int],
) -> list[Choice]:
    """From the logits after the last token of each prompt."""
    log_p = logits.gather(1, options).float().log_softmax(-1)
    best, top = log_p.argmax(-1), logits.argmax(-1)
    return [
        Choice(
            right=int(best[i]) == answer,
            said=int(top[i]) == int(options[i, answer]),
            on_form=bool((top[i] == options[i]).any()),
            log_p=float(log_p[i, answer]),
        )
        for i, answer in enumerate(answers)
    ]


@torch.no_grad()
def choose(
    stitched: Stitched,
    questions: Sequence[Question],
    added: Mapping[str, Float[Tensor, " d_target"]],
) -> dict[str, list[Choice]]:
    """Answers of every arm to the same questions, in their order.

    Args:
        stitched: Made of the prompts of these questions.
        questions: What is asked.
        added: Arm -> step added at every position but the first.
    """
    model = stitched.target
    options = option_ids(model, questions)
    found: dict[str, dict[int, Choice]] = {}
    groups = stitched.groups(MAX_TOKENS)
    for group, batch in zip(groups, stitched.batches(groups), strict=True):
        last = torch.tensor([batch.tokens.shape[1] - 1])
        names, states = batch.final(added, keep=last)
        numbers = [stitched.usable[i] for i in group]
        answers = [questions[n].answer for n in numbers]
        for name, state in zip(names, states, strict=True):
            logits = model.capped(model.host.unembed(state))[:, 0]
            answered = choices_of(logits, options[numbers], answers)
            found.setdefault(name, {}).update(zip(numbers, answered, strict=True))
    return {name: [by[n] for n in sorted(by)] for name, by in found.items()}


@torch.no_grad()
def choose_alone(model: HookedModel, questions: Sequence[Question]) -> list[Choice]:
    """Answers of a model with nothing on it."""
    options = option_ids(model, questions)
    prompts = [question.prompt for question in questions]
    rows = [text.ids for text in encode_many(prompts, model.tokenizer)]
    found: dict[int, Choice] = {}
    for group in by_length([len(row) for row in rows], max_tokens=MAX_TOKENS):
        batch = pad([rows[i] for i in group], side="left", pad_id=model.tokenizer.pad_token_id or 0)
        tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
        logits = model.logits(tokens, mask, keep=1)[:, -1]
        answered = choices_of(logits, options[group], [questions[i].answer for i in group])
        found.update(zip(group, answered, strict=True))
    return [found[i] for i in range(len(questions))]


def choice_entry(mine: Sequence[Choice], own: Sequence[Choice], *, seed: int) -> dict[str, Any]:
    """Rates of an arm, and its change against the unedited model on the same questions."""
    log_p = torch.tensor([item.log_p for item in mine])
    return {
        "accuracy": rate([item.right for item in mine]),
        "change": paired_difference(
            [item.right for item in mine], [item.right for item in own], seed=seed
        ),
        "said": rate([item.said for item in mine]),
        "on_form": rate([item.on_form for item in mine]),
        "log_p": {"mean": float(log_p.mean()), "ci95": mean_ci(log_p, seed=seed)},
    }


def cost(entry: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What an arm does to the questions, by fixed rules.

    Args:
        entry: Of the arm, from `choice_entry`.
        own: Of the unedited model.

    Returns:
        ``cannot be answered`` (the unedited model is not above chance), ``no loss shown`` (the
        paired interval holds 0), ``collapses`` (worse, and not above chance) or ``costs`` (worse,
        and still above chance).
    """
    if own["accuracy"]["ci95"][0] <= CHANCE:
        return "cannot be answered"
    if entry["change"]["ci95"][1] >= 0:
        return "no loss shown"
    return "collapses" if entry["accuracy"]["ci95"][0] <= CHANCE else "costs"
