"""Card: what is known of a direction from some texts, whether a feature or a steering vector."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_transfer.features.track import Context
from tl_transfer.features.words import Words

#: Shares of tokens at whose values a card names.
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Card:
    """What is known of a direction from some texts.

    Attributes:
        model: Name of the model.
        hook_point: Where it is read.
        n_tokens: Tokens that were read.
        n_documents: Documents they are from.
        contexts: Where it is strongest, at most one a document, strongest first.
        histogram: (upper end of the bar, tokens).
        low: Lower end of the first bar.
        quantiles: Share -> value that so many tokens stay below; 1 is the largest.
        promoted: Words of its direction, unembedded alone.
        suppressed: Words that it makes less likely.
    """

    model: str
    hook_point: str
    n_tokens: int
    n_documents: int
    contexts: tuple[Context, ...]
    histogram: tuple[tuple[float, int], ...]
    low: float
    quantiles: dict[float, float]
    promoted: Words
    suppressed: Words

    #: What the numbers are counted in; an activation has the unit of the stream.
    unit = "activation"

    @property
    def title(self) -> str:
        """One line."""
        raise NotImplementedError

    @property
    def statistics(self) -> tuple[tuple[str, str], ...]:
        """(what, value), to read."""
        raise NotImplementedError

    def spread(self) -> str:
        """Quantiles as text."""
        if not self.quantiles:
            return "nowhere"
        shown = ", ".join(
            f"{'median' if share == 0.5 else f'{share:.0%}'} {self.quantiles[share]:.3g}"
            for share in SHARES
        )
        return f"{shown}, largest {self.quantiles[1.0]:.3g}"

    @staticmethod
    def quantiles_of(values: Float[Tensor, " row"]) -> dict[float, float]:
        """The quantiles a card keeps; empty without values."""
        if not len(values):
            return {}
        ordered = values.double().sort().values
        last = len(ordered) - 1
        # torch.quantile refuses more than 16 million values.
        found = {share: float(ordered[round(share * last)]) for share in SHARES}
        return found | {1.0: float(ordered[last])}
