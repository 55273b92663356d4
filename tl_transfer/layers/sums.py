"""Sums of every pair of hook points of two models, with no activation kept.

All source hook points stand side by side in one matrix X and all target hook points in Y, so the
cross products of every pair are one large product X^T Y a buffer, added up in place in float32:
for 30 x 18 hook points of widths 576 and 640 that is 0.8 GB for each of the two splits, and one
product at the machine's full speed in place of 540 small ones. Own products are added in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Rows kept until they are added up: enough for a product at full speed.
BUFFER_ROWS = 1024


@dataclass
class SplitSums:
    """Sums over the rows of one split, about a fixed shift.

    Attributes:
        n: Rows.
        x, y: Sums of the rows of each hook point.
        xx, yy: Own products of each hook point.
        xy: Cross products of all pairs, in the dtype of the rows.
        q_x, q_y, qq_x, qq_y, qq_xy: Sums of squared norms, of their squares, of their products.
        qx_x, qy_y, qy_x, qx_y: Sums of rows weighted by squared norms: own, and of every hook
            point of the other side.
    """

    n: int
    x: Float[Tensor, "layer_s d_source"]
    y: Float[Tensor, "layer_t d_target"]
    xx: Float[Tensor, "layer_s d_source d_source"]
    yy: Float[Tensor, "layer_t d_target d_target"]
    xy: Float[Tensor, "wide_s wide_t"]
    q_x: Float[Tensor, " layer_s"]
    q_y: Float[Tensor, " layer_t"]
    qq_x: Float[Tensor, " layer_s"]
    qq_y: Float[Tensor, " layer_t"]
    qq_xy: Float[Tensor, "layer_s layer_t"]
    qx_x: Float[Tensor, "layer_s d_source"]
    qy_y: Float[Tensor, "layer_t d_target"]
    qy_x: Float[Tensor, "layer_t wide_s"]
    qx_y: Float[Tensor, "layer_s wide_t"]

    @classmethod
    def zero(
        cls,
        shape_s: tuple[int, int],
        shape_t: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> "SplitSums":
        """No rows; shapes are (hook points, width)."""
        (n_s, d_s), (n_t, d_t) = shape_s, shape_t

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            0, zeros(n_s, d_s), zeros(n_t, d_t), zeros(n_s, d_s, d_s), zeros(n_t, d_t, d_t),
            zeros(n_s * d_s, n_t * d_t, dtype=dtype), zeros(n_s), zeros(n_t), zeros(n_s),
            zeros(n_t), zeros(n_s, n_t), zeros(n_s, d_s), zeros(n_t, d_t), zeros(n_t, n_s * d_s),
            zeros(n_s, n_t * d_t),
        )  # fmt: skip

    def add(
        self, x: Float[Tensor, "row layer_s d_source"], y: Float[Tensor, "row layer_t d_target"]
    ) -> None:
        """Add rows that are already shifted."""
        wide_x, wide_y = x.flatten(1), y.flatten(1)
        q_x, q_y = _squared_norms(x), _squared_norms(y)
        f_x, f_y = q_x.to(x.dtype), q_y.to(y.dtype)
        self.n += len(x)
        self.x += x.sum(0).double()
        self.y += y.sum(0).double()
        for layer in range(x.shape[1]):
            self.xx[layer] += x[:, layer].T @ x[:, layer]
        for layer in range(y.shape[1]):
            self.yy[layer] += y[:, layer].T @ y[:, layer]
        self.xy.addmm_(wide_x.T, wide_y)
        self.q_x += q_x.sum(0)
        self.q_y += q_y.sum(0)
        self.qq_x += q_x.square().sum(0)
        self.qq_y += q_y.square().sum(0)
        self.qq_xy += q_x.T @ q_y
        self.qx_x += torch.einsum("nl,nld->ld", f_x, x)
        self.qy_y += torch.einsum("nl,nld->ld", f_y, y)
        self.qy_x += f_y.T @ wide_x
        self.qx_y += f_x.T @ wide_y


class LayerSums:
    """Sums of two models' hook points, by split: rows to fit on and rows to validate on.

    Args:
        shape_s: Source hook points and width.
        shape_t: Target hook points and width.
        device: Where sums are kept and products run.
        dtype: Of the products; float64 for exact sums of few hook points.

    Attributes:
        train, validation: The sums.
    """

    def __init__(
        self,
        shape_s: tuple[int, int],
        shape_t: tuple[int, int],
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape_s, self.shape_t, self.dtype = shape_s, shape_t, dtype
        self.train = SplitSums.zero(shape_s, shape_t, device, dtype)
        self.validation = SplitSums.zero(shape_s, shape_t, device, dtype)
        self._buffer: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        self._shift: tuple[Tensor, Tensor] | None = None

    def add(
        self,
        x: Float[Tensor, "row layer_s d_source"],
        y: Float[Tensor, "row layer_t d_target"],
        validation: Bool[Tensor, " row"],
    ) -> None:
        """Add rows of all hook points, in any float dtype and order."""
        for split in (True, False):
            chosen = (validation == split).to(x.device)
            if bool(chosen.any()):
                kept = (x[chosen].to(self.dtype), y[chosen.to(y.device)].to(self.dtype))
                self._buffer[split].append(kept)
            if sum(len(rows) for rows, _ in self._buffer[split]) >= BUFFER_ROWS:
                self._flush(split)

    def finish(self) -> None:
        """Add what is still in the buffers."""
        for split in (False, True):
            self._flush(split)

    @staticmethod
    def n_bytes(shape_s: tuple[int, int], shape_t: tuple[int, int]) -> int:
        """Memory of both splits, the buffers and the largest temporary, about."""
        (n_s, d_s), (n_t, d_t) = shape_s, shape_t
        cross = 2 * 4 * n_s * d_s * n_t * d_t
        own = 2 * 8 * (n_s * d_s * d_s + n_t * d_t * d_t)
        rows = 4 * 4 * BUFFER_ROWS * (n_s * d_s + n_t * d_t)
        solving = 8 * (3 * d_s * n_t * d_t + 2 * n_t * d_s * d_s)
        return cross + own + rows + solving

    def _flush(self, split: bool) -> None:
        parts, self._buffer[split] = self._buffer[split], []
        if not parts:
            return
        sums = self.validation if split else self.train
        x = torch.cat([rows for rows, _ in parts]).to(sums.x.device)
        y = torch.cat([rows for _, rows in parts]).to(sums.x.device)
        del parts
        if self._shift is None:
            # One shift for both splits, so that their sums add up.
            self._shift = (x.mean(0), y.mean(0))
        x -= self._shift[0]
        y -= self._shift[1]
        for a, b in zip(x.split(BUFFER_ROWS), y.split(BUFFER_ROWS), strict=True):
            sums.add(a, b)


def _squared_norms(rows: Float[Tensor, "row layer d"]) -> Float[Tensor, "row layer"]:
    """In float64, without a copy of the rows."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).square()
