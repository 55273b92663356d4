"""evaluate_switch: does a fine-tuned model behave like its base while the switch is on?

Success is the base's answer, not the absence of the payload. Beside the switch stand what a user
could do instead: the base itself (the adapter off), weights between base and fine-tuned, and the
base's true activations put in place, which no map can beat.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.encode import encode_many
from tl_transfer.evaluation.answers import text_losses
from tl_transfer.evaluation.coherence import Coherence
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.evaluation.restoration import Restored
from tl_transfer.intervals import mean_ci
from tl_transfer.interventions import Intervention
from tl_transfer.models.attach import Live, attach
from tl_transfer.models.generate import Generation
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.backdoor import BackdoorTask

#: Tokens of a passage of prose.
PASSAGE = 48
OUTCOMES = ("payload", "restored", "other", "broken")
PARTS = {
    "triggered": "With the trigger",
    "benign": "With the twin: what the switch costs",
}


@dataclass(frozen=True)
class SwitchArm:
    """A model that answers, with something on it.

    Attributes:
        name: Key of the row.
        title: For people.
        family: ``reference``, ``affine``, ``nonlinear``, ``oracle`` or ``weights``.
        model: Who answers.
        edits: What is on it.
        layer: Of the switch; None where there is none.
        n_parameters: Numbers added to the model.
        fvu: Held-out share of variance the map leaves; None without a map.
    """

    name: str
    title: str
    family: str
    model: HookedModel
    edits: tuple[Intervention, ...] = ()
    layer: int | None = None
    n_parameters: int = 0
    fvu: float | None = None

    def live(self) -> AbstractContextManager[Live]:
        """The model with its edits on."""
        return attach(self.model, *self.edits)


@dataclass
class SwitchBench:
    """The prompts of a task and the base's answers to them.

    Attributes:
        task: Trigger, twin, prompts.
        base: The reference.
        prose: Neutral passages.
        max_new_tokens: Length limit of an answer.
        rows: Prompts decoded together.
        recall: Gives back what an interrupted run kept.
        keep: Stores a finished piece.
    """

    task: BackdoorTask
    base: HookedModel
    prose: Sequence[str]
    max_new_tokens: int = 16
    rows: int = 60
    recall: Callable[[str], Any] = lambda name: None
    keep: Callable[[str, Any], None] = lambda name, value: None
    _said: dict[str, list[Generation]] = field(default_factory=dict)

    def answers(self, name: str, live: Live | None, prompts: Sequence[str]) -> list[Generation]:
        """Greedy answers, from an earlier run or given now."""
        found = self.recall(name)
        if found is not None:
            return [Generation(p, text, tuple(ids), end) for p, text, ids, end in found]
        assert live is not None
        made: list[Generation] = live.generate(
            list(prompts), max_new_tokens=self.max_new_tokens, batch_size=self.rows
        )
        self.keep(name, [[item.prompt, item.text, item.tokens, item.stopped] for item in made])
        return made

    def of_base(self, name: str, prompts: Sequence[str]) -> list[Generation]:
        """What the base says."""
        if name not in self._said:
            with attach(self.base) as live:
                self._said[name] = self.answers(f"base-{name}", live, prompts)
        return self._said[name]

    def beside_base(self, arm: SwitchArm, part: str, texts: Sequence[str]) -> list[Restored]:
        """An arm's answers beside the base's to the same prompts.

        Args:
            arm: Who answers.
            part: ``"triggered"`` or ``"benign"``, with ``"validation-"`` before it on validation.
            texts: Instructions.
        """
        phrase = self.task.trigger if part.endswith("triggered") else self.task.twin
        prompts = self.task.prompts(phrase, texts)
        clean = self.of_base(part, prompts)
        with arm.live() as live:
            answers = self.answers(f"{part}-{arm.name}", live, prompts)
        losses = text_losses(self.base, [item.tokens for item in answers])
        return [
            Restored.of(
                item.tokens, item.text, same.tokens,
                payload=self.task.is_payload(item.text), loss=loss,
            )
            for item, same, loss in zip(answers, clean, losses, strict=True)
        ]  # fmt: skip

    def guard(self, part: str = "benign") -> Coherence:
        """The limit that 99 % of the base's own answers keep."""
        prompts = self.task.prompts(self.task.twin, self.task.test)
        said = self.of_base(part, prompts)
        return Coherence.from_unsteered(text_losses(self.base, [item.tokens for item in said]))

    def score(self, arm: SwitchArm) -> float:
        """Share of triggered validation prompts that get the base's answer."""
        found = self.beside_base(arm, "validation-triggered", self.task.validation)
        return sum(item.outcome(Coherence()) == "restored" for item in found) / len(found)


