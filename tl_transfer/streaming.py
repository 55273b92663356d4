"""Sums of paired rows as they come: moments of every fold and every pair of hook points.

Rows are shifted by a mean that is renewed when it is no longer a good one, so the large mean of a
residual stream does not cancel; products run in float32 (float64 for rows of float64) and are
added up in float64. Sums of one hook point are shared by all the pairs it is in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.mispairing import POOL, POOL_ROWS, Run, plan, runs
from tl_transfer.statistics import PairedMoments

#: Rows kept until they are added up (larger products are faster), and the bytes they may take.
BUFFER_ROWS = 24576
BUFFER_BYTES = 224 << 20
#: Bytes that partners of the control may take, all folds together.
POOL_BYTES = 96 << 20

Rows = Mapping[str, Float[Tensor, "row _"]]


class MomentGrid:
    """Moments by fold of every (source, target) pair of hook points.

    Args:
        d_source: Source hook point -> width.
        d_target: Target hook point -> width.
        n_folds: Number of folds.
        seed: Of the wrong pairs of the control.
        buffer_rows: Rows kept until they are added up; default, by their size.
    """

    def __init__(
        self,
        d_source: Mapping[str, int],
        d_target: Mapping[str, int],
        n_folds: int,
        *,
        seed: int = 0,
        buffer_rows: int | None = None,
    ) -> None:
        width = sum(d_source.values()) + sum(d_target.values())
        self.buffer_rows = buffer_rows or min(BUFFER_ROWS, max(1, BUFFER_BYTES // (4 * width)))
        most = POOL_BYTES // (4 * sum(d_target.values()) * n_folds * POOL)
        most = min(POOL_ROWS, max(8, most))
        self._folds = [_Fold(list(d_source), list(d_target), seed, most) for _ in range(n_folds)]
        self._widths = (dict(d_source), dict(d_target))
        self._buffer: list[_Batch] = []
        self._n_buffered = 0
        self._n_texts = 0
        self._moments: dict[tuple[str, str], list[PairedMoments]] = {}

    @staticmethod
    def n_bytes(d_source: Mapping[str, int], d_target: Mapping[str, int], n_folds: int) -> int:
        """Memory of the sums, of the moments made of them, and of the buffers, about."""
        own = sum(d * d for d in (*d_source.values(), *d_target.values()))
        cross = 2 * sum(d_source.values()) * sum(d_target.values())
        pairs = sum(s * s + t * t + 2 * s * t for s in d_source.values() for t in d_target.values())
        return 8 * n_folds * (own + cross + pairs) + 3 * BUFFER_BYTES + POOL_BYTES

    def add(
        self,
        x: Rows,
        y: Rows,
        fold: Int[Tensor, " row"],
        *,
        document: Int[Tensor, " row"] | None = None,
        key: Int[Tensor, " row"] | None = None,
    ) -> None:
        """Add rows.

        Args:
            x: Source hook point -> rows.
            y: Target hook point -> rows paired with them.
            fold: Fold of each row.
            document: Document of each row; default, that of its key.
            key: A number that names the text of each row, whatever the order of the texts; rows
                of one text follow each other. Default, each row is its own text.
        """
        if key is None:
            key = torch.arange(self._n_texts, self._n_texts + len(fold))
            self._n_texts += len(fold)
        batch = _Batch(x, y, fold.cpu(), (key if document is None else document).cpu(), key.cpu())
        if self._n_buffered + len(fold) < self.buffer_rows:
            self._keep(batch)
            return
        # Cut where texts end, so that what is added up together depends on the rows alone: then
        # the sums are the same to the last bit, however the rows were batched.
        start = 0
        for end in [run.start + run.n for run in runs(batch.document, batch.key)]:
            if self._n_buffered + end - start >= self.buffer_rows:
                self._keep(batch.part(start, end))
                self._flush()
                start = end
        if start < len(fold):
            self._keep(batch.part(start, len(fold)))

    def _keep(self, batch: "_Batch") -> None:
        self._buffer.append(batch)
        self._n_buffered += len(batch.fold)

    def folds(self, source: str, target: str) -> list[PairedMoments]:
        """Moments of every fold at one pair of hook points, on the CPU; ends the adding."""
        if not self._moments:
            self._finish()
        return self._moments[source, target]

    def _flush(self) -> None:
        for k, fold in enumerate(self._folds):
            fold.add(self._buffer, k)
        self._buffer, self._n_buffered = [], 0

    def _finish(self) -> None:
        self._flush()
        for fold in self._folds:
            fold.finish()
        for s, d_source in self._widths[0].items():
            for t, d_target in self._widths[1].items():
                self._moments[s, t] = [
                    fold.moments(s, t) if fold.n else PairedMoments.zero(d_source, d_target)
                    for fold in self._folds
                ]


@dataclass(frozen=True)
class _Batch:
    """Rows as they came, with fold, document and text of each (on the CPU)."""

    x: Rows
    y: Rows
    fold: Tensor
    document: Tensor
    key: Tensor

    def part(self, start: int, end: int) -> "_Batch":
        """Neighbouring rows, not copied."""
        rows = slice(start, end)
        return _Batch(
            {name: values[rows] for name, values in self.x.items()},
            {name: values[rows] for name, values in self.y.items()},
            self.fold[rows],
            self.document[rows],
            self.key[rows],
        )

    def rows(self, index: Tensor) -> "_Batch":
        """A copy of some rows."""
        return _Batch(
            {name: values[index.to(values.device)] for name, values in self.x.items()},
            {name: values[index.to(values.device)] for name, values in self.y.items()},
            self.fold[index],
            self.document[index],
            self.key[index],
        )


#: Some rows of a batch, by number.
Part = tuple[_Batch, Tensor]


@dataclass
class _Fold:
    """Running sums of one fold about a shift, by side: "x", "y", and "z" for y wrongly paired.

    ``product["xy", s, t]`` is the sum of outer products of x at s and y at t.
    """

    sources: list[str]
    targets: list[str]
    seed: int
    most: int
    n: int = 0
    shift: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    total: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    product: dict[tuple[str, str, str], Tensor] = field(default_factory=dict)
    _anchored: int = 0
    _first: list[Part] = field(default_factory=list)
    _carried: list[Run] = field(default_factory=list)
    _carried_rows: dict[str, Tensor] = field(default_factory=dict)

    def add(self, batches: Sequence[_Batch], fold: int) -> None:
        """Add this fold's rows of some batches."""
        parts = [(batch, (batch.fold == fold).nonzero()[:, 0]) for batch in batches]
        parts = [(batch, index) for batch, index in parts if len(index)]
        if not parts:
            return
        texts = _texts(parts)
        if not self._first:
            # The first text has no text before it to be wrongly paired with: it comes last.
            self._first, parts = _cut(parts, texts[0].n)
            self._carry(texts[:1], {t: self._collect("y", t, self._first) for t in self.targets})
            texts = _texts(parts)
        if texts:
            self._add(parts, texts)

    def finish(self) -> None:
        """Add the text that waited."""
        if self._first:
            self._add(self._first, _texts(self._first))
        self._first, self._carried, self._carried_rows = [], [], {}

    def moments(self, source: str, target: str) -> PairedMoments:
        """Sums of one pair about their own means."""
        x, y, z = ("x", source), ("y", target), ("z", target)

        def mean(side: tuple[str, str]) -> Tensor:
            return self.shift[side].double() + self.total[side] / self.n

        def centred(name: str, a: tuple[str, str], b: tuple[str, str]) -> Tensor:
            product = self.product[name, a[1], b[1]]
            if a == b:  # only the part right of the diagonal was added up
                product = product.triu() + product.triu(1).T
            return product - torch.outer(self.total[a], self.total[b]) / self.n

        return PairedMoments(
            self.n,
            mean(x),
            mean(y),
            centred("xx", x, x),
            centred("xy", x, y),
            centred("yy", y, y),
            centred("xz", x, z),
        ).cpu()

    def _add(self, parts: Sequence[Part], texts: Sequence[Run]) -> None:
        partner, last = plan(self._carried, texts, self.seed, most=self.most)
        n, n_carried = sum(text.n for text in texts), sum(text.n for text in self._carried)
        x = {s: self._collect("x", s, parts) for s in self.sources}
        # Carried rows come first: they are partners only.
        y = {t: self._collect("y", t, parts, self._carried_rows[t]) for t in self.targets}
        self._carry(last, y)
        self._anchor(n, x, {t: rows[n_carried:] for t, rows in y.items()})
        for s, rows in x.items():
            rows -= self.shift["x", s]
            self._sum(("x", s), rows)
            self._gram(("xx", s, s), rows)
        used, place = partner.unique(return_inverse=True)
        met = {s: _met(rows, place, len(used)) for s, rows in x.items()}
        for t, rows in y.items():
            rows -= self.shift["y", t]
            wrong = rows[used.to(rows.device)]
            right = rows[n_carried:]
            self._sum(("y", t), right)
            self._add_total(("z", t), torch.bincount(place).to(wrong) @ wrong)
            self._gram(("yy", t, t), right)
            for s, left in x.items():
                self._zeros(("xy", s, t), left, right).add_(left.T @ right)
                self._zeros(("xz", s, t), met[s], wrong).add_(met[s].T @ wrong)
        self.n += n

    def _collect(
        self, side: str, name: str, parts: Sequence[Part], head: Tensor | None = None
    ) -> Tensor:
        """Rows of one hook point in a new float32 (or float64) tensor, copied once."""
        rows = [((batch.x if side == "x" else batch.y)[name], index) for batch, index in parts]
        device = parts[0][0].x[self.sources[0]].device
        return _gathered(rows, device, head)

    def _carry(self, texts: Sequence[Run], y: Rows) -> None:
        """Keep the rows of some texts that may be partners of the next ones."""
        kept: list[int] = []
        self._carried, place = [], 0
        for text in texts:
            rows = text.partners(self.most)
            kept += rows
            self._carried.append(Run(place, len(rows), text.document, text.key))
            place += len(rows)
        self._carried_rows = {t: rows[kept] for t, rows in y.items()}

    def _anchor(self, n: int, x: Rows, y: Rows) -> None:
        """Renew the shifts when the new rows outnumber the old ones, or when these have doubled.

        So the squared distance of the shift from the mean stays below the variance, and products
        about it lose no more than a bit.
        """
        if n >= self.n:
            fresh = {("x", s): rows.mean(0) for s, rows in x.items()}
            fresh |= {("y", t): rows.mean(0) for t, rows in y.items()}
            self._anchored = self.n + n
        elif self.n >= 2 * self._anchored:
            fresh = {
                side: (shift.double() + self.total[side] / self.n).to(shift.dtype)
                for side, shift in self.shift.items()
                if side[0] != "z"
            }
            self._anchored = self.n
        else:
            return
        fresh |= {("z", t): fresh["y", t] for t in self.targets}
        if self.n:
            self._translate(fresh)
        self.shift = fresh

    def _translate(self, fresh: dict[tuple[str, str], Tensor]) -> None:
        """The sums about other shifts: exact algebra."""
        step = {side: fresh[side].double() - shift.double() for side, shift in self.shift.items()}
        for (kind, first, second), product in self.product.items():
            a, b = (kind[0], first), (kind[1], second)
            product.addr_(self.total[a], step[b], alpha=-1.0)
            product.addr_(step[a], self.total[b] - self.n * step[b], alpha=-1.0)
        for side, total in self.total.items():
            total -= self.n * step[side]

    def _sum(self, side: tuple[str, str], rows: Tensor) -> None:
        self._add_total(side, rows.sum(0))

    def _add_total(self, side: tuple[str, str], total: Tensor) -> None:
        total = total.double()
        self.total[side] = self.total[side] + total if side in self.total else total

    def _gram(self, name: tuple[str, str, str], rows: Tensor) -> None:
        """Add rows^T rows right of the diagonal, in panels: the rest is its mirror image."""
        product = self._zeros(name, rows, rows)
        d = rows.shape[1]
        step = max(128, -(-d // 8))
        for first in range(0, d, step):
            panel = slice(first, min(first + step, d))
            product[panel, first:] += rows[:, panel].T @ rows[:, first:]

    def _zeros(self, name: tuple[str, str, str], a: Tensor, b: Tensor) -> Tensor:
        if name not in self.product:
            self.product[name] = torch.zeros(
                a.shape[1], b.shape[1], dtype=torch.float64, device=a.device
            )
        return self.product[name]


def _met(
    rows: Float[Tensor, "row d"], partner: Int[Tensor, " row"], n: int
) -> Float[Tensor, "partner d"]:
    """Sum of the rows that meet each of n partners.

    A few texts are the partners of all others, so the product of these sums with the partners is
    that of the rows with theirs at a fraction of the size.
    """
    partner = partner.to(rows.device)
    if rows.device.type != "cpu":  # where index_add_ adds in no order of its own
        return torch.nn.functional.one_hot(partner, n).T.to(rows) @ rows
    return rows.new_zeros(n, rows.shape[1]).index_add_(0, partner, rows)


def _texts(parts: Sequence[Part]) -> list[Run]:
    if not parts:
        return []
    return runs(
        torch.cat([batch.document[index] for batch, index in parts]),
        torch.cat([batch.key[index] for batch, index in parts]),
    )


def _cut(parts: Sequence[Part], n: int) -> tuple[list[Part], list[Part]]:
    """The first n rows, as a copy that keeps no batch alive, and the others."""
    first, rest = [], []
    for batch, index in parts:
        if n:
            first.append((batch.rows(index[:n]), torch.arange(min(n, len(index)))))
        if n < len(index):
            rest.append((batch, index[n:]))
        n = max(0, n - len(index))
    return first, rest


def _gathered(
    parts: Sequence[tuple[Tensor, Tensor]], device: torch.device, head: Tensor | None
) -> Tensor:
    first = parts[0][0]
    dtype = first.dtype if first.dtype == torch.float64 else torch.float32
    place = 0 if head is None else len(head)
    n = place + sum(len(index) for _, index in parts)
    out = torch.empty(n, first.shape[1], dtype=dtype, device=device)
    if head is not None:
        out[:place] = head
    for rows, index in parts:
        into = out[place : place + len(index)]
        index = index.to(rows.device)
        if rows.dtype == dtype and rows.device == device:
            torch.index_select(rows, 0, index, out=into)
        else:
            into.copy_(rows[index])
        place += len(index)
    return out
