"""Texts of the replacement experiment: prose split by document, questions by what they are on."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_transfer.data import corpora
from tl_transfer.data.capitals import capitals
from tl_transfer.data.questions import Question, multiple_choice
from tl_transfer.data.texts import text_hash
from tl_transfer.errors import InputError
from tl_transfer.tasks.base import sizes

#: Countries on whose questions the form of all of them was chosen.
TRIED_COUNTRIES = 60


@dataclass(frozen=True)
class ReplacementTexts:
    """What is read, and what for.

    Attributes:
        fit: Prose the maps are fitted on.
        fit_documents: Document of each.
        validation: Prose on which strengths are matched.
        neutral: Prose on which loss is reported.
        prompts: Openings of prose that are continued.
        fit_questions: Questions for the one map that has read questions.
        questions: Questions of other subjects, which nothing but the test reads.
        facts: Capitals of other countries, which nothing but the test reads.
    """

    fit: tuple[str, ...]
    fit_documents: tuple[str, ...]
    validation: tuple[str, ...]
    neutral: tuple[str, ...]
    prompts: tuple[str, ...]
    fit_questions: tuple[Question, ...]
    questions: tuple[Question, ...]
    facts: tuple[Question, ...]

    def __repr__(self) -> str:
        return sizes(self, "replacement")

    @property
    def tests(self) -> Mapping[str, Sequence[str]]:
        """The parts that are touched once."""
        return {
            "neutral": self.neutral,
            "prompts": self.prompts,
            "questions": [question.prompt for question in self.questions],
            "facts": [question.prompt for question in self.facts],
        }


def replacement_texts(
    *,
    n_fit: int = 360,
    n_validation: int = 16,
    n_neutral: int = 60,
    n_prompts: int = 100,
    fit_subjects: int = 12,
    n_questions: int = 0,
    seed: int = 0,
) -> ReplacementTexts:
    """Prose of Brown and the World Factbook split by document, questions split by subject.

    Args:
        n_fit: Passages the maps are fitted on.
        n_validation: Passages for matching strengths.
        n_neutral: Passages on which loss is reported.
        n_prompts: Openings to be continued.
        fit_subjects: Subjects whose questions one map may read.
        n_questions: Questions of the others to test on; 0: all.
        seed: Of the choice.

    Raises:
        InputError: more asked for than there is.
    """
    n_test = n_validation + n_neutral + n_prompts
    passages: dict[str, list[str]] = defaultdict(list)
    for passage in corpora.general(2 * (n_fit + n_test), seed=seed, min_chars=200, max_chars=600):
        passages[passage.document].append(passage.text)
    names = list(passages)
    firsts = [passages[name][0] for name in names[:n_test]]
    rest = [(name, text) for name in names[n_test:] for text in passages[name]]
    if len(firsts) < n_test or len(rest) < n_fit:
        raise InputError(
            "n_fit, n_validation, n_neutral, n_prompts: more passages asked for than there are",
            got=f"{n_fit} to fit and {n_test} documents to test",
            valid=f"{len(names)} documents in all, {len(rest)} passages left to fit",
            hint="ask for fewer",
        )
    asked, fitted = _questions(fit_subjects, n_questions, seed)
    return ReplacementTexts(
        fit=tuple(text for _, text in rest[:n_fit]),
        fit_documents=tuple(name for name, _ in rest[:n_fit]),
        validation=tuple(firsts[:n_validation]),
        neutral=tuple(firsts[n_validation : n_validation + n_neutral]),
        prompts=tuple(opening(text) for text in firsts[n_validation + n_neutral :]),
        fit_questions=fitted,
        questions=asked,
        facts=capitals()[2 * TRIED_COUNTRIES :],
    )


def opening(text: str, n_words: int = 14) -> str:
    """The first words of a passage."""
    return " ".join(text.split()[:n_words])


def _questions(
    fit_subjects: int, n_questions: int, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Questions to test on, and those of other subjects that one map may read."""
    known = multiple_choice()
    subjects = sorted({q.subject for q in known}, key=lambda name: text_hash(f"{seed}:{name}"))
    taken = set(subjects[:fit_subjects])
    asked = tuple(question for question in known if question.subject not in taken)
    if not 0 <= fit_subjects < len(subjects) or not 0 <= n_questions <= len(asked):
        raise InputError(
            "fit_subjects, n_questions: more asked for than there are",
            got=f"{fit_subjects} subjects to fit on, {n_questions} questions to test on",
            valid=f"fewer than {len(subjects)} subjects, up to {len(asked)} questions",
        )
    return (
        asked[:n_questions] if n_questions else asked,
        tuple(question for question in known if question.subject in taken),
    )
