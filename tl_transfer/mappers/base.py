"""Mapper: what every fitted map can do; AffineMap: the kind that a closed form gives.

Three things move differently through a map f. A **point** (an activation) goes through f itself. A
**direction** (a difference of points, something to write) goes without the intercept, which
cancels. A **read direction** (a probe: what is read off with a dot product) goes the other way
round: it is pulled back through the regression from target to source, `backward`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.mappers import card_view
from tl_transfer.mappers.scorecard import HeldOut, direction_score
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import PairedMoments


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Mapper(ABC):
    """A fitted map between two spaces, with the score card it was given at birth.

    Attributes:
        source: Space of x.
        target: Space of f(x).
        source_norm: Median residual norm of the fitting rows in the source.
        target_norm: The same in the target: the unit of steering strength there.
        method: Name in the registry of methods.
        settings: Everything needed to fit it again (JSON); `options` in it are the
            hyperparameters, chosen or given.
        scorecard: Held-out scores beside their controls (JSON).
        fit_texts: SHA-256 of every text the map was fitted on (contrast texts must not be here).
        held_out: Moments of the held-out rows, for scores of single directions.
        held_out_rows: A bounded sample of those rows with their documents, for intervals.
        shuffled: The control: the same fit on wrongly paired rows.
        backward: The map from target to source fitted on the same rows, for `pull_back`.
    """

    source: ActivationSpace
    target: ActivationSpace
    source_norm: float
    target_norm: float
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    scorecard: dict[str, Any] = field(default_factory=dict)
    fit_texts: frozenset[str] = frozenset()
    held_out: PairedMoments | None = field(default=None, repr=False)
    held_out_rows: HeldOut | None = field(default=None, repr=False)
    shuffled: "Mapper | None" = field(default=None, repr=False)
    backward: "AffineMap | None" = field(default=None, repr=False)

    # -- what every kind of map must say -----------------------------------------------------

    @abstractmethod
    def map_points(self, x: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row d_target"]:
        """Activations to activations: f(x), computed in float32, back in the caller's dtype."""

    @abstractmethod
    def map_direction(
        self,
        v: Float[Tensor, "*row d_source"],
        *,
        at: Float[Tensor, "point d_source"] | None = None,
        rule: str | None = None,
    ) -> Float[Tensor, "*row d_target"]:
        """Directions to directions.

        Args:
            v: Directions of the source; rows are mapped one by one.
            at: Points of the source at which it is taken, where f is not affine.
            rule: How it is taken there, see `ReluMap.map_direction`.
        """

    @abstractmethod
    def jacobian(
        self, at: Float[Tensor, "point d_source"] | None = None
    ) -> Float[Tensor, "d_source d_target"]:
        """Jacobian of f, averaged over the points `at` (default: over the fitting rows)."""

    @abstractmethod
    def held_out_residual(self) -> Float[Tensor, "d_target d_target"] | None:
        """Sum over held-out rows of (y - f(x))(y - f(x))^T; None if it was not kept."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name: what is saved beside the header."""

    # -- what follows from it ----------------------------------------------------------------

    def pull_back(self, w: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row d_target"]:
        """Read directions of the source to read directions of the target: w' = B w.

        A source probe x . w is applied to the source activation predicted from the target's,
        g(y) = yB + c (Chen et al. 2025), so that y . (B w) + c . w is the probe. Pushing w
        forward would be wrong unless the map is orthogonal, where the two agree.

        Raises:
            InputError: the map was fitted with ``backward=False``.
        """
        backward = self._require_backward()
        self._require_width(w)
        return (w.float() @ backward.weight.to(w.device).T).to(w.dtype)

    def pull_back_offset(self, w: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row"]:
        """What a pulled-back probe adds to its own intercept: c . w."""
        backward = self._require_backward()
        return w.float() @ backward.bias.to(w.device)

    def direction_r2(self, direction: Float[Tensor, " d_target"]) -> float | None:
        """Held-out share of variance explained along one target direction.

        The global score hides this number, which is the one that matters for a transfer.
        None when the held-out sums are gone (a composed map).
        """
        residual = self.held_out_residual()
        if residual is None or self.held_out is None:
            return None
        u = direction.double().to(residual.device)
        return float(1.0 - (u @ residual @ u) / (u @ self.held_out.yy @ u))

    def direction_r2_interval(self, direction: Float[Tensor, " d_target"]) -> list[float] | None:
        """95 % interval of `direction_r2` over held-out documents; None without their rows."""
        if self.held_out_rows is None:
            return None
        interval: list[float] | None = direction_score(
            self.map_points, direction, self.held_out_rows
        )["ci95"]
        return interval

    def then(self, other: "Mapper") -> "Mapper":
        """First this map, then another one from its target space: the two in one.

        The way back is composed too. A composed map has no held-out rows of its own, so no score
        card: score it by fitting source to target directly, or with `cycle_fvu` of both parts.

        Raises:
            SpaceError: the other map starts elsewhere.
            InputError: neither of the two is affine.
        """
        self.target.require(other.source, f"{self.method} map, then {other.method} map")
        return self._then(other)

    @abstractmethod
    def _then(self, other: "Mapper") -> "Mapper":
        """Composition, once the spaces are known to meet."""

    @abstractmethod
    def _behind(self, first: "AffineMap") -> "Mapper":
        """The same map with an affine one in front of it."""

    def joined(self, other: "Mapper") -> dict[str, Any]:
        """Fields of the composition of this map with another one behind it."""
        back, forth = other.backward, self.backward
        return {
            "source": self.source,
            "target": other.target,
            "source_norm": self.source_norm,
            "target_norm": other.target_norm,
            "method": f"{self.method} then {other.method}",
            "settings": {"first": self.settings, "then": other.settings},
            "fit_texts": self.fit_texts | other.fit_texts,
            "backward": back.then(forth) if back is not None and forth is not None else None,
        }

    def to(self, device: torch.device | str) -> "Mapper":
        """The same map with its parameters on a device, for use inside a forward pass."""
        moved: dict[str, Any] = {name: p.to(device) for name, p in self.tensors().items()}
        return replace(self, **moved)

    def _require_backward(self) -> "AffineMap":
        if self.backward is None:
            raise InputError(
                "pull_back: this map has no way back",
                got=f"a {self.method} map fitted with backward=False",
                valid="a map with `backward`, the regression from target to source",
                hint="fit it again with backward=True (the sums are the same, so it is quick)",
            )
        return self.backward

    def _require_width(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.source.d_model:
            raise InputError(
                "x: wrong width for this map",
                got=tuple(x.shape),
                valid=f"[..., {self.source.d_model}] ({self.source})",
                hint="pass activations or directions of the source space",
            )

    @property
    def title(self) -> str:
        """One line: the method and both ends."""
        return (
            f"{type(self).__name__} ({self.method}): {self.source.model} "
            f"{self.source.hook_point} -> {self.target.model} {self.target.hook_point}"
        )

    def __repr__(self) -> str:
        """The whole score card: a map is never shown without its held-out scores and control."""
        return card_view.as_text(self.title, self.scorecard)

    def _repr_html_(self) -> str:
        return card_view.as_html(self.title, self.scorecard)


@dataclass(frozen=True, eq=False, repr=False)
class AffineMap(Mapper):
    """f(x) = xW + b from the source space to the target space.

    Attributes:
        weight: W, float32.
        bias: b, float32.
    """

    weight: Float[Tensor, "d_source d_target"]
    bias: Float[Tensor, " d_target"]

    def __post_init__(self) -> None:
        require_shapes(self, weight=(self.source.d_model, self.target.d_model))

    def map_points(self, x: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row d_target"]:
        """Activations to activations: xW + b, in float32, back in the caller's dtype."""
        self._require_width(x)
        weight, bias = self.weight.to(x.device), self.bias.to(x.device)
        return (x.float() @ weight + bias).to(x.dtype)

    def map_direction(
        self,
        v: Float[Tensor, "*row d_source"],
        *,
        at: Float[Tensor, "point d_source"] | None = None,
        rule: str | None = None,
    ) -> Float[Tensor, "*row d_target"]:
        """Directions to directions: vW, so T(0) = 0 and T(-v) = -T(v).

        Args:
            v: Directions of the source.
            at: Not needed: it is the same everywhere.
            rule: Not needed: every rule agrees.
        """
        self._require_width(v)
        return (v.float() @ self.weight.to(v.device)).to(v.dtype)

    def jacobian(
        self, at: Float[Tensor, "point d_source"] | None = None
    ) -> Float[Tensor, "d_source d_target"]:
        """W, wherever it is taken."""
        return self.weight

    def held_out_residual(self) -> Float[Tensor, "d_target d_target"] | None:
        """From the held-out sums alone."""
        if self.held_out is None:
            return None
        return self.held_out.residual(self.weight.cpu(), self.bias.cpu())

    def tensors(self) -> dict[str, Tensor]:
        """Weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    def _then(self, other: Mapper) -> Mapper:
        return other._behind(self)

    def _behind(self, first: "AffineMap") -> "AffineMap":
        weight = first.weight.double() @ self.weight.double()
        bias = first.bias.double() @ self.weight.double() + self.bias.double()
        return AffineMap(weight.float(), bias.float(), **first.joined(self))


def require_shapes(mapper: Mapper, **expected: tuple[int, ...]) -> None:
    """Refuse parameters that do not fit the two spaces; lay them out contiguously.

    The layout decides which matrix product runs, hence the last bits of a result: a map must give
    the same ones before it is saved and after it is loaded.
    """
    for name, tensor in mapper.tensors().items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{name}: does not fit the two spaces",
                got=tuple(tensor.shape),
                valid=f"{expected[name]} for {mapper.source} -> {mapper.target}",
                hint="check that source and target are not exchanged",
            )
        object.__setattr__(mapper, name, tensor.contiguous())
