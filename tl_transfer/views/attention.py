"""Attention view: patterns with and without interventions, heads ranked by how much they change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel
from tl_transfer.report.table import escape
from tl_transfer.views import circuits
from tl_transfer.views.tokens import encoded_prompt
from tl_transfer.views.view import View

#: Patterns grow with the square of the tokens.
MAX_TOKENS = 64
#: Numbers drawn, of seven characters each; with the script (0.5 MB) they stay under 3 MB.
MAX_NUMBERS = 300_000


@dataclass(frozen=True)
class AttentionChange:
    """Attention patterns of every head, off and under each arm.

    Attributes:
        tokens: The tokens as text.
        off: Patterns of the model alone.
        on: Arm -> patterns.
        change: Arm -> mean total variation distance to `off` over the queries, 0 to 1.
        ranked: (layer, head), the most changed under any arm first.
    """

    tokens: list[str]
    off: Float[Tensor, "layer head query key"]
    on: dict[str, Float[Tensor, "layer head query key"]]
    change: dict[str, Float[Tensor, "layer head"]]
    ranked: list[tuple[int, int]]


def attention(
    model: HookedModel,
    prompt: str,
    arms: Mapping[str, Intervention | Sequence[Intervention]],
    *,
    top: int = 4,
) -> View:
    """Attention with and without interventions: the heads that change most, and the difference.

    Args:
        model: The steered model.
        prompt: A prompt of at most `MAX_TOKENS` tokens.
        arms: Name -> intervention or interventions, e.g. ``{"native": ..., "transferred": ...}``.
        top: Heads to draw.

    Returns:
        A view with `AttentionChange` as its data.

    Raises:
        InputError: no arm, a prompt that is too long to draw, or too many heads of it.
    """
    if not arms:
        raise InputError(
            "arms: nothing to compare with",
            got="no arm",
            valid='{"transferred": Add(vector, 0.05)}',
            hint="name at least one intervention",
        )
    encoded = encoded_prompt(prompt, model)
    if len(encoded.ids) > MAX_TOKENS:
        raise InputError(
            "prompt: too long to draw",
            got=f"{len(encoded.ids)} tokens",
            valid=f"at most {MAX_TOKENS}",
            hint="attention patterns grow with the square of the length; take a shorter text",
        )
    most = MAX_NUMBERS // (len(encoded.ids) ** 2 * (2 * len(arms) + 1))
    if not 1 <= top <= most:
        raise InputError(
            "top: heads to draw",
            got=top,
            valid=f"1 to {most} with {len(encoded.ids)} tokens and {len(arms)} arms",
            hint="more would make the cell larger than 3 MB; `data` holds every head",
        )
    ids = torch.tensor([encoded.ids], device=model.device)
    off = _patterns(model, ids, ())
    on = {
        name: _patterns(model, ids, (arm,) if isinstance(arm, Intervention) else tuple(arm))
        for name, arm in arms.items()
    }
    change = {name: (p - off).abs().sum(-1).mean(-1) / 2 for name, p in on.items()}
    largest = torch.stack(list(change.values())).amax(0)
    order = largest.flatten().argsort(descending=True).tolist()
    n_heads = off.shape[1]
    data = AttentionChange(
        encoded.pieces(), off, on, change, [(i // n_heads, i % n_heads) for i in order]
    )
    shown = data.ranked[:top]
    caption = (
        f"{model.name}, n = {len(data.tokens)} tokens, {off.shape[0]} x {n_heads} heads; the "
        f"{len(shown)} most changed are drawn. Change: half the absolute difference of the "
        "attention, summed over keys, mean over queries (0 none, 1 all moved). In a "
        "difference red is attention lost, blue gained."
    )
    return View("Attention with and without", caption, _draw(data, shown), data)


def _draw(data: AttentionChange, shown: list[tuple[int, int]]) -> str:
    head = "".join(f"<th>change, {escape(name)}</th>" for name in data.on)
    rows = "".join(
        f"<tr><td>layer {layer}, head {h}</td>"
        + "".join(f"<td class='n'>{float(c[layer, h]):.3f}</td>" for c in data.change.values())
        + "</tr>"
        for layer, h in shown
    )
    table = (
        '<div class="scroll" tabindex="0"><table><thead><tr><th>head</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    groups = [("off", [data.off[layer, h] for layer, h in shown], (0.0, 1.0))]
    for name, patterns in data.on.items():
        groups.append((name, [patterns[layer, h] for layer, h in shown], (0.0, 1.0)))
        difference = [(patterns - data.off)[layer, h] for layer, h in shown]
        # On the scale of the patterns most differences could not be seen.
        most = max(float(torch.stack(difference).abs().max()), 1e-3)
        label = f"{name} less off, full colour at {most:.2g}"
        groups.append((label, difference, (-most, most)))
    names = [f"L{layer}H{h}" for layer, h in shown]
    return (
        table
        + circuits.script()
        + '<div class="beside heads">'
        + "".join(
            f"<div><h4>{escape(name)}</h4>{_heads(data.tokens, drawn, names, ends)}</div>"
            for name, drawn, ends in groups
        )
        + "</div>"
    )


def _heads(
    tokens: list[str], drawn: list[Tensor], names: list[str], ends: tuple[float, float]
) -> str:
    rounded: list[Any] = [[[round(v, 3) for v in row] for row in p.tolist()] for p in drawn]
    return circuits.element(
        "AttentionHeads",
        tokens=tokens,
        attention=rounded,
        attentionHeadNames=names,
        minValue=ends[0],
        maxValue=ends[1],
        maskUpperTri=True,
    )


def _patterns(
    model: HookedModel, ids: Tensor, interventions: tuple[Intervention, ...]
) -> Float[Tensor, "layer head query key"]:
    """Patterns of every layer, from a pass over the host with the interventions on."""
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(pattern: Tensor, hook: Any) -> None:
            seen[layer] = pattern[0].detach().float().cpu()

        return read

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", reader(layer)) for layer in range(model.n_layers)
    ]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with attach(model, *interventions) as live, model.hooked(hooks):
        live.logits(ids, mask, keep=1)
    return torch.stack([seen[layer] for layer in range(model.n_layers)])
