"""Matching the features of two dictionaries, with every match scored where it was not chosen.

Candidates and matches come from the sums over training documents; their correlations from held-out
documents, beside three floors: the same pair on wrongly paired rows, the source feature with a
random feature of the target that fires about as often, and the whole procedure on wrong pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Sample
from tl_transfer.features.correlate import FeatureSums, Side
from tl_transfer.features.map import FeatureMap
from tl_transfer.features.scores import correlation_intervals, correlations

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

#: Source features whose correlations are in memory at once: 67 MB with 16k of the target.
BLOCK = 512
#: Wrong pairings, and random partners of each feature.
N_FLOOR = 5

METHODS = ("mutual", "assignment")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The most correlated features of the other side.

    Attributes:
        target: For each source feature, target features, best first.
        r: Their training correlations; -inf where a feature is silent.
        source: For each target feature, source features, best first.
        r_back: Their training correlations.
    """

    target: Int[Tensor, "d_source candidate"]
    r: Float[Tensor, "d_source candidate"]
    source: Int[Tensor, "d_target candidate"]
    r_back: Float[Tensor, "d_target candidate"]


def match_features(
    sums: FeatureSums,
    *,
    method: str = "mutual",
    candidates: int = 8,
    min_active: int = 10,
    seed: int = 0,
) -> FeatureMap:
    """Pair the features of two dictionaries by the correlation of their activations.

    Args:
        sums: From `correlate_features`.
        method: ``"mutual"``: two features that are each other's most correlated one.
            ``"assignment"``: the one-to-one matching of largest total correlation among the
            candidates (a sparse linear assignment), which also pairs a feature with its second
            best when the best is taken.
        candidates: Features of the other side kept for each feature.
        min_active: Features active in fewer training rows are silent and stay without a match.
        seed: Of the random floors and the intervals.

    Returns:
        The matches, each with its held-out correlation, interval and floors, and the coverage.
    """
    if method not in METHODS or candidates < 1:
        raise InputError(
            "method, candidates: unknown way to match",
            got=f"{method!r}, {candidates}",
            valid=f"{', '.join(map(repr, METHODS))}; 1 candidate and more",
            hint='leave them out for "mutual" and 8',
        )
    live = (sums.source.active >= min_active, sums.target.active >= min_active)
    near = _candidates(_blocks_of_sums(sums), live, candidates)
    source, target = _pairs(near, method)
    generator = torch.Generator().manual_seed(seed)
    other = _random_partners(sums.target, live[1], target, generator)
    held = sums.held_out
    wrong = [held.shifted(turn, N_FLOOR) for turn in range(1, N_FLOOR + 1)]
    return FeatureMap(
        source_space=sums.source.space,
        target_space=sums.target.space,
        source_sae=sums.source.identity,
        target_sae=sums.target.identity,
        method=method,
        source=source,
        target=target,
        r_train=_train_r(sums, source, target),
        r=correlations(held, source, target),
        ci95=correlation_intervals(held, source, target, seed=seed),
        shuffled=_stacked([correlations(part, source, target) for part in wrong]),
        random=_stacked([correlations(held, source, partner) for partner in other]),
        n_active=_active(held, source),
        candidates=near.target,
        candidate_r=near.r.float(),
        live_source=live[0],
        live_target=live[1],
        mass=sums.source.square / sums.source.square.sum().clamp(min=1e-300),
        n_rows=(sums.n, len(held)),
        n_documents=len(held.document.unique()),
        procedure=_procedure(sums, live, method, candidates),
    )


#: Source features, and their correlations with all target features.
Blocks = Iterator[tuple[slice, Float[Tensor, "block d_target"]]]


def _blocks_of_sums(sums: FeatureSums) -> Blocks:
    for first in range(0, sums.source.d_sae, BLOCK):
        block = slice(first, first + BLOCK)
        yield block, sums.correlation(block)


def _blocks_of_sample(sample: Sample) -> Blocks:
    """The same from a sample of rows."""
    n, x, y = len(sample), sample.x.columns, sample.y.columns
    (mean_x, spread_x), (mean_y, spread_y) = _moments(x), _moments(y)
    for first in range(0, x.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        cross = torch.from_numpy((x[:, block].T @ y).toarray())
        scale = spread_x[block, None] * spread_y
        covariance = cross.addmm_(mean_x[block, None], mean_y[None], alpha=-float(n))
        yield block, torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 0.0)


def _moments(columns: "csc_matrix") -> tuple[Tensor, Tensor]:
    """Mean of every column, and the root of its sum of squared deviations."""
    n = columns.shape[0]
    total = torch.from_numpy(columns.sum(0)).flatten()
    square = torch.from_numpy(columns.multiply(columns).sum(0)).flatten()
    return total / n, (square - total**2 / n).clamp(min=0).sqrt()


