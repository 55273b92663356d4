"""attach: interventions on a model for the length of a `with` block, with true positions.

All hooks go on or none; they are gone afterwards, also after an exception; hooks of others are
left alone. `live.generate` gives the same tokens with and without KV cache, batched or single.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText, encode_many
from tl_transfer.errors import HookError, InputError
from tl_transfer.interventions import Intervention, hook, hook_name
from tl_transfer.models.generate import Generation, Sampling, decode, stop_tokens
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where

#: What can be continued: text, or tokens that know their text.
Prompt = str | EncodedText | EncodedChat


class DrivenTracker:
    """Positions under passes that this package drives: told before each one."""

    def __init__(self) -> None:
        self._positions: Tensor | None = None
        self._lengths: Tensor | None = None
        self._start = 0
        self._prompt_width: int | None = None
        self.fired: dict[str, int] = {}
        self.passes = 0

    def begin(self, prompt_width: int | None = None) -> None:
        """A new sequence starts; None: the whole pass is the prompt."""
        self._prompt_width = prompt_width

    def end(self) -> None:
        """The sequence is over; what comes next must be announced anew."""
        self._positions = None

    def announce(self, mask: Bool[Tensor, "batch pos"], start: int) -> None:
        """The next pass holds columns `start:` of the sequence with this mask."""
        positions = torch.where(mask, mask.long().cumsum(-1) - 1, -1)
        width = self._prompt_width or mask.shape[1]
        self._lengths = mask[:, :width].sum(-1)
        self._positions = positions[:, start:]
        self._start = start
        self.passes += 1

    def place(self, key: str, activation: Tensor, where: Where) -> Tensor | bool:
        """See `interventions.Tracker`."""
        self.fired[key] = self.fired.get(key, 0) + 1
        positions = self._positions
        if positions is None or positions.shape != activation.shape[:2]:
            raise HookError(
                "attach: a forward pass ran that live.generate or live.logits did not start, "
                "so its positions are unknown",
                got=f"activation {tuple(activation.shape)}",
                valid="live.generate(...) or live.logits(...) inside the with block",
                hint="for other calls use model.hooks(fwd_hooks=intervention.fwd_hooks(model))",
            )
        if self._prompt_width is not None and self._start >= self._prompt_width:
            return where.while_decoding
        assert self._lengths is not None
        return where.choose(positions, self._lengths)


class Live:
    """A model with interventions on it; made by `attach`.

    Attributes:
        model: The steered model.
        interventions: What is on it; fixed for the block.
        on: Set to False and the model runs as if nothing were attached.
    """

    def __init__(self, model: HookedModel, interventions: Sequence[Intervention]) -> None:
        self.model = model
        self.interventions = tuple(interventions)
        self.on = True
        # One tracker a model: hooks of an outer attach see the passes of an inner one.
        self._tracker: DrivenTracker = model.__dict__.setdefault("_tracker", DrivenTracker())
        self._names = [hook_name(item, model) for item in self.interventions]

    def _key(self, i: int) -> str:
        """Name under which the tracker counts the i-th intervention."""
        return f"{id(self)}:{i}"

    def _hooks(self) -> list[tuple[str, Any]]:
        def guarded(function: Any) -> Any:
            def steer(activation: Tensor, hook: Any = None) -> Tensor | None:
                edited = function(activation, hook=hook)
                return edited if self.on else None

            return steer

        return [
            (name, guarded(hook(item, self._key(i), self._tracker)))
            for i, (item, name) in enumerate(zip(self.interventions, self._names, strict=True))
        ]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        use_cache: bool = True,
        batch_size: int | None = 32,
        on_token: Any = None,
    ) -> Any:
        """Continue prompts with the interventions on.

        Args:
            prompts: One or several: text (BOS is added where the tokenizer adds one, and markup
                spelled in it stays text), or what `encode` and `encode_chat` return.
            max_new_tokens: Tokens to add at most.
            sampling: Greedy by default.
            use_cache: Same tokens either way; False is slower.
            batch_size: Rows at a time; None for one batch, as with per-row strengths always.
            on_token: Called with the new ids of each row, for streaming.

        Returns:
            A `Generation`, or a list of them when a list was given.
        """
        single = not isinstance(prompts, list | tuple)
        given: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[arg-type, list-item]
        texts = [item if isinstance(item, str) else item.text for item in given]
        if max_new_tokens < 1:
            raise InputError(
                "max_new_tokens: must be at least 1",
                got=max_new_tokens,
                valid=">= 1",
                hint="leave it out for 64",
            )
        if batch_size is not None and batch_size < 1:
            raise InputError(
                "batch_size: must be at least 1",
                got=batch_size,
                valid=">= 1, or None for one batch",
                hint="leave it out for 32",
            )
        rows = self._rows(given, max_new_tokens)
        by_row = self._require_strengths(len(rows))
        size = len(rows) if by_row or batch_size is None else batch_size
        size = max(size, 1)
        sampling = sampling or Sampling()
        generator = sampling.generator(self.model.device)
        done: list[Generation] = []
        for first in range(0, len(rows), size):
            done += self._generate_batch(
                texts[first : first + size],
                rows[first : first + size],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                generator=generator,
                use_cache=use_cache,
                on_token=on_token,
            )
        return done[0] if single else done

    def _require_strengths(self, n: int) -> bool:
        """Whether strengths differ by row; then there must be one for each prompt."""
        by_row = False
        for item in self.interventions:
            if isinstance(item.strength, Tensor) and item.strength.ndim == 1:
                by_row = True
                if len(item.strength) != n:
                    raise InputError(
                        "strength: one number for each row of the batch",
                        got=f"{len(item.strength)} strengths for {n} prompts",
                        valid="a float, or a tensor as long as the list of prompts",
                        hint="pass one strength a prompt",
                    )
        return by_row

    def _rows(self, prompts: Sequence[Any], max_new_tokens: int) -> list[list[int]]:
        """Ids of each prompt; too long ones are refused rather than cut."""
        bad = [p for p in prompts if not isinstance(p, str | EncodedText | EncodedChat)]
        if bad:
            raise InputError(
                "prompts: not something that can be continued",
                got=type(bad[0]).__name__,
                valid="text, or what encode and encode_chat return",
                hint="decode token ids to text first",
            )
        plain = iter(encode_many([p for p in prompts if isinstance(p, str)], self.model.tokenizer))
        rows = [list(next(plain).ids if isinstance(p, str) else p.ids) for p in prompts]
        longest = max((len(row) for row in rows), default=0)
        self.model.require_fits(longest + max_new_tokens, "prompts (with max_new_tokens)")
        return rows

    def _generate_batch(
        self,
        texts: list[str],
        rows: list[list[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        generator: torch.Generator,
        use_cache: bool,
        on_token: Any,
    ) -> list[Generation]:
        self.model.require_eval()
        stops = stop_tokens(self.model)
        with self._counted(max((len(row) for row in rows), default=0)):
            new = decode(
                self.model,
                rows,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                generator=generator,
                use_cache=use_cache,
                stops=stops,
                announce=self._tracker.announce,
                on_token=on_token,
            )
        return [self._generation(text, ids, stops) for text, ids in zip(texts, new, strict=True)]

    def _generation(self, text: str, ids: list[int], stops: Sequence[int]) -> Generation:
        stopped = bool(ids) and ids[-1] in stops
        kept = ids[:-1] if stopped else ids
        completion = self.model.tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(text, completion, tuple(kept), stopped)

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        *,
        keep: int | Tensor = 0,
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of whole sequences with the interventions on; all of it counts as prompt."""
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        with self._counted(None):
            self._tracker.announce(mask, 0)
            return self.model.logits(tokens, mask, keep=keep)

    @contextmanager
    def _counted(self, prompt_width: int | None) -> Iterator[None]:
        """Check that every hook fired once a forward pass."""
        tracker = self._tracker
        tracker.begin(prompt_width)
        before, fired_before = tracker.passes, dict(tracker.fired)
        try:
            yield
        finally:
            # A later pass that nobody announced must not be taken for one of these.
            tracker.end()
        expected = tracker.passes - before
        for i, name in enumerate(self._names):
            fired = tracker.fired.get(self._key(i), 0) - fired_before.get(self._key(i), 0)
            if fired != expected:
                raise HookError(
                    f"attach: the hook at {name} did not fire once a forward pass",
                    got=f"{fired} times in {expected} passes",
                    valid=f"{expected} times",
                    hint="was it removed inside the block (reset_hooks)?",
                )


@contextmanager
def attach(model: Any, *interventions: Intervention) -> Iterator[Live]:
    """Put interventions on a model for the length of a `with` block.

    Args:
        model: `HookedModel`, or a live TransformerLens host.
        interventions: Applied in the order given when they share a hook point.

    Yields:
        `Live`, with `generate` and `logits`; ``live.on = False`` switches it off.

    Raises:
        SpaceError: a vector does not belong to this model and hook point; nothing is attached.
    """
    for item in interventions:
        if not isinstance(item, Intervention):
            raise InputError(
                "interventions: not an intervention",
                got=type(item).__name__,
                valid="Add(vector, strength) or Ablate(vector)",
                hint="wrap the vector: attach(model, Add(vector, 0.05))",
            )
    live = Live(load_model(model), interventions)
    with live.model.hooked(live._hooks()):
        yield live
