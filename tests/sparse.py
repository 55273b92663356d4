"""A sparse generative model seen by two planted dictionaries: which feature is which is known."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.align import AlignmentReport
from tl_transfer.features.codes import SparseCodes
from tl_transfer.features.correlate import FeatureAccumulator, FeatureSums
from tl_transfer.space import ActivationSpace


def space(name: str, d_model: int) -> ActivationSpace:
    return ActivationSpace(
        name, name, "blocks.1.hook_resid_post", d_model, "raw", "tok", "none", "float32"
    )


@dataclass(frozen=True)
class PlantedCoder:
    """Top-k of a tied, nearly orthogonal dictionary."""

    directions: Tensor
    space: ActivationSpace
    identity: str
    k: int = 6
    row_norm: str = "none"

    @property
    def d_sae(self) -> int:
        return len(self.directions)

    def encode(self, x: Tensor) -> Tensor:
        pre = (x @ self.directions.T).relu()
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values)

    def strongest(self, x: Tensor) -> None:
        return None

    def decode(self, codes: Tensor, *, at: Tensor | None = None) -> Tensor:
        return codes @ self.directions

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def require_space(self, space: ActivationSpace, what: str = "dictionary") -> None:
        self.space.require(space, what)


def unit_rows(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)


def latents(n: int, n_features: int, seed: int, k: int = 4) -> Tensor:
    """Rows with k active features each, of strength 1 to 2; rare and common ones."""
    generator = torch.Generator().manual_seed(seed)
    odds = torch.linspace(1.0, 0.2, n_features).expand(n, -1)
    active = odds.multinomial(k, generator=generator)
    return torch.zeros(n, n_features).scatter(1, active, 1 + torch.rand(n, k, generator=generator))


@dataclass(frozen=True)
class World:
    """Two models of one sparse world: rotated, one with its features in another order."""

    source: PlantedCoder
    target: PlantedCoder
    partner: Tensor  # target feature of each source feature; -1: only the source has it
    z: Tensor
    document: Tensor

    @property
    def x(self) -> Tensor:
        return self.z @ self.source.directions

    @property
    def y(self) -> Tensor:
        shared = self.partner >= 0
        return self.z[:, shared] @ self.target.directions[self.partner[shared]]


def world(n: int = 6000, n_features: int = 80, alone: int = 0, seed: int = 0) -> World:
    """`alone` features of the source have no partner; the target has as many of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n_features, generator=generator)
    partner = torch.where(torch.arange(n_features) < n_features - alone, order, -1)
    source = PlantedCoder(unit_rows(n_features, 192, seed + 1), space("s", 192), "s" * 64)
    target = PlantedCoder(unit_rows(n_features, 256, seed + 2), space("t", 256), "t" * 64)
    z = latents(n, n_features, seed + 3)
    return World(source, target, partner, z, torch.arange(n) // 40)


def sums_of(
    w: World, *, y: Tensor | None = None, chunk: int = 500, texts: Any = ("a",)
) -> FeatureSums:
    """The pass over the rows of a world, every fifth document held out."""
    x, y = w.x, w.y if y is None else y
    collected = FeatureAccumulator(w.source, w.target)
    for first in range(0, len(x), chunk):
        rows = slice(first, first + chunk)
        document = w.document[rows]
        collected.add(
            SparseCodes.encoded(w.source, x[rows]),
            SparseCodes.encoded(w.target, y[rows]),
            held_out=document % 5 == 0,
            sampled=torch.ones(len(document), dtype=torch.bool),
            document=document,
            key=document,
        )
    return collected.sums(texts, AlignmentReport(1, 0, 0, len(x), len(x), len(x), 0), 0)
