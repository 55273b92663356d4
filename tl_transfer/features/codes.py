"""SparseCodes: what a dictionary says of some rows, active features only; and paired samples of it.

A row of a dictionary with 16k features has a few dozen active ones. Kept as (feature, value) it is
a quarter of a kilobyte, so tens of thousands of rows fit where the dense codes of a few hundred do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import SpaceError
from tl_transfer.space import ActivationSpace

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

#: Bytes of dense codes made at once. Below the 32 MB from which glibc gives memory back to the
#: system after each use, and has every page cleared anew: a tenth of the time of encoding.
DENSE_BYTES = 24 << 20


@runtime_checkable
class Coder(Protocol):
    """What is asked of a dictionary here: a `tl_transfer.sae.dictionary.Dictionary`."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        ...

    @property
    def space(self) -> ActivationSpace | None:
        """Where its activations live; None: nobody has checked."""
        ...

    @property
    def identity(self) -> str:
        """Fingerprint of its parameters."""
        ...

    @property
    def row_norm(self) -> str:
        """How each row is normalised by its own statistics; ``"none"``."""
        ...

    @property
    def directions(self) -> Float[Tensor, "d_sae d_model"]:
        """What one unit of each feature adds to the activation."""
        ...

    def encode(self, x: Any) -> Any:
        """Codes of activations."""
        ...

    def strongest(self, x: Any) -> Any:
        """(feature [row, k] rising, activation) of kinds that keep k features a row; else None."""
        ...

    def decode(self, codes: Any, *, at: Any = None) -> Any:
        """Activations of codes."""
        ...

    def reconstruct(self, x: Any) -> Any:
        """decode(encode(x))."""
        ...

    def require_space(self, space: ActivationSpace, what: str = ...) -> None:
        """Refuse activations of another space."""
        ...


def space_of(coder: Coder) -> ActivationSpace:
    """The space of a dictionary.

    Raises:
        SpaceError: nobody has checked that it belongs to any.
    """
    if coder.space is None:
        raise SpaceError(
            "dictionary: it is not known which activations it belongs to",
            got=repr(coder),
            valid="a dictionary that was checked against a site",
            hint="tl_transfer.check_sae(sae, site, texts).sae is the same with its space",
        )
    return coder.space


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of rows, row after row, zeros left out.

    Attributes:
        start: Where each row begins in `feature` and `value`; one more for the end.
        feature: Active features of all rows.
        value: Their activations.
        d_sae: Number of features there are.
    """

    start: Int[Tensor, " bound"]
    feature: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    d_sae: int

    @classmethod
    def of(cls, codes: Float[Tensor, "row d_sae"]) -> "SparseCodes":
        """From dense codes, on their device."""
        row, feature = codes.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(codes))
        return cls(_starts(counts), feature, codes[row, feature].float(), codes.shape[1])

    @classmethod
    def encoded(cls, coder: Coder, rows: Float[Tensor, "row d_model"]) -> "SparseCodes":
        """What a dictionary says of rows, a bounded number at a time."""
        step = max(1, DENSE_BYTES // (4 * coder.d_sae))
        with torch.no_grad():
            parts = [cls._encoded(coder, part) for part in rows.split(step)]
        return cls.joined(parts) if parts else cls.none(coder.d_sae)

    @classmethod
    def _encoded(cls, coder: Coder, rows: Tensor) -> "SparseCodes":
        """The same codes, without the dense ones where the dictionary can do without."""
        strongest = coder.strongest(rows)
        if strongest is None:
            return cls.of(coder.encode(rows))
        feature, value = strongest
        on = value != 0
        return cls(_starts(on.sum(-1)), feature[on], value[on], coder.d_sae)

    @classmethod
    def none(cls, d_sae: int) -> "SparseCodes":
        """No rows."""
        nothing = torch.zeros(0)
        return cls(torch.zeros(1, dtype=torch.long), nothing.long(), nothing, d_sae)

    @classmethod
    def joined(cls, parts: Sequence["SparseCodes"]) -> "SparseCodes":
        """Rows of all parts, one part after the other."""
        counts = torch.cat([part.counts for part in parts])
        feature = torch.cat([part.feature for part in parts])
        return cls(_starts(counts), feature, torch.cat([p.value for p in parts]), parts[0].d_sae)

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def counts(self) -> Int[Tensor, " row"]:
        """Active features of each row."""
        return self.start.diff()

    def rows(self, index: Int[Tensor, " chosen"]) -> "SparseCodes":
        """Some rows, in the order given."""
        counts = self.counts[index]
        place = _spread(self.start[:-1][index], counts)
        return SparseCodes(_starts(counts), self.feature[place], self.value[place], self.d_sae)

    def cpu(self) -> "SparseCodes":
        """On the CPU, features in 32 bits: what is kept."""
        feature = self.feature.to("cpu", torch.int32)
        return SparseCodes(self.start.cpu(), feature, self.value.cpu(), self.d_sae)

    def dense(self, features: Int[Tensor, " chosen"]) -> Float[Tensor, "row chosen"]:
        """Dense codes of some features, in float64."""
        return torch.from_numpy(self.columns[:, features.numpy()].toarray())

    @cached_property
    def columns(self) -> "csc_matrix":
        """The same as a scipy matrix by columns, in float64."""
        from scipy.sparse import csr_matrix

        parts = (self.value.double().numpy(), self.feature.numpy(), self.start.numpy())
        return csr_matrix(parts, shape=(len(self), self.d_sae)).tocsc()


@dataclass(frozen=True, eq=False)
class Sample:
    """Paired codes of some rows of two models.

    Attributes:
        x: Codes of the source.
        y: Codes of the target, row by row paired with them.
        document: Document of each row.
        key: A number that names the text of each row; rows of a text follow each other.
    """

    x: SparseCodes
    y: SparseCodes
    document: Int[Tensor, " row"]
    key: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def joined(cls, parts: Sequence["Sample"], limit: int | None = None) -> "Sample":
        """All parts, ordered by text, and no more texts than `limit` rows hold."""
        key = torch.cat([part.key for part in parts])
        document = torch.cat([part.document for part in parts])
        x = SparseCodes.joined([part.x for part in parts])
        y = SparseCodes.joined([part.y for part in parts])
        order = key.argsort(stable=True)
        if limit is not None and len(order) > limit:
            order = order[: _whole_texts(key[order], limit)]
        return cls(x.rows(order), y.rows(order), document[order], key[order])

    def shifted(self, turn: int, n_turns: int) -> "Sample":
        """Wrong pairs: the rows of y are turned against those of x by part of the whole.

        Every row keeps its neighbours, so what a feature owes to running text stays; and no row of
        y is lost, so the features fire as often as before.
        """
        by = len(self) * turn // (n_turns + 1)
        order = torch.arange(len(self)).roll(by)
        return Sample(self.x, self.y.rows(order), self.document, self.key)


def _starts(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _spread(start: Tensor, counts: Tensor) -> Tensor:
    """All of ``start[i] .. start[i] + counts[i] - 1``, one i after the other."""
    total = int(counts.sum())
    before = counts.cumsum(0) - counts
    offset = torch.repeat_interleave(start - before, counts)
    return offset + torch.arange(total, device=start.device)


def _whole_texts(key: Tensor, limit: int) -> int:
    """Rows of the longest run of whole texts that starts at the first row and fits the limit."""
    ends = torch.cat([(key.diff() != 0).nonzero()[:, 0] + 1, torch.tensor([len(key)])])
    fits = ends[ends <= limit]
    return int(fits[-1]) if len(fits) else int(ends[0])
