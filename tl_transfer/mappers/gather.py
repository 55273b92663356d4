"""One pass over paired texts: sums by fold, norms, and a bounded sample of held-out rows.

Nothing else is kept, so memory grows by the tokens of the texts alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_transfer.mappers.scorecard import HeldOut
from tl_transfer.mappers.split import Split
from tl_transfer.mappers.sums import MAX_HELD_OUT_ROWS, Sums
from tl_transfer.memory import require_memory
from tl_transfer.models.pairs import PairedRows, Pairs
from tl_transfer.models.sources import Place
from tl_transfer.statistics import NormHistogram, PairedMoments
from tl_transfer.streaming import MomentGrid


@dataclass
class Gathered:
    """What a fit needs of both models, for every pair of hook points.

    Attributes:
        grid: Moments by fold; the last fold is held out.
        norms: (``"x"`` or ``"y"``, hook point) -> histogram of row norms.
        rows: The same keys -> held-out rows, batch by batch.
        documents: Document of those rows, batch by batch.
        dropped: See `Pairs.dropped`.
        seed: Of the split and of the wrong pairs.
        seen: Documents that gave a row.
    """

    grid: MomentGrid
    norms: dict[tuple[str, str], NormHistogram]
    rows: dict[tuple[str, str], list[Tensor]]
    documents: list[Tensor]
    dropped: dict[str, dict[str, int]]
    seed: int
    seen: set[int] = field(default_factory=set)

    def folds(self, source: str, target: str) -> list[PairedMoments]:
        """Moments of every fold at one pair of hook points; the last fold is held out."""
        return self.grid.folds(source, target)

    def held_out(self, side: str, name: str) -> Tensor:
        """Held-out rows of one hook point, at most `MAX_HELD_OUT_ROWS`."""
        return torch.cat(self.rows[side, name])[:MAX_HELD_OUT_ROWS]

    def sums(
        self, source: Place, target: Place, folds: list[PairedMoments], pairs: Pairs, split: Split
    ) -> Sums:
        """Sums of one pair of hook points.

        Args:
            source: The hook point of the source.
            target: The hook point of the target.
            folds: Moments of every fold of `split` at this pair; the last fold is held out.
            pairs: The paired texts.
            split: Which document is in which fold.
        """
        here, there = source.point.name, target.point.name
        out = {d for d, f in zip(split.document, split.fold, strict=True) if f == split.n_folds}
        return Sums(
            source=source.space,
            target=target.space,
            folds=tuple(folds[:-1]),
            held_out=HeldOut(
                folds[-1],
                self.held_out("x", here),
                self.held_out("y", there),
                torch.cat(self.documents)[:MAX_HELD_OUT_ROWS],
            ),
            norms=(self.norms["x", here], self.norms["y", there]),
            hashes=frozenset(pairs.hashes),
            documents=(frozenset(self.seen - out), frozenset(self.seen & out)),
            report=pairs.report,
            dropped=self.dropped,
            tokens=pairs.tokens.to_json(),
            seed=self.seed,
        )


def gather(
    sources: Sequence[Place],
    targets: Sequence[Place],
    pairs: Pairs,
    split: Split,
    seed: int,
    progress: bool,
    max_tokens: int,
    each: Callable[[PairedRows], None] | None = None,
) -> Gathered:
    """Read every batch of pairs once and add it up.

    `each` is called with every batch, by methods that need rows.
    """
    d_source = {site.point.name: site.space.d_model for site in sources}
    d_target = {site.point.name: site.space.d_model for site in targets}
    sides = [("x", name) for name in d_source] + [("y", name) for name in d_target]
    require_memory(
        MomentGrid.n_bytes(d_source, d_target, split.n_folds + 1),
        f"sums of {len(d_source)} x {len(d_target)} hook points in {split.n_folds + 1} parts",
        "fewer hook points (layer_grid scores all of them in less), or fewer different weights",
    )
    grid = MomentGrid(d_source, d_target, split.n_folds + 1, seed=seed)
    gathered = Gathered(
        grid, {key: NormHistogram() for key in sides}, {key: [] for key in sides}, [], {}, seed
    )
    fold, document = torch.tensor(split.fold), torch.tensor(split.document)
    key = torch.tensor([int(name[:15], 16) for name in pairs.hashes])
    held_out = fold == split.n_folds
    sample = sample_texts(pairs.n_pairs, pairs.hashes, held_out, MAX_HELD_OUT_ROWS)
    for batch in pairs.batches(progress=progress, max_tokens=max_tokens):
        if each is not None:
            each(batch)
        text = batch.text
        grid.add(batch.x, batch.y, fold[text], document=document[text], key=key[text])
        gathered.seen.update(document[text].unique().tolist())
        chosen = sample[text]
        gathered.documents.append(document[text[chosen]])
        for side, name in sides:
            values = (batch.x if side == "x" else batch.y)[name]
            gathered.norms[side, name].add(torch.linalg.vector_norm(values.float(), dim=-1))
            gathered.rows[side, name].append(values[chosen.to(values.device)].float().cpu())
    gathered.dropped = pairs.dropped
    return gathered


def sample_texts(
    n_rows: Sequence[int], hashes: Sequence[str], among: Bool[Tensor, " text"], limit: int
) -> Bool[Tensor, " text"]:
    """Texts whose rows are kept: in the order of their hashes, until there are enough rows."""
    sample = torch.zeros(len(hashes), dtype=torch.bool)
    n = 0
    for i in sorted(among.nonzero()[:, 0].tolist(), key=hashes.__getitem__):
        if n >= limit:
            break
        sample[i] = True
        n += n_rows[i]
    return sample
