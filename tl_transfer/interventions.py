"""Interventions: frozen callables on activations, and plain TransformerLens hooks made of them.

`Add`      x <- x + s m u     (activation addition; Turner et al. 2023, Rimsky et al. 2024)
`Ablate`   x <- x - s (x.u) u (directional ablation at one layer; Arditi et al. 2024)

u is the unit direction, m the median residual norm of the space, s the strength. Edits are out of
place, in the activation's dtype, on its device. Strength 0 leaves the very same tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_transfer.errors import HookError, InputError
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.vectors import SteeringVector

#: Strength of an intervention: one number, or one for each row of the batch.
Strength = float | Tensor


@runtime_checkable
class Intervention(Protocol):
    """What `attach` and `fwd_hooks` need of an intervention."""

    @property
    def vector(self) -> SteeringVector:
        """What is steered along, and in which space."""
        ...

    @property
    def strength(self) -> Strength:
        """How much; 0 is off."""
        ...

    @property
    def where(self) -> Where:
        """At which positions."""
        ...

    def edit(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The activation as it would be if every position were chosen."""
        ...


def _strength(strength: Strength, activation: Tensor) -> Tensor | float:
    """A float as it is; one number a row as a [batch, 1, 1] tensor."""
    if isinstance(strength, Tensor) and strength.ndim == 1:
        if len(strength) != len(activation):
            raise InputError(
                "strength: one number for each row of the batch",
                got=f"{len(strength)} strengths for {len(activation)} rows",
                valid="a float, or a tensor as long as the batch",
                hint="keep the batch in one piece (batch_size=None) when strengths differ by row",
            )
        return strength.to(activation.device, activation.dtype)[:, None, None]
    return float(strength)


def is_off(strength: Strength) -> bool:
    """True when every row has strength 0: then no hook acts at all."""
    if isinstance(strength, Tensor):
        return not bool((strength != 0).any())
    return strength == 0


def _check(strength: Strength, where: Where) -> None:
    values = strength if isinstance(strength, Tensor) else torch.tensor(float(strength))
    if not isinstance(where, Where):
        raise InputError(
            "where: not a rule",
            got=repr(where),
            valid="everywhere(), prompt(), generated() or last_prompt_token()",
            hint="call the function",
        )
    if values.ndim > 1 or not bool(torch.isfinite(values).all()):
        raise InputError(
            "strength: must be finite, one number or one a row",
            got=str(strength),
            valid="a float or a 1-d tensor, in median residual norms of the layer",
            hint="0.02 to 0.3 steers most models; find yours with a damage budget (evaluate)",
        )


