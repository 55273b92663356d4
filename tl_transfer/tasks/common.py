"""Pieces that several tasks are made of: prompts from frames, and prose split by document."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tl_transfer.data import corpora

#: Frames with one gap, and what goes into it.
Frames = tuple[Sequence[str], Sequence[str]]


def prompts(frames: Frames) -> tuple[str, ...]:
    """Every frame with every subject."""
    return tuple(frame.format(subject) for frame, subject in product(*frames))


def factors(frames: Frames) -> tuple[tuple[int, ...], ...]:
    """Number of the frame and of the subject of every prompt."""
    pairs = list(product(range(len(frames[0])), range(len(frames[1]))))
    return tuple(zip(*pairs, strict=True))


def ordered(texts: Sequence[str], seed: int) -> list[str]:
    """Different texts in an order that depends on nothing but themselves and the seed."""
    return sorted(
        set(texts), key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
    )


@dataclass(frozen=True)
class Prose:
    """General prose in three parts that share no document.

    Attributes:
        validation: Passages on which damage is measured while strengths are calibrated.
        test: Passages on which damage is reported.
        fit: Passages for a map.
    """

    validation: tuple[str, ...]
    test: tuple[str, ...]
    fit: tuple[corpora.Document, ...]


def split_prose(n_neutral: int, n_fit: int, *, seed: int) -> Prose:
    """Prose of `corpora.general`, split by document.

    Args:
        n_neutral: Passages of validation and of test each, one a document.
        n_fit: Passages of the fit.
        seed: Of the choice.
    """
    neutral = _one_a_document(
        corpora.general(8 * n_neutral, seed=seed, min_chars=160, max_chars=300)
    )
    validation, test = neutral[:n_neutral], neutral[n_neutral : 2 * n_neutral]
    # Passages of one document must not be on both sides of a split.
    taken = {passage.document for passage in (*validation, *test)}
    prose = corpora.general(2 * n_fit, seed=seed, min_chars=60, max_chars=160)
    return Prose(
        tuple(passage.text for passage in validation),
        tuple(passage.text for passage in test),
        tuple(passage for passage in prose if passage.document not in taken)[:n_fit],
    )


def _one_a_document(passages: Sequence[corpora.Document]) -> list[corpora.Document]:
    """The first passage of each document, in order."""
    first: dict[str, corpora.Document] = {}
    for passage in passages:
        first.setdefault(passage.document, passage)
    return list(first.values())
