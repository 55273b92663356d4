"""Engines: who runs the units. The same job runs in this process without Ray."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from tl_transfer.cluster.job import Job
from tl_transfer.cluster.pool import Engine, Pool
from tl_transfer.cluster.worker import Worker
from tl_transfer.errors import InputError


class Local:
    """This process, one unit after another; no Ray."""

    @contextmanager
    def pool(self, job: Job) -> Iterator[Pool]:
        """See `Engine`."""
        yield _Here(Worker(job))


class _Here:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def map(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Pool`."""
        for number, item in enumerate(items):
            yield number, getattr(self._worker, method)(item)


def engine_of(engine: str | Engine, *, progress: bool = False, **options: Any) -> Engine:
    """An engine by its name.

    Args:
        engine: ``"local"``, ``"ray"``, or an engine.
        progress: Say on the terminal when workers are waited for.
        **options: Of the Ray engine.

    Raises:
        InputError: an unknown name, options that the engine does not take, or no Ray.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if engine == "ray":
        from tl_transfer.cluster.ray_engine import RayEngine

        return RayEngine(say=tqdm.write if progress else None, **given)
    if given:
        raise InputError(
            f"{', '.join(given)}: only workers on Ray have these",
            got=f"engine {engine!r}",
            valid='engine="ray"',
            hint="leave them out: one machine needs none",
        )
    if engine == "local":
        return Local()
    if isinstance(engine, str):
        raise InputError(
            "engine: unknown",
            got=repr(engine),
            valid='"local" or "ray"',
            hint="leave it out for this process",
        )
    return engine
