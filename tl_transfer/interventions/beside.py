"""Beside: another model reads along, and its activations are matched to the tokens of this one.

What was read once is kept, column by column, so a pass without KV cache sees the very values that
a cached one saw. With one tokenizer the other model decodes along with a cache of its own; with two
its tokens can change with every new character, and it reads the text anew for each new token.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_transfer.data.chat import EncodedChat, align_chat, encode_chat
from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.data.token_bytes import token_bytes
from tl_transfer.errors import HookError
from tl_transfer.interventions.passes import Passes
from tl_transfer.models.batches import pad
from tl_transfer.models.forward import Forward, forward_of
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Encoded, Layout


class Beside:
    """Activations of a model at one hook point for the columns of another model's passes.

    Args:
        model: The model that reads along.
        point: Where it is read.
        change: Applied to what is read (the map), in float32.
        same_tokens: Both models have one tokenizer, so its tokens are the other's.
    """

    def __init__(
        self,
        model: HookedModel,
        point: HookPoint,
        change: Callable[[Tensor], Tensor],
        same_tokens: bool,
    ) -> None:
        self._model, self._point, self._change = model, point, change
        self._same_tokens = same_tokens
        self._layout: Layout | None = None
        self._number = -1
        self._values: Tensor | None = None
        self._known: Tensor | None = None
        self._done = 0
        self._read_tokens: Tensor | None = None
        self._prompts: list[Encoded] = []
        self._forward: Forward | None = None
        self._buffer: Tensor | None = None

    def values(
        self, passes: Passes
    ) -> tuple[Float[Tensor, "batch pos d"], Bool[Tensor, "batch pos"]]:
        """For the columns of the running pass: the activations, and where there are any."""
        layout, tokens = passes.layout, passes.tokens
        if layout is None or tokens is None:
            raise HookError(
                "another model beside: the tokens are unknown, so it cannot read them",
                got="a pass that was not announced with its tokens",
                valid="attach(...).generate or .logits",
                hint="plain hooks see activations only",
            )
        if self._layout is not layout or self._changed(tokens):
            self._begin(layout)
        if passes.number != self._number and passes.stop > self._done:
            with passes.mute():  # the two may be one model
                self._read(layout, tokens, passes.stop, passes.tokenizer)
            self._done = passes.stop
            self._read_tokens = tokens[:, : passes.stop].clone()
        self._number = passes.number
        assert self._values is not None and self._known is not None
        return (
            self._values[:, passes.start : passes.stop],
            self._known[:, passes.start : passes.stop],
        )

    def _begin(self, layout: Layout) -> None:
        self._layout, self._done = layout, 0
        self._values = self._known = self._read_tokens = None
        self._prompts = []
        self._forward = self._buffer = None

    def _changed(self, tokens: Tensor) -> bool:
        """Whether rows hold other tokens than those read (beams change places)."""
        read = self._read_tokens
        return read is not None and not torch.equal(tokens[:, : read.shape[1]], read)

    def _store(self, row: int | slice, columns: Any, values: Tensor) -> None:
        """Keep mapped activations; the table is made when the width of the map is known."""
        assert self._layout is not None
        mapped = self._change(values.float())
        if self._values is None:
            shape = self._layout.positions.shape
            self._values = mapped.new_zeros((*shape, mapped.shape[-1]))
            self._known = torch.zeros(shape, dtype=torch.bool, device=mapped.device)
        assert self._known is not None
        self._values[row, columns] = mapped
        self._known[row, columns] = True

    def _read(self, layout: Layout, tokens: Tensor, stop: int, tokenizer: Any) -> None:
        if self._same_tokens:
            self._read_same(layout, tokens[:, :stop], stop)
        elif self._done == 0:
            self._read_prompts(layout)
            for column in range(layout.prompt_width, stop):
                self._read_generated(layout, tokens, column, tokenizer)
        else:
            for column in range(self._done, stop):
                self._read_generated(layout, tokens, column, tokenizer)

    def _read_same(self, layout: Layout, tokens: Tensor, stop: int) -> None:
        """One tokenizer: the same columns, whatever the padding."""
        device = self._model.device
        mask = (layout.positions >= 0).to(device)
        new = slice(self._done, stop)
        if layout.prompt_width == mask.shape[1]:  # one pass and no more, padded on either side
            name = self._point.name
            read = self._model.residuals(tokens.to(device), mask[:, :stop], [self._point])[name]
        else:
            read = self._decode(tokens.to(device), mask, new)
        self._store(slice(None), new, read)
        assert self._known is not None
        self._known[:, new] &= mask[:, new].to(self._known.device)

    def _decode(self, tokens: Tensor, mask: Tensor, new: slice) -> Tensor:
        """The next columns, with what came before in the cache."""
        if self._buffer is None:
            self._buffer = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
        self._buffer[:, new] = tokens[:, new]
        read: list[Tensor] = []

        def keep(activation: Tensor, hook: Any = None) -> None:
            read.append(activation)

        with self._model.hooked([(self._point.name, keep)]):
            if self._forward is None:
                padded = not bool(mask.all())
                self._forward = forward_of(
                    self._model, self._buffer, mask, padded=padded, use_cache=True
                )
            self._forward.recheck()
            self._forward(new.start, new.stop)
        return read[0]

    def _read_prompts(self, layout: Layout) -> None:
        """Two tokenizers: each row's own encoding of its prompt, and the last token read."""
        if layout.prompts is None:
            raise HookError(
                "another model beside: the texts are unknown, and both cut them differently",
                got="token ids only",
                valid="live.generate with texts or encoded chats",
                hint="live.logits works where both models have one tokenizer",
            )
        self._prompts = [_encode_for(prompt, self._model.tokenizer) for prompt in layout.prompts]
        rows = self._residuals([item.ids for item in self._prompts])
        for i, (there, here) in enumerate(zip(layout.prompts, self._prompts, strict=True)):
            pairs = partners(here, there)
            if pairs:
                targets, sources = zip(*pairs.items(), strict=True)
                first = int((layout.positions[i] >= 0).nonzero()[0])
                columns = torch.tensor(targets) + first
                self._store(i, columns, rows[i][list(sources)])

    def _read_generated(self, layout: Layout, tokens: Tensor, column: int, tokenizer: Any) -> None:
        """Two tokenizers: the source reads the text so far, up to its last whole character."""
        start = layout.prompt_width
        texts = [_text_of(row, tokenizer) for row in tokens[:, start : column + 1].tolist()]
        ids = []
        for prompt, text in zip(self._prompts, texts, strict=True):
            more = encode(text, self._model.tokenizer, add_bos=False).ids if text else ()
            ids.append((*prompt.ids, *more))
        rows = self._residuals(ids)
        for i, row in enumerate(rows):
            self._store(i, column, row[-1])

    def _residuals(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """The activations of each row's tokens."""
        self._model.require_fits(max(map(len, ids)), "text for the other model")
        batch = pad(ids, side="right", pad_id=self._model.tokenizer.pad_token_id or 0)
        device = self._model.device
        read = self._model.residuals(
            batch.tokens.to(device), batch.mask.to(device), [self._point]
        )  # fmt: skip
        rows = read[self._point.name]
        return [row[: len(own)] for row, own in zip(rows, ids, strict=True)]


def partners(source: Encoded, target: Encoded) -> dict[int, int]:
    """Target position -> the last source position that has read no more of the prompt.

    In chats the content of each message counts on its own, and template tokens match by what they
    do (end of a header, end of a turn, last token before the answer).
    """
    if isinstance(source, EncodedText) and isinstance(target, EncodedText):
        return _latest(
            {(0, source.ends[p]): p for p in source.pairable()},
            {(0, target.ends[p]): p for p in target.pairable()},
        )
    assert isinstance(source, EncodedChat) and isinstance(target, EncodedChat)
    found = _latest(source.content_ends(), target.content_ends())
    pairs = align_chat(source, target)
    template = zip(pairs.template_target.tolist(), pairs.template_source.tolist(), strict=True)
    return found | dict(template)


def _latest(
    source: dict[tuple[int, int], int], target: dict[tuple[int, int], int]
) -> dict[int, int]:
    keys = sorted(source)
    found = {}
    for (message, end), position in target.items():
        place = bisect_right(keys, (message, end)) - 1
        if place >= 0 and keys[place][0] == message:
            found[position] = source[keys[place]]
    return found


def _encode_for(prompt: Encoded, tokenizer: Any) -> Encoded:
    """The same prompt in the tokens, and the template, of another model."""
    if isinstance(prompt, EncodedText):
        return encode(prompt.text, tokenizer)
    messages = [{"role": item.role, "content": item.text} for item in prompt.contents]
    last = len(prompt.ids) - 1
    open_ended = prompt.template_tokens.get("last") == last
    return encode_chat(messages, tokenizer, add_generation_prompt=open_ended)


def _text_of(ids: list[int], tokenizer: Any) -> str:
    """Text of generated tokens, without control tokens, up to the last whole character."""
    table = token_bytes(tokenizer)
    pieces = [table[index] or b"" for index in ids if index not in table.special]
    return b"".join(pieces).decode(errors="ignore")
