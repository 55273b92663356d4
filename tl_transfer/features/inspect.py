"""Looking at the features of a dictionary: where they are active, how often, what they promote.

A reading keeps the sparse codes of every token of some texts, so that any feature can be looked at
afterwards, and the same texts can be looked at in two models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.features.card import Card
from tl_transfer.features.codes import Coder, SparseCodes
from tl_transfer.features.edit import require_feature
from tl_transfer.features.track import (
    AROUND,
    Context,
    TextRows,
    Track,
    histogram,
    read_texts,
    starts,
)
from tl_transfer.features.words import words_of
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.surface import Site

__all__ = ["Context", "FeatureCard", "FeatureReading", "read_features"]


@dataclass(frozen=True)
class FeatureCard(Card):
    """What is known of one feature; `histogram` and `quantiles` are of tokens where it is active.

    Attributes:
        feature: Its number.
        n_active: Tokens at which it is active.
        n_active_documents: Documents in which it is.
    """

    feature: int
    n_active: int
    n_active_documents: int

    @property
    def density(self) -> float:
        """Share of tokens at which it is active."""
        return self.n_active / max(self.n_tokens, 1)

    @property
    def title(self) -> str:
        """One line."""
        return f"feature {self.feature}"

    @property
    def statistics(self) -> tuple[tuple[str, str], ...]:
        """(what, value), to read."""
        return (
            ("active at", f"{self.n_active:,} of {self.n_tokens:,} tokens ({self.density:.2%})"),
            ("in documents", f"{self.n_active_documents:,} of {self.n_documents:,}"),
            ("where active", self.spread()),
        )

    def __str__(self) -> str:
        words = ", ".join(repr(word) for word, _ in self.promoted[:8])
        head = (
            f"feature {self.feature} of {self.model} @ {self.hook_point}: active at "
            f"{self.n_active} of {self.n_tokens} tokens ({self.density:.2%}); promotes {words}"
        )
        return "\n".join([head, *(f"  {context}" for context in self.contexts)])


@dataclass(frozen=True, eq=False, repr=False)
class FeatureReading(TextRows):
    """Codes of every token of some texts.

    Attributes:
        sae: The dictionary.
        codes: One row a token that was read, text after text.
    """

    sae: Coder
    codes: SparseCodes

    @property
    def counts(self) -> Int[Tensor, " d_sae"]:
        """Tokens at which each feature is active."""
        return torch.bincount(self.codes.feature.long(), minlength=self.sae.d_sae)

    def activations(self, feature: int) -> Float[Tensor, " row"]:
        """Of one feature at every token that was read.

        Args:
            feature: Index of the feature.

        Raises:
            InputError: there is no such feature.
        """
        require_feature(self.sae, feature)
        return self.codes.dense(torch.tensor([feature]))[:, 0]

    def track(self, feature: int) -> Track:
        """One feature along the texts.

        Args:
            feature: Index of the feature.

        Raises:
            InputError: there is no such feature.
        """
        return Track(self, self.activations(feature))

    def top_texts(self, feature: int, n: int = 8) -> list[int]:
        """Texts with the strongest activations, one a document, strongest first.

        Args:
            feature: Index of the feature.
            n: Most texts.
        """
        return self.track(feature).top_texts(n, above=0.0)

    def context(self, feature: int, text: int, *, around: int | None = AROUND) -> Context:
        """The activations of a feature in one text.

        Args:
            feature: Which feature.
            text: Number of the text.
            around: Tokens on either side of the strongest one; None: the whole text.
        """
        return self.track(feature).context(text, around=around)

    def card(self, feature: int, *, top: int = 8, around: int | None = AROUND) -> FeatureCard:
        """Everything about one feature.

        Args:
            feature: Which feature.
            top: Contexts.
            around: As for `context`.
        """
        track = self.track(feature)
        row = (track.values > 0).nonzero()[:, 0]
        active = track.values[row]
        text = torch.bucketize(row, self.start, right=True) - 1
        promoted, suppressed = words_of(self.site.model, self.sae.directions[feature])
        return FeatureCard(
            model=self.site.model.name,
            hook_point=self.site.point.name,
            n_tokens=len(track.values),
            n_documents=self.n_documents,
            contexts=tuple(
                track.context(number, around=around) for number in track.top_texts(top, above=0.0)
            ),
            histogram=histogram(active, 0.0),
            low=0.0,
            quantiles=Card.quantiles_of(active),
            promoted=promoted,
            suppressed=suppressed,
            feature=feature,
            n_active=len(active),
            n_active_documents=len({self.documents[i] for i in text.unique().tolist()}),
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
    encoded, names, batches = read_texts(site, texts, documents=documents, max_tokens=max_tokens)
    codes: list[Any] = [SparseCodes.none(sae.d_sae)] * len(encoded)
    places: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * len(encoded)
    for batch in batches:
        coded = SparseCodes.encoded(sae, batch.values).cpu()
        for number, kept, position in batch.parts:
            places[number] = position
            codes[number] = coded.rows(kept.nonzero()[:, 0])
    return FeatureReading(
        site,
        encoded,
        names,
        starts(places),
        torch.cat(places),
        sae,
        SparseCodes.joined(codes).cpu(),
    )
