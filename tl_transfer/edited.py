"""EditedBatch: the logits of one batch of tokens under any interventions, again and again.

A calibration runs the same tokens under many strengths. What lies before the first hook point that
is edited is computed once (`Resumed`); later hook points are edited on the way, as always.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import InputError, ModelError
from tl_transfer.interventions import Intervention, Passes, Plan
from tl_transfer.interventions.schedules import Schedule
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.point import HookPoint
from tl_transfer.models.resume import Resumed
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Encoded, Layout


class EditedBatch:
    """One batch of tokens, to be run under interventions.

    Args:
        model: Who runs it.
        tokens: Token ids, padded on either side.
        layout: Where the tokens, the prompts and their texts lie.
        mask: True on real tokens.
        keep: Columns whose logits are wanted.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "batch pos"],
        layout: Layout,
        mask: Bool[Tensor, "batch pos"],
        keep: Int[Tensor, " kept"],
    ) -> None:
        self._model, self._layout, self._keep = model, layout, keep
        self._tokens, self._mask = tokens.to(model.device), mask.to(model.device)
        self._resumed: dict[int, Resumed | None] = {}

    @torch.no_grad()
    def logits(
        self, interventions: Sequence[Intervention] = ()
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits at the kept columns with the interventions on."""
        passes = Passes()
        plan = Plan(self._model, interventions, passes)
        passes.listeners.append(plan)
        passes.begin(self._layout)
        passes.announce(0, self._tokens.shape[1], self._tokens)
        hooks = dict(plan.hooks())
        resumed = self._start(self._first_layer(plan.points))
        if resumed is None:
            with self._model.hooked(list(hooks.items())):
                return self._model.logits(
                    self._tokens, self._mask, keep=self._keep.to(self._model.device)
                )
        here = hooks.pop(resumed.point.name, None)
        residual = resumed.residual
        edited = None if here is None else here(residual)
        with self._model.hooked(list(hooks.items())):
            return resumed.logits(residual if edited is None else edited, keep=self._keep)

    def _first_layer(self, names: Sequence[str]) -> int:
        """The last layer that can be run once and for all; -1 if none can."""
        points = [self._model.hook_point(name) for name in names]
        if not points:
            return self._model.n_layers - 1
        first = min(point.layer for point in points)
        inside = any(point.layer == first and point.kind != "resid_post" for point in points)
        return first - 1 if inside else first

    def _start(self, layer: int) -> Resumed | None:
        if layer not in self._resumed:
            self._resumed.clear()  # a residual of the whole batch: keep one at a time
            self._resumed[layer] = self._resume(layer)
        return self._resumed[layer]

    def _resume(self, layer: int) -> Resumed | None:
        if layer < 0:
            return None
        try:
            return Resumed(self._model, HookPoint("resid_post", layer), self._tokens, self._mask)
        except ModelError:
            return None  # an architecture that cannot be resumed runs whole


def after_prompts(
    model: HookedModel, prompts: Sequence[Encoded]
) -> list[tuple[list[int], EditedBatch]]:
    """Batches whose one kept column is the last token of each prompt.

    Returns:
        For each batch, which prompts it holds, and the batch.
    """
    found = []
    for group in by_length([len(prompt.ids) for prompt in prompts], max_tokens=MAX_TOKENS):
        part = [prompts[i] for i in group]
        batch = pad([p.ids for p in part], side="left", pad_id=model.tokenizer.pad_token_id or 0)
        tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
        layout = Layout.of(mask, tokens=tokens, prompts=part)
        last = torch.tensor([tokens.shape[1] - 1])
        found.append((group, EditedBatch(model, tokens, layout, mask, last)))
    return found


def scaled(interventions: Sequence[Intervention], factor: float) -> tuple[Intervention, ...]:
    """The interventions with their strengths multiplied.

    Raises:
        InputError: strengths that differ by row.
    """
    return tuple(_scaled(item, factor) for item in interventions)


def _scaled(item: Intervention, factor: float) -> Intervention:
    strength = item.strength
    if item.n_rows is not None:
        raise InputError(
            "intervention: one strength is searched, and this one differs by row",
            got=f"made for {item.n_rows} rows",
            valid="an intervention with one number, or a schedule, as its strength",
            hint="calibrate each row's intervention on its own",
        )
    if isinstance(strength, Schedule):
        changed: object = replace(strength, strength=strength.strength * factor)
    else:
        changed = float(strength) * factor
    result: Intervention = replace(item, strength=changed)  # type: ignore[type-var]
    return result
