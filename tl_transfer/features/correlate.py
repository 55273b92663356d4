"""Sums of products of the codes of two dictionaries over paired rows, in one pass.

Only features that are active together are touched: k_s x k_t of the d_s x d_t cells of a row. What
is kept is one matrix of cross sums over the training documents, the sums of each feature alone, and
bounded samples of sparse codes: one of training documents, and one of held-out documents, on which
everything that was chosen on the former is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.align import AlignmentReport
from tl_transfer.data.store import ActivationStore
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder, Sample, SparseCodes, space_of
from tl_transfer.mappers.gather import sample_texts
from tl_transfer.mappers.split import spread_documents
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.sources import Place, one_place, pairs_of
from tl_transfer.space import ActivationSpace

#: Rows of the two samples.
TRAIN_ROWS, HELD_OUT_ROWS = 1 << 16, 1 << 15
#: Rows whose products are in memory at once: a thousand a row are 50 MB.
PRODUCT_ROWS = 1024
#: A larger matrix of cross sums is kept in float32.
DOUBLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Side:
    """Which dictionary, and the sums of each of its features over the training rows.

    Attributes:
        space: Where it reads.
        identity: Its fingerprint.
        total: Sum of the activation of each feature.
        square: Sum of its square.
        active: Rows in which it is active.
    """

    space: ActivationSpace
    identity: str
    total: Float[Tensor, " d_sae"] = field(repr=False)
    square: Float[Tensor, " d_sae"] = field(repr=False)
    active: Float[Tensor, " d_sae"] = field(repr=False)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.total)

    @classmethod
    def zero(cls, coder: Coder) -> "Side":
        """Before the first row."""
        zero = [torch.zeros(coder.d_sae, dtype=torch.float64) for _ in range(3)]
        return cls(space_of(coder), coder.identity, *zero)

    def add_(self, codes: SparseCodes) -> None:
        """Count some rows, in place."""
        feature, value = codes.feature.long().cpu(), codes.value.double().cpu()
        self.total.index_add_(0, feature, value)
        self.square.index_add_(0, feature, value * value)
        self.active.index_add_(0, feature, torch.ones_like(value))

    def __add__(self, other: "Side") -> "Side":
        return replace(
            self,
            total=self.total + other.total,
            square=self.square + other.square,
            active=self.active + other.active,
        )

    def require(self, other: "Side", what: str) -> None:
        """Refuse another dictionary.

        Raises:
            SpaceError: it reads elsewhere.
            InputError: it reads there but is not the same.
        """
        self.space.require(other.space, what)
        if self.identity != other.identity:
            raise InputError(
                f"{what}: another dictionary of the same space",
                got=other.identity[:16],
                valid=self.identity[:16],
                hint="load the dictionary that this was made with",
            )


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSums:
    """What two dictionaries say of the same texts.

    Attributes:
        source: The source's dictionary and the sums of its features over the training rows.
        target: The target's.
        cross: Sum over training rows of source activation times target activation.
        n: Training rows.
        train: A bounded sample of training rows.
        held_out: A bounded sample of rows of documents that are in no sum.
        hashes: SHA-256 of every text read.
        report: How many tokens were paired.
        seed: Of the split of documents.
    """

    source: Side
    target: Side
    cross: Float[Tensor, "d_source d_target"]
    n: int
    train: Sample
    held_out: Sample
    hashes: frozenset[str]
    report: AlignmentReport
    seed: int

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        """Sums of the texts of both, wherever they were read.

        Raises:
            SpaceError, InputError: other dictionaries, another split, or texts that both read.
        """
        self.source.require(other.source, "sums of two source dictionaries")
        self.target.require(other.target, "sums of two target dictionaries")
        both = self.hashes & other.hashes
        if both or self.seed != other.seed:
            raise InputError(
                "sums: cannot be added",
                got=f"{len(both)} shared texts, seeds {self.seed} and {other.seed}",
                valid="sums of different texts with one seed",
                hint="collect them again, each text once",
            )
        return replace(
            self,
            source=self.source + other.source,
            target=self.target + other.target,
            cross=self.cross + other.cross,
            n=self.n + other.n,
            train=Sample.joined([self.train, other.train], TRAIN_ROWS),
            held_out=Sample.joined([self.held_out, other.held_out], HELD_OUT_ROWS),
            hashes=self.hashes | other.hashes,
            report=self.report + other.report,
        )

    def correlation(
        self, source: slice | Int[Tensor, " chosen"] = slice(None)
    ) -> Float[Tensor, "chosen d_target"]:
        """Pearson correlation over the training rows of some source features with every target one.

        In float64; 0 where a feature never varies. Ask for a few thousand rows at a time.
        """
        mean = self.source.total[source, None] / self.n
        deviation = _spread_of(self.source, self.n)[source, None]
        cross = self.cross[source].to("cpu", torch.float64)
        covariance = cross.addmm(mean, self.target.total[None], alpha=-1.0)
        scale = deviation * _spread_of(self.target, self.n)
        return torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 0.0).clamp_(-1, 1)

    def __repr__(self) -> str:
        return (
            f"FeatureSums({self.n} training rows, {len(self.held_out)} held-out rows kept: "
            f"{self.source.d_sae} features of {self.source.space.model} x "
            f"{self.target.d_sae} of {self.target.space.model})"
        )


def _spread_of(side: Side, n: int) -> Tensor:
    """Root of the sum of squared deviations of every feature."""
    return (side.square - side.total**2 / n).clamp(min=0).sqrt()


class FeatureAccumulator:
    """Sums of codes as they come; ``sums()`` ends it.

    Args:
        source: Dictionary of the source.
        target: Dictionary of the target.
        device: Where the matrix of cross sums is kept.
    """

    def __init__(self, source: Coder, target: Coder, *, device: torch.device | str = "cpu") -> None:
        self._sides = (Side.zero(source), Side.zero(target))
        self._double = 8 * source.d_sae * target.d_sae <= DOUBLE_BYTES
        self._cross = torch.zeros(
            source.d_sae,
            target.d_sae,
            dtype=torch.float64 if self._double else torch.float32,
            device=device,
        )
        self._n = 0
        self._samples: dict[str, list[Sample]] = {"train": [], "held_out": []}

    def add(
        self,
        x: SparseCodes,
        y: SparseCodes,
        *,
        held_out: Tensor,
        sampled: Tensor,
        document: Tensor,
        key: Tensor,
    ) -> None:
        """Count paired rows.

        Args:
            x: Codes of the source.
            y: Codes of the target.
            held_out: Rows of held-out documents, which are counted in no sum.
            sampled: Rows to keep.
            document: Document of each row.
            key: Text of each row.
        """
        for name, chosen in (("train", sampled & ~held_out), ("held_out", sampled & held_out)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                here, there = rows.to(x.start.device), rows.to(y.start.device)
                self._samples[name].append(
                    Sample(x.rows(here).cpu(), y.rows(there).cpu(), document[rows], key[rows])
                )
        counted = (~held_out).nonzero()[:, 0]
        if not len(counted):
            return
        device = self._cross.device
        x, y = (codes.rows(counted.to(codes.start.device)) for codes in (x, y))
        for side, codes in zip(self._sides, (x, y), strict=True):
            side.add_(codes)
        self._n += len(counted)
        for rows in torch.arange(len(counted)).split(PRODUCT_ROWS):
            part = [_moved(c.rows(rows.to(c.start.device)), device) for c in (x, y)]
            self._add_products(*part)

    def _add_products(self, x: SparseCodes, y: SparseCodes) -> None:
        """Every active x of a row with every active y of it."""
        row = torch.repeat_interleave(torch.arange(len(x), device=x.start.device), x.counts)
        each = y.counts[row]
        first = torch.repeat_interleave(torch.arange(len(row), device=row.device), each)
        before = each.cumsum(0) - each
        offset = torch.arange(len(first), device=row.device) - before[first]
        second = y.start[:-1][row][first] + offset
        place = x.feature[first].long() * self._cross.shape[1] + y.feature[second].long()
        value = x.value.double()[first] * y.value.double()[second]
        if not self._double:
            # One rounding to float32 for each cell and thousand rows, and not one for each row.
            place, where = place.unique(return_inverse=True)
            value = torch.zeros(len(place), dtype=torch.float64, device=row.device).index_add_(
                0, where, value
            )
        self._cross.view(-1).index_add_(0, place, value.to(self._cross.dtype))

    def sums(self, hashes: Sequence[str], report: AlignmentReport, seed: int) -> FeatureSums:
        """What was added up.

        Raises:
            InputError: no training rows, or no held-out rows.
        """
        if not self._n or not self._samples["held_out"]:
            raise InputError(
                "texts: too few documents to hold any out",
                got=f"{self._n} training rows, {len(self._samples['held_out'])} held-out batches",
                valid="rows on both sides of the split; better 100 documents and more",
                hint="pass more texts, or documents= with the true document of each text",
            )
        nothing = torch.zeros(0, dtype=torch.long)
        empty = Sample(
            SparseCodes.none(self._sides[0].d_sae),
            SparseCodes.none(self._sides[1].d_sae),
            nothing,
            nothing,
        )
        train = Sample.joined([empty, *self._samples["train"]])
        held_out = Sample.joined(self._samples["held_out"])
        return FeatureSums(
            *self._sides, self._cross, self._n, train, held_out, frozenset(hashes), report, seed
        )


def _moved(codes: SparseCodes, device: torch.device) -> SparseCodes:
    return SparseCodes(
        codes.start.to(device), codes.feature.to(device), codes.value.to(device), codes.d_sae
    )


def correlate_features(
    source: Place | ActivationStore,
    target: Place | ActivationStore,
    source_sae: Coder,
    target_sae: Coder,
    *,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
    tokens: Tokens | str | None = None,
    seed: int = 0,
    progress: bool = True,
    max_tokens: int = MAX_TOKENS,
) -> FeatureSums:
    """Which features of two dictionaries are active on the same words: one pass over the texts.

    A fifth of the documents (by a hash of their ids, so that machines that read different texts
    agree) is held out: no sum counts them, and what is matched on the rest is scored on them.

    Args:
        source: Site of the source model, or a store of what it has read.
        target: The same of the target.
        source_sae: Dictionary of the source's site.
        target_sae: Dictionary of the target's site.
        texts: What both read; stores have read theirs.
        documents: Document of each text; default, each text is its own.
        tokens: Which tokens are rows; default, all of the content.
        seed: Of the split.
        progress: Show a progress bar.
        max_tokens: Cells of one forward batch.

    Returns:
        Sums for `match_features` and `regress_features`; add those of other texts with ``+``.
        Memory: 8 bytes for each pair of features (4 above 1 GiB: 16k x 16k take 1 GiB), and
        about 50 MB of samples.

    Raises:
        SpaceError: a dictionary of another model or hook point.
        InputError: too few documents.
    """
    here, there = one_place(source, "source"), one_place(target, "target")
    source_sae.require_space(here.space, "source dictionary at this site")
    target_sae.require_space(there.space, "target dictionary at this site")
    choice = None if tokens is None else Tokens.of_any(tokens)
    pairs = pairs_of([here], [there], texts, documents=documents, tokens=choice)
    split = spread_documents(pairs.documents, seed=seed)
    held_out = torch.tensor(split.fold) == split.n_folds
    sampled = sample_texts(pairs.n_pairs, pairs.hashes, ~held_out, TRAIN_ROWS)
    sampled |= sample_texts(pairs.n_pairs, pairs.hashes, held_out, HELD_OUT_ROWS)
    document = torch.tensor(split.document)
    key = torch.tensor([int(name[:15], 16) for name in pairs.hashes])
    sums = FeatureAccumulator(source_sae, target_sae)
    for batch in pairs.batches(progress=progress, max_tokens=max_tokens):
        sums.add(
            SparseCodes.encoded(source_sae, batch.x[here.point.name]),
            SparseCodes.encoded(target_sae, batch.y[there.point.name]),
            held_out=held_out[batch.text],
            sampled=sampled[batch.text],
            document=document[batch.text],
            key=key[batch.text],
        )
    return sums.sums(pairs.hashes, pairs.report, seed)
