"""fwd_hooks: an intervention as plain TransformerLens hooks, in anybody's workflow."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.errors import HookError, InputError
from tl_transfer.interventions.gate import When, gates, prompt_state
from tl_transfer.interventions.passes import Passes
from tl_transfer.interventions.plan import Plan
from tl_transfer.interventions.protocol import Intervention
from tl_transfer.interventions.schedules import Schedule
from tl_transfer.positions import everywhere
from tl_transfer.positions.layout import Encoded, Layout

#: Columns laid out beyond the prompt; more are added when they are reached.
_ROOM = 256


def fwd_hooks(
    intervention: Intervention,
    model: Any,
    *,
    attention_mask: Tensor | None = None,
    prompt_lengths: Tensor | int | None = None,
    prompts: Sequence[str | Encoded] | None = None,
) -> list[tuple[str, Callable]]:
    """Hooks for `model.hooks`, `run_with_hooks` and `run_with_cache`, in anybody's workflow.

    A pass of more than one token starts a sequence; a pass of one token after it is the next
    cached decoding step, so a prompt of a single token needs hooks of its own. Rules, gates and
    schedules that depend on the end of the prompt take the first pass as the prompt, or
    `prompt_lengths`. `attach` knows all this exactly and is the better choice for generation in
    batches.

    Args:
        intervention: Any operator.
        model: `HookedModel`, or the host itself.
        attention_mask: True / 1 on real tokens, for padded batches ([batch, pos] of the prompt).
        prompt_lengths: Tokens of the prompt, per row or for all.
        prompts: The prompts themselves, for rules on their text or tokens: as many as rows, texts
            or what `encode` and `encode_chat` return.
    """
    from tl_transfer.models.load import load_model

    hooked = load_model(model)
    encoded = None if prompts is None else [_encode(item, hooked.tokenizer) for item in prompts]
    answers: dict[Any, Tensor] = {}
    points = intervention.points(hooked)
    found: list[tuple[str, Callable]] = []
    for gate in gates(intervention.where):
        name = hooked.hook_point(gate.condition.space.hook_point).name
        _require_order(name, points)
        place = FreePlace(Passes(), intervention, attention_mask, prompt_lengths, encoded, answers)
        found.append((name, _reader(place, gate, answers)))
    for point in points:
        passes = Passes()
        # A plan of its own for each point: nobody says when a pass begins, each point counts.
        plan = Plan(hooked, [intervention], passes)
        passes.listeners.append(plan)
        place = FreePlace(passes, intervention, attention_mask, prompt_lengths, encoded, answers)
        found.append((point, _located(place, dict(plan.hooks())[point])))
    return found


def _encode(prompt: str | Encoded, tokenizer: Any) -> Encoded:
    return prompt if isinstance(prompt, EncodedText | EncodedChat) else encode(prompt, tokenizer)


def _reader(place: "FreePlace", gate: When, answers: dict[Any, Tensor]) -> Callable[..., None]:
    """Reads the gate where the prompt passes it, for the edits that come later in the pass."""

    def read(activation: Tensor, hook: Any = None) -> None:
        if place.see(activation):
            state = prompt_state(activation, place.layout, gate.read)
            answers[gate] = gate.condition.predict(state)

    return read


def _require_order(gate: str, points: Sequence[str]) -> None:
    kinds = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

    def rank(name: str) -> tuple[int, int]:
        _, layer, kind = name.split(".")
        return int(layer), kinds.index(kind.removeprefix("hook_"))

    first = min(points, key=rank)
    if rank(gate) > rank(first):
        raise HookError(
            "where: the gate lies after the edit, so plain hooks cannot know it in time",
            got=f"gate at {gate}, edit at {first}",
            valid="a gate at the layer of the edit or before",
            hint="attach reads the gate in a pass of its own",
        )


def _located(place: "FreePlace", function: Callable) -> Callable[..., Tensor | None]:
    def steer(activation: Tensor, hook: Any = None) -> Tensor | None:
        place.see(activation)
        return function(activation, hook=hook)

    return steer


class FreePlace:
    """Finds out which columns a pass holds that this package does not drive."""

    def __init__(
        self,
        passes: Passes,
        intervention: Intervention,
        mask: Tensor | None,
        prompt_lengths: Tensor | int | None,
        prompts: list[Encoded] | None,
        answers: dict[Any, Tensor],
    ) -> None:
        self._answers = answers
        self._passes = passes
        self._where = intervention.where
        # A schedule counts from the prompt's end, and a gate reads the prompt.
        counts = isinstance(intervention.strength, Schedule)
        self._needs_end = counts or bool({"prompt end", "gate"} & self._where.needs)
        self._mask = None if mask is None else mask.bool()
        self._given = prompt_lengths
        self._prompts = prompts
        self._seen = 0

    @property
    def layout(self) -> Layout:
        """Of the sequence that runs."""
        assert self._passes.layout is not None
        return self._passes.layout

    def see(self, activation: Tensor) -> bool:
        """A pass arrived: announce it, and say whether it starts a sequence."""
        batch, width = activation.shape[:2]
        before = self._seen
        decoding = width == 1 and before > 0
        if decoding:
            self._decode(before)
        else:
            if self._given is None and self._prompts is None and before > 0 and width == before + 1:
                self._refuse_growth(before, width)
            if batch > 1 and self._mask is None and self._where != everywhere(sinks=True):
                self._refuse_batch(batch)
            self._begin(batch, width, activation.device)
        self._seen = self._passes.stop
        return not decoding

    def _begin(self, batch: int, width: int, device: torch.device) -> None:
        mask = self._mask
        if mask is None:
            mask = torch.ones((batch, width), dtype=torch.bool)
        if mask.shape != (batch, width):
            raise InputError(
                "attention_mask: not the shape of the tokens",
                got=tuple(mask.shape),
                valid=(batch, width),
                hint="pass the mask of the prompt tokens",
            )
        if self._prompts is not None and len(self._prompts) != batch:
            raise InputError(
                "prompts: one for each row",
                got=f"{len(self._prompts)} prompts for {batch} rows",
                valid="as many as rows",
                hint="fwd_hooks(model, prompts=[...]) in the order of the batch",
            )
        mask = mask.to(device)
        layout = Layout.of(
            mask, new=_ROOM, prompt_lengths=self._lengths(mask), tokens=self._tokens(mask),
            prompts=self._prompts,
        )  # fmt: skip
        self._passes.begin(replace(layout, gates=self._answers))
        self._passes.announce(0, width, layout.tokens)

    def _decode(self, start: int) -> None:
        passes = self._passes
        assert passes.layout is not None
        if "tokens" in self._where.needs:
            raise HookError(
                "where: token_ids needs the generated tokens, and plain hooks do not see them",
                got=str(self._where),
                valid="attach(...).generate",
                hint="or combine it with the prompt: token_ids(...) & prompt() in attach",
            )
        if start >= passes.layout.positions.shape[1]:
            passes.begin(passes.layout.extended(_ROOM))
        passes.announce(start, start + 1)

    def _lengths(self, mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"] | None:
        if self._given is not None:
            return torch.as_tensor(self._given, device=mask.device).expand(len(mask))
        if self._prompts is not None:
            return torch.tensor([len(item.ids) for item in self._prompts], device=mask.device)
        return None

    def _tokens(self, mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"] | None:
        """Ids of the prompts, laid into the columns of their real tokens."""
        if self._prompts is None:
            return None
        tokens = torch.zeros_like(mask, dtype=torch.long)
        for row, real, prompt in zip(tokens, mask, self._prompts, strict=True):
            places = real.nonzero()[:, 0][: len(prompt.ids)]
            row[places] = torch.tensor(prompt.ids[: len(places)], device=mask.device)
        return tokens

    @staticmethod
    def _refuse_batch(batch: int) -> None:
        raise InputError(
            "attention_mask: needed for a batch, or padding could be taken for text",
            got=f"{batch} rows and no mask",
            valid="the mask of the tokens, all ones if nothing is padded",
            hint="fwd_hooks(model, attention_mask=mask), or use attach",
        )

    def _refuse_growth(self, before: int, width: int) -> None:
        if self._needs_end:
            raise HookError(
                "where, strength: a pass one token longer than the last looks like generation "
                "without a KV cache, and then the end of the prompt is unknown",
                got=f"{width} tokens after {before}",
                valid="attach(...), or prompt_lengths=, or use_past_kv_cache=True",
                hint="use tl_transfer.attach(model, intervention).generate(...)",
            )
