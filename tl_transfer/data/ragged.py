"""Ragged: rows of whole numbers of different lengths in one array.

A list of arrays costs over a hundred bytes a row, and a tuple of ints forty bytes a number; texts
are kept by the thousand while they are read, and should cost what their tokens cost.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np


class Ragged(Sequence[np.ndarray]):
    """Rows of 32-bit numbers, one after the other.

    Args:
        rows: The rows, which are copied.
    """

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self._start = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=self._start[1:])
        self._flat = np.empty(self._start[-1], dtype=np.int32)
        for row, first, end in zip(rows, self._start, self._start[1:], strict=False):
            self._flat[first:end] = row

    @property
    def size(self) -> int:
        """Numbers in all rows."""
        return len(self._flat)

    @property
    def lengths(self) -> np.ndarray:
        """Numbers in each row."""
        return np.diff(self._start)

    def __len__(self) -> int:
        return len(self._start) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """A row, or the rows of a slice, not copied."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        return self._flat[self._start[place] : self._start[place + 1]]
