"""Estimate: paired rows on which a moved feature's strength is found, and its reading is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.data.store import ActivationStore
from tl_transfer.errors import InputError
from tl_transfer.features.scores import interval_of_correlation
from tl_transfer.mappers.split import spread_documents
from tl_transfer.models.sources import Place, one_place, pairs_of

#: Rows that are kept to estimate on.
MAX_ROWS = 1 << 14
#: Turns of the rows of one model against those of the other, as a floor.
N_TURNS = 5


@dataclass(frozen=True)
class Estimate:
    """Paired rows on which strengths are estimated (training) and readings scored (held out).

    Attributes:
        x: Activations of the source.
        y: Activations of the target.
        document: Document of each row.
        held_out: Rows of documents that nothing is estimated on.
    """

    x: Float[Tensor, "row d_source"]
    y: Float[Tensor, "row d_target"]
    document: Int[Tensor, " row"]
    held_out: Bool[Tensor, " row"]

    @classmethod
    def read(
        cls,
        source: Place | ActivationStore,
        target: Place | ActivationStore,
        texts: Sequence[Any] | None = None,
        *,
        documents: Sequence[str] | None = None,
        seed: int = 0,
        progress: bool = True,
        max_rows: int = MAX_ROWS,
    ) -> "Estimate":
        """Rows of some texts, or of two stores, at least `max_rows` if there are so many.

        Texts are read as `fit` reads them: a random sample first, then the longest, so what stops
        at `max_rows` has seen more of the long ones.

        Args:
            source: Model and hook point, or a store with one (or a store at a hook point).
            target: The same of the target.
            texts: What both read; stores have read theirs.
            documents: Document of each text.
            seed: Of the split, as in `fit`.
            progress: Show a progress bar.
            max_rows: Rows after which reading stops.

        Raises:
            InputError: too few documents to estimate on some and score on others.
        """
        source, target = one_place(source, "source"), one_place(target, "target")
        pairs = pairs_of([source], [target], texts, documents=documents)
        split = spread_documents(pairs.documents, seed=seed)
        x, y, text, n = [], [], [], 0
        for batch in pairs.batches(progress=progress):
            x.append(batch.x[source.point.name].float().cpu())
            y.append(batch.y[target.point.name].float().cpu())
            text.append(batch.text)
            n += len(batch.text)
            if n >= max_rows:
                break
        index = torch.cat(text)
        held_out = torch.tensor(split.fold)[index] == split.n_folds
        if not bool(held_out.any()) or bool(held_out.all()):
            raise InputError(
                "texts: too few documents to estimate on some and score on others",
                got=f"{len(set(pairs.documents))} documents",
                valid="rows on both sides of the split; better 50 documents and more",
                hint="pass more texts",
            )
        return cls(torch.cat(x), torch.cat(y), torch.tensor(split.document)[index], held_out)

    def score(
        self, z: Float[Tensor, " row"], reading: Float[Tensor, " row"], *, seed: int = 0
    ) -> dict[str, Any]:
        """Held-out correlation of a feature with what the target shows of it, and its floor.

        Args:
            z: Activation of the feature, in every row.
            reading: What the target shows.
            seed: Of the interval over documents.

        Returns:
            ``r``, ``ci95``, ``shuffled`` (the largest over turns of the rows), ``n`` (JSON).
        """
        held = self.held_out
        a, b, document = z[held], reading[held].double(), self.document[held]
        turns = [b.roll(len(b) * k // (N_TURNS + 1)) for k in range(1, N_TURNS + 1)]
        return {
            "r": correlation(a, b),
            "ci95": interval_of_correlation(a, b, document, seed=seed),
            "shuffled": max(correlation(a, turned) for turned in turns),
            "n": len(a),
        }


def correlation(a: Float[Tensor, " row"], b: Float[Tensor, " row"]) -> float:
    """Pearson correlation; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def slope(z: Float[Tensor, " row"], reading: Float[Tensor, " row"]) -> float:
    """How much a reading rises for each unit of z, by least squares."""
    centred = z - z.mean()
    return float((centred @ (reading - reading.mean())) / (centred @ centred).clamp(min=1e-300))
