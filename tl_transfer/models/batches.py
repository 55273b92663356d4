"""Token rows to padded batches, with the mask always beside the ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_transfer.errors import InputError

#: Share of the most cells from which a batch may end early, and the length that is alike enough.
ENOUGH, ALIKE = 1 / 8, 0.85


@dataclass(frozen=True)
class TokenBatch:
    """Padded ids and their mask.

    Attributes:
        tokens: Token ids.
        mask: True on real tokens; never inferred from ids (pad may equal EOS).
        rows: Index of each row in the list the batch was made from.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    rows: tuple[int, ...]


def pad(rows: Sequence[Sequence[int] | np.ndarray], *, side: str, pad_id: int = 0) -> TokenBatch:
    """Pad rows of ids on `side` (``"left"`` for generation, ``"right"`` for capture).

    Raises:
        InputError: no rows, or an empty row.
    """
    if not rows or any(len(row) == 0 for row in rows):
        raise InputError(
            "texts: every text must give at least one token",
            got=f"{len(rows)} texts, {sum(len(row) == 0 for row in rows)} of them without tokens",
            valid="one or more texts that are not empty",
            hint="drop empty and whitespace-only texts first",
        )
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, columns] = torch.from_numpy(np.asarray(row, dtype=np.int64))
        mask[i, columns] = True
    return TokenBatch(tokens, mask, tuple(range(len(rows))))


def by_length(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that a batch holds similar lengths and at most `max_tokens` cells.

    Longest first: what would run out of memory does so at once, not after an hour.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    yield from in_order(order, lengths, max_tokens=max_tokens)


def in_order(
    order: Sequence[int], lengths: Sequence[int], *, max_tokens: int
) -> Iterator[list[int]]:
    """Neighbours of an order grouped so that a batch has at most `max_tokens` cells.

    A batch that is large enough to be fast also ends where the next text would be mostly padding:
    short texts of many lengths would otherwise be half padding.
    """
    batch: list[int] = []
    width = 0
    for index in order:
        wider = max(width, lengths[index])
        full = (len(batch) + 1) * wider > max_tokens
        padding = len(batch) * width >= ENOUGH * max_tokens and lengths[index] < ALIKE * width
        if batch and (full or padding):
            yield batch
            batch, wider = [], lengths[index]
        batch.append(index)
        width = wider
    if batch:
        yield batch
