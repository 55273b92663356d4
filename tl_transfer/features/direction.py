"""Looking at a steering vector: what it reads in texts, how it is spread, what it promotes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.features.card import Card
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
from tl_transfer.vectors import SteeringVector


@dataclass(frozen=True)
class DirectionCard(Card):
    """What is known of a steering vector; all numbers are projections in median norms.

    Attributes:
        method: How the vector was made.
        made: (what, value): counts, held-out separation, what the map explains along it; whatever
            its provenance holds of these.
        mean: Mean projection.
        deviation: Standard deviation of the projections.
        lowest: Where it is lowest, at most one a document, lowest first.
    """

    method: str
    made: tuple[tuple[str, str], ...]
    mean: float
    deviation: float
    lowest: tuple[Context, ...]

    unit = "projection, median norms"

    @property
    def title(self) -> str:
        """One line."""
        return f"vector ({self.method})"

    @property
    def statistics(self) -> tuple[tuple[str, str], ...]:
        """(what, value), to read."""
        return (
            *self.made,
            ("read at", f"{self.n_tokens:,} tokens of {self.n_documents:,} documents"),
            ("projection", f"mean {self.mean:.3g}, s.d. {self.deviation:.3g}; {self.spread()}"),
        )

    def __str__(self) -> str:
        head = f"{self.method} of {self.model} @ {self.hook_point}"
        lines = [f"  {name}: {value}" for name, value in self.statistics]
        shown = [*self.contexts, *reversed(self.lowest)]
        return "\n".join([head, *lines, *(f"  {context}" for context in shown)])


@dataclass(frozen=True, eq=False, repr=False)
class DirectionReading(TextRows):
    """What a steering vector reads at every token of some texts.

    Attributes:
        vector: The vector.
        projections: One a token that was read, in median norms, text after text.
    """

    vector: SteeringVector
    projections: Float[Tensor, " row"]

    @property
    def track(self) -> Track:
        """The projections along the texts."""
        return Track(self, self.projections)

    def card(self, *, top: int = 8, around: int | None = AROUND) -> DirectionCard:
        """Everything about the vector.

        Args:
            top: Contexts at either end.
            around: Tokens on either side of the strongest one; None: the whole text.
        """
        track, values = self.track, self.projections
        promoted, suppressed = words_of(self.site.model, self.vector.direction)
        low = float(values.min()) if len(values) else 0.0
        ends = [
            tuple(
                track.context(number, around=around, largest=largest)
                for number in track.top_texts(top, largest=largest)
            )
            for largest in (True, False)
        ]
        return DirectionCard(
            model=self.site.model.name,
            hook_point=self.site.point.name,
            n_tokens=len(values),
            n_documents=self.n_documents,
            contexts=ends[0],
            histogram=histogram(values, low),
            low=low,
            quantiles=Card.quantiles_of(values),
            promoted=promoted,
            suppressed=suppressed,
            method=self.vector.method,
            made=_made(self.vector),
            mean=float(values.mean()) if len(values) else 0.0,
            deviation=float(values.std(correction=0)) if len(values) else 0.0,
            lowest=ends[1],
        )

    def __repr__(self) -> str:
        return (
            f"DirectionReading({self.vector.method}, {len(self.texts)} texts, "
            f"{len(self.projections)} tokens, {self.site.model.name} @ {self.site.point.name})"
        )


def read_direction(
    site: Site,
    vector: SteeringVector,
    texts: Sequence[str],
    *,
    documents: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> DirectionReading:
    """Read a steering vector off texts: its projection at every token, in median norms.

    In a residual stream with massive dimensions most of a projection may come from a few of them.

    Args:
        site: Model and hook point of the vector.
        vector: Any direction of that space.
        texts: Plain texts; take some that the vector was not made from.
        documents: Document of each text, so that contexts come from different ones.
        max_tokens: Cells of a batch.

    Raises:
        SpaceError: the vector belongs elsewhere.
        InputError: no texts.
    """
    site.space.require(vector.space, "direction at this site")
    encoded, names, batches = read_texts(site, texts, documents=documents, max_tokens=max_tokens)
    places: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * len(encoded)
    found: list[Tensor] = [torch.zeros(0, dtype=torch.float64)] * len(encoded)
    for batch in batches:
        values = batch.values.double()
        read = (values @ vector.unit.to(values) / vector.median_norm).cpu()
        for number, kept, position in batch.parts:
            places[number] = position
            found[number] = read[kept]
    return DirectionReading(
        site, encoded, names, starts(places), torch.cat(places), vector, torch.cat(found)
    )


def _made(vector: SteeringVector) -> tuple[tuple[str, str], ...]:
    """What the provenance says of how the vector was made, and of how it came here."""
    facts, found = vector.provenance, [("length", f"{vector.natural_strength:.3g} median norms")]
    came = facts.get("transferred_from")
    if came:
        found.append(("comes from", f"{came['model']} @ {came['hook_point']}"))
        found.append(("by", f"{facts['extraction']} there, then a {facts['mapper']} map"))
    if "n_positive" in facts:
        found.append(("made from", f"{facts['n_positive']} + {facts['n_negative']} texts"))
    if facts.get("auroc") is not None:
        ends = facts.get("auroc_ci95")
        interval = "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"
        where = " where it was made" if came else ""
        found.append((f"held-out AUROC{where}", f"{facts['auroc']:.2f}{interval}"))
    if isinstance(facts.get("direction_r2"), float):
        found.append(("held-out R² of the map along it", f"{facts['direction_r2']:.2f}"))
    return tuple(found)
