"""Plan: the hooks of several interventions on one model, one function a hook point.

At a hook point interventions run by stage (replace, remove, set, turn, add), then in the order
given. Interventions of one stage that share rule and strength may merge: ablations of several
directions become one projection onto the span.
"""

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import HookError, InputError
from tl_transfer.interventions.gate import read_gates, require_gates
from tl_transfer.interventions.passes import Passes
from tl_transfer.interventions.placement import Decision, Placement
from tl_transfer.interventions.protocol import Edit, Intervention, Strength, check_strength, rows_of
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Layout
from tl_transfer.positions.where import Where


class Plan:
    """What is attached to a model: made before any hook is placed, so all fit or none is.

    Args:
        model: The model.
        interventions: In the order given.
        passes: Told by whoever drives the model which tokens each pass holds.

    Attributes:
        on: False lets every activation through untouched.
        fired: Calls of each hook so far, in the order of `points`.

    Raises:
        SpaceError: one of them does not belong to this model.
    """

    def __init__(
        self, model: HookedModel, interventions: Sequence[Intervention], passes: Passes
    ) -> None:
        self.on = True
        self._model = model
        self._items = tuple(interventions)
        self._strengths: list[Strength] = [item.strength for item in self._items]
        self._passes = passes
        self._by_point: dict[str, list[int]] = {}
        for i, item in enumerate(self._items):
            for point in item.points(model):
                self._by_point.setdefault(point, []).append(i)
            require_gates(model, item.where)
        self.points = tuple(self._by_point)
        self.fired = [0] * len(self.points)
        self._steps: dict[str, list[_Step]] = {}
        self._compose()
        self._placements: list[Placement] = []
        self._decisions: list[Decision | None] = []
        self._number = -1

    # -- before and between passes ------------------------------------------------------------

    def place(self, layout: Layout) -> None:
        """A new batch: read the gates, and work out where each intervention acts on it."""
        with self._passes.mute():
            for item in self._items:
                read_gates(self._model, item.where, layout)
        self._placements = [
            Placement(item, strength, layout)
            for item, strength in zip(self._items, self._strengths, strict=True)
        ]
        self._number = -1

    def require_rows(self, n: int) -> None:
        """Refuse interventions that were made for another number of prompts."""
        for item, strength in zip(self._items, self._strengths, strict=True):
            of_strength = rows_of(strength)
            if of_strength is not None and of_strength != n:
                raise InputError(
                    "strength: one number for each row of the batch",
                    got=f"{of_strength} strengths for {n} prompts",
                    valid="a float, or a tensor as long as the list of prompts",
                    hint="pass one strength a prompt",
                )
            if of_strength is None and item.n_rows not in (None, n):
                raise InputError(
                    "intervention: made for another number of prompts",
                    got=f"one for {item.n_rows} prompts, and {n} prompts",
                    valid="one row, vector or mask for each prompt",
                    hint="pass all prompts in one call",
                )

    def strength(self, i: int) -> Strength:
        """The strength of the i-th intervention as it is now."""
        return self._strengths[i]

    def order(self, point: str) -> list[tuple[Intervention, Strength, Where]]:
        """What acts at a hook point, merged and in order, how strongly, and at which positions."""
        return [
            (step.intervention, self._strengths[step.index], self._items[step.index].where)
            for step in self._steps[point]
        ]

    def set_strength(self, i: int, strength: Strength) -> None:
        """Change the strength of the i-th intervention, from the next pass on."""
        check_strength(strength)
        self._strengths[i] = strength
        self._compose()
        if self._passes.layout is not None:
            self.place(self._passes.layout)

    def _compose(self) -> None:
        """Order the work at each point, and merge what belongs together."""
        for point, indices in self._by_point.items():
            order = sorted(indices, key=lambda i: self._items[i].stage)
            groups: list[list[int]] = []
            for i in order:
                for group in groups:
                    if self._alike(group[0], i):
                        group.append(i)
                        break
                else:
                    groups.append([i])
            self._steps[point] = [step for group in groups for step in self._merge(point, group)]

    def _alike(self, i: int, j: int) -> bool:
        here, there = self._items[i], self._items[j]
        same = here.stage == there.stage and here.where == there.where
        return same and _equal(self._strengths[i], self._strengths[j])

    def _merge(self, point: str, group: list[int]) -> list["_Step"]:
        first, *rest = (self._items[i] for i in group)
        one = first.merged(point, tuple(rest)) if rest else None
        if one is not None:
            return [_Step(group[0], one)]
        return [_Step(i, self._items[i]) for i in group]

    # -- during a pass ------------------------------------------------------------------------

    def hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """(hook point, hook function) for TransformerLens."""
        return [(point, self._hook(k, point)) for k, point in enumerate(self.points)]

    def _hook(self, k: int, point: str) -> Callable[..., Tensor | None]:
        passes, fired = self._passes, self.fired

        def steer(activation: Tensor, hook: Any = None) -> Tensor | None:
            if passes.muted:
                return None
            if passes.thread not in (None, get_ident()):
                raise _of_another_thread(passes.thread)
            fired[k] += 1
            if not self.on:
                return None
            if self._number != passes.number:
                self._decide(activation)
            decisions, edited = self._decisions, activation
            for step in self._steps[point]:
                decision = decisions[step.index]
                if decision is None:
                    continue
                mask, strength = decision
                edit = step.edit or step.prepare(point, activation, passes)
                if mask is None:
                    edited = edit(edited, strength)
                else:
                    # Not a product with the mask: -0.0 + 0 * v is not -0.0. Where the layers
                    # of a model are spread, the mask comes to the layer.
                    mask = mask.to(edited.device)
                    edited = torch.where(mask, edit(edited, strength), edited)
            return None if edited is activation else edited

        return steer

    def _decide(self, activation: Tensor) -> None:
        """Once a pass: what each intervention does in it."""
        passes = self._passes
        layout, start, stop = passes.layout, passes.start, passes.stop
        expected = None if layout is None else (len(layout.positions), stop - start)
        if layout is None or activation.shape[:2] != expected:
            raise HookError(
                "attach: a forward pass ran that live.generate or live.logits did not start, "
                "so its positions are unknown",
                got=f"activation {tuple(activation.shape)}",
                valid="live.generate(...) or live.logits(...) inside the with block",
                hint="for other calls use model.hooks(fwd_hooks=intervention.fwd_hooks(model))",
            )
        if stop > layout.positions.shape[1]:
            raise HookError(
                "attach: a pass beyond the end of its batch's layout",
                got=f"column {stop}",
                valid=f"at most {layout.positions.shape[1]}",
                hint="lay out room for every new token before the first pass",
            )
        self._decisions = [item.at(start, stop, passes.tokens) for item in self._placements]
        self._number = passes.number


class _Step:
    """One intervention at one hook point, prepared when the first activation comes."""

    def __init__(self, index: int, intervention: Intervention) -> None:
        self.index = index
        self.edit: Edit | None = None
        self.intervention = intervention

    def prepare(self, point: str, like: Tensor, passes: Passes) -> Edit:
        """Put what the edit needs on the device of `like`."""
        self.edit = self.intervention.prepare(point, like, passes)
        return self.edit


def _of_another_thread(thread: int | None) -> HookError:
    return HookError(
        "attach: a pass of another thread met the hooks of a generation",
        got=f"thread {get_ident()}, generation in {thread}",
        valid="one thread at a time: hooks are on the whole model",
        hint="put a lock around the model, or load it once for each thread",
    )


def _equal(here: Strength, there: Strength) -> bool:
    if isinstance(here, Tensor) and isinstance(there, Tensor):
        return torch.equal(here, there)
    return here is there or (isinstance(here, float | int) and here == there)
