"""Reading activations: right-padded batches by length, no gradient, no block past the last hook.

Two rules hold everywhere: position 0 and rows whose norm is over ten times the median are left
out (attention sinks and massive activations carry no meaning and dominate every mean; Sun et al.
2024), and an activation that is not finite stops the run and names its text.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.align import PairedTexts, encode_many, pair_many
from tl_transfer.errors import InputError
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.surface import HookedModel, HookPoint

#: Cells of one batch; a few thousand keep the matrix products large and the memory small.
MAX_TOKENS = 4096
#: Rows above this multiple of the median norm are massive activations.
OUTLIER = 10.0


@dataclass(frozen=True)
class PairedRows:
    """Aligned activation rows of one batch of texts.

    Attributes:
        x: Source hook point -> rows.
        y: Target hook point -> rows.
        text: Index of the text each row came from.
    """

    x: dict[str, Float[Tensor, "row d_source"]]
    y: dict[str, Float[Tensor, "row d_target"]]
    text: Int[Tensor, " row"]


def pair_texts(texts: Sequence[str], source: HookedModel, target: HookedModel) -> PairedTexts:
    """Tokenise every text twice and pair the tokens that end at the same byte.

    Raises:
        InputError: no text, or not one pair of tokens in all of them.
    """
    require_texts(texts, "texts")
    pairing = pair_many(texts, source.tokenizer, target.tokenizer)
    if pairing.report.n_pairs == 0:
        raise InputError(
            "texts: the two tokenizers share no token boundary in any text",
            got=str(pairing.report),
            valid="texts with at least one word",
            hint="look at a text: is it empty or whitespace?",
        )
    for model, encoded in ((source, pairing.source), (target, pairing.target)):
        model.require_fits(max(len(text.ids) for text in encoded), "texts")
    return pairing


def paired_rows(
    pairing: PairedTexts,
    source: HookedModel,
    target: HookedModel,
    source_points: Sequence[HookPoint],
    target_points: Sequence[HookPoint],
    *,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> Iterator[PairedRows]:
    """Aligned rows of both models, batch by batch; nothing is kept.

    Yields:
        Rows without position 0 and without massive-norm rows (of any hook point read).
    """
    limits = _norm_limits(pairing, source, target, source_points, target_points)
    lengths = [len(text.ids) for text in pairing.source]
    usable = [i for i, pairs in enumerate(pairing.alignments) if len(pairs)]
    bar = tqdm(
        total=sum(lengths[i] for i in usable), unit="tok", desc="capture", disable=not progress
    )
    with bar:
        groups = list(by_length([lengths[i] for i in usable], max_tokens=max_tokens))
        # The longest batch first, so that what does not fit in memory fails at once; the rest in
        # random order, so that the first rows are a sample of all lengths.
        rest = groups[1:]
        random.Random(0).shuffle(rest)
        for group in [*groups[:1], *rest]:
            index = [usable[i] for i in group]
            rows = _batch(pairing, index, source, target, source_points, target_points)
            yield _without_outliers(rows, limits)
            bar.update(sum(lengths[i] for i in index))


def _batch(
    pairing: PairedTexts,
    index: Sequence[int],
    source: HookedModel,
    target: HookedModel,
    source_points: Sequence[HookPoint],
    target_points: Sequence[HookPoint],
) -> PairedRows:
    pairs = [pairing.alignments[i] for i in index]
    lengths = torch.tensor([len(item) for item in pairs])
    texts = torch.repeat_interleave(torch.tensor(list(index)), lengths)
    row = torch.repeat_interleave(torch.arange(len(pairs)), lengths)
    here = torch.cat([item.source_positions for item in pairs])
    there = torch.cat([item.target_positions for item in pairs])
    # Position 0 is an attention sink whatever its text.
    kept = (here > 0) & (there > 0)
    row, here, there, texts = row[kept], here[kept], there[kept], texts[kept]
    x = _read(source, [pairing.source[i].ids for i in index], source_points, row, here)
    y = _read(target, [pairing.target[i].ids for i in index], target_points, row, there)
    _require_finite(x | y, texts)
    return PairedRows(x, y, texts)


def _read(
    model: HookedModel,
    ids: Sequence[Sequence[int]],
    points: Sequence[HookPoint],
    row: Tensor,
    column: Tensor,
) -> dict[str, Tensor]:
    batch = pad(ids, side="right", pad_id=model.tokenizer.pad_token_id or 0)
    tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
    read = model.residuals(tokens, mask, points)
    row, column = row.to(model.device), column.to(model.device)
    return {name: activation[row, column] for name, activation in read.items()}


def _require_finite(rows: dict[str, Tensor], texts: Tensor) -> None:
    for name, activation in rows.items():
        bad = ~torch.isfinite(activation).all(-1)
        if bool(bad.any()):
            raise InputError(
                f"activations: not finite at {name}",
                got=f"{int(bad.sum())} rows, first in text {int(texts[bad.cpu()][0])}",
                valid="finite activations",
                hint="use dtype='float32', or look at that text and at the model's weights",
            )


def _norm_limits(
    pairing: PairedTexts,
    source: HookedModel,
    target: HookedModel,
    source_points: Sequence[HookPoint],
    target_points: Sequence[HookPoint],
) -> dict[tuple[str, str], float]:
    """Outlier limits from the first texts; the median of a thousand rows is exact enough."""
    index = [i for i, pairs in enumerate(pairing.alignments) if len(pairs) > 1][:24]
    if not index:
        return {}
    rows = _batch(pairing, index, source, target, source_points, target_points)
    return {
        (side, name): OUTLIER * float(activation.float().norm(dim=-1).median())
        for side, values in (("x", rows.x), ("y", rows.y))
        for name, activation in values.items()
        if len(activation)
    }


def _without_outliers(rows: PairedRows, limits: dict[tuple[str, str], float]) -> PairedRows:
    kept: Bool[Tensor, " row"] = torch.ones(len(rows.text), dtype=torch.bool)
    for side, values in (("x", rows.x), ("y", rows.y)):
        for name, activation in values.items():
            limit = limits.get((side, name), float("inf"))
            kept &= (activation.float().norm(dim=-1) <= limit).cpu()
    if bool(kept.all()):
        return rows
    return PairedRows(
        {name: activation[kept.to(activation.device)] for name, activation in rows.x.items()},
        {name: activation[kept.to(activation.device)] for name, activation in rows.y.items()},
        rows.text[kept],
    )


def require_texts(texts: Sequence[str], argument: str) -> None:
    """Refuse an empty list and anything that is not text."""
    if isinstance(texts, str) or len(texts) == 0 or not all(isinstance(t, str) for t in texts):
        raise InputError(
            f"{argument}: needs a list of texts",
            got=f"{type(texts).__name__} of length {len(texts)}",
            valid="one or more strings in a list",
            hint="wrap a single text in a list",
        )


@dataclass(frozen=True)
class TextRows:
    """One row a text at one hook point.

    Attributes:
        rows: Reduced activations in float32, on the CPU.
        median_norm: Median residual norm over the tokens that were read.
    """

    rows: Float[Tensor, "text d_model"]
    median_norm: float


def read_texts(
    model: HookedModel,
    points: Sequence[HookPoint],
    texts: Sequence[str],
    *,
    positions: Literal["mean", "last"] = "mean",
    max_tokens: int = MAX_TOKENS,
    argument: str = "texts",
) -> dict[str, TextRows]:
    """One activation row a text at several hook points: mean over its tokens, or its last token.

    Position 0 and massive-norm tokens are left out of means.

    Raises:
        InputError: no texts, or a text with nothing to read.
    """
    require_texts(texts, argument)
    if positions not in ("mean", "last"):
        raise InputError(
            "positions: unknown choice",
            got=repr(positions),
            valid='"mean" or "last"',
            hint='leave it out for "mean"',
        )
    ids = [text.ids for text in encode_many(texts, model.tokenizer)]
    _require_long_enough(ids, texts, argument)
    model.require_fits(max(len(row) for row in ids), argument)
    rows = {point.name: torch.zeros(len(texts), model.d_model) for point in points}
    norms: dict[str, list[Tensor]] = {point.name: [] for point in points}
    for index in by_length([len(row) for row in ids], max_tokens=max_tokens):
        batch = pad([ids[i] for i in index], side="right", pad_id=model.tokenizer.pad_token_id or 0)
        mask = batch.mask.to(model.device)
        for name, read in model.residuals(batch.tokens.to(model.device), mask, points).items():
            activation = read.float()
            usable = mask.clone()
            usable[:, 0] = False
            norm = activation.norm(dim=-1)
            usable &= norm <= OUTLIER * norm[usable].median()
            norms[name].append(norm[usable])
            rows[name][index] = _reduce(activation, usable, mask, positions).cpu()
    _require_finite(rows, torch.arange(len(texts)))
    return {
        name: TextRows(value, float(torch.cat(norms[name]).median()))
        for name, value in rows.items()
    }


def _require_long_enough(ids: Sequence[Sequence[int]], texts: Sequence[str], argument: str) -> None:
    short = [i for i, row in enumerate(ids) if len(row) < 2]
    if short:
        raise InputError(
            f"{argument}: a text must have at least two tokens (position 0 is an attention sink)",
            got=f"text {short[0]}: {texts[short[0]]!r}",
            valid="texts of a few words",
            hint=f"drop the {len(short)} texts that are too short",
        )


def _reduce(activation: Tensor, usable: Tensor, mask: Tensor, positions: str) -> Tensor:
    if positions == "last":
        last = mask.sum(-1) - 1
        return activation[torch.arange(len(activation), device=last.device), last]
    weight = usable.float()
    return (activation * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1.0)
