"""attach: interventions on a model for the length of a `with` block, with true positions.

All hooks go on or none; they are gone afterwards, also after an exception; hooks of others are
left alone. `live.generate` gives the same tokens with and without KV cache, batched or single.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import HookError, InputError
from tl_transfer.interventions import Intervention, Plan, Strength
from tl_transfer.models.batches import pad
from tl_transfer.models.beams import search
from tl_transfer.models.driver import driver_of
from tl_transfer.models.generate import (
    Generation,
    Options,
    Sampling,
    decode,
    require_whole,
    steps,
)
from tl_transfer.models.load import load_model
from tl_transfer.models.pieces import Pieces, PieceSteps, Stream
from tl_transfer.models.prompts import Prompt, encoded, stop_ids
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Encoded, Layout


class Live:
    """A model with interventions on it; made by `attach`.

    `on` and the strengths may be changed between generations and inside one (from `on_token`, or
    between the steps of `stream`). A change acts from the next pass on. Keys and values that are
    already in the cache stay as they were computed; with ``use_cache=False`` every step computes
    the whole sequence as things stand then.

    Attributes:
        model: The steered model.
        interventions: What is on it; fixed for the block.
        on: Set to False and the model runs as if nothing were attached.
    """

    def __init__(self, model: HookedModel, interventions: Sequence[Intervention]) -> None:
        self.model = model
        self.interventions = tuple(interventions)
        self._driver = driver_of(model)
        self._plan = Plan(model, self.interventions, self._driver.passes)
        self._attached_now = False
        self._streams: WeakSet[Stream] = WeakSet()

    @property
    def on(self) -> bool:
        """Whether the interventions act."""
        return self._plan.on

    @on.setter
    def on(self, value: bool) -> None:
        self._plan.on = value

    def strength(self, index: int = 0) -> Strength:
        """Strength of an intervention as it is now."""
        return self._plan.strength(self._index(index))

    def set_strength(self, index: int, strength: Strength) -> None:
        """Change the strength of an intervention, from the next pass on.

        Args:
            index: Its place among `interventions`.
            strength: As for the intervention itself.

        Raises:
            InputError: no such intervention, or not a strength for the batch that is running; the
                strength stays as it was.
        """
        index = self._index(index)
        before = self._plan.strength(index)
        try:
            self._plan.set_strength(index, strength)
        except InputError:
            self._plan.set_strength(index, before)
            raise

    def _index(self, index: int) -> int:
        if not 0 <= index < len(self.interventions):
            raise InputError(
                "index: no intervention of this number",
                got=index,
                valid=f"0 to {len(self.interventions) - 1}",
                hint="they are counted in the order given to attach",
            )
        return index

    @contextmanager
    def _attached(self) -> Iterator[None]:
        passes = self._driver.passes
        with self._driver.attached():
            passes.listeners.append(self._plan)
            self._attached_now = True
            try:
                with self.model.hooked(self._plan.hooks()):
                    yield
            finally:
                self._attached_now = False
                passes.listeners.remove(self._plan)
                for stream in list(self._streams):
                    stream.close()

    def _require_attached(self) -> None:
        if not self._attached_now:
            raise HookError(
                "attach: its with block is over, so nothing would be steered",
                got="a call, or a step of a stream, after the block",
                valid="generate, stream and logits inside the with block",
                hint="use streams up inside the block, or attach again",
            )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        sampling: Sampling | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        stops: Sequence[int] | None = None,
        use_cache: bool = True,
        batch_size: int | None = 32,
        on_token: Callable[[Int[Tensor, " batch"]], None] | None = None,
    ) -> Any:
        """Continue prompts with the interventions on.

        Args:
            prompts: One or several: text (BOS is added where the tokenizer adds one, and markup
                spelled in it stays text), or what `encode` and `encode_chat` return.
            max_new_tokens: Tokens to add at most.
            min_new_tokens: Before this many no stop token is chosen.
            sampling: Greedy by default.
            num_beams: Beam search with so many beams (Hugging Face's scores).
            length_penalty: Of beam search: above 0 prefers long continuations.
            stops: Ids that end a row; default the end of text and of an assistant's turn; ``()``
                for none.
            use_cache: Same tokens either way; False is slower.
            batch_size: Rows at a time; None for one batch. Strengths by row follow their rows.
            on_token: Called with the new ids of each row; not with beams.

        Returns:
            A `Generation`, or a list of them when a list was given.

        Raises:
            InputError: an argument out of range, or a prompt too long for the model.
            HookError: another generation is running on this model, another thread steers it, or
                the block is over.
        """
        single = not isinstance(prompts, list | tuple)
        given: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[arg-type, list-item]
        sampling = sampling or Sampling()
        ends = stop_ids(self.model, stops)
        options = Options(
            max_new_tokens, min_new_tokens, ends, sampling, use_cache, num_beams, length_penalty
        )
        _require_batches(batch_size)
        if num_beams > 1 and on_token is not None:
            raise InputError(
                "on_token: a beam is known only when the search is over",
                got=f"on_token with num_beams={num_beams}",
                valid="num_beams=1",
                hint="leave on_token out",
            )
        rows = self._rows(given, max_new_tokens)
        size = max(len(rows) if batch_size is None else batch_size, 1)
        generator = sampling.generator(self.model.device)
        done: list[Generation] = []
        for first in range(0, len(rows), size):
            part = range(first, min(first + size, len(rows)))
            ids = [list(rows[i].ids) for i in part]
            with self._counted(self._layout(rows, part, options)):
                announce = self._driver.passes.announce
                if num_beams > 1:
                    new = search(self.model, ids, options, announce=announce)
                else:
                    new = decode(
                        self.model,
                        ids,
                        options,
                        announce=announce,
                        generator=generator,
                        on_token=on_token,
                    )
            done += [
                self._generation(rows[i].text, row, options.stops)
                for i, row in zip(part, new, strict=True)
            ]
        return done[0] if single else done

    def complete(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> str | list[str]:
        """What `generate` adds to each prompt, as text alone.

        Args:
            prompts: As for `generate`.
            **options: Those of `generate`.

        Returns:
            A text, or a list of them when a list was given.

        Raises:
            InputError: see `generate`.
            HookError: see `generate`.
        """
        done = self.generate(prompts, **options)
        return done.text if isinstance(done, Generation) else [one.text for one in done]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        sampling: Sampling | None = None,
        stops: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Stream:
        """Continue prompts and yield what each step adds.

        Between two steps `on` and the strengths may be changed. The arguments are those of
        `generate`; all prompts are one batch.

        A stream ends with its `with` block: what is left of it then raises, rather than go on
        unsteered.

        Yields:
            A `Piece` (text and token), or a list with one for each prompt when a list was given.
            The texts joined are the text that `generate` returns.

        Raises:
            HookError: see `generate`.
        """
        single = not isinstance(prompts, list | tuple)
        given: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[arg-type, list-item]
        options = Options(
            max_new_tokens,
            min_new_tokens,
            stop_ids(self.model, stops),
            sampling or Sampling(),
            use_cache,
        )
        rows = self._rows(given, max_new_tokens)
        stream = Stream(self._stream(rows, options, single), self._require_attached)
        self._streams.add(stream)
        return stream

    def _stream(self, rows: list[Encoded], options: Options, single: bool) -> PieceSteps:
        if not rows:
            return
        texts = [Pieces(self.model.tokenizer, options.stops) for _ in rows]
        with self._counted(self._layout(rows, range(len(rows)), options)):
            for chosen in steps(
                self.model,
                [list(row.ids) for row in rows],
                options,
                announce=self._driver.passes.announce,
                watched=True,
            ):
                pieces = [
                    text.add(token) for text, token in zip(texts, chosen.tolist(), strict=True)
                ]
                yield pieces[0] if single else pieces
        rest = [text.rest() for text in texts]
        if any(piece.text for piece in rest):
            yield rest[0] if single else rest

    def _rows(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Encoded]:
        rows = encoded(self.model, prompts, max_new_tokens)
        self._plan.require_rows(len(rows))
        return rows

    def _layout(self, prompts: list[Encoded], part: range, options: Options) -> Layout:
        """Where the tokens of a batch lie; the beams of a prompt are rows with its number."""
        here = [prompts[i] for i in part for _ in range(options.num_beams)]
        rows = torch.tensor([i for i in part for _ in range(options.num_beams)])
        return Layout.of(
            pad([list(prompt.ids) for prompt in here], side="left").mask.to(self.model.device),
            new=options.max_new_tokens,
            prompts=here,
            rows=rows,
            n_rows=len(prompts),
        )

    def _generation(self, text: str, ids: list[int], stops: Sequence[int]) -> Generation:
        stopped = bool(ids) and ids[-1] in stops
        kept = ids[:-1] if stopped else ids
        completion = self.model.tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(text, completion, tuple(kept), stopped)

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "_ _"] | None = None,
        *,
        keep: int | Tensor = 0,
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of whole sequences with the interventions on; all of it counts as prompt.

        Raises:
            InputError: a mask of another shape than the tokens.
        """
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if mask.shape != tokens.shape:
            raise InputError(
                "mask: not the shape of the tokens",
                got=tuple(mask.shape),
                valid=tuple(tokens.shape),
                hint="one True for each real token; leave it out if nothing is padded",
            )
        mask, tokens = mask.to(self.model.device), tokens.to(self.model.device)
        with self._counted(Layout.of(mask, tokens=tokens)):
            self._driver.passes.announce(0, tokens.shape[1], tokens)
            return self.model.logits(tokens, mask, keep=keep)

    @contextmanager
    def _counted(self, layout: Layout) -> Iterator[None]:
        """Check that every hook fired once a forward pass."""
        self._require_attached()
        plan, passes = self._plan, self._driver.passes
        before, fired_before = passes.count, list(plan.fired)
        with self._driver.running(layout):
            yield
        expected = passes.count - before
        for name, now, then in zip(plan.points, plan.fired, fired_before, strict=True):
            if now - then != expected:
                raise HookError(
                    f"attach: the hook at {name} did not fire once a forward pass",
                    got=f"{now - then} times in {expected} passes",
                    valid=f"{expected} times",
                    hint="was it removed inside the block (reset_hooks)?",
                )


@contextmanager
def attach(model: Any, *interventions: Intervention) -> Iterator[Live]:
    """Put interventions on a model for the length of a `with` block.

    Args:
        model: `HookedModel`, or a live TransformerLens host.
        interventions: Those that share a hook point run by stage (ablations before additions),
            within a stage in the order given.

    Yields:
        `Live`, with `generate`, `complete`, `stream` and `logits`; ``live.on = False`` switches it
        off.

    Raises:
        SpaceError: a vector does not belong to this model and hook point; nothing is attached.
        HookError: another thread has interventions on this model.
        InputError: something else than an intervention.
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
    with live._attached():
        yield live


def _require_batches(size: int | None) -> None:
    """Refuse a batch of no rows."""
    if size is None:
        return
    require_whole("batch_size", size)
    if size < 1:
        raise InputError(
            "batch_size: must be at least 1",
            got=size,
            valid=">= 1, or None for one batch",
            hint="leave it out for 32",
        )
