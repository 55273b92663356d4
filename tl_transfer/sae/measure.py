"""What an SAE keeps of some rows: FVU, L0, dead features, beside dictionaries that learned nothing.

FVU is the share of the variance about the mean of the rows that the reconstruction leaves, so the
mean alone scores 1. Two controls have the same number of active directions in every row: a random
dictionary whose directions are drawn as the activations lie (N(0, covariance)), read with its own
directions and scaled by least squares; and the first principal components. An SAE that does not
beat the first has learned nothing; the second shows how much of a low FVU a few large directions
give.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.intervals import DocumentBootstrap
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.dictionary import Dictionary

#: Rows encoded together.
CHUNK = 1024

Rebuild = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]


@dataclass(frozen=True)
class Fidelity:
    """How well an SAE keeps some rows.

    Attributes:
        fvu: Fraction of variance unexplained.
        fvu_ci95: Interval over documents; None with one.
        l0: Features on in a row, on average.
        l0_spread: 5th, 50th and 95th percentile of it.
        fired: Which features were on in at least one row.
        norm_ratio: Mean norm of the reconstruction over mean norm of the rows.
        n_rows: Rows.
        n_documents: Documents.
    """

    fvu: float
    fvu_ci95: list[float] | None
    l0: float
    l0_spread: list[float]
    fired: Bool[Tensor, " d_sae"]
    norm_ratio: float
    n_rows: int
    n_documents: int

    @property
    def dead_share(self) -> float:
        """Share of features that were on in no row."""
        return float((~self.fired).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "fvu": self.fvu,
            "fvu_ci95": self.fvu_ci95,
            "l0": self.l0,
            "l0_spread": self.l0_spread,
            "dead_share": self.dead_share,
            "norm_ratio": self.norm_ratio,
            "n_rows": self.n_rows,
            "n_documents": self.n_documents,
        }


def fidelity(
    dictionary: Dictionary,
    x: Float[Tensor, "row d_model"],
    document: Int[Tensor, " row"] | None = None,
) -> Fidelity:
    """Encode and decode rows and compare."""
    document = torch.arange(len(x)) if document is None else document
    mean = x.double().mean(0)
    fired = torch.zeros(dictionary.d_sae, dtype=torch.bool)
    error, variance, active, norm = [], [], [], torch.zeros(2, dtype=torch.float64)
    for rows in x.split(CHUNK):
        codes = dictionary.encode(rows)
        rebuilt = dictionary.decode(codes, at=rows)
        error.append((rows - rebuilt).double().square().sum(-1))
        variance.append((rows.double() - mean).square().sum(-1))
        on = codes != 0
        active.append(on.sum(-1))
        fired |= on.any(0).cpu()
        norm += torch.stack([r.double().norm(dim=-1).sum() for r in (rebuilt, rows)])
    e, v, n = torch.cat(error), torch.cat(variance), torch.cat(active).double()
    bootstrap = DocumentBootstrap(document)
    spread = torch.quantile(n, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    return Fidelity(
        float(e.sum() / v.sum()),
        bootstrap.ratio(e, v),
        float(n.mean()),
        spread.tolist(),
        fired,
        float(norm[0] / norm[1]),
        len(x),
        bootstrap.n,
    )


def fvu_of(rebuild: Rebuild, x: Float[Tensor, "row d_model"]) -> float:
    """Fraction of variance that any reconstruction leaves."""
    mean = x.double().mean(0)
    error = sum(float((rows - rebuild(rows)).double().square().sum()) for rows in x.split(CHUNK))
    return error / float((x.double() - mean).square().sum())


def random_dictionary(
    x: Float[Tensor, "row d_model"],
    d_sae: int,
    k: int,
    *,
    seed: int = 0,
    gain_rows: int | None = None,
) -> Dictionary:
    """Control: directions drawn from N(0, covariance of x), k of them in every row.

    The encoder reads with the directions themselves; the decoder has one gain, by least squares
    over x (or over its first `gain_rows` rows).
    """
    mean = x.double().mean(0)
    centred = x.double() - mean
    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    root = vectors * values.clamp(min=0).sqrt()
    draws = torch.randn(d_sae, len(mean), generator=generator, dtype=torch.float64) @ root.T
    rows = torch.nn.functional.normalize(draws, dim=-1).float()
    coder = _tied(rows, mean.float(), k, 1.0)
    hits, size = 0.0, 0.0
    for part in x[:gain_rows].split(CHUNK):
        step = coder.decode(coder.encode(part)) - coder.b_dec
        hits += float((step * (part - coder.b_dec)).double().sum())
        size += float(step.double().square().sum())
    return Dictionary.of(_tied(rows, mean.float(), k, hits / max(size, 1e-30)))


def principal_components(x: Float[Tensor, "row d_model"], k: int) -> Rebuild:
    """Control: projection on the first k principal components of x."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    basis = vectors[:, -min(k, vectors.shape[1]) :].float()
    origin = mean.float()

    def rebuild(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        here, at = basis.to(rows.device), origin.to(rows.device)
        return (rows - at) @ here @ here.T + at

    return rebuild


def _tied(rows: Tensor, mean: Tensor, k: int, gain: float) -> SparseCoder:
    zeros = torch.zeros(len(rows))
    return SparseCoder(rows.T, zeros, gain * rows, mean, mean, "topk", k=min(k, len(rows)))
