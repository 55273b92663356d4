"""Texts as one model read them, and a number at each of their tokens: where it is large or small.

What is read off a token (a feature's activation, a projection on a vector) is a `Track`. Two
tracks over the same texts can be compared where tokens of both models end at the same byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.align import align
from tl_transfer.data.encode import EncodedText, encode_many
from tl_transfer.data.texts import documents_of, text_hash
from tl_transfer.errors import InputError
from tl_transfer.features.scores import interval_of_correlation
from tl_transfer.models.capture import Reader, read_in_order, reading_order
from tl_transfer.models.surface import Site

#: Tokens shown on either side of the strongest one.
AROUND = 16
#: Bars of a histogram.
BARS = 24


@dataclass(frozen=True)
class Context:
    """A piece of text and a number at each of its tokens.

    Attributes:
        text: Number of the text it is from.
        pieces: Its tokens, as text.
        activations: One a token; NaN at tokens that are not read (attention sink).
        peak: Place of the token it was chosen for in `pieces`.
    """

    text: int
    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def value(self) -> float:
        """The number at the token it was chosen for."""
        return self.activations[self.peak]

    def __str__(self) -> str:
        shown = [
            f"[{piece}]" if place == self.peak else piece for place, piece in enumerate(self.pieces)
        ]
        return f"{self.value:8.2f}  {''.join(shown)!r}"


@dataclass(frozen=True, eq=False, repr=False)
class TextRows:
    """Texts, and which of their tokens were read.

    Attributes:
        site: Model and hook point.
        texts: The texts, tokenised.
        documents: Document of each text.
        start: Where the rows of each text begin; one more for the end.
        position: Position of each row in its text.
    """

    site: Site
    texts: list[EncodedText]
    documents: list[str]
    start: Int[Tensor, " bound"]
    position: Int[Tensor, " row"] = field(repr=False)

    @property
    def n_documents(self) -> int:
        """Documents with at least one token that was read."""
        lengths = self.start.diff().tolist()
        return len({name for name, n in zip(self.documents, lengths, strict=True) if n})


@dataclass(frozen=True, eq=False)
class Track:
    """A number at every token that was read.

    Attributes:
        rows: The texts.
        values: One a row of them.
    """

    rows: TextRows
    values: Float[Tensor, " row"]

    def top_texts(self, n: int, *, above: float | None = None, largest: bool = True) -> list[int]:
        """Texts with the largest (or smallest) numbers, one a document, most extreme first.

        Args:
            n: Most texts.
            above: Only numbers above this one count (below it for the smallest).
            largest: False for the smallest.
        """
        sign = 1.0 if largest else -1.0
        values = sign * self.values
        text = torch.bucketize(torch.arange(len(values)), self.rows.start, right=True) - 1
        # The best row of each text: a text that is strong everywhere must not hide the others.
        best = torch.full((len(self.rows.texts),), -torch.inf, dtype=values.dtype)
        best.scatter_reduce_(0, text, values, "amax")
        found: dict[str, int] = {}
        for number in best.argsort(descending=True, stable=True).tolist():
            value = float(best[number])
            if len(found) >= n or value == -torch.inf:
                break
            if above is not None and value <= sign * above:
                break
            found.setdefault(self.rows.documents[number], number)
        return list(found.values())

    def context(self, text: int, *, around: int | None = AROUND, largest: bool = True) -> Context:
        """The numbers in one text, about its largest (or smallest) one.

        Args:
            text: Number of the text.
            around: Tokens on either side; None: the whole text.
            largest: False: about the smallest one.
        """
        rows = slice(int(self.rows.start[text]), int(self.rows.start[text + 1]))
        encoded = self.rows.texts[text]
        values = torch.full((len(encoded.ids),), torch.nan, dtype=torch.float64)
        values[self.rows.position[rows]] = self.values[rows].double()
        peak = 0
        if rows.stop > rows.start:
            own = values if largest else -values
            peak = int(own.nan_to_num(-torch.inf).argmax())
        first, last = 0, len(values)
        if around is not None:
            first, last = max(0, peak - around), min(last, peak + around + 1)
        return Context(
            text,
            tuple(encoded.pieces()[first:last]),
            tuple(values[first:last].tolist()),
            peak - first,
        )


@dataclass(frozen=True)
class Agreement:
    """How alike two tracks are over the tokens that two models share.

    Attributes:
        r: Pearson correlation over shared token ends.
        ci95: Its interval over documents; None with fewer than two.
        turned: The same with the rows of one side moved on by half of them: what two tracks share
            by their distribution alone.
        n: Shared token ends.
        n_documents: Documents they are from.
    """

    r: float
    ci95: tuple[float, float] | None
    turned: float
    n: int
    n_documents: int


def agreement(source: Track, target: Track) -> Agreement | None:
    """Correlation of two tracks over the same texts; None for other texts or too few tokens.

    Source: as Bricken et al. (2023) compare features of two dictionaries, here over paired tokens.
    """
    a, b = source.rows, target.rows
    if [text.text for text in a.texts] != [text.text for text in b.texts]:
        return None
    left, right, document = [], [], []
    names: dict[str, int] = {}
    for number, (one, other) in enumerate(zip(a.texts, b.texts, strict=True)):
        pairs = align(one, other)
        here = _row_of(a, number, len(one.ids))[pairs.source_positions]
        there = _row_of(b, number, len(other.ids))[pairs.target_positions]
        both = (here >= 0) & (there >= 0)
        left.append(here[both])
        right.append(there[both])
        place = names.setdefault(a.documents[number], len(names))
        document.append(torch.full((int(both.sum()),), place))
    x = source.values[torch.cat(left)].double()
    y = target.values[torch.cat(right)].double()
    if len(x) < 3:
        return None
    groups = torch.cat(document)
    ends = interval_of_correlation(x, y, groups, seed=0)
    return Agreement(
        _pearson(x, y),
        None if ends is None else (ends[0], ends[1]),
        _pearson(x, y.roll(len(y) // 2)),
        len(x),
        len(groups.unique()),
    )


def read_texts(
    site: Site, texts: Sequence[str], *, documents: Sequence[str] | None, max_tokens: int
) -> tuple[list[EncodedText], list[str], Iterator["Batch"]]:
    """Texts tokenised, their documents, and the activations of their tokens in batches.

    Args:
        site: Model and hook point.
        texts: Plain texts.
        documents: Document of each text; default, each its own.
        max_tokens: Cells of a batch.

    Raises:
        InputError: no texts, one that is too long, or none with a token to read.
    """
    if not texts or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            "texts: needs a list of plain texts",
            got=type(texts).__name__,
            valid="one or more strings",
            hint="wrap a single text in a list; chats have no words to show",
        )
    encoded = encode_many(texts, site.model.tokenizer)
    site.model.require_fits(max(len(text.ids) for text in encoded), "texts")
    # Position 0 is an attention sink.
    if not any(place > 0 for text in encoded for place in text.pairable()):
        raise InputError(
            "texts: no token to read in them",
            got=f"{len(texts)} texts of at most one token",
            valid="texts of two tokens or more; the first one is an attention sink",
            hint="pass sentences",
        )
    hashes = [text_hash(text) for text in texts]
    return encoded, documents_of(hashes, documents), _batches(site, encoded, hashes, max_tokens)


@dataclass(frozen=True)
class Batch:
    """Activations of some texts.

    Attributes:
        values: Every token read, massive norms included.
        parts: (number of a text, which rows are its and count, the positions of these).
    """

    values: Float[Tensor, "row d_model"]
    parts: list[tuple[int, Tensor, Tensor]]  # as many positions as the text has rows


def _batches(
    site: Site, encoded: list[EncodedText], hashes: list[str], max_tokens: int
) -> Iterator[Batch]:
    positions = [np.array(text.pairable(), dtype=np.int64) for text in encoded]
    reader = Reader(site.model, [site.point], [text.ids for text in encoded], positions)
    lengths = [len(row) for row in reader.positions]
    order = reading_order(hashes, [text.n_bytes for text in encoded], lengths)
    widths = [len(text.ids) for text in encoded]
    for index, (rows,) in read_in_order([reader], order, widths, max_tokens=max_tokens):
        kept = reader.keeps(rows)
        parts = []
        for number in index:
            own = rows.text == number
            places = torch.from_numpy(reader.positions[number]).long()[kept[own]]
            parts.append((number, own & kept, places))
        yield Batch(rows.values[site.point.name], parts)


def starts(parts: Sequence[Tensor]) -> Int[Tensor, " bound"]:
    """Where each part begins when they are put one after the other, and where the last one ends."""
    return torch.nn.functional.pad(torch.tensor([len(part) for part in parts]).cumsum(0), (1, 0))


def histogram(values: Float[Tensor, " row"], low: float) -> tuple[tuple[float, int], ...]:
    """(upper end of the bar, rows) from `low` to the largest value; empty without values."""
    if not len(values):
        return ()
    top = float(values.max())
    counts = torch.histc(values.float(), bins=BARS, min=low, max=top)
    width = (top - low) / BARS
    return tuple((low + width * (i + 1), int(n)) for i, n in enumerate(counts.tolist()))


def _row_of(rows: TextRows, text: int, length: int) -> Int[Tensor, " position"]:
    """The row of each position of a text; -1 where it was not read."""
    first, last = int(rows.start[text]), int(rows.start[text + 1])
    found = torch.full((length,), -1)
    found[rows.position[first:last]] = torch.arange(first, last)
    return found


def _pearson(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-300))
