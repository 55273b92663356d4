"""Rows of one site in memory, as SAEs are checked on: no position 0, no massive norms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.store import ActivationStore
from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.data.tokens import Tokens, read_tokens
from tl_transfer.errors import InputError
from tl_transfer.models.capture import MAX_TOKENS, norms, read_in_order, reading_order, take
from tl_transfer.models.pairs import reader_of
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import Site


@dataclass(frozen=True)
class SiteRows:
    """Activations of some texts at one site.

    Attributes:
        x: Rows, float32, on the CPU.
        document: Number of the document of each row.
        median_norm: Median norm of the rows.
        dropped: Tokens left out: ``position_0``, ``massive_norm``.
        beside: The same tokens at other hook points of the model, where they were asked for.
    """

    x: Float[Tensor, "row d_model"]
    document: Int[Tensor, " row"]
    median_norm: float
    dropped: dict[str, int]
    beside: dict[str, Tensor] = field(default_factory=dict)


def read_rows(
    site: Site,
    texts: Sequence[Any],
    *,
    documents: Sequence[str] | None = None,
    max_rows: int | None = None,
    beside: Sequence[HookPoint] = (),
    progress: bool = False,
) -> SiteRows:
    """Read texts at one site and keep the rows.

    Args:
        site: Model and hook point.
        texts: Texts or chats.
        documents: Document id of each; default, each text is its own.
        max_rows: Stop after the batch in which so many are reached.
        beside: Other hook points of the model to read in the same pass.
        progress: Show a progress bar.

    Raises:
        InputError: no texts, or no token to read.
    """
    given = as_texts(texts)
    hashes = [text_hash(text) for text in given]
    names = documents_of(hashes, documents)
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    document = torch.tensor([number[name] for name in names])
    readings = read_tokens(given, site.model.tokenizer, Tokens())
    lengths = [len(r.ids) if (r.positions > 0).any() else 0 for r in readings]
    if not any(lengths):
        raise InputError(
            "texts: not one token to read (position 0 is an attention sink)",
            got=f"{len(given)} texts",
            valid="texts of a few words",
            hint="look at a text",
        )
    site.model.require_fits(max(lengths), "texts")
    points = [site.point, *beside]
    reader = reader_of(site.model, points, readings)
    order = reading_order(hashes, [r.n_bytes for r in readings], lengths)
    parts: dict[str, list[Tensor]] = {point.name: [] for point in points}
    text: list[Tensor] = []
    n_tokens = sum(lengths)
    with tqdm(total=n_tokens, unit="tok", desc="read", disable=not progress) as bar:
        for index, (rows,) in read_in_order([reader], order, lengths, max_tokens=MAX_TOKENS):
            kept = take(rows, reader.keeps(rows))
            for name, values in kept.values.items():
                parts[name].append(values.float().cpu())
            text.append(kept.text)
            bar.update(sum(lengths[i] for i in index))
            if max_rows is not None and sum(map(len, text)) >= max_rows:
                break
    found = {name: torch.cat(values) for name, values in parts.items()}
    x = found.pop(site.point.name)
    usual = float(norms(x).median())
    return SiteRows(x, document[torch.cat(text)], usual, dict(reader.dropped), found)


def stored_rows(store: ActivationStore, hook_point: str, *, max_rows: int = 1 << 62) -> SiteRows:
    """Rows of a finished capture: all of them, or so many in random order."""
    name = store.at(hook_point).name
    number = {d: i for i, d in enumerate(sorted(set(store.documents)))}
    document = torch.tensor([number[d] for d in store.documents])
    batch = next(store.batches(min(max_rows, store.n_rows), seed=0, hook_points=[name]))
    x = batch.values[name].float()
    dropped = {k: v for k, v in store.counts.items() if k != "n_tokens"}
    return SiteRows(x, document[batch.text], float(norms(x).median()), dropped)
