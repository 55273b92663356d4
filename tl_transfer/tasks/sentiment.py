"""Sentiment: a harmless direction with human-rated contrast texts and two independent scorers.

Contrast texts are single sentences of film reviews rated by twenty people (Hutto and Gilbert
2014). The effect is measured on prompts about other things than films as well, whose wording is
in no other split: by the log-odds of positive against negative words as the next token, and by
the VADER lexicon on what the model writes.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from tl_transfer.data import corpora
from tl_transfer.errors import InputError
from tl_transfer.tasks.base import Task

_POSITIVE_WORDS = (
    " great", " good", " excellent", " wonderful", " amazing", " fantastic", " brilliant",
    " beautiful", " perfect", " lovely", " superb", " outstanding", " delightful", " fun",
)  # fmt: skip
_NEGATIVE_WORDS = (
    " bad", " terrible", " awful", " horrible", " poor", " boring", " disappointing", " dull",
    " ugly", " stupid", " pathetic", " dreadful", " mediocre", " disgusting",
)  # fmt: skip

# Frames and subjects of one split occur in no other.
_VALIDATION = (
    ("My sister told me that {} was", "We all felt that {} was", "To be honest, {} was",
     "By the end I thought {} was"),
    ("the show", "the meal", "the album", "the service", "the game", "the trip"),
)  # fmt: skip
_TEST = (
    ("I tried {} last week and found it", "Everyone I spoke to said that {} was",
     "After the first hour it was clear that {} was", "In a word, {} was",
     "Most people who wrote in agreed that {} was", "If you ask me, {} is",
     "Looking back, I would say {} was", "The letter said that {} had been",
     "He called home and described {} as", "What I remember is that {} was"),
    ("the film", "the new restaurant", "the hotel", "the lecture"),
)  # fmt: skip
_GENERATION = (
    ("Here is what I think about {}. It", "A short note on {}:", "She wrote about {} in her diary:",
     "On the radio they talked about {} and said"),
    ("the play", "the museum", "the football match", "our holiday", "the new phone",
     "the neighbour's garden"),
)  # fmt: skip


def _prompts(frames: tuple[Sequence[str], Sequence[str]]) -> tuple[str, ...]:
    return tuple(frame.format(subject) for frame, subject in product(*frames))


def _factors(frames: tuple[Sequence[str], Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Number of the frame and of the subject of every prompt."""
    pairs = list(product(range(len(frames[0])), range(len(frames[1]))))
    return tuple(zip(*pairs, strict=True))


def _ordered(texts: Sequence[str], seed: int) -> list[str]:
    return sorted(
        set(texts), key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
    )


def _one_a_document(passages: Sequence[corpora.Document]) -> list[corpora.Document]:
    """The first passage of each document, in order."""
    first: dict[str, corpora.Document] = {}
    for passage in passages:
        first.setdefault(passage.document, passage)
    return list(first.values())


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader_score(text: str) -> float:
    """VADER compound score of a text, -1 to 1 (Hutto and Gilbert 2014)."""
    return float(_vader().polarity_scores(text)["compound"])


def sentiment(
    *, n_contrast: int = 150, n_fit: int = 600, n_neutral: int = 16, seed: int = 0
) -> Task:
    """The sentiment task.

    Args:
        n_contrast: Texts of each pole for the source's direction.
        n_fit: Texts the map is fitted on: half film-review sentences without their ratings, half
            general prose.
        n_neutral: Neutral passages for measuring damage, on validation and on test each.
        seed: Of every choice of texts.

    Raises:
        InputError: more texts asked for than there are.
    """
    usable = [s for s in corpora.rated_snippets("movie") if 30 <= len(s.text) <= 160]
    plus = _ordered([s.text for s in usable if s.rating >= 1.5], seed)
    minus = _ordered([s.text for s in usable if s.rating <= -1.5], seed)
    contrast = {*plus[:n_contrast], *minus[:n_contrast]}
    rest = _ordered([s.text for s in usable if s.text not in contrast], seed)
    n_movie = n_fit // 2
    if min(len(plus), len(minus)) < n_contrast or len(rest) < n_movie:
        raise InputError(
            "n_contrast, n_fit: more texts asked for than there are",
            got=f"n_contrast {n_contrast}, n_fit {n_fit}",
            valid=f"n_contrast up to {min(len(plus), len(minus))}, n_fit up to {2 * len(rest)}",
            hint="ask for fewer",
        )
    neutral = _one_a_document(
        corpora.general(8 * n_neutral, seed=seed, min_chars=160, max_chars=300)
    )
    validation, test = neutral[:n_neutral], neutral[n_neutral : 2 * n_neutral]
    # Passages of one document must not be on both sides of a split.
    taken = {passage.document for passage in (*validation, *test)}
    prose = corpora.general(2 * (n_fit - n_movie), seed=seed, min_chars=60, max_chars=160)
    prose = [passage for passage in prose if passage.document not in taken][: n_fit - n_movie]
    return Task(
        name="sentiment",
        title="positive against negative sentiment",
        positive=tuple(plus[:n_contrast]),
        negative=tuple(minus[:n_contrast]),
        fit_texts=(*rest[:n_movie], *(passage.text for passage in prose)),
        fit_documents=(*rest[:n_movie], *(passage.document for passage in prose)),
        neutral_validation=tuple(passage.text for passage in validation),
        neutral_test=tuple(passage.text for passage in test),
        validation_prompts=_prompts(_VALIDATION),
        test_prompts=_prompts(_TEST),
        test_factors=_factors(_TEST),
        generation_prompts=_prompts(_GENERATION),
        positive_words=_POSITIVE_WORDS,
        negative_words=_NEGATIVE_WORDS,
        scorer=vader_score,
        scorer_name="VADER compound",
        protocol="L2",
        protocol_note=(
            "of the target, only activations on unlabelled text are used to make the transferred "
            "vector; half of that text is film reviews, so it covers the concept; the native "
            "vector uses the labels in the target and is there for comparison"
        ),
        limits=(
            "Sentiment is a strong, easy direction that most language models share; refusal, "
            "formats and facts may not transfer as well.",
            "The log-odds compare fixed word lists; they do not see irony or mixed opinions, and "
            "VADER counts words.",
            "The map was fitted on text that contains sentiment (protocol L2); with generic text "
            "alone it may be worse.",
        ),
    )
