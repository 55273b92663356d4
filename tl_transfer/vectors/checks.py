"""Checks that every kind makes of its numbers, and the record of what a result was made from."""

import hashlib
import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace


@runtime_checkable
class Spanning(Protocol):
    """Anything that spans a part of a space: a vector or a subspace."""

    @property
    def space(self) -> ActivationSpace:
        """Where it lives."""
        ...

    @property
    def span(self) -> Float[Tensor, "k d_model"]:
        """Rows that span it, orthonormal."""
        ...


def require_row(name: str, row: Tensor, space: ActivationSpace, *, zero: bool = False) -> None:
    """One row of the space's width, finite and (unless `zero`) not zero."""
    if row.shape != (space.d_model,):
        raise InputError(
            f"{name}: wrong shape for its space",
            got=tuple(row.shape),
            valid=f"({space.d_model},) for {space}",
            hint="pass one vector as wide as the residual stream",
        )
    norm = float(row.norm())
    if not math.isfinite(norm) or (norm == 0.0 and not zero):
        raise InputError(
            f"{name}: must be finite" + ("" if zero else " and not zero"),
            got=f"norm {norm}",
            valid="finite numbers" + ("" if zero else ", norm above zero"),
            hint="look for NaN activations, or for identical positive and negative texts",
        )


def require_rows(name: str, rows: Tensor, space: ActivationSpace) -> None:
    """One or more rows of the space's width, all finite."""
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != space.d_model:
        raise InputError(
            f"{name}: wrong shape for its space",
            got=tuple(rows.shape),
            valid=f"(k, {space.d_model}) with k at least 1, for {space}",
            hint="pass one row a direction, each as wide as the residual stream",
        )
    if not bool(torch.isfinite(rows).all()):
        raise InputError(
            f"{name}: must be finite",
            got=f"{int((~torch.isfinite(rows)).sum())} numbers that are not",
            valid="finite numbers",
            hint="look for NaN activations",
        )


def require_origin(origin: Tensor | None, space: ActivationSpace) -> None:
    """A point of the space, which may be zero, or none."""
    if origin is not None:
        require_row("origin", origin, space, zero=True)


def require_norm(median_norm: float) -> None:
    """The unit of strength must be usable."""
    if not (median_norm > 0 and math.isfinite(median_norm)):
        raise InputError(
            "median_norm: must be positive and finite",
            got=median_norm,
            valid="the median residual norm of the space",
            hint="it is the unit of strength; mapper.target_norm has it",
        )


def fingerprint(rows: Tensor) -> str:
    """First 16 hex digits of the SHA-256 of the numbers: names an operand in a provenance."""
    data = rows.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def operands(*parts: Any) -> dict[str, Any]:
    """Provenance of something made from several vectors: each leaf once, and all their texts.

    The texts must survive every operation: `transfer` compares them with the texts of the map.
    """
    leaves: dict[str, dict[str, Any]] = {}
    texts: set[str] = set()
    for part in parts:
        texts.update(part.provenance.get("texts", ()))
        for leaf in part.provenance.get("operands") or [_leaf(part)]:
            leaves[leaf["sha256"]] = leaf
    return {"operands": list(leaves.values()), "texts": sorted(texts)}


def _leaf(part: Any) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in part.provenance.items()
        if key not in ("texts", "negated", "scale")  # these belong to the use, not to the leaf
    }
    return {**kept, "method": part.method, "sha256": fingerprint(part.span)}
