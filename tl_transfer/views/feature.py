"""Cards: a feature or a steering vector, what it reads in texts and which words it promotes.

With a second reading, of the same or another model, both stand side by side; where both read the
same texts, every context is shown in both models, and how well the two agree over shared tokens.
"""

from dataclasses import dataclass
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.features.card import Card
from tl_transfer.features.direction import DirectionCard, DirectionReading
from tl_transfer.features.inspect import FeatureReading
from tl_transfer.features.track import Agreement, Context, Track, agreement
from tl_transfer.views import card_drawing as draw
from tl_transfer.views.view import View

#: A reading of a vector, or one of a dictionary with the number of a feature.
Beside = DirectionReading | tuple[FeatureReading, int]


@dataclass(frozen=True)
class CardLook:
    """What a view of a card shows.

    Attributes:
        card: The feature or vector.
        beside: That of another model; None without one.
        same_texts: The texts of the card's contexts as both models read them; empty without.
        agreement: Correlation of both over the tokens they share; None for other texts.
    """

    card: Card
    beside: Card | None
    same_texts: tuple[tuple[Context, Context], ...]
    agreement: Agreement | None


def feature(
    reading: FeatureReading, number: int, *, beside: Beside | None = None, top: int = 6
) -> View:
    """Card of a feature of a dictionary; with `beside`, next to what it is in another model.

    Args:
        reading: From `read_features`.
        number: The feature.
        beside: ``(reading, number)`` of the other model's dictionary (``feature_map.map(number)``
            names the feature), or `read_direction` of a vector there, for example a
            `MovedFeature`'s. When both have read the same texts, each context is shown in both.
        top: Contexts of each.

    Returns:
        A view with `CardLook` as its data.

    Raises:
        InputError: no such feature, or `beside` is no reading.
    """
    return _view(reading.card(number, top=top), reading.track(number), beside, top)


def direction(reading: DirectionReading, *, beside: Beside | None = None, top: int = 4) -> View:
    """Card of a steering vector: how it was made, what it reads at either end, and its words.

    Args:
        reading: From `read_direction`.
        beside: `read_direction` of its transfer or of the target's own vector, or
            ``(reading, number)`` of a feature. When both have read the same texts, each context is
            shown in both.
        top: Contexts at either end.

    Returns:
        A view with `CardLook` as its data.

    Raises:
        InputError: `beside` is no reading.
    """
    return _view(reading.card(top=top), reading.track, beside, top)


def _view(card: Card, track: Track, beside: Beside | None, top: int) -> View:
    if beside is None:
        look = CardLook(card, None, (), None)
        return View(_capital(card.title), _caption(look), draw.cards([card]), look)
    partner, other = _partner(beside, top)
    agreed = agreement(track, other)
    pairs: tuple[tuple[Context, Context], ...] = ()
    if agreed is not None:
        pairs = tuple((found, other.context(found.text)) for found in card.contexts)
        if isinstance(card, DirectionCard):
            pairs += tuple(
                (found, other.context(found.text, largest=False)) for found in card.lowest
            )
    look = CardLook(card, partner, pairs, agreed)
    # Contexts of the partner alone say what it reads that the other does not.
    body = draw.cards([card, partner]) + draw.pairs(pairs, [card, partner])
    title = f"{card.title} of {card.model}, {partner.title} of {partner.model}"
    return View(_capital(title), _caption(look), body, look)


def _partner(beside: Any, top: int) -> tuple[Card, Track]:
    if isinstance(beside, DirectionReading):
        return beside.card(top=top), beside.track
    if (
        isinstance(beside, tuple)
        and len(beside) == 2
        and isinstance(beside[0], FeatureReading)
        and isinstance(beside[1], int)
    ):
        reading, number = beside
        return reading.card(number, top=top), reading.track(number)
    raise InputError(
        "beside: a reading of the other model",
        got=type(beside).__name__,
        valid="(read_features(...), feature), or read_direction(...)",
        hint="read_features reads texts with a dictionary, read_direction with a vector",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _caption(look: CardLook) -> str:
    cards = [look.card] if look.beside is None else [look.card, look.beside]
    sizes = "; ".join(
        f"{card.model}: n = {card.n_tokens:,} tokens of {card.n_documents:,} documents"
        for card in cards
    )
    text = (
        f"{sizes}. Contexts: at most one a document, most extreme first; full colour at the "
        "largest distance from the middle that is shown. The middle is 0 for an activation and "
        "the mean for a projection. Words are those of the direction unembedded alone: later "
        "layers are left out, so they hint at its meaning and do not show its effect."
    )
    found = look.agreement
    if found is not None:
        ends = "" if found.ci95 is None else f" [{found.ci95[0]:+.2f}, {found.ci95[1]:+.2f}]"
        text += (
            f" Correlation of both over the n = {found.n:,} tokens that end at the same byte: "
            f"{found.r:+.2f}{ends} (interval over {found.n_documents:,} documents); with one side "
            f"moved on by half of the rows {found.turned:+.2f}. If these texts chose the pair, "
            "it is no held-out number."
        )
    return text
