"""One row a text: the mean over its tokens, or one of them, for vectors made from contrasts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.texts import Text, as_texts, text_hash
from tl_transfer.data.tokens import Reading, Tokens, read_tokens
from tl_transfer.errors import InputError
from tl_transfer.models.capture import (
    MAX_TOKENS,
    Reader,
    mean_rows,
    norms,
    read_in_order,
    reading_order,
    take,
)
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel


@dataclass(frozen=True)
class TextRows:
    """One row a text at one hook point.

    Attributes:
        rows: Reduced activations in float32, on the CPU.
        median_norm: Median residual norm over the content tokens of the texts.
    """

    rows: Float[Tensor, "text d_model"]
    median_norm: float


def read_texts(
    model: HookedModel,
    points: Sequence[HookPoint],
    texts: Sequence[Any],
    *,
    positions: str | Tokens = "mean",
    max_tokens: int = MAX_TOKENS,
    argument: str = "texts",
) -> dict[str, TextRows]:
    """One activation row a text at several hook points: mean over its tokens, or its last token.

    Position 0 is never read, and massive-norm tokens are left out of means.

    Args:
        model: Who reads.
        points: Hook points.
        texts: Plain texts, or chats (see `tl_transfer.data.texts.as_texts`).
        positions: ``"mean"`` or ``"last"`` of the content, or `Tokens` that keep one of the two,
            such as ``Tokens("last", of="template")``: the last token before the answer.
        max_tokens: Cells of one batch.
        argument: Name of `texts` in errors.

    Raises:
        InputError: no texts, or a text with nothing to read.
    """
    tokens = Tokens.of_any(positions)
    if tokens.keep == "all":
        raise InputError(
            "positions: one row is read of each text",
            got=repr(positions),
            valid='"mean", "last", or Tokens that keep one of them',
            hint='leave it out for "mean"',
        )
    given = as_texts(texts, argument)
    readings = read_tokens(given, model.tokenizer, tokens)
    _require_tokens(readings, given, argument)
    lengths = [len(reading.ids) for reading in readings]
    model.require_fits(max(lengths), argument)
    everything = [np.union1d(r.content, r.positions) for r in readings]
    reader = Reader(model, points, [r.ids for r in readings], everything)
    order = reading_order(
        [text_hash(text) for text in given], [r.n_bytes for r in readings], lengths
    )
    found = {point.name: torch.zeros(len(given), model.d_model) for point in points}
    usual: dict[str, list[Tensor]] = {point.name: [] for point in points}
    for index, (rows,) in read_in_order([reader], order, lengths, max_tokens=max_tokens):
        kept = reader.keeps(rows)
        chosen = torch.from_numpy(
            np.concatenate([np.isin(reader.positions[i], readings[i].positions) for i in index])
        )
        for name, values in take(rows, kept).values.items():
            usual[name].append(norms(values).cpu())
        # One token is read whatever its norm; there is no other to take in its place.
        means = mean_rows(rows, chosen if tokens.keep == "last" else chosen & kept)
        _require_a_row(set(index) - set(means.text.tolist()), given, argument)
        for name, values in means.values.items():
            found[name][means.text] = values.float().cpu()
    return {
        name: TextRows(value, float(torch.cat(usual[name]).median()))
        for name, value in found.items()
    }


def _require_tokens(readings: Sequence[Reading], texts: Sequence[Text], argument: str) -> None:
    short = [i for i, reading in enumerate(readings) if not (reading.positions > 0).any()]
    if short:
        raise InputError(
            f"{argument}: a text has no token to read (position 0 is an attention sink)",
            got=f"text {short[0]}: {texts[short[0]]!r:.80}",
            valid="texts of a few words, with the span, role or template that was asked for",
            hint=f"drop the {len(short)} texts without such tokens",
        )


def _require_a_row(missing: set[int], texts: Sequence[Text], argument: str) -> None:
    if missing:
        raise InputError(
            f"{argument}: every token of a text has a massive norm, so nothing is left to read",
            got=f"text {min(missing)}: {texts[min(missing)]!r:.80}",
            valid="texts with ordinary words",
            hint="drop that text",
        )
