"""Probe: a direction to read with, a direction to write with, and where the decision falls.

The best direction to *read* a concept with is not the one to *write* it with: correlated features
must be discounted in reading, and moved along in writing (Marks and Tegmark 2023; Haufe et al.
2014). Through a map they move differently too: a write direction is pushed forward, a read
direction is pulled back.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors.checks import operands, require_norm, require_origin, require_row
from tl_transfer.vectors.steering import SteeringVector


@dataclass(frozen=True, eq=False)
class Probe:
    """score(x) = x . read + bias; positive when score > threshold; `write` raises the score.

    Attributes:
        read: Weights of the score, float32.
        bias: Offset of the score. For a logistic probe the score is the log-odds.
        write: Direction along which activations differ between the classes (not normalised).
        space: Where it lives.
        median_norm: Median residual norm of that space: the unit of strength.
        method: How it was made, e.g. ``"logistic"``.
        provenance: Counts, hashes, statistics (JSON).
        threshold: Score above which `predict` says True.
        origin: Mean of the negative class, where known (see `SteeringVector.origin`).
    """

    read: Float[Tensor, " d_model"]
    bias: float
    write: Float[Tensor, " d_model"]
    space: ActivationSpace
    median_norm: float
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.0
    origin: Float[Tensor, " d_model"] | None = None

    def __post_init__(self) -> None:
        require_norm(self.median_norm)
        require_row("read", self.read, self.space)
        require_row("write", self.write, self.space)
        require_origin(self.origin, self.space)
        if not self.gain > 0:
            raise InputError(
                "read, write: writing must raise what is read",
                got=f"read . write = {self.gain:.3g}",
                valid="a positive product",
                hint="turn one of them around",
            )

    @property
    def gain(self) -> float:
        """read . write: rise of the score when `write` is added once."""
        return float(self.read.double() @ self.write.double())

    @property
    def span(self) -> Float[Tensor, "1 d_model"]:
        """The unit write direction as the one row of a basis."""
        return (self.write / self.write.norm())[None]

    @property
    def vector(self) -> SteeringVector:
        """The write direction as a steering vector."""
        return SteeringVector(
            self.write,
            self.space,
            self.median_norm,
            f"write direction of {self.method}",
            operands(self),
            self.origin,
        )

    def score(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
        """X . read + bias, in float32."""
        return x.float() @ self.read.to(x.device) + self.bias

    def predict(self, x: Float[Tensor, "*row d_model"]) -> Bool[Tensor, "*row"]:
        """Whether the score lies above the threshold."""
        return self.score(x) > self.threshold

    def __neg__(self) -> "Probe":
        """The probe of the other class: the two classes change places."""
        origin = None if self.origin is None else self.origin + self.write
        return Probe(
            -self.read,
            -self.bias,
            -self.write,
            self.space,
            self.median_norm,
            self.method,
            {**self.provenance, "negated": not self.provenance.get("negated", False)},
            -self.threshold,
            origin,
        )

    def __repr__(self) -> str:
        auroc = self.provenance.get("auroc")
        shown = "" if auroc is None else f", held-out AUROC {auroc:.3f}"
        cosine = self.gain / float(self.read.norm() * self.write.norm())
        return (
            f"Probe({self.method}{shown}, cosine of read and write {cosine:.2f}, "
            f"{self.space.model} @ {self.space.hook_point})"
        )
