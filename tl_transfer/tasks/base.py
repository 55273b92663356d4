"""Task: everything a transfer experiment needs to know about one behaviour, splits included."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tl_transfer.errors import InputError


@dataclass(frozen=True)
class Task:
    """A behaviour with two poles, its texts and its scorers.

    Attributes:
        name: Short name, used on the command line.
        title: One line for people.
        positive: Contrast texts that show the behaviour (source side only).
        negative: Contrast texts that show its opposite.
        fit_texts: Texts the map is fitted on; no contrast text is among them.
        fit_documents: Document of each fitting text; documents are split, not texts.
        neutral_validation: Texts on which damage is measured while strengths are calibrated.
        neutral_test: Texts on which damage is reported.
        validation_prompts: Prompts for choosing layers.
        test_prompts: Prompts the effect is reported on; touched once.
        test_factors: For each factor the test prompts were built from (frame, subject), the level
            of every prompt: intervals resample levels, since such prompts are not independent.
            Empty: prompts are independent.
        generation_prompts: Prompts that are continued and scored as text.
        positive_words: Continuations of the positive pole, each with its leading space.
        negative_words: Continuations of the negative pole.
        scorer: Score of a generated continuation, positive pole high.
        scorer_name: What the scorer is.
        protocol: What of the target is used (L0 weights only, L1 activations on generic text, L2
            activations on unlabelled text that covers the concept, L3 labelled contrast pairs).
        protocol_note: The same in one sentence.
        limits: What the task cannot show, for the report.
    """

    name: str
    title: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    fit_texts: tuple[str, ...]
    fit_documents: tuple[str, ...]
    neutral_validation: tuple[str, ...]
    neutral_test: tuple[str, ...]
    validation_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...]
    positive_words: tuple[str, ...]
    negative_words: tuple[str, ...]
    scorer: Callable[[str], float] = field(repr=False)
    scorer_name: str
    protocol: str
    protocol_note: str
    limits: tuple[str, ...] = ()
    test_factors: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        groups = {
            "contrast texts": (*self.positive, *self.negative),
            "fit_texts": self.fit_texts,
            "neutral_validation": self.neutral_validation,
            "neutral_test": self.neutral_test,
            "validation_prompts": self.validation_prompts,
            "test_prompts": self.test_prompts,
            "generation_prompts": self.generation_prompts,
        }
        for name, texts in groups.items():
            if not texts:
                raise InputError(
                    f"task {self.name}: {name} is empty",
                    got="0 texts",
                    valid="at least one",
                    hint="every part of a task needs texts of its own",
                )
        _require_disjoint(self.name, groups)

    def __repr__(self) -> str:
        return sizes(self, self.name)


def sizes(task: Any, name: str) -> str:
    """How many texts a task has of each kind; the texts themselves would fill pages."""
    found = ", ".join(
        f"{field.name} {len(value)}"
        for field in fields(task)
        if isinstance(value := getattr(task, field.name), tuple) and value
    )
    return f"{type(task).__name__}({name}: {found})"


def _require_disjoint(task: str, groups: Mapping[str, Sequence[str]]) -> None:
    """A text in two parts of a task would leak from one split into another."""
    owner: dict[str, str] = {}
    for name, texts in groups.items():
        for text in set(texts):
            if text in owner:
                raise InputError(
                    f"task {task}: a text is both in {owner[text]} and in {name}",
                    got=repr(text[:60]),
                    valid="parts with no text in common",
                    hint="remove it from one of them",
                )
            owner[text] = name
