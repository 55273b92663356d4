"""Decoding on either host with positions that are known at every step.

One loop for all hosts: prompts are padded on the left, only the last position is unembedded, and
whoever steers is told which columns a forward pass holds before it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.models.batches import pad
from tl_transfer.models.forward import Forward, forward_of
from tl_transfer.models.surface import HookedModel

#: Called before each forward pass with (first new column, column after the last, tokens so far).
Announce = Callable[[int, int, Int[Tensor, "batch pos"]], None]


@dataclass(frozen=True)
class Generation:
    """Prompt and what followed it.

    Attributes:
        prompt: Text as given.
        text: Completion only, special tokens removed.
        tokens: Ids of the completion, without the stop token.
        stopped: True when a stop token ended it, False when it ran to `max_new_tokens`.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool

    def __str__(self) -> str:
        return self.prompt + self.text


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked; the default is greedy.

    Attributes:
        do_sample: Sample instead of taking the most likely token.
        temperature: Divides the logits.
        top_k: Keep the k most likely.
        top_p: Keep the smallest set with this much probability.
        seed: Of a private generator; the global one is never touched.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        good = (
            self.temperature > 0
            and (self.top_k is None or self.top_k >= 1)
            and (self.top_p is None or 0 < self.top_p <= 1)
        )
        if not good:
            raise InputError(
                "sampling: out of range",
                got=str(self),
                valid="temperature > 0, top_k >= 1, 0 < top_p <= 1",
                hint="leave them out for greedy decoding",
            )

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A private generator on the model's device; none is needed for greedy decoding."""
        if not self.do_sample:
            return None
        return torch.Generator(device=device).manual_seed(self.seed)

    def pick(
        self, logits: Float[Tensor, "batch d_vocab"], generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        """Next token of each row.

        Args:
            logits: Of the last position.
            generator: Of the random draw; not used when greedy.
        """
        if not self.do_sample:
            return logits.argmax(-1)
        scores = logits.float() / self.temperature
        if self.top_k is not None:
            floor = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < floor, float("-inf"))
        if self.top_p is not None:
            ordered, index = scores.sort(descending=True)
            p = ordered.softmax(-1)
            cut = (p.cumsum(-1) - p) >= self.top_p
            scores = scores.masked_fill(cut.scatter(1, index, cut), float("-inf"))
        return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1)


@dataclass(frozen=True)
class Options:
    """How a batch is continued.

    Attributes:
        max_new_tokens: Upper limit for every row.
        min_new_tokens: Before this many no stop token is chosen.
        stops: Ids that end a row.
        sampling: Greedy or sampled.
        use_cache: False computes the whole sequence at every step (the same tokens, slower).
        num_beams: More than 1 keeps that many continuations of each prompt (`models.beams`).
        length_penalty: Of beams: a score is divided by the length to this power.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stops: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    use_cache: bool = True
    num_beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "min_new_tokens", "num_beams"):
            require_whole(name, getattr(self, name))
        if self.max_new_tokens < 1:
            raise InputError(
                "max_new_tokens: must be at least 1",
                got=self.max_new_tokens,
                valid=">= 1",
                hint="leave it out for 64",
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                "min_new_tokens: not between 0 and max_new_tokens",
                got=self.min_new_tokens,
                valid=f"0 to {self.max_new_tokens}",
                hint="leave it out for 0",
            )
        if self.num_beams < 1 or (self.num_beams > 1 and self.sampling.do_sample):
            raise InputError(
                "num_beams: beams are searched, not sampled",
                got=f"num_beams={self.num_beams} with do_sample={self.sampling.do_sample}",
                valid="1, or more with greedy sampling",
                hint="leave sampling out",
            )


def require_whole(name: str, value: Any) -> None:
    """Refuse what counts no tokens, rows or beams.

    Raises:
        InputError: it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(
            f"{name}: must be a whole number",
            got=repr(value)[:80],
            valid="1, 2, 3 and so on",
            hint=f"pass int({name})",
        )


class Buffer:
    """Prompts padded on the left, with room for the tokens to come.

    Attributes:
        tokens: Ids.
        mask: False on padding.
        width: Columns of the prompts.
        padded: Whether there is any padding.
    """

    def __init__(
        self, model: HookedModel, prompts: Sequence[Sequence[int]], room: int, copies: int = 1
    ) -> None:
        batch = pad(prompts, side="left", pad_id=model.tokenizer.pad_token_id or 0)
        rows, self.width = batch.tokens.shape
        self.padded = not bool(batch.mask.all())
        shape = rows * copies, self.width + room
        self.tokens = torch.zeros(shape, dtype=torch.long, device=model.device)
        self.mask = torch.ones(shape, dtype=torch.bool, device=model.device)
        for whole, part in ((self.tokens, batch.tokens), (self.mask, batch.mask)):
            whole[:, : self.width] = part.to(model.device).repeat_interleave(copies, dim=0)

    def forward(self, model: HookedModel, use_cache: bool) -> Forward:
        """Passes over these tokens."""
        return forward_of(model, self.tokens, self.mask, padded=self.padded, use_cache=use_cache)


@torch.no_grad()
def steps(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    announce: Announce,
    generator: torch.Generator | None = None,
    watched: bool = False,
) -> Iterator[Int[Tensor, " batch"]]:
    """The next token of each row, step by step, until every row has stopped.

    A row that has stopped goes on with a stop token.

    Args:
        model: Any host.
        prompts: Token ids, BOS included where the model wants one.
        options: See `Options`; beams are not for this function.
        announce: Told the columns and the tokens so far before each forward pass.
        generator: Drawn from by every batch of one call, so that batches do not repeat.
        watched: Whether the caller runs foreign code between steps.
    """
    buffer = Buffer(model, prompts, options.max_new_tokens)
    tokens, width = buffer.tokens, buffer.width
    forward = buffer.forward(model, options.use_cache)
    generator = generator or options.sampling.generator(model.device)
    stops = torch.tensor(list(options.stops) or [-1], device=tokens.device)
    after_stop = stops[0].clamp(min=0)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    start = 0
    for end in range(width, width + options.max_new_tokens):
        announce(start, end, tokens[:, :end])
        logits = forward(start, end)
        if options.stops and end - width < options.min_new_tokens:
            logits = logits.index_fill(-1, stops, float("-inf"))
        chosen = options.sampling.pick(logits, generator)
        if len(tokens) > 1:
            chosen = torch.where(done, after_stop, chosen)
        tokens[:, end] = chosen
        yield chosen
        if watched:
            forward.recheck()
        done = done | (chosen[:, None] == stops).any(-1)
        if bool(done.all()):
            return
        start = end if options.use_cache else 0


def decode(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    announce: Announce,
    generator: torch.Generator | None = None,
    on_token: Callable[[Int[Tensor, " batch"]], None] | None = None,
) -> list[list[int]]:
    """New token ids of each prompt, stop token included where one came.

    Args:
        model: See `steps`.
        prompts: See `steps`.
        options: See `Options`.
        announce: See `steps`.
        generator: See `steps`.
        on_token: Called with the new token of each row.
    """
    new = []
    for chosen in steps(
        model, prompts, options, announce=announce, generator=generator, watched=bool(on_token)
    ):
        new.append(chosen)
        if on_token is not None:
            on_token(chosen)
    return [until_stop(row, options.stops) for row in torch.stack(new, dim=1).tolist()]


def until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    """A row up to its first stop token, which is kept."""
    for i, token in enumerate(row):
        if token in stops:
            return row[: i + 1]
    return row
