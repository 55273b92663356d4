"""Looking at the features of a dictionary: where they are active, how often, what they promote.

A reading keeps the sparse codes of every token of some texts, so that any feature can be looked at
afterwards, and the same texts can be looked at in two models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.encode import EncodedText, encode_many
from tl_transfer.data.texts import documents_of, text_hash
from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder, SparseCodes
from tl_transfer.features.edit import require_feature
from tl_transfer.features.words import Words, words_of
from tl_transfer.models.capture import MAX_TOKENS, Reader, read_in_order, reading_order
from tl_transfer.models.surface import Site

#: Tokens shown on either side of the strongest one.
AROUND = 16
#: Bars of the histogram.
BARS = 24


@dataclass(frozen=True)
class Context:
    """A piece of text and the activation of a feature at each of its tokens.

    Attributes:
        text: Number of the text it is from.
        pieces: Its tokens, as text.
        activations: One a token; NaN at tokens that are not read (attention sink).
        peak: Place of the strongest token in `pieces`.
    """

    text: int
    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def value(self) -> float:
        """The strongest activation."""
        return self.activations[self.peak]

    def __str__(self) -> str:
        shown = [
            f"[{piece}]" if place == self.peak else piece for place, piece in enumerate(self.pieces)
        ]
        return f"{self.value:8.2f}  {''.join(shown)!r}"


@dataclass(frozen=True)
class FeatureCard:
    """What is known of one feature.

    Attributes:
        feature: Its number.
        model: Name of the model.
        hook_point: Where its dictionary reads.
        contexts: Where it is most active, at most one a document, strongest first.
        n_tokens: Tokens that were read.
        n_active: Tokens at which it is active.
        histogram: (upper end of the bar, tokens) of its activations where it is active.
        promoted: Words of its direction, unembedded alone.
        suppressed: Words that it makes less likely.
    """

    feature: int
    model: str
    hook_point: str
    contexts: tuple[Context, ...]
    n_tokens: int
    n_active: int
    histogram: tuple[tuple[float, int], ...]
    promoted: Words
    suppressed: Words

    @property
    def density(self) -> float:
        """Share of tokens at which it is active."""
        return self.n_active / max(self.n_tokens, 1)

    def __str__(self) -> str:
        words = ", ".join(repr(word) for word, _ in self.promoted[:8])
        head = (
            f"feature {self.feature} of {self.model} @ {self.hook_point}: active at "
            f"{self.n_active} of {self.n_tokens} tokens ({self.density:.2%}); promotes {words}"
        )
        return "\n".join([head, *(f"  {context}" for context in self.contexts)])


@dataclass(frozen=True, eq=False, repr=False)
class FeatureReading:
    """Codes of every token of some texts.

    Attributes:
        site: Model and hook point.
        sae: The dictionary.
        texts: The texts, tokenised.
        documents: Document of each text.
        codes: One row a token that was read, text after text.
        start: Where the rows of each text begin; one more for the end.
        position: Position of each row in its text.
    """

    site: Site
    sae: Coder
    texts: list[EncodedText]
    documents: list[str]
    codes: SparseCodes
    start: Int[Tensor, " bound"]
    position: Int[Tensor, " row"] = field(repr=False)

    @property
    def counts(self) -> Int[Tensor, " d_sae"]:
        """Tokens at which each feature is active."""
        return torch.bincount(self.codes.feature.long(), minlength=self.sae.d_sae)

    def activations(self, feature: int) -> Float[Tensor, " row"]:
        """Of one feature at every token that was read."""
        require_feature(self.sae, feature)
        return self.codes.dense(torch.tensor([feature]))[:, 0]

    def top_texts(self, feature: int, n: int = 8) -> list[int]:
        """Texts with the strongest activations, one a document, strongest first.

        Args:
            feature: Index of the feature.
            n: Most texts.
        """
        values = self.activations(feature)
        row = torch.arange(len(values))
        text = torch.bucketize(row, self.start, right=True) - 1
        found: dict[str, int] = {}
        for place in values.argsort(descending=True)[: 50 * n].tolist():
            number = int(text[place])
            if float(values[place]) <= 0 or len(found) >= n:
                break
            found.setdefault(self.documents[number], number)
        return list(found.values())

    def context(self, feature: int, text: int, *, around: int | None = AROUND) -> Context:
        """The activations of a feature in one text.

        Args:
            feature: Which feature.
            text: Number of the text.
            around: Tokens on either side of the strongest one; None: the whole text.
        """
        require_feature(self.sae, feature)
        rows = slice(int(self.start[text]), int(self.start[text + 1]))
        encoded = self.texts[text]
        index = torch.arange(rows.start, rows.stop)
        found = self.codes.rows(index).dense(torch.tensor([feature]))[:, 0]
        values = torch.full((len(encoded.ids),), torch.nan, dtype=torch.float64)
        values[self.position[rows]] = found
        peak = int(values.nan_to_num(-1.0).argmax())
        first, last = 0, len(values)
        if around is not None:
            first, last = max(0, peak - around), min(last, peak + around + 1)
        return Context(
            text,
            tuple(encoded.pieces()[first:last]),
            tuple(values[first:last].tolist()),
            peak - first,
        )

    def card(self, feature: int, *, top: int = 8, around: int | None = AROUND) -> FeatureCard:
        """Everything about one feature.

        Args:
            feature: Which feature.
            top: Contexts.
            around: As for `context`.
        """
        values = self.activations(feature)
        active = values[values > 0]
        promoted, suppressed = words_of(self.site.model, self.sae.directions[feature])
        return FeatureCard(
            feature,
            self.site.model.name,
            self.site.point.name,
            tuple(
                self.context(feature, text, around=around) for text in self.top_texts(feature, top)
            ),
            len(values),
            len(active),
            _histogram(active),
            promoted,
            suppressed,
        )

    def __repr__(self) -> str:
        return (
            f"FeatureReading({len(self.texts)} texts, {len(self.codes)} tokens, "
            f"{int((self.counts > 0).sum())} of {self.sae.d_sae} features active at least once, "
            f"{self.site.model.name} @ {self.site.point.name})"
        )


def read_features(
    site: Site,
    sae: Coder,
    texts: Sequence[str],
    *,
    documents: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> FeatureReading:
    """Read texts once, and look at any feature afterwards.

    Args:
        site: Model and hook point.
        sae: Its dictionary.
        texts: Plain texts; a thousand of them show most features.
        documents: Document of each text, so that contexts come from different ones.
        max_tokens: Cells of a batch.

    Raises:
        SpaceError: the dictionary belongs elsewhere.
        InputError: no texts.
    """
    sae.require_space(site.space, "dictionary at this site")
    if not texts or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            "texts: needs a list of plain texts",
            got=type(texts).__name__,
            valid="one or more strings",
            hint="wrap a single text in a list; chats have no words to show",
        )
    encoded = encode_many(texts, site.model.tokenizer)
    site.model.require_fits(max(len(text.ids) for text in encoded), "texts")
    hashes = [text_hash(text) for text in texts]
    positions = [np.array(text.pairable(), dtype=np.int64) for text in encoded]
    reader = Reader(site.model, [site.point], [text.ids for text in encoded], positions)
    codes: list[Any] = [SparseCodes.none(sae.d_sae)] * len(encoded)
    places: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * len(encoded)
    lengths = [len(row) for row in reader.positions]
    order = reading_order(hashes, [text.n_bytes for text in encoded], lengths)
    widths = [len(text.ids) for text in encoded]
    for index, (rows,) in read_in_order([reader], order, widths, max_tokens=max_tokens):
        kept = reader.keeps(rows)
        batch = SparseCodes.encoded(sae, rows.values[site.point.name]).cpu()
        for number in index:
            own = rows.text == number
            places[number] = torch.from_numpy(reader.positions[number])[kept[own]]
            codes[number] = batch.rows((own & kept).nonzero()[:, 0])
    start = torch.nn.functional.pad(torch.tensor([len(part) for part in codes]).cumsum(0), (1, 0))
    return FeatureReading(
        site,
        sae,
        encoded,
        documents_of(hashes, documents),
        SparseCodes.joined(codes).cpu(),
        start,
        torch.cat(places),
    )


def _histogram(active: Tensor) -> tuple[tuple[float, int], ...]:
    if not len(active):
        return ()
    top = float(active.max())
    counts = torch.histc(active.float(), bins=BARS, min=0.0, max=top)
    return tuple((top * (i + 1) / BARS, int(n)) for i, n in enumerate(counts.tolist()))