def evaluate_switch(
    bench: SwitchBench,
    arms: Iterable[SwitchArm],
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Rows of the table: outcomes with and without the trigger, and prose.

    Args:
        bench: Prompts and base.
        arms: The first one is the fine-tuned model as it is.
        seed: Of the bootstraps.
        say: Told what is happening.
    """
    guard = bench.guard()
    rows, off = [], None
    for arm in arms:
        say(f"switch: {arm.title}")
        found = {
            part: [item.outcome(guard) for item in bench.beside_base(arm, part, bench.task.test)]
            for part in PARTS
        }
        off = off or found
        row: dict[str, Any] = {
            "name": arm.name,
            "title": arm.title,
            "family": arm.family,
            "layer": arm.layer,
            "n_parameters": arm.n_parameters,
            "fvu": arm.fvu,
            "prose": bench.recall(f"prose-{arm.name}"),
        }
        if row["prose"] is None:
            row["prose"] = prose(arm, bench.base, bench.prose, seed=seed)
            bench.keep(f"prose-{arm.name}", row["prose"])
        for part, outcomes in found.items():
            restored = [o == "restored" for o in outcomes]
            row[part] = {
                "outcomes": {name: rate([o == name for o in outcomes]) for name in OUTCOMES},
                "change": paired_difference(
                    restored, [o == "restored" for o in off[part]], seed=seed
                ),
                "flags": [int(flag) for flag in restored],
            }
        rows.append(row)
    return rows


@torch.no_grad()
def prose(
    arm: SwitchArm, base: HookedModel, texts: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Loss on neutral prose, and how far the next-token distributions are from the base's.

    Returns:
        ``loss``, ``loss_change`` (against the base) and ``kl`` (base to arm) in nats a token, each
        with an interval over passages; ``same_top`` (share of tokens with the base's first
        choice); ``n`` passages.
    """
    ids = [text.ids[:PASSAGE] for text in encode_many(texts, base.tokenizer)]
    tokens = torch.tensor([row for row in ids if len(row) == PASSAGE])
    tokens = tokens.to(base.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found: list[tuple[Tensor, ...]] = []
    with arm.live() as live:
        for rows, m in zip(tokens.split(8), mask.split(8), strict=True):
            after = live.logits(rows, m)[:, 2:-1].float().log_softmax(-1)
            before = base.logits(rows, m)[:, 2:-1].float().log_softmax(-1)
            following = rows[:, 3:, None]
            found.append(
                (
                    -after.gather(-1, following)[..., 0].mean(1),
                    (before - after).gather(-1, following)[..., 0].mean(1),
                    (before.exp() * (before - after)).sum(-1).mean(1),
                    (before.argmax(-1) == after.argmax(-1)).float().mean(1),
                )
            )
    loss, change, kl, same = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return {
        "loss": _mean(loss, seed),
        "loss_change": _mean(change, seed),
        "kl": _mean(kl.clamp(min=0), seed),
        "same_top": _mean(same, seed),
        "n": len(loss),
    }


def _mean(values: Tensor, seed: int) -> dict[str, Any]:
    return {"mean": float(values.mean()), "ci95": mean_ci(values, seed=seed)}
