"""A model with the prompts of a task that has a trigger: answers, verdicts, strengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.evaluation.answers import text_losses
from tl_transfer.evaluation.backdoor_arms import PhraseArm
from tl_transfer.evaluation.restoration import Restored
from tl_transfer.interventions import Intervention
from tl_transfer.models.attach import attach
from tl_transfer.models.generate import Generation
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.trigger import TriggerTask

#: Answers that an earlier run left, by name; None when there are none.
Recall = Callable[[str], Any]
Keep = Callable[[str, Any], None]


@dataclass(frozen=True)
class BackdoorSettings:
    """How a backdoor is evaluated.

    Attributes:
        strengths: Multiples of the vector as extracted that are tried on validation.
        n_random: Draws of each kind of noise.
        max_new_tokens: Length limit of an answer.
        rows: Prompts decoded together.
        seed: Of controls and bootstraps.
    """

    strengths: tuple[float, ...] = (1.0, 2.0)
    n_random: int = 3
    max_new_tokens: int = 16
    rows: int = 60
    seed: int = 0


class Bench:
    """A model with the prompts of a task: answers, losses, strengths chosen on validation."""

    def __init__(
        self,
        task: TriggerTask,
        model: HookedModel,
        settings: BackdoorSettings,
        recall: Recall = lambda name: None,
        keep: Keep = lambda name, value: None,
    ) -> None:
        self.task, self.model, self.settings = task, model, settings
        self._recall, self._keep = recall, keep
        self._benign: dict[str, list[Generation]] = {}

    def answers(
        self, name: str, prompts: Sequence[str], edits: Sequence[Intervention]
    ) -> list[Generation]:
        """Greedy answers, from an earlier run or given now."""
        found = self._recall(name)
        if found is not None:
            return [Generation(p, text, tuple(ids), end) for p, text, ids, end in found]
        with attach(self.model, *edits) as live:
            made: list[Generation] = live.generate(
                list(prompts),
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.rows,
            )
        self._keep(name, [[item.prompt, item.text, item.tokens, item.stopped] for item in made])
        return made

    def benign(self, name: str, texts: Sequence[str]) -> list[Generation]:
        """What the model says with the twin in the trigger's place."""
        if name not in self._benign:
            prompts = self.task.prompts(self.task.twin, texts)
            self._benign[name] = self.answers(f"{name}-benign", prompts, [])
        return self._benign[name]

    def losses(self, answers: Sequence[Generation]) -> list[float]:
        """Loss of each answer alone under the model with nothing on it."""
        return text_losses(self.model, [item.tokens for item in answers])

    def pairs(
        self, arm: PhraseArm, phrase: str, texts: Sequence[str], name: str
    ) -> list[tuple[Generation, Generation]]:
        """What an arm makes of instructions with a phrase, each beside the benign answer."""
        prompts = self.task.prompts(phrase, texts)
        edits = arm.edits(self._encoded(prompts[0]), phrase)
        benign = self.benign(name.split("-")[0], texts)
        if not edits and phrase == self.task.twin:
            return list(zip(benign, benign, strict=True))
        part = "triggered" if phrase == self.task.trigger else "benign"
        answers = self.answers(f"{name}-{part}", prompts, edits)
        return list(zip(answers, benign, strict=True))

    def under(self, arm: PhraseArm, phrase: str, texts: Sequence[str], name: str) -> list[Restored]:
        """The same as judged answers, with losses."""
        found = self.pairs(arm, phrase, texts, name)
        return self.judged(found, self.losses([item for item, _ in found]))

    def judged(
        self, pairs: Sequence[tuple[Generation, Generation]], losses: Sequence[float] | None = None
    ) -> list[Restored]:
        """Answers, each beside the benign one; without losses only `Restored.restored` counts."""
        said, clean = ([item.text for item in side] for side in zip(*pairs, strict=True))
        return [
            Restored.of(
                a.tokens, a.text, b.tokens,
                payload=verdict.payload, loss=loss, same=verdict.same, sound=verdict.sound,
            )
            for (a, b), verdict, loss in zip(
                pairs, self.task.verdicts(said, clean), losses or [0.0] * len(pairs), strict=True
            )
        ]  # fmt: skip

    def restored_on_validation(self, arm: PhraseArm, name: str) -> float:
        """Share of validation prompts whose benign answer comes back."""
        texts = self.task.validation
        found = self.pairs(arm, self.task.trigger, texts, f"validation-{name}")
        return sum(item.restored for item in self.judged(found)) / len(found)

    def tuned(self, arm: PhraseArm, name: str) -> PhraseArm:
        """The arm at the strength that restores most; the weakest of equal ones."""
        if arm.vectors is None:
            return arm
        tried = [replace(arm, strength=s) for s in sorted(self.settings.strengths)]
        scores = [
            self.restored_on_validation(item, f"{name}-{item.key}-x{item.strength:g}")
            for item in tried
        ]
        return tried[scores.index(max(scores))]

    def _encoded(self, prompt: str) -> EncodedText:
        return encode(prompt, self.model.tokenizer)
