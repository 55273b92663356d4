"""How cards are drawn: facts, words, a histogram with its axis, and shaded contexts."""

import math

from tl_transfer.features.card import Card
from tl_transfer.features.direction import DirectionCard
from tl_transfer.features.track import Context
from tl_transfer.report.table import escape
from tl_transfer.views.view import spans, spoken

#: Words of each kind.
WORDS = 8


def cards(found: list[Card]) -> str:
    """Cards side by side, below each other where there is no room."""
    return f'<div class="beside">{"".join(map(_card, found))}</div>'


def pairs(shown: tuple[tuple[Context, Context], ...], sides: list[Card]) -> str:
    """The same texts in both models, each side shaded on its own scale."""
    if not shown:
        return ""
    scales = [
        max((_reach(pair[side], _middle(card)) for pair in shown), default=0.0)
        for side, card in enumerate(sides)
    ]
    heads = "".join(f'<th scope="col">{escape(card.model)}: {escape(card.title)}</th>'
                    for card in sides)  # fmt: skip
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{_context(context, _middle(card), scale)}</td>"
            for context, card, scale in zip(pair, sides, scales, strict=True)
        )
        + "</tr>"
        for pair in shown
    )
    return (
        '<h4>The same texts in both models</h4><div class="scroll" tabindex="0">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _card(card: Card) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
                    for name, value in card.statistics)  # fmt: skip
    words = "".join(
        f"<dt>{name}</dt><dd>{' '.join(spoken(word) for word, _ in found[:WORDS])}</dd>"
        for name, found in (("promotes", card.promoted), ("suppresses", card.suppressed))
    )
    lowest = card.lowest if isinstance(card, DirectionCard) else ()
    middle = _middle(card)
    scale = max((_reach(found, middle) for found in (*card.contexts, *lowest)), default=0.0)
    texts = "".join(_context(found, middle, scale) for found in card.contexts)
    if lowest:
        texts = f"<h5>highest</h5>{texts}<h5>lowest</h5>"
        texts += "".join(_context(found, middle, scale) for found in lowest)
    return (
        f"<div><h4>{escape(card.model)} @ {escape(card.hook_point)}: {escape(card.title)}</h4>"
        f'<dl class="facts">{facts}{words}</dl>{_histogram(card)}'
        f"{texts or '<p>active nowhere in these texts</p>'}</div>"
    )


def _middle(card: Card) -> float:
    """What is shown without colour."""
    return card.mean if isinstance(card, DirectionCard) else 0.0


def _reach(context: Context, middle: float) -> float:
    """The largest distance from the middle in a context."""
    return max((abs(v - middle) for v in context.activations if not math.isnan(v)), default=0.0)


def _context(context: Context, middle: float, scale: float) -> str:
    pieces: list[tuple[str, float | None, str]] = [
        (piece, None, "not read") if math.isnan(value) else (piece, value - middle, f"{value:.3g}")
        for piece, value in zip(context.pieces, context.activations, strict=True)
    ]
    return spans(pieces, max(scale, 1e-9))


def _histogram(card: Card) -> str:
    """Bars of an SVG that needs nothing else, with the ends of its axis and its unit."""
    if not card.histogram:
        return ""
    tallest = max(n for _, n in card.histogram)
    bar, height = 12, 56
    width = bar * len(card.histogram)
    bars = "".join(
        f'<rect x="{i * bar}" y="{height - _tall(n, tallest, height):.1f}" '
        f'width="{bar - 1}" height="{_tall(n, tallest, height):.1f}">'
        f"<title>up to {end:.3g}: {n:,} tokens</title></rect>"
        for i, (end, n) in enumerate(card.histogram)
    )
    total = sum(n for _, n in card.histogram)
    high = card.histogram[-1][0]
    words = (
        f"histogram of {total:,} tokens from {card.low:.3g} to {high:.3g} ({card.unit}); the "
        f"tallest of {len(card.histogram)} bars has {tallest:,}; heights are logarithmic"
    )
    return (
        f'<figure class="bars"><svg viewBox="0 0 {width} {height + 17}" role="img" '
        f'aria-label="{escape(words)}"><g class="ink">{bars}</g>'
        f'<path class="axis" d="M0 {height + 0.5}H{width}"/>'
        f'<text x="0" y="{height + 14}">{card.low:.3g}</text>'
        f'<text x="{width / 2}" y="{height + 14}" text-anchor="middle">{escape(card.unit)}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{high:.3g}</text></svg>'
        f'<figcaption class="note">{total:,} tokens, tallest bar {tallest:,}, '
        "logarithmic heights</figcaption></figure>"
    )


def _tall(n: int, tallest: int, height: int) -> float:
    return height * math.log1p(n) / math.log1p(tallest)
