"""Feature view: where a feature is active, how strongly and how often, and what it promotes.

With a second reading the same texts are shown as both models see them, token by token.
"""

import math
from dataclasses import dataclass

from tl_transfer.errors import InputError
from tl_transfer.features.inspect import Context, FeatureCard, FeatureReading
from tl_transfer.report.table import escape
from tl_transfer.views.view import View, spans, spoken


@dataclass(frozen=True)
class FeatureLook:
    """What a feature view shows.

    Attributes:
        card: The feature.
        beside: A feature of another model; None without one.
        same_texts: The texts of the card's contexts as both models read them; empty without.
    """

    card: FeatureCard
    beside: FeatureCard | None
    same_texts: tuple[tuple[Context, Context], ...]


def feature(
    reading: FeatureReading,
    number: int,
    *,
    beside: tuple[FeatureReading, int] | None = None,
    top: int = 6,
) -> View:
    """A feature of a dictionary; with `beside`, next to one of another model.

    Args:
        reading: From `read_features`.
        number: The feature.
        beside: Reading of the other model and the feature there (``feature_map.map(number)``).
            When both have read the same texts, each context is shown in both models.
        top: Contexts of each.

    Returns:
        A view with `FeatureLook` as its data.
    """
    card = reading.card(number, top=top)
    if beside is None:
        look = FeatureLook(card, None, ())
        return View(f"Feature {number}", _caption(look), _cards([card]), look)
    other, there = beside
    if not isinstance(other, FeatureReading):
        raise InputError(
            "beside: a reading and a feature",
            got=type(other).__name__,
            valid="(read_features(...), feature)",
            hint="tl_transfer.read_features reads texts with a dictionary",
        )
    partner = other.card(there, top=top)
    same = [a.text for a in reading.texts] == [b.text for b in other.texts]
    pairs = (
        tuple((found, other.context(there, found.text)) for found in card.contexts) if same else ()
    )
    look = FeatureLook(card, partner, pairs)
    body = _cards([card, partner]) + (_pairs(look) if same else "")
    return View(f"Feature {number} and feature {there}", _caption(look), body, look)


def _cards(cards: list[FeatureCard]) -> str:
    cells = "".join(f"<td>{_card(card)}</td>" for card in cards)
    return f"<table><tbody><tr>{cells}</tr></tbody></table>"


def _card(card: FeatureCard) -> str:
    words = "".join(
        f"<div>{name}: {' '.join(spoken(word) for word, _ in found[:8])}</div>"
        for name, found in (("promotes", card.promoted), ("suppresses", card.suppressed))
    )
    scale = max((found.value for found in card.contexts), default=0.0)
    texts = "".join(_context(found, scale) for found in card.contexts)
    return (
        f"<h4>{escape(card.model)} @ {escape(card.hook_point)}: {card.feature}</h4>"
        f"<div>active at {card.n_active} of {card.n_tokens} tokens ({card.density:.2%})</div>"
        f"{words}{_histogram(card)}{texts or '<div>active nowhere in these texts</div>'}"
    )


def _context(context: Context, scale: float) -> str:
    pieces: list[tuple[str, float | None, str]] = [
        (piece, None, "not read") if math.isnan(value) else (piece, value, f"{value:.3g}")
        for piece, value in zip(context.pieces, context.activations, strict=True)
    ]
    return spans(pieces, max(scale, 1e-9))


def _pairs(look: FeatureLook) -> str:
    """The same texts in both models, each row shaded on its own scale."""
    if not look.same_texts:
        return ""
    scales = [max(pair[side].value for pair in look.same_texts) for side in (0, 1)]
    rows = "".join(
        f"<tr><td>{_context(here, scales[0])}</td><td>{_context(there, scales[1])}</td></tr>"
        for here, there in look.same_texts
    )
    return f"<h4>The same texts in both models</h4><table><tbody>{rows}</tbody></table>"


def _histogram(card: FeatureCard) -> str:
    """Activations where it is active, as bars of an SVG that needs nothing else."""
    if not card.histogram:
        return ""
    tallest = max(n for _, n in card.histogram)
    width, height = 8, 40
    bars = "".join(
        f'<rect x="{i * width}" y="{height - _tall(n, tallest, height):.1f}" '
        f'width="{width - 1}" height="{_tall(n, tallest, height):.1f}">'
        f"<title>up to {end:.3g}: {n} tokens</title></rect>"
        for i, (end, n) in enumerate(card.histogram)
    )
    total = width * len(card.histogram)
    return (
        f'<svg width="{total}" height="{height + 2}" role="img" aria-label="histogram of the '
        f'activations" fill="#0072B2">{bars}</svg>'
        f"<div class='note'>activations up to {card.histogram[-1][0]:.3g}, "
        "bars on a logarithmic scale</div>"
    )


def _tall(n: int, tallest: int, height: int) -> float:
    return height * math.log1p(n) / math.log1p(tallest)


def _caption(look: FeatureLook) -> str:
    text = (
        f"{len(look.card.contexts)} contexts, at most one a document, strongest first; shading is "
        "the activation at each token, full at the largest one shown. Words are those of the "
        "direction unembedded alone: later layers are left out, so they hint at its meaning and "
        "do not show its effect."
    )
    if look.same_texts:
        text += " Tokens differ between the models; the texts are the same."
    return text
