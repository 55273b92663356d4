"""Gate: a condition on the prompt that decides for each row whether an intervention acts (CAST).

Conditional activation steering (Lee et al. 2025, arXiv 2409.05907) compares the prompt's state
with a condition vector, and steers only if they are similar enough. Here the similarity is the
signed cosine cos(h, c); theirs is cos(h, tanh(c c^T h / c^T c)), which forgets the sign and
changes with the scale of h.

A gate is read once, on the prompt, in a pass of the unsteered model up to its layer; what it said
is kept for the generation, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_transfer.data.encode import encode_many
from tl_transfer.errors import HookError, InputError
from tl_transfer.metrics import auroc
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.surface import HookedModel, Site
from tl_transfer.positions.layout import Encoded, Layout
from tl_transfer.positions.where import Need, Where
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import SteeringVector

#: Which state of the prompt is compared: the mean over its tokens, or its last token.
Read = Literal["mean", "last"]
_MAX_TOKENS = 4096


@runtime_checkable
class Condition(Protocol):
    """Says yes or no to an activation: a `Gate`, or a `Probe`."""

    @property
    def space(self) -> ActivationSpace:
        """Where the activation is read."""
        ...

    def predict(self, x: Float[Tensor, "*row d_model"]) -> Bool[Tensor, "*row"]:
        """Whether the condition holds."""
        ...


@dataclass(frozen=True, eq=False)
class Gate:
    """Holds where cos(h, c) > threshold.

    Attributes:
        vector: The condition vector c.
        threshold: Smallest cosine at which the gate opens.
        read: Which state h of the prompt is compared.
        provenance: What it was fitted on, and how well it tells the prompts apart (JSON).
    """

    vector: SteeringVector
    threshold: float
    read: Read = "mean"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.read not in ("mean", "last") or not -1 <= self.threshold <= 1:
            raise InputError(
                "gate: a cosine and a state to read",
                got=f"threshold={self.threshold}, read={self.read!r}",
                valid='threshold from -1 to 1, read "mean" or "last"',
                hint="fit_gate(site, positive=..., negative=...) finds them",
            )

    @property
    def space(self) -> ActivationSpace:
        """Of the condition vector."""
        return self.vector.space

    def score(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
        """cos(h, c), in float32."""
        unit = self.vector.unit.to(x.device)
        x = x.float()
        return x @ unit / torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-30)

    def predict(self, x: Float[Tensor, "*row d_model"]) -> Bool[Tensor, "*row"]:
        """Whether the cosine exceeds the threshold."""
        return self.score(x) > self.threshold

    def __repr__(self) -> str:
        held_out = self.provenance.get("held_out_accuracy")
        shown = "" if held_out is None else f", held-out balanced accuracy {held_out:.2f}"
        return f"Gate(cos > {self.threshold:.3f}, {self.read}{shown}, {self.space.hook_point})"


@dataclass(frozen=True)
class When(Where):
    """All positions of the rows whose prompt meets a condition."""

    condition: Condition
    read: Read

    @property
    def needs(self) -> frozenset[Need]:
        """What the gate said."""
        return frozenset({"gate"})

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """The rows of which the gate said yes."""
        said = layout.gates.get(self)
        if said is None:
            raise HookError(
                "where: the gate was not read yet",
                got=str(self),
                valid="a prompt that passed the gate's layer, or attach, which reads it first",
                hint="start plain hooks with the whole prompt, in one pass",
            )
        return said.to(layout.positions.device)[:, None].expand(layout.positions.shape)

    def __str__(self) -> str:
        return f"when({self.condition!r})"


def when(condition: Condition, *, read: Read | None = None, sinks: bool = False) -> Where:
    """All positions of the rows whose prompt meets a condition; combine it with other rules.

    Args:
        condition: A `Gate`, or a `Probe` (its prediction).
        read: The state of the prompt that is read; default the gate's own, the mean for a probe.
        sinks: See `everywhere`.

    Raises:
        InputError: neither a `Gate` nor a `Probe`.
    """
    if not isinstance(condition, Condition):
        raise InputError(
            "condition: cannot be read",
            got=type(condition).__name__,
            valid="a Gate or a Probe",
            hint="fit_gate(site, positive=..., negative=...) makes one",
        )
    own: Read = condition.read if isinstance(condition, Gate) else "mean"
    return When(condition, own if read is None else read, sinks=sinks)


def gates(where: Where) -> list[When]:
    """The conditions in a rule."""
    return [part for part in where.parts() if isinstance(part, When)]


def prompt_state(
    x: Float[Tensor, "batch pos d_model"], layout: Layout, read: Read
) -> Float[Tensor, "batch d_model"]:
    """The state of each prompt: its last token, or the mean over its tokens but the sink."""
    positions = layout.positions[:, : x.shape[1]].to(x.device)
    last = (layout.prompt_lengths.to(x.device) - 1)[:, None]
    if read == "last":
        chosen = positions == last
    else:
        # A prompt of one token has nothing but its sink.
        chosen = (positions >= torch.clamp(last, max=1)) & (positions <= last)
    weights = chosen[..., None].float()
    # torch.where: padding may hold anything, and 0 * inf is not 0.
    total = torch.where(chosen[..., None], x.float(), 0.0).sum(1)
    return total / weights.sum(1)


def read_gates(model: HookedModel, where: Where, layout: Layout) -> None:
    """Ask every gate of a rule about the prompts, and keep the answers in the layout."""
    for item in gates(where):
        if item in layout.gates:
            continue
        tokens, mask = layout.prompt_tokens(), layout.prompt_mask()
        point = model.hook_point(item.condition.space.hook_point)
        x = model.residuals(tokens.to(model.device), mask.to(model.device), [point])[point.name]
        layout.gates[item] = item.condition.predict(prompt_state(x, layout, item.read))


def require_gates(model: HookedModel, where: Where) -> None:
    """Refuse gates of another model."""
    for item in gates(where):
        space = item.condition.space
        model.at(space.hook_point).space.require(space, "gate on this model")


def fit_gate(
    site: Site,
    *,
    positive: Sequence[str | Encoded],
    negative: Sequence[str | Encoded],
    read: Read = "mean",
    vector: SteeringVector | None = None,
) -> Gate:
    """Condition vector and threshold from prompts that should and should not be steered.

    The vector is the difference of the two mean states; the threshold is the cosine that tells
    the fitting prompts apart best (balanced accuracy; in the middle of the gap, if there is one).

    Args:
        site: Model and hook point at which the gate reads.
        positive: Prompts for which the gate should open: texts, or what `encode_chat` returns.
        negative: Prompts for which it should not.
        read: Compare the mean state over the prompt, or the one of its last token.
        vector: A condition vector of this space (transferred, for instance); then only the
            threshold is fitted.

    Returns:
        A gate; its provenance has counts, accuracy, and accuracy and AUROC on prompts that were
        left out of the fit (two-fold; None with fewer than four on a side).

    Raises:
        InputError: fewer than two prompts on a side, or a prompt on both.
        SpaceError: the vector is of another space.
    """
    _require_prompts(positive, negative)
    if vector is not None:
        site.space.require(vector.space, "condition vector of this site")
    plus, minus = (states(site, prompts, read) for prompts in (positive, negative))
    direction, threshold = _fit(plus, minus, vector)
    norms = torch.cat([plus, minus]).norm(dim=-1)
    made = vector or SteeringVector(direction, site.space, float(norms.median()), "gate")
    return Gate(
        made,
        threshold,
        read,
        {
            "n_positive": len(plus),
            "n_negative": len(minus),
            "accuracy": _accuracy(_cosines(plus, direction), _cosines(minus, direction), threshold),
            **_held_out(plus, minus, vector),
        },
    )


def _require_prompts(positive: Sequence[Any], negative: Sequence[Any]) -> None:
    texts = [{p if isinstance(p, str) else p.text for p in side} for side in (positive, negative)]
    both = texts[0] & texts[1]
    if both or min(len(positive), len(negative)) < 2:
        raise InputError(
            "positive, negative: prompts that tell two kinds apart",
            got=f"{len(positive)} and {len(negative)} prompts, {len(both)} on both sides",
            valid="two or more on each side, none on both",
            hint="a few dozen of each give a threshold that holds",
        )


def states(site: Site, prompts: Sequence[str | Encoded], read: Read) -> Float[Tensor, "n d"]:
    """The state of each prompt that a gate reads."""
    model = site.model
    plain = iter(encode_many([p for p in prompts if isinstance(p, str)], model.tokenizer))
    ids = [(next(plain) if isinstance(p, str) else p).ids for p in prompts]
    model.require_fits(max(map(len, ids)), "prompts")
    states = torch.zeros(len(ids), model.d_model)
    for index in by_length([len(row) for row in ids], max_tokens=_MAX_TOKENS):
        batch = pad([ids[i] for i in index], side="left", pad_id=model.tokenizer.pad_token_id or 0)
        mask = batch.mask.to(model.device)
        x = model.residuals(batch.tokens.to(model.device), mask, [site.point])[site.point.name]
        states[index] = prompt_state(x, Layout.of(mask), read).cpu()
    return states


def _fit(plus: Tensor, minus: Tensor, vector: SteeringVector | None) -> tuple[Tensor, float]:
    direction = plus.mean(0) - minus.mean(0) if vector is None else vector.direction
    scores = torch.cat([_cosines(plus, direction), _cosines(minus, direction)])
    ordered = scores.unique()
    cuts = torch.cat([ordered[:1] - 1e-3, (ordered[1:] + ordered[:-1]) / 2])
    accuracies = torch.tensor(
        [_accuracy(scores[: len(plus)], scores[len(plus) :], float(cut)) for cut in cuts]
    )
    # Of several equal cuts the middle one: it is farthest from the prompts on either side.
    best = (accuracies == accuracies.max()).nonzero()[:, 0]
    return direction, float(cuts[best[len(best) // 2]].clamp(-1, 1))


def _cosines(rows: Float[Tensor, "n d"], direction: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    return torch.nn.functional.cosine_similarity(rows, direction[None], dim=-1)


def _accuracy(plus: Tensor, minus: Tensor, threshold: float) -> float:
    """Balanced: the mean of the shares of both kinds that fall on their side."""
    return float(((plus > threshold).float().mean() + (minus <= threshold).float().mean()) / 2)


def _held_out(plus: Tensor, minus: Tensor, vector: SteeringVector | None) -> dict[str, Any]:
    """Fitted on one half, tried on the other, both ways."""
    if min(len(plus), len(minus)) < 4:
        return {"held_out_accuracy": None, "held_out_auroc": None}
    accuracies, areas = [], []
    for part in (0, 1):
        direction, threshold = _fit(plus[part::2], minus[part::2], vector)
        above = _cosines(plus[1 - part :: 2], direction)
        below = _cosines(minus[1 - part :: 2], direction)
        accuracies.append(_accuracy(above, below, threshold))
        labels = torch.arange(len(above) + len(below)) < len(above)
        areas.append(auroc(torch.cat([above, below]), labels))
    return {
        "held_out_accuracy": sum(accuracies) / 2,
        "held_out_auroc": sum(areas) / 2,
    }
