"""Contrast: the rows of both sides of a contrast set at one hook point, read once.

Every estimator takes a site and two lists of texts, or a `Contrast` that was read before. Several
estimators and several hook points then share one pass over the texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.texts import Chat, Text, as_texts, text_hash
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.extract.hygiene import check_contrast
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.surface import Site
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors.checks import require_norm, require_rows

#: Which token of each text is read: ``"mean"``, ``"last"``, or a choice of tokens.
Positions = str | Tokens


@dataclass(frozen=True, eq=False)
class Contrast:
    """Activations of positive and negative texts at one hook point.

    Attributes:
        plus: One row a positive text, float32.
        minus: One row a negative text; the i-th goes with the i-th positive one where paired.
        space: Where they were read.
        median_norm: Median residual norm of the tokens that were read.
        provenance: Positions read, counts, text hashes and the check of the texts (JSON); goes
            into every vector made from the contrast.
    """

    plus: Float[Tensor, "positive d_model"]
    minus: Float[Tensor, "negative d_model"]
    space: ActivationSpace
    median_norm: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_norm(self.median_norm)
        require_rows("plus", self.plus, self.space)
        require_rows("minus", self.minus, self.space)

    @property
    def difference(self) -> Float[Tensor, " d_model"]:
        """Mean of the positive rows minus that of the negative ones."""
        return (self.plus.double().mean(0) - self.minus.double().mean(0)).float()

    @property
    def origin(self) -> Float[Tensor, " d_model"]:
        """Mean of the negative rows."""
        return self.minus.double().mean(0).float()

    def pairs(self) -> Float[Tensor, "pair d_model"]:
        """Differences of the i-th positive and the i-th negative row.

        Raises:
            InputError: the sides differ in number.
        """
        if len(self.plus) != len(self.minus):
            raise InputError(
                "positive, negative: this estimator needs pairs",
                got=f"{len(self.plus)} and {len(self.minus)} texts",
                valid="equally many, the i-th positive text with the i-th negative one",
                hint="use mean_difference, which needs no pairs",
            )
        return self.plus.double() - self.minus.double()

    def __repr__(self) -> str:
        return (
            f"Contrast({len(self.plus)} positive, {len(self.minus)} negative texts, "
            f"{self.space.model} @ {self.space.hook_point})"
        )


def read_contrasts(
    sites: Sequence[Site],
    *,
    positive: Sequence[Any],
    negative: Sequence[Any],
    positions: Positions = "mean",
) -> dict[str, Contrast]:
    """Read both sides at several hook points of one model in one pass.

    Args:
        sites: Model and hook points.
        positive: Texts that show the behaviour; strings, or chats as lists of messages
            (`user_messages` makes them of strings), which each model reads in its own template.
        negative: Texts that show its opposite.
        positions: ``"mean"`` over the content tokens of each text, its ``"last"`` one, or `Tokens`
            that keep one of the two: ``Tokens("last", of="template")`` is the last token before
            the model answers a chat.

    Returns:
        Hook point -> contrast. The texts are checked (`check_contrast`), and what is found is
        said in one `ContrastWarning` and kept in the provenance.

    Raises:
        InputError: no sites, sites of several models, empty lists, a text on both sides, or a text
            too short to read.
    """
    model = _one_model(sites)
    points = [site.point for site in sites]
    sides = as_texts(positive, "positive"), as_texts(negative, "negative")
    _require_apart(*sides)
    plus = read_texts(model, points, sides[0], positions=positions, argument="positive")
    minus = read_texts(model, points, sides[1], positions=positions, argument="negative")
    check = check_contrast([said(text) for text in sides[0]], [said(text) for text in sides[1]])
    check.warn()
    n_plus, n_minus = len(sides[0]), len(sides[1])
    provenance = {
        "positions": Tokens.of_any(positions).to_json(),
        "n_positive": n_plus,
        "n_negative": n_minus,
        "texts": hashes([*sides[0], *sides[1]]),
        "check": check.to_json(),
    }
    contrasts = {}
    for site in sites:
        a, b = plus[site.point.name], minus[site.point.name]
        norm = (a.median_norm * n_plus + b.median_norm * n_minus) / (n_plus + n_minus)
        contrasts[site.point.name] = Contrast(a.rows, b.rows, site.space, norm, provenance)
    return contrasts


def read_contrast(
    source: Site | Contrast,
    *,
    positive: Sequence[Any] | None = None,
    negative: Sequence[Any] | None = None,
    positions: Positions = "mean",
) -> Contrast:
    """One hook point of `read_contrasts`; a contrast is given back as it is.

    Args:
        source: Model and hook point, or a contrast that was read before.
        positive: Texts that show the behaviour; as for `read_contrasts`.
        negative: Texts that show its opposite.
        positions: Token of each text that is read.

    Raises:
        InputError: a site without texts, or a contrast with texts.
    """
    given = positive is not None or negative is not None
    if isinstance(source, Contrast):
        if given:
            raise InputError(
                "positive, negative: a contrast has its texts already",
                got="a Contrast and texts",
                valid="a Contrast alone, or a site with both lists of texts",
                hint="leave the texts out",
            )
        return source
    if positive is None or negative is None:
        raise InputError(
            "positive, negative: both are needed",
            got="a site without them",
            valid="a site with both lists of texts, or a Contrast alone",
            hint="pass positive=[...] and negative=[...]",
        )
    found = read_contrasts([source], positive=positive, negative=negative, positions=positions)
    return found[source.point.name]


def said(text: Text) -> str:
    """The text without roles and template."""
    return text if isinstance(text, str) else "\n".join(content for _, content in text.messages)


def hashes(texts: Sequence[Text]) -> list[str]:
    """Hash of every text, and of every message of a chat: a map may have read it without roles."""
    found = {text_hash(text) for text in texts}
    for text in texts:
        if isinstance(text, Chat):
            found.update(text_hash(content) for _, content in text.messages)
    return sorted(found)


def _require_apart(positive: Sequence[Text], negative: Sequence[Text]) -> None:
    known = set(negative)
    both = [text for text in positive if text in known]
    if both:
        raise InputError(
            "positive, negative: the same text is on both sides",
            got=f"{both[0]!r:.200}",
            valid="two lists with no text in common",
            hint=f"remove the {len(both)} shared texts",
        )


def _one_model(sites: Sequence[Site]) -> Any:
    if not sites or any(site.model is not sites[0].model for site in sites):
        raise InputError(
            "sites: one or more hook points of one model",
            got=f"{len(sites)} sites",
            valid="[model.at(...), model.at(...)]",
            hint="read each model on its own",
        )
    return sites[0].model