def _candidates(
    blocks: Blocks, live: tuple[Bool[Tensor, " d_source"], Bool[Tensor, " d_target"]], k: int
) -> Candidates:
    """The k best of every row and every column, a block of rows in memory at a time."""
    d_source, d_target = map(len, live)
    k_target, k_source = min(k, d_target), min(k, d_source)
    rows: list[tuple[Tensor, Tensor]] = []
    best = torch.full((k_source, d_target), -torch.inf, dtype=torch.float64)
    who = torch.zeros(k_source, d_target, dtype=torch.long)
    for block, r in blocks:
        r[:, ~live[1]] = -torch.inf
        r[~live[0][block]] = -torch.inf
        rows.append(r.topk(k_target, dim=1))
        top = r.topk(min(k_source, len(r)), dim=0)
        both = torch.cat([best, top.values])
        best, order = both.topk(k_source, dim=0)
        who = torch.cat([who, top.indices + block.start]).gather(0, order)
    return Candidates(
        torch.cat([index for _, index in rows]), torch.cat([r for r, _ in rows]), who.T, best.T
    )


def _pairs(near: Candidates, method: str) -> tuple[Tensor, Tensor]:
    """Matched features, by rising source feature."""
    return _mutual(near) if method == "mutual" else _assignment(near)


def _mutual(near: Candidates) -> tuple[Tensor, Tensor]:
    source = torch.arange(len(near.target))
    target = near.target[:, 0]
    kept = (near.source[target, 0] == source) & (near.r[:, 0] > 0)
    return source[kept], target[kept]


def _assignment(near: Candidates) -> tuple[Tensor, Tensor]:
    """Largest total correlation among the candidates; a feature may also stay alone."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    d_source, d_target = len(near.target), len(near.source)
    here = torch.cat(
        [
            torch.arange(d_source).repeat_interleave(near.target.shape[1]),
            near.source.flatten(),
        ]
    )
    there = torch.cat(
        [
            near.target.flatten(),
            torch.arange(d_target).repeat_interleave(near.source.shape[1]),
        ]
    )
    r = torch.cat([near.r.flatten(), near.r_back.flatten()])
    place, first = _unique_first(here * d_target + there)
    place, r = place[r[first] > 0], r[first][r[first] > 0]
    here, there = place // d_target, place % d_target
    # To stay alone is a column of its own at cost 2; a match of correlation r costs 2 - r, so
    # that no cost is 0, which a sparse matrix would take for no candidate.
    rows = torch.cat([here, torch.arange(d_source)])
    columns = torch.cat([there, d_target + torch.arange(d_source)])
    cost = torch.cat([2.0 - r, torch.full((d_source,), 2.0, dtype=r.dtype)])
    matrix = coo_matrix(
        (cost.numpy(), (rows.numpy(), columns.numpy())), shape=(d_source, d_target + d_source)
    )
    found = min_weight_full_bipartite_matching(matrix.tocsr())
    source, target = (torch.as_tensor(part, dtype=torch.long) for part in found)
    kept = target < d_target
    return source[kept], target[kept]


def _unique_first(place: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted distinct values, and where each stands first."""
    order = place.argsort(stable=True)
    ordered = place[order]
    new = torch.ones(len(ordered), dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new], order[new]


def _train_r(sums: FeatureSums, source: Tensor, target: Tensor) -> Tensor:
    found = [
        sums.correlation(s).gather(1, t[:, None])[:, 0]
        for s, t in zip(source.split(BLOCK), target.split(BLOCK), strict=True)
    ]
    return torch.cat(found) if len(source) else torch.zeros(0, dtype=torch.float64)


def _random_partners(
    side: Side, live: Tensor, target: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """For each matched target feature, others that are about as often active."""
    order = side.active.argsort()
    order = order[live[order]]
    rank = torch.zeros(side.d_sae, dtype=torch.long)
    rank[order] = torch.arange(len(order))
    partners = []
    for _ in range(N_FLOOR):
        step = torch.randint(1, 33, target.shape, generator=generator)
        sign = torch.randint(0, 2, target.shape, generator=generator) * 2 - 1
        place = rank[target] + sign * step
        place = torch.where((place < 0) | (place >= len(order)), rank[target] - sign * step, place)
        place = place.clamp(0, max(len(order) - 1, 0))
        # Among few features both ways may lead out: the neighbour, never the match itself.
        itself = (place == rank[target]) & (len(order) > 1)
        beside = torch.where(rank[target] > 0, rank[target] - 1, rank[target] + 1)
        partners.append(order[torch.where(itself, beside, place)])
    return partners


def _active(sample: Sample, source: Tensor) -> Tensor:
    counts = torch.bincount(sample.x.feature.long(), minlength=sample.x.d_sae)
    return counts[source]


def _stacked(parts: list[Tensor]) -> Float[Tensor, "pair draw"]:
    return torch.stack(parts, dim=1)


def _procedure(
    sums: FeatureSums, live: tuple[Tensor, Tensor], method: str, candidates: int
) -> Float[Tensor, " pair"]:
    """Held-out correlations of what the same procedure matches on wrong pairs."""
    wrong = sums.train.shifted(1, 1)
    if not len(wrong):
        return torch.zeros(0, dtype=torch.float64)
    near = _candidates(_blocks_of_sample(wrong), live, candidates)
    source, target = _pairs(near, method)
    return correlations(sums.held_out.shifted(1, 1), source, target)
