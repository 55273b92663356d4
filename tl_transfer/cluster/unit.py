"""UnitSums: one unit's texts as they are read, added up."""

from collections.abc import Sequence

import numpy as np
import torch

from tl_transfer.cluster.partial import Partial, Sample, add_dropped, trimmed
from tl_transfer.cluster.records import Record
from tl_transfer.cluster.skips import Skipped
from tl_transfer.data.align import AlignmentReport
from tl_transfer.mappers.split import spread_documents
from tl_transfer.models.pairs import ModelPairs, PairedRows
from tl_transfer.models.surface import Site
from tl_transfer.statistics import NormHistogram
from tl_transfer.streaming import MomentGrid


class UnitSums:
    """Sums of one unit, part by part.

    Args:
        source: Where x is read.
        target: Where y is read.
        seed: Of the split by document and of the shuffled control.

    Attributes:
        skipped: Texts left out.
    """

    def __init__(self, source: Site, target: Site, seed: int) -> None:
        self.skipped = Skipped()
        self._sites, self._seed = (source, target), seed
        d_source = {source.point.name: source.space.d_model}
        d_target = {target.point.name: target.space.d_model}
        n_folds = spread_documents([], seed=seed).n_folds
        self._grid = MomentGrid(d_source, d_target, n_folds + 1, seed=seed)
        self._norms = (NormHistogram(), NormHistogram())
        none = [np.zeros((0, site.space.d_model), np.float32) for site in self._sites]
        names = [np.zeros(0, np.int64) for _ in range(2)]
        self._sample: list[Sample] = [(none[0], none[1], names[0], names[1])]
        self._hashes: list[bytes] = []
        self._documents: list[tuple[int, bool]] = []
        self._report = AlignmentReport(0, 0, 0, 0, 0, 0, 0)
        self._dropped: dict[str, dict[str, int]] = {}

    def read(
        self, pairs: ModelPairs, texts: Sequence[Record], sampled: set[str], max_tokens: int
    ) -> None:
        """Read some texts with both models and add them up.

        Args:
            pairs: The texts' pairs.
            texts: The same texts.
            sampled: Hashes of those whose rows are kept.
            max_tokens: Cells of one forward batch.
        """
        split = spread_documents(pairs.documents, seed=self._seed)
        fold, document = torch.tensor(split.fold), torch.tensor(split.document)
        key = torch.tensor([int(name[:15], 16) for name in pairs.hashes])
        kept = torch.tensor([text.hash in sampled for text in texts])
        for batch in pairs.batches(progress=False, max_tokens=max_tokens):
            x, y = self._rows(batch)
            place = batch.text
            self._grid.add(batch.x, batch.y, fold[place], document=document[place], key=key[place])
            for norms, rows in zip(self._norms, (x, y), strict=True):
                norms.add(torch.linalg.vector_norm(rows.float(), dim=-1))
            chosen = kept[place]
            if bool(chosen.any()):
                sample = [v[chosen.to(v.device)].float().cpu().numpy() for v in (x, y)]
                names = [column[place[chosen]].numpy() for column in (document, key)]
                self._sample.append((sample[0], sample[1], names[0], names[1]))
        self._sample = [trimmed(self._sample)]
        for i in sorted(pairs.not_finite):
            self.skipped.add("not_finite", texts[i].where)
        for i, text in enumerate(texts):
            if i not in pairs.not_finite:
                self._hashes.append(bytes.fromhex(text.hash))
                self._documents.append((split.document[i], split.fold[i] == split.n_folds))
        self._report += pairs.report
        self._dropped = add_dropped(self._dropped, pairs.dropped)

    def partial(self) -> Partial:
        """What leaves the worker."""
        source, target = self._sites
        x, y, document, key = trimmed(self._sample)
        return Partial(
            spaces=(source.space, target.space),
            folds=self._grid.folds(source.point.name, target.point.name),
            norms=(self._norms[0].counts.cpu().numpy(), self._norms[1].counts.cpu().numpy()),
            x=x,
            y=y,
            document=document,
            key=key,
            hashes=[np.frombuffer(b"".join(self._hashes), dtype=np.uint8).reshape(-1, 32)],
            documents=[np.array(self._documents, dtype=np.int64).reshape(-1, 2)],
            report=self._report,
            dropped=self._dropped,
            skipped=self.skipped,
        )

    def _rows(self, batch: PairedRows) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = self._sites
        return batch.x[source.point.name], batch.y[target.point.name]