@dataclass(frozen=True)
class Add:
    """Add a steering vector: x <- x + s m u.

    Args:
        vector: Direction and unit.
        strength: In multiples of the layer's median residual norm; negative turns it around.
            ``vector.natural_strength`` adds the vector as extracted.
        where: Positions; default everywhere but the attention sink.
    """

    vector: SteeringVector
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        _check(self.strength, self.where)

    def edit(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """X + s m u at every position."""
        step = (self.vector.unit * self.vector.median_norm).to(activation.device, activation.dtype)
        return activation + _strength(self.strength, activation) * step

    def fwd_hooks(self, model: Any, **kwargs: Any) -> list[tuple[str, Callable]]:
        """Plain TransformerLens hooks; see `fwd_hooks`."""
        return fwd_hooks(self, model, **kwargs)


@dataclass(frozen=True)
class Ablate:
    """Take out the component along a direction: x <- x - s (x.u) u; s = 1 removes all of it."""

    vector: SteeringVector
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        _check(self.strength, self.where)

    def edit(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """X - s (x.u) u at every position."""
        # In float32: a bfloat16 dot product leaves twice as much of the component behind.
        x = activation.float()
        unit = self.vector.unit.to(x.device)
        along = (x @ unit)[..., None]
        return (x - _strength(self.strength, x) * along * unit).to(activation.dtype)

    def fwd_hooks(self, model: Any, **kwargs: Any) -> list[tuple[str, Callable]]:
        """Plain TransformerLens hooks; see `fwd_hooks`."""
        return fwd_hooks(self, model, **kwargs)


@runtime_checkable
class Tracker(Protocol):
    """Tells a hook where the columns it sees lie in the whole sequence."""

    def place(self, key: str, activation: Tensor, where: Where) -> Bool[Tensor, "batch pos"] | bool:
        """Positions to act on: a mask, or True / False for all / none of them."""
        ...


def hook(intervention: Intervention, key: str, tracker: Tracker) -> Callable[..., Tensor | None]:
    """One hook function: ask where, edit, keep the rest bit for bit."""

    def steer(activation: Tensor, hook: Any = None) -> Tensor | None:
        chosen = tracker.place(key, activation, intervention.where)
        if is_off(intervention.strength) or chosen is False:
            return None
        edited = intervention.edit(activation)
        # torch.where, not a product with the mask: -0.0 + 0 * v is not -0.0.
        return edited if chosen is True else torch.where(chosen[..., None], edited, activation)

    return steer


def hook_name(intervention: Intervention, model: HookedModel) -> str:
    """The canonical hook point of an intervention on this model.

    Raises:
        SpaceError: the vector belongs to another model, hook point, processing or tokenizer.
        InputError: the hook point does not write to the residual stream.
    """
    space = intervention.vector.space
    point = model.hook_point(space.hook_point)
    if point.kind == "resid_mid":
        raise InputError(
            "hook_point: resid_mid cannot be edited on every host",
            got=point.name,
            valid=f"blocks.{point.layer}.hook_attn_out (adding there moves the stream exactly)",
            hint="the bridge's resid_mid edit reaches the MLP branch only",
        )
    model.at(point.name).space.require(space, "steering vector on this model")
    return point.name


def fwd_hooks(
    intervention: Intervention,
    model: Any,
    *,
    attention_mask: Tensor | None = None,
    prompt_lengths: Tensor | int | None = None,
) -> list[tuple[str, Callable]]:
    """Hooks for `model.hooks`, `run_with_hooks` and `run_with_cache`, in anybody's workflow.

    A pass of more than one token starts a sequence; a pass of one token after it is the next
    cached decoding step. Rules that depend on the end of the prompt take the first pass as the
    prompt, or `prompt_lengths`. `attach` knows all this exactly and is the better choice for
    generation in batches.

    Args:
        intervention: `Add` or `Ablate`.
        model: `HookedModel`, or the host itself.
        attention_mask: True / 1 on real tokens, for padded batches ([batch, pos] of the prompt).
        prompt_lengths: Tokens of the prompt, per row or for all.
    """
    from tl_transfer.models.load import load_model

    hooked = load_model(model)
    name = hook_name(intervention, hooked)
    return [(name, hook(intervention, name, FreeTracker(attention_mask, prompt_lengths)))]


class FreeTracker:
    """Places positions under a forward or `generate` that this package does not drive."""

    def __init__(self, mask: Tensor | None, prompt_lengths: Tensor | int | None) -> None:
        self._mask = mask
        self._given = prompt_lengths
        self._seen: dict[str, int] = {}

    def place(self, key: str, activation: Tensor, where: Where) -> Tensor | bool:
        """See `Tracker`."""
        batch, width = activation.shape[:2]
        before = self._seen.get(key, 0)
        decoding = width == 1 and before > 0
        start = before if decoding else 0
        if not decoding and self._given is None and width == before + 1 >= 2 and before > 0:
            self._refuse_growth(where, before, width)
        self._seen[key] = start + width
        if batch > 1 and width > 1 and self._mask is None and where != Where(sinks=True):
            self._refuse_batch(batch)
        if decoding and self._given is None:
            return where.while_decoding
        device = activation.device
        columns = torch.arange(start, start + width, device=device).expand(batch, width)
        mask = self._mask
        if mask is not None and not decoding:
            if mask.shape != (batch, width):
                raise InputError(
                    "attention_mask: not the shape of the tokens",
                    got=tuple(mask.shape),
                    valid=(batch, width),
                    hint="pass the mask of the prompt tokens",
                )
            columns = torch.where(mask.to(device).bool(), mask.to(device).long().cumsum(-1) - 1, -1)
        return where.choose(columns, self._lengths(columns))

    def _lengths(self, columns: Tensor) -> Tensor:
        if self._given is None:
            return columns.max(dim=1).values + 1
        lengths = torch.as_tensor(self._given, device=columns.device)
        return lengths.expand(len(columns))

    @staticmethod
    def _refuse_batch(batch: int) -> None:
        raise InputError(
            "attention_mask: needed for a batch, or padding could be taken for text",
            got=f"{batch} rows and no mask",
            valid="the mask of the tokens, all ones if nothing is padded",
            hint="fwd_hooks(model, attention_mask=mask), or use attach",
        )

    @staticmethod
    def _refuse_growth(where: Where, before: int, width: int) -> None:
        if where.needs_prompt_length:
            raise HookError(
                "where: a pass one token longer than the last looks like generation without a KV "
                "cache, and then the end of the prompt is unknown",
                got=f"{width} tokens after {before}",
                valid="attach(...), or prompt_lengths=, or use_past_kv_cache=True",
                hint="use tl_transfer.attach(model, intervention).generate(...)",
            )
