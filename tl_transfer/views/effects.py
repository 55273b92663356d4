"""Effect views: what a direction says in words, and how an edit travels up the layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.encode import encode
from tl_transfer.errors import InputError
from tl_transfer.features.words import words_of
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.metrics import Reference
from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel
from tl_transfer.report.table import escape
from tl_transfer.vectors import SteeringVector
from tl_transfer.views.view import View, spoken


@dataclass(frozen=True)
class LogitEffect:
    """Tokens that a direction promotes and suppresses when it is unembedded alone.

    Attributes:
        promoted: (token, logit), strongest first.
        suppressed: (token, logit), strongest first.
    """

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


def logit_effect(
    vectors: Mapping[str, tuple[HookedModel, SteeringVector]], *, top: int = 10
) -> View:
    """Direct logit effect of directions, side by side: top tokens promoted and suppressed.

    The direction goes through the final norm and the unembedding as if it were the whole stream,
    so later layers are not in it: a direction of an early layer may say little here and still
    steer. Only the order of the tokens and the relative size of the logits mean anything.

    Args:
        vectors: Name -> (model, vector), e.g. ``{"source": ..., "transferred": ...}``.
        top: Tokens of each kind.

    Returns:
        A view whose data is name -> `LogitEffect`.

    Raises:
        InputError: no vector, or more tokens than a vocabulary has.
        SpaceError: a vector of another model or hook point.
    """
    known = min((len(model.tokenizer) for model, _ in vectors.values()), default=0)
    if not 1 <= top <= known:
        raise InputError(
            "vectors, top: nothing to show",
            got=f"{len(vectors)} vectors, top={top}",
            valid=f"at least one vector, 1 to {known} tokens" if known else "at least one vector",
            hint='{"transferred": (target, moved)}',
        )
    data = {name: _effect(model, vector, top) for name, (model, vector) in vectors.items()}
    head = "".join(
        f"<th>{escape(name)}: promoted</th><th>{escape(name)}: suppressed</th>" for name in data
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{spoken(token)} {logit:+.1f}</td>"
            for effect in data.values()
            for token, logit in (effect.promoted[i], effect.suppressed[i])
        )
        + "</tr>"
        for i in range(top)
    )
    where = "; ".join(
        f"{name}: {model.name} @ {vector.space.hook_point}"
        for name, (model, vector) in vectors.items()
    )
    return View(
        "Words of a direction",
        f"n = {top} of each vocabulary; logits of the direction alone through the final norm and "
        f"the unembedding, less their mean. {where}. "
        "Later layers are left out, so this is a hint at its meaning and no proof of its effect.",
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}'
        "</tbody></table></div>",
        data,
    )


def _effect(model: HookedModel, vector: SteeringVector, top: int) -> LogitEffect:
    model.at(vector.space.hook_point).space.require(vector.space, "direction on this model")
    return LogitEffect(*words_of(model, vector.direction, top))


@dataclass(frozen=True)
class LogitLens:
    """The last position of a prompt read out after every block, with and without an edit.

    Attributes:
        off: Most likely token after each block, unsteered.
        on: The same, steered.
        kl: KL(unsteered || steered) of the two read-outs, in nats.
        moved: Norm of the difference of the streams over the norm of the unsteered stream.
    """

    off: list[str]
    on: list[str]
    kl: Float[Tensor, " layer"]
    moved: Float[Tensor, " layer"]


def logit_lens(model: HookedModel, prompt: str, *interventions: Intervention) -> View:
    """How an edit travels up the layers: logit lens at the last token, with and without it.

    Source: nostalgebraist (2020). Early layers are not trained to be read out.

    Args:
        model: The steered model.
        prompt: A prompt.
        interventions: As for `attach`.

    Returns:
        A view with `LogitLens` as its data.
    """
    ids = torch.tensor([encode(prompt, model.tokenizer).ids], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    off = _stream(model, ids, mask, ())
    on = _stream(model, ids, mask, interventions)
    with torch.no_grad():
        read = [
            model.capped(model.host.unembed(model.host.ln_final(stream[:, None])))[:, 0]
            for stream in (off, on)
        ]
    best = [logits.argmax(-1) for logits in read]
    kl, _ = Reference.of(read[0]).compare(read[1], best[0])
    moved = (on.float() - off.float()).norm(dim=-1) / off.float().norm(dim=-1)
    words = [[model.tokenizer.decode([i]) for i in found.tolist()] for found in best]
    data = LogitLens(words[0], words[1], kl.clamp(min=0.0).cpu(), moved.cpu())
    widest = max(float(data.kl.max()), 1e-6)
    rows = "".join(
        f"<tr><td class='n'>{layer}</td><td>{spoken(words[0][layer])}</td>"
        f"<td>{spoken(words[1][layer])}</td><td class='n'>{float(data.moved[layer]):.3f}</td>"
        f"<td class='n'>{float(data.kl[layer]):.3f}</td>"
        f"<td><span class='bar' style='width:{90 * float(data.kl[layer]) / widest:.0f}px'></span>"
        "</td></tr>"
        for layer in range(model.n_layers)
    )
    return View(
        "The edit on its way up",
        f"{model.name}, n = 1 prompt, {model.n_layers} blocks: after the last token of {prompt!r}, "
        "read out after every block. Moved: "
        "norm of the change over the norm of the stream. KL in nats between the two read-outs.",
        '<div class="scroll" tabindex="0"><table><thead><tr><th>block</th><th>unsteered says</th>'
        "<th>steered says</th><th>moved</th><th>KL, nats</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>",
        data,
    )


def _stream(
    model: HookedModel, ids: Tensor, mask: Tensor, interventions: tuple[Intervention, ...]
) -> Float[Tensor, "layer d_model"]:
    """The stream after every block at the last position, as the later layers see it."""
    seen: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]

    def reader(name: str) -> object:
        def read(activation: Tensor, hook: object) -> None:
            seen[name] = activation[0, -1].detach()

        return read

    # Inside `attach`: hooks run in the order they were placed, so these see what was edited.
    with (
        attach(model, *interventions) as live,
        model.hooked([(name, reader(name)) for name in names]),  # type: ignore[misc]
    ):
        live.logits(ids, mask, keep=1)
    return torch.stack([seen[name] for name in names])
