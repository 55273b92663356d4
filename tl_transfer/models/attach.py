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
        self._tracker = DrivenTracker()
        self._names = [hook_name(item, model) for item in self.interventions]

    def _hooks(self) -> list[tuple[str, Any]]:
        def guarded(function: Any) -> Any:
            def steer(activation: Tensor, hook: Any = None) -> Tensor | None:
                edited = function(activation, hook=hook)
                return edited if self.on else None

            return steer

        return [
            (name, guarded(hook(item, f"{i}:{name}", self._tracker)))
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
            batch_size: Rows at a time; None for one batch (per-row strengths need it).
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
        rows = self._rows(given, max_new_tokens)
        size = batch_size or max(len(rows), 1)
        done: list[Generation] = []
        for first in range(0, len(rows), size):
            done += self._generate_batch(
                texts[first : first + size],
                rows[first : first + size],
                max_new_tokens=max_new_tokens,
                sampling=sampling or Sampling(),
                use_cache=use_cache,
                on_token=on_token,
            )
        return done[0] if single else done

    def _rows(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """Ids of each prompt; too long ones are refused rather than cut."""
        plain = iter(encode_many([p for p in prompts if isinstance(p, str)], self.model.tokenizer))
        rows = [list(next(plain).ids if isinstance(p, str) else p.ids) for p in prompts]
        longest = max((len(row) for row in rows), default=0)
        limit = int(getattr(self.model.host.cfg, "n_ctx", 0) or 0)
        if limit and longest + max_new_tokens > limit:
            raise InputError(
                "prompts: too long for the model's context",
                got=f"{longest} prompt tokens + max_new_tokens {max_new_tokens}",
                valid=f"at most {limit} together",
                hint="shorten the prompt yourself: cutting it would lose its first or last words",
            )
        return rows

    def _generate_batch(
        self,
        texts: list[str],
        rows: list[list[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
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
        yield
        expected = tracker.passes - before
        for i, name in enumerate(self._names):
            fired = tracker.fired.get(f"{i}:{name}", 0) - fired_before.get(f"{i}:{name}", 0)
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
    live = Live(load_model(model), interventions)
    with live.model.hooked(live._hooks()):
        yield live
