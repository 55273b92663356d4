"""What the best of all pairs of hook points scores when nothing is shared: a permutation null.

Whole documents of the target are permuted against the source's, and every score of every pair is
computed again, the best over the grid included. So a cell's p-value accounts for the number of
cells that were looked at (Westfall and Young 1993, max-T). Rows of one document stay together and
in order: what tokens share for their place in a text is part of the null.

The scores are those of the grid on a sample of rows, written with n x n kernels: with K of a source
hook point and G of a target's, the sums over pairs are inner products of K, or of what ridge makes
of K, with the permuted G. A permutation of all pairs is then two matrix products.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Rows of the sample; kernels are this wide.
MAX_ROWS = 800
#: Ridge strength on the sample, in mean eigenvalues: fixed, so that nothing has to be chosen.
STRENGTH = 0.3
#: Share of the documents of the sample that the ridge is fitted on.
_TRAIN = 0.75


class DocumentSample:
    """Rows of the first text seen of each document: `per_document` of them, evenly spaced.

    Args:
        n_documents: Documents that will be seen.
    """

    def __init__(self, n_documents: int) -> None:
        self.per_document = max(1, MAX_ROWS // max(n_documents, 1))
        self._limit = MAX_ROWS // self.per_document
        self._seen: set[int] = set()
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(
        self,
        x: Float[Tensor, "row layer_s d_source"],
        y: Float[Tensor, "row layer_t d_target"],
        text: Int[Tensor, " row"],
        document: Int[Tensor, " row"],
    ) -> None:
        """Take what is wanted of a batch; rows of a text follow each other."""
        for first, n in _runs(text):
            name = int(document[first])
            if name in self._seen or n < self.per_document or len(self._rows) >= self._limit:
                continue
            self._seen.add(name)
            chosen = first + torch.linspace(0, n - 1, self.per_document).round().long()
            self._rows.append((x[chosen].float().cpu(), y[chosen].float().cpu()))

    @property
    def n_documents(self) -> int:
        """Documents of the sample."""
        return len(self._rows)

    def rows(self) -> tuple[Tensor, Tensor]:
        """All rows of the sample, document by document: [row, layer, width] of either side."""
        return torch.cat([x for x, _ in self._rows]), torch.cat([y for _, y in self._rows])


def permutation_null(
    x: Float[Tensor, "row layer_s d_source"],
    y: Float[Tensor, "row layer_t d_target"],
    per_document: int,
    *,
    vectors: Mapping[int, Float[Tensor, " d_source"]] | None = None,
    permutations: int = 199,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of the sample, and of the sample with documents permuted.

    Args:
        x: Source rows, document by document.
        y: Target rows, paired with them.
        per_document: Rows of each document.
        vectors: Source hook point (its number) -> direction, for the score along its image.
        permutations: How many; a p-value cannot be below 1 / (permutations + 1).
        seed: Of the permutations.

    Returns:
        ``n_rows``, ``n_documents``, ``permutations``, ``strength`` and for each measure
        (``explained`` = 1 - FVU, ``cka``, and ``direction_r2``): ``observed`` (pairs), ``p``
        (pairs, adjusted for the best of the grid) and ``null_best`` (median, 95 % and largest of
        the best over the grid).
    """
    n_documents = len(x) // per_document
    kernels = _Kernels(x, y, max(1, round(_TRAIN * n_documents)) * per_document, vectors or {})
    observed = kernels.measure(torch.arange(len(x)))
    generator = torch.Generator().manual_seed(seed)
    best: dict[str, list[float]] = {name: [] for name in observed}
    within = torch.arange(per_document)
    for _ in range(permutations):
        order = torch.randperm(n_documents, generator=generator)
        found = kernels.measure((order[:, None] * per_document + within).flatten())
        for name, values in found.items():
            best[name].append(float(values.nan_to_num(nan=-torch.inf).max()))
    null: dict[str, Any] = {
        "n_rows": len(x),
        "n_documents": n_documents,
        "permutations": permutations,
        "strength": STRENGTH,
        "measures": {},
    }
    for name, values in observed.items():
        highest = torch.tensor(best[name], dtype=torch.float64).sort().values
        beaten = (highest >= values[..., None]).sum(-1)
        p = (1.0 + beaten.double()) / (1.0 + permutations)
        places = (len(highest) // 2, int(0.95 * len(highest)), -1)
        null["measures"][name] = {
            "observed": values.tolist(),
            "p": torch.where(values.isnan(), torch.nan, p).tolist(),
            "null_best": [float(highest[place]) for place in places],
        }
    return null


class _Kernels:
    """Kernels of every hook point, and what ridge makes of the source's."""

    def __init__(self, x: Tensor, y: Tensor, n_train: int, vectors: Mapping[int, Tensor]) -> None:
        n, n_s = len(x), x.shape[1]
        self.n, self.n_train, self.n_t = n, n_train, y.shape[1]
        centred = (x - x.mean(0)).double()
        gram = torch.stack([_gram(centred[:, layer]) for layer in range(n_s)])
        y = (y - y.mean(0)).double()
        self.target = torch.stack([_gram(y[:, layer]) for layer in range(self.n_t)]).float()
        self.target_scale = self.target.diagonal(dim1=1, dim2=2).mean(1)
        self.target /= self.target_scale[:, None, None].clamp(min=1e-30)
        maps = [_ridge(gram[layer], n_train, x.shape[2]) for layer in range(n_s)]
        self.residual = torch.stack([residual for residual, _ in maps]).float()
        self.explain = (self.residual.transpose(1, 2) @ self.residual).flatten(1)
        self.source = _without_diagonal(gram).float().flatten(1)
        self.source_sums = self.source.reshape(n_s, n, n).sum(1).double()
        self.own_source = _hsic(n, self.source, self.source_sums)
        hollow = _without_diagonal(self.target)
        self.own_target = _hsic(n, hollow.flatten(1), hollow.double().sum(1))
        self.vectors = vectors
        self.coefficients = torch.zeros(n, n_s)
        for layer, vector in vectors.items():
            dual = maps[layer][1] @ (centred[:n_train, layer] @ vector.double())
            self.coefficients[:n_train, layer] = (dual - dual.mean()).float()

    def measure(self, order: Tensor) -> dict[str, Float[Tensor, "layer_s layer_t"]]:
        """All scores with the target's rows in another order."""
        target = self.target[:, order][:, :, order]
        flat = target.flatten(1)
        test = target[:, self.n_train :, self.n_train :]
        total = test.diagonal(dim1=1, dim2=2).sum(1) - test.sum((1, 2)) / len(test[0])
        found = {"explained": 1.0 - (self.explain @ flat.T).double() / total}
        hollow = _without_diagonal(target)
        sums = hollow.double().sum(1)
        n = self.n
        product = (self.source @ hollow.flatten(1).T).double()
        product += torch.outer(self.source_sums.sum(1), sums.sum(1)) / ((n - 1) * (n - 2))
        product -= 2.0 / (n - 2) * self.source_sums @ sums.T
        own = torch.outer(self.own_source, self.own_target)
        cka = product / (n * (n - 3)) / own.clamp(min=1e-300).sqrt()
        found["cka"] = torch.where(own > 0, cka, torch.nan)
        if self.vectors:
            found["direction_r2"] = self._direction(target)
        return found

    def _direction(self, target: Tensor) -> Float[Tensor, "layer_s layer_t"]:
        along = target @ self.coefficients  # values of y . u: [target, row, source]
        residual = torch.einsum("ser,trs->ste", self.residual, along).double()
        actual = along[:, self.n_train :].double()
        total = (actual - actual.mean(1, keepdim=True)).square().sum(1).T
        r2 = 1.0 - residual.square().sum(-1) / total.clamp(min=1e-300)
        known = torch.tensor([layer in self.vectors for layer in range(len(r2))])
        return torch.where(known[:, None], r2, torch.nan)


def _ridge(gram: Tensor, n_train: int, width: int) -> tuple[Tensor, Tensor]:
    """R with R Y = Y_test - prediction, and (K + strength)^-1 on the centred training rows."""
    n = len(gram)
    ones = torch.ones(n_train, dtype=gram.dtype) / n_train
    rows = gram[:, :n_train]
    centred = rows - torch.outer(rows @ ones, torch.ones(n_train, dtype=gram.dtype))
    centred = centred - (ones @ centred[:n_train])[None, :]
    inner = centred[:n_train]
    shift = STRENGTH * inner.diagonal().sum() / width
    inverse = torch.linalg.inv(inner + shift * torch.eye(n_train, dtype=gram.dtype))
    smoother = centred[n_train:] @ inverse
    smoother = smoother - smoother.sum(1, keepdim=True) * ones + ones
    return torch.cat([-smoother, torch.eye(n - n_train, dtype=gram.dtype)], dim=1), inverse


def _hsic(n: int, hollow: Tensor, sums: Tensor) -> Tensor:
    total = sums.sum(1)
    own = hollow.double().square().sum(1) + total.square() / ((n - 1) * (n - 2))
    return (own - 2.0 / (n - 2) * sums.square().sum(1)) / (n * (n - 3))


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _without_diagonal(kernels: Tensor) -> Tensor:
    return kernels - torch.diag_embed(kernels.diagonal(dim1=1, dim2=2))


def _runs(text: Tensor) -> list[tuple[int, int]]:
    if not len(text):
        return []
    _, counts = text.cpu().unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).tolist()
    return list(zip(starts, counts.tolist(), strict=True))
