"""Arms of a backdoor: what is added at the tokens of the phrase, controls included.

All arms are position vectors, so that they act at the same tokens in the same way. A single
direction is one whose every token has the same row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.encode import EncodedText
from tl_transfer.errors import InputError
from tl_transfer.extract.features import random_covariance, random_isotropic
from tl_transfer.interventions import AddAtPhrase, Intervention
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.transfer import transfer
from tl_transfer.vectors import PositionVectors, SteeringVector

#: Order of the rows of a table: noise first, for what it does as well, no direction has shown.
ORDER = (
    "random_isotropic", "random_covariance", "unsteered", "native", "transferred",
    "shuffled_map", "no_trigger_map",
)  # fmt: skip
CONTROLS = ("random_isotropic", "random_covariance", "shuffled_map")


@dataclass(frozen=True)
class PhraseArm:
    """Something to add at the phrase.

    Attributes:
        name: One of `ORDER`.
        number: Which of several of that name.
        vectors: None: nothing is added.
        strength: In multiples of the vectors; None until it is chosen.
    """

    name: str
    number: int
    vectors: PositionVectors | None
    strength: float | None = None

    @property
    def key(self) -> str:
        """Name that a finished part is stored under."""
        return f"{self.name}-{self.number}"

    def edits(self, prompt: EncodedText, phrase: str) -> list[Intervention]:
        """What is attached to the model for prompts with a phrase.

        Args:
            prompt: One of them, for how it is cut into tokens.
            phrase: The trigger, or its twin.
        """
        if self.vectors is None:
            return []
        strength = 1.0 if self.strength is None else self.strength
        return [AddAtPhrase(on_phrase(self.vectors, prompt, phrase), strength=strength)]


def everywhere_in(phrase: str, vector: SteeringVector) -> PositionVectors:
    """One direction for every token of a phrase."""
    return PositionVectors(
        vector.direction[None],
        phrase,
        (1,),
        vector.space,
        vector.median_norm,
        vector.method,
        vector.provenance,
    )


def on_phrase(vectors: PositionVectors, prompt: EncodedText, phrase: str) -> PositionVectors:
    """The same rows at the tokens of another phrase, counted from the end.

    Args:
        vectors: Rows of the trigger's tokens.
        prompt: A prompt with the phrase.
        phrase: The other one, say the twin.

    Raises:
        InputError: the phrase is not in the prompt.
    """
    if phrase == vectors.phrase or len(vectors) == 1:
        return replace(vectors, phrase=phrase)
    probe = replace(vectors, directions=vectors.directions[-1:], phrase=phrase, ends=(1,))
    places, _ = probe.places(prompt)
    start = prompt.text.encode().find(phrase.encode())
    ends = [prompt.ends[p] - start for p in places.tolist()]
    ends = [e for e in ends if e <= len(phrase.encode())] or ends[:1]  # the first occurrence
    n = len(vectors)
    rows = [max(n - len(ends) + i, 0) for i in range(len(ends))]
    return replace(vectors, directions=vectors.directions[rows], phrase=phrase, ends=tuple(ends))


def phrase_arms(
    vectors: PositionVectors,
    native: PositionVectors,
    mapper: Mapper,
    *,
    blind: Mapper | None = None,
    n_random: int,
    seed: int,
) -> list[PhraseArm]:
    """All arms of one form of vector, in `ORDER`; a caller cannot leave a control out.

    Args:
        vectors: The source's, from trigger to twin.
        native: The target's own.
        mapper: As returned by `fit`, with its controls.
        blind: A map of the same spaces that never saw the trigger.
        n_random: Draws of each kind of noise; every token has its own, as long as the
            transferred row of that token.
        seed: Of the noise.

    Raises:
        InputError: the map carries no controls.
    """
    if mapper.shuffled is None or mapper.held_out is None:
        raise InputError(
            "mapper: an evaluation needs the controls that fit makes with the map",
            got="a map without its shuffled control and held-out moments",
            valid="the result of fit(...)",
            hint="fit the map in this session, or load it together with its controls",
        )
    mapper.target.require(native.space, "native vectors in the target space")
    moved = transfer(vectors, mapper)
    k, d = moved.directions.shape
    covariance = mapper.held_out.yy / mapper.held_out.n
    drawn: dict[str, Float[Tensor, "row d_model"]] = {
        "random_isotropic": random_isotropic(d, n_random * k, seed=seed),
        "random_covariance": random_covariance(covariance, n_random * k, seed=seed + 1),
    }
    lengths = moved.directions.norm(dim=-1, keepdim=True)
    arms = [
        PhraseArm(name, i, replace(moved, directions=rows * lengths, method=name))
        for name, units in drawn.items()
        for i, rows in enumerate(units.view(n_random, k, d))
    ]
    arms += [
        PhraseArm("unsteered", 0, None),
        PhraseArm("native", 0, native),
        PhraseArm("transferred", 0, moved),
        PhraseArm("shuffled_map", 0, transfer(vectors, mapper.shuffled)),
    ]
    if blind is not None:
        arms.append(PhraseArm("no_trigger_map", 0, transfer(vectors, blind)))
    return arms


def cosines(a: PositionVectors, b: PositionVectors) -> list[float]:
    """Cosine of each row with the row of the other that stands as far from the end."""
    n = min(len(a), len(b))
    pairs = zip(a.directions[-n:], b.directions[-n:], strict=True)
    return [float(torch.nn.functional.cosine_similarity(x, y, dim=0)) for x, y in pairs]


def by_name(arms: Sequence[PhraseArm], name: str) -> PhraseArm:
    """The first arm of a name."""
    return next(arm for arm in arms if arm.name == name)
