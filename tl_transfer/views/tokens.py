"""Token views: what an intervention changes at each token, and what a direction reads there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.align import align
from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.errors import InputError
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.metrics import Reference
from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel
from tl_transfer.report.table import escape
from tl_transfer.vectors import SteeringVector
from tl_transfer.views.view import View, spans


@dataclass(frozen=True)
class TokenChange:
    """What an intervention does to the next-token distribution at each token.

    Attributes:
        tokens: The tokens as text.
        kl: KL(unsteered || steered) of the distribution after each token, in nats.
        log_probability: Change of the log-probability of each token given those before it; 0 for
            the first one.
    """

    tokens: list[str]
    kl: Float[Tensor, " token"]
    log_probability: Float[Tensor, " token"]


def token_change(model: HookedModel, text: str, *interventions: Intervention) -> View:
    """Per-token KL and change of log-probability under interventions, as shaded text.

    Args:
        model: The steered model.
        text: A text; all of it counts as prompt.
        interventions: As for `attach`.

    Returns:
        A view with `TokenChange` as its data.
    """
    encoded = encoded_prompt(text, model)
    ids = torch.tensor([encoded.ids], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        off = model.logits(ids, mask)[0]
        with attach(model, *interventions) as live:
            on = live.logits(ids, mask)[0]
    following = torch.cat([ids[0, 1:], ids[0, -1:]])
    reference = Reference.of(off)
    kl, loss_on = reference.compare(on, following)
    _, loss_off = reference.compare(off, following)
    change = torch.zeros(len(ids[0]))
    change[1:] = (loss_off - loss_on)[:-1].cpu()
    data = TokenChange(encoded.pieces(), kl.clamp(min=0.0).cpu(), change)
    rows = "".join(
        f"<h4>{name}</h4>"
        + spans(
            [
                (token, float(value), f"{value:+.3f} nats")
                for token, value in zip(data.tokens, values, strict=True)
            ],
            max(float(values.abs().max()), 1e-6),
        )
        for name, values in (
            ("KL of the distribution after each token", data.kl),
            ("change of each token's log-probability", data.log_probability),
        )
    )
    caption = (
        f"{model.name}, n = {len(data.tokens)} tokens. KL: mean {float(data.kl.mean()):.3f}, "
        f"maximum {float(data.kl.max()):.3f} nats. Orange: up; blue: down; full colour at the "
        "largest value of each row."
    )
    return View("What the intervention changes, token by token", caption, rows, data)


@dataclass(frozen=True)
class Projection:
    """A direction read off two models over one text.

    Attributes:
        pieces: The text, cut where tokens of both models end.
        source: Projection on the source's direction at the end of each piece, in median norms.
        target: The same in the target.
        correlation: Pearson correlation of both over the pieces (the first left out).
    """

    pieces: list[str]
    source: Float[Tensor, " piece"]
    target: Float[Tensor, " piece"]
    correlation: float


def projection(
    source: HookedModel,
    target: HookedModel,
    vector: SteeringVector,
    moved: SteeringVector,
    text: str,
) -> View:
    """One row of text, two models' readings of a direction on the spans they share.

    Args:
        source: Model of `vector`.
        target: Model of `moved`.
        vector: Direction of the source.
        moved: Its transfer.
        text: Any text with at least three shared token ends.

    Returns:
        A view with `Projection` as its data.
    """
    here, there = encoded_prompt(text, source), encoded_prompt(text, target)
    pairs = align(here, there)
    if len(pairs) < 3:
        raise InputError(
            "text: the two models share too few token ends in it",
            got=f"{len(pairs)} shared ends in {text!r}",
            valid="at least 3",
            hint="pass a sentence",
        )
    read = [
        _read(model, side, direction)[positions]
        for model, side, direction, positions in (
            (source, here, vector, pairs.source_positions),
            (target, there, moved, pairs.target_positions),
        )
    ]
    ends = [here.ends[i] for i in pairs.source_positions.tolist()]
    raw = text.encode()
    cut = [raw[a:b].decode(errors="replace") for a, b in zip([0, *ends], ends, strict=False)]
    x, y = (values[1:] - values[1:].mean() for values in read)
    correlation = float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12))
    data = Projection(cut, read[0], read[1], correlation)
    rows = "".join(
        f"<h4>{escape(name)}</h4>" + spans(_centred(cut, values), float(values.abs().max()))
        for name, values in (
            (f"source: {source.name} @ {vector.space.hook_point}", x),
            (f"target: {target.name} @ {moved.space.hook_point}", y),
        )
    )
    caption = (
        f"Projection on the direction in median residual norms, less its mean over the text; "
        f"n = {len(cut)} shared spans, the first (attention sink) left out. Correlation of the "
        f"two rows {correlation:+.2f}. Orange: above the mean; blue: below."
    )
    return View("What the direction reads in both models", caption, rows, data)


def encoded_prompt(text: str, model: HookedModel) -> EncodedText:
    """The tokens of a text; too short and too long ones are refused."""
    encoded = encode(text, model.tokenizer)
    if len(encoded.ids) < 2:
        raise InputError(
            "text: needs at least two tokens",
            got=repr(text),
            valid="a sentence",
            hint="pass a longer text",
        )
    model.require_fits(len(encoded.ids), "text")
    return encoded


def _read(model: HookedModel, text: EncodedText, vector: SteeringVector) -> Tensor:
    site = model.at(vector.space.hook_point)
    site.space.require(vector.space, "direction on this model")
    ids = torch.tensor([text.ids], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    activation = model.residuals(ids, mask, [site.point])[site.point.name][0].float().cpu()
    return activation @ vector.unit / vector.median_norm


def _centred(cut: list[str], values: Tensor) -> list[tuple[str, float | None, str]]:
    first: list[tuple[str, float | None, str]] = [(cut[0], None, "attention sink: left out")]
    return first + [
        (piece, float(value), f"{value:+.3f} median norms")
        for piece, value in zip(cut[1:], values, strict=True)
    ]
