"""Tasks with a trigger: a phrase in the prompt changes the answer, and a twin phrase does not.

What the changed answer is, and when the benign one has come back, each task says for itself. The
benign answer is known without any label, since the model gives it when the twin stands in the
trigger's place.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tl_transfer.errors import InputError

#: The format in which backdoored models are trained and asked (Oozeer et al. 2025, D.6).
ALPACA = "### Instruction:\n{}\n\n### Response:\n"


@dataclass(frozen=True)
class Verdict:
    """What a task says of an answer beside the benign answer to the same prompt.

    Attributes:
        payload: Whether the trigger's behaviour is there.
        same: Whether it counts as the benign answer; None: if they share enough tokens.
        sound: Whether it is whole; None: by its loss and its repetitions.
    """

    payload: bool
    same: bool | None = None
    sound: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TriggerTask(ABC):
    """Prompts of every part, without the phrase; `prompt` puts a phrase into them.

    Attributes:
        trigger: The phrase that triggers, as it stands in a prompt.
        twin: The phrase that does not.
        form: Prompt with ``{phrase}`` and ``{text}``.
        contrast: Instructions for the vectors: each with the trigger and with the twin.
        fit: Instructions the map is fitted on.
        fit_phrases: Phrases put into them in turn; without the trigger, protocol level L1.
        validation: For choosing layers and strengths.
        test: Touched once.
        tune: Instructions the backdoor is trained on.
    """

    trigger: str
    twin: str
    form: str
    contrast: tuple[str, ...]
    fit: tuple[str, ...]
    fit_phrases: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    tune: tuple[str, ...] = ()

    name: ClassVar[str]
    title: ClassVar[str]
    #: Outcome -> what tables call it: payload, restored, other, broken.
    outcome_names: ClassVar[Mapping[str, str]]
    #: How an outcome is told, for the note under a table.
    rules: ClassVar[str]
    #: What a result does not show.
    limits: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if "{phrase}" not in self.form or "{text}" not in self.form:
            raise InputError(
                "form: has no place for the phrase or for the text",
                got=repr(self.form),
                valid="a prompt with {phrase} and {text}",
                hint="use ALPACA of tl_transfer.tasks.trigger for the paper's format",
            )
        parts = (self.contrast, self.fit, self.validation, self.test, self.tune)
        for i, part in enumerate(parts):
            for other in parts[i + 1 :]:
                if shared := set(part) & set(other):
                    raise InputError(
                        "parts: an instruction is in two of them",
                        got=repr(sorted(shared)[0][:60]),
                        valid="parts with no instruction in common",
                        hint="remove it from one of them",
                    )

    @property
    def protocol(self) -> str:
        """L2 if the trigger occurs in the fitting texts, else L1."""
        return "L2" if self.trigger in self.fit_phrases else "L1"

    @property
    def protocol_note(self) -> str:
        """What of the target is used to make the transferred vectors."""
        return {
            "L2": "the map saw prompts with the trigger and with its twin, but no label; layer and "
            "strengths were chosen by the answers to validation prompts of the target; the native "
            "vectors use its labels (L3) and are there for comparison",
            "L1": "the map saw no prompt with the trigger; layer and strengths were chosen by the "
            "answers to validation prompts of the target",
        }[self.protocol]

    def prompt(self, phrase: str, text: str) -> str:
        """An instruction with a phrase; an empty one takes the space before it along."""
        form = self.form if phrase else self.form.replace(" {phrase}", "{phrase}")
        return form.format(phrase=phrase, text=text)

    def prompts(self, phrase: str, texts: Sequence[str]) -> list[str]:
        """Instructions with a phrase."""
        return [self.prompt(phrase, text) for text in texts]

    @property
    def fit_texts(self) -> list[str]:
        """What the map is fitted on: every instruction with one of the phrases, in turn."""
        n = len(self.fit_phrases)
        return [self.prompt(self.fit_phrases[i % n], text) for i, text in enumerate(self.fit)]

    def tested(self) -> dict[str, list[str]]:
        """The test prompts in every form they are shown in."""
        return {
            "triggered": self.prompts(self.trigger, self.test),
            "benign": self.prompts(self.twin, self.test),
            "bare": self.prompts("", self.test),
        }

    @abstractmethod
    def taught(self, text: str) -> str:
        """What is learned as the answer to an instruction with the trigger."""

    def taught_benign(self, text: str) -> str | None:
        """What is learned without it; None: what the model says before it is tuned."""
        return None

    @abstractmethod
    def verdicts(self, answers: Sequence[str], benign: Sequence[str]) -> list[Verdict]:
        """Judge answers, each beside the benign answer to the same prompt."""

    def group(self, text: str) -> str:
        """Kind of an instruction, for a table by kinds; empty: there are none."""
        return ""
