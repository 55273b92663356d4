"""Sentiment: a harmless direction with human-rated contrast texts and two independent scorers.

Contrast texts are single sentences of film reviews rated by twenty people (Hutto and Gilbert
2014). The effect is measured on prompts about other things than films as well, whose wording is
in no other split: by the log-odds of positive against negative words as the next token, and by
the VADER lexicon on what the model writes.
"""

from functools import lru_cache
from typing import Any

from tl_transfer.data import corpora
from tl_transfer.errors import InputError
from tl_transfer.tasks.base import Task
from tl_transfer.tasks.common import factors, ordered, prompts, split_prose

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
    plus = ordered([s.text for s in usable if s.rating >= 1.5], seed)
    minus = ordered([s.text for s in usable if s.rating <= -1.5], seed)
    contrast = {*plus[:n_contrast], *minus[:n_contrast]}
    rest = ordered([s.text for s in usable if s.text not in contrast], seed)
    n_movie = n_fit // 2
    if min(len(plus), len(minus)) < n_contrast or len(rest) < n_movie:
        raise InputError(
            "n_contrast, n_fit: more texts asked for than there are",
            got=f"n_contrast {n_contrast}, n_fit {n_fit}",
            valid=f"n_contrast up to {min(len(plus), len(minus))}, n_fit up to {2 * len(rest)}",
            hint="ask for fewer",
        )
    prose = split_prose(n_neutral, n_fit - n_movie, seed=seed)
    return Task(
        name="sentiment",
        title="positive against negative sentiment",
        positive=tuple(plus[:n_contrast]),
        negative=tuple(minus[:n_contrast]),
        fit_texts=(*rest[:n_movie], *(passage.text for passage in prose.fit)),
        fit_documents=(*rest[:n_movie], *(passage.document for passage in prose.fit)),
        neutral_validation=prose.validation,
        neutral_test=prose.test,
        validation_prompts=prompts(_VALIDATION),
        test_prompts=prompts(_TEST),
        test_factors=factors(_TEST),
        generation_prompts=prompts(_GENERATION),
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
