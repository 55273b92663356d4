"""Pools: what a job asks of whoever runs it.

A pool calls a method of its workers with every item and gives the results as they come, in any
order; a `Lost` takes the place of a result that cannot be had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tl_transfer.cluster.job import Job


@dataclass(frozen=True)
class Lost:
    """In place of a result that could not be had.

    Attributes:
        why: What was said last.
    """

    why: str


@runtime_checkable
class Pool(Protocol):
    """Workers that wait for items."""

    def map(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Number of each item and what the method gave, in any order."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Who runs a job."""

    def pool(self, job: Job) -> Any:
        """A context manager that gives a `Pool` and takes it down."""
        ...
