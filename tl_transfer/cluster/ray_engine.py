"""The job on Ray: one actor a worker, which Ray places, watches, restarts and asks again.

What is written here is only which unit goes to which actor. Two units are given to an actor at a
time, so that it works while a result travels. When no unit is left, idle actors get copies of those
that are out for twice as long as any other was: an actor whose node is gone may wait for a place
for ever, and its units must not wait with it. A unit gives the same result wherever it is done, so
the first one counts.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tl_transfer.cluster.job import Job
from tl_transfer.cluster.pool import Lost, Pool
from tl_transfer.cluster.worker import Worker
from tl_transfer.errors import InputError, ModelError, TransferError

#: How often Ray asks for a unit again when its worker dies.
RETRIES = 3
#: How often a unit is given up by Ray before it is given up here.
_ROUNDS = 2
#: Actors made in the place of those that Ray has given up, for each worker.
_SPARE = 3
#: Units that an actor holds: one that it works on and one that waits.
_HELD = 2
#: Seconds without a result after which the state of the cluster is said, and after which a unit
#: is slow while none has come back.
_PATIENCE = 60.0
#: Seconds that a unit may be out, at least, before it is slow.
_SLOW = 5.0
#: Seconds between two looks at what is slow.
_LOOK = 2.0


class RayEngine:
    """Workers on a Ray cluster: the one that is connected, or at an address, or one started here.

    Args:
        actors: Workers, each with its own copy of the models.
        num_gpus: GPUs of each worker; default 1 where the cluster has any, else 0.
        num_cpus: CPUs of each worker, and threads of torch in it.
        address: Of a running cluster, as `ray.init` takes it; default, ``RAY_ADDRESS`` if it is
            set, else a cluster is started on this machine and stopped afterwards.
        say: Told when nothing has come for a minute.

    Raises:
        InputError: Ray is not installed, or a number out of range.
    """

    def __init__(
        self,
        actors: int = 1,
        *,
        num_gpus: float | int | None = None,
        num_cpus: float | int = 1,
        address: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        _require_ray()
        if actors < 1 or num_cpus <= 0 or (num_gpus or 0) < 0:
            raise InputError(
                "actors, num_cpus, num_gpus: how many workers, and what each of them has",
                got=f"{actors}, {num_cpus}, {num_gpus}",
                valid="at least one worker and some share of a CPU for each",
                hint="num_gpus may be 0, or a fraction where several workers share a GPU",
            )
        self._actors, self._gpus, self._cpus = actors, num_gpus, num_cpus
        self._address, self._say = address, say or (lambda line: None)

    @contextmanager
    def pool(self, job: Job) -> Iterator[Pool]:
        """See `Engine`; a cluster that was there before stays, without our workers."""
        import ray

        started = not ray.is_initialized()
        if started:
            self._start()
        workers: list[Any] = []
        try:
            gpus = self._gpus
            if gpus is None:
                gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
            actor = ray.remote(Worker).options(
                num_cpus=self._cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
            job = replace(job, threads=max(1, int(self._cpus)))

            def make() -> Any:
                workers.append(actor.remote(job))
                return workers[-1]

            needs = f"{self._cpus:g} CPU and {gpus:g} GPU"
            yield RayPool(make, self._actors, needs=needs, say=self._say)
        finally:
            for worker in workers:
                ray.kill(worker)
            if started:
                ray.shutdown()

    def _start(self) -> None:
        import ray

        address = self._address or os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address:
            ray.init(address=address, **options)
            return
        # A private cluster of this machine: no page, no report to anybody, and a place for every
        # worker that was asked for even where there are fewer cores.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        places = max(os.cpu_count() or 1, int(self._actors * self._cpus + 0.999))
        ray.init(address="local", num_cpus=places, include_dashboard=False, **options)


@dataclass(frozen=True)
class _Sent:
    """A unit that is out.

    Attributes:
        worker: The actor that has it.
        number: Its number among the items.
        call: The call of `map` that it belongs to.
        since: When it was sent.
    """

    worker: Any
    number: int
    call: int
    since: float


class RayPool:
    """Actors that wait for items; see `Pool`.

    Args:
        make: Makes an actor that restarts and retries by itself.
        n: How many.
        needs: What each of them needs, in words.
        say: Told when nothing has come for a minute.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        n: int,
        *,
        needs: str = "",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._make, self._spare = make, _SPARE * n
        self._workers = [make() for _ in range(n)]
        self._needs, self._say = needs, say or (lambda line: None)
        self._out: dict[Any, _Sent] = {}
        self._calls = 0

    def map(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Pool`.

        Raises:
            TransferError: the error of a worker, e.g. of one that could not load a model.
            ModelError: no worker is left, or one failed in a way that is no fault of the input.
        """
        import ray

        self._calls += 1
        call, waiting = self._calls, list(range(len(items)))[::-1]
        missing, lost = set(waiting), Counter[int]()
        longest, heard = 0.0, time.monotonic()
        while missing:
            self._hand_out(method, items, waiting, call)
            if not waiting:
                self._send_copies(method, items, missing, call, longest)
            ready, _ = ray.wait(list(self._out), num_returns=1, timeout=_LOOK)
            if not ready:
                if time.monotonic() - heard > _PATIENCE:
                    self._report(len(missing))
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            sent, result = self._receive(ready[0])
            if sent.call != call or sent.number not in missing:
                continue  # a copy has been quicker
            if isinstance(result, TransferError):
                raise result
            if isinstance(result, Lost):
                lost[sent.number] += 1
                if self._is_out(sent.number, call):
                    continue  # a copy may still do it
                if lost[sent.number] < _ROUNDS:
                    waiting.append(sent.number)
                    continue
            longest = max(longest, heard - sent.since)
            missing.discard(sent.number)
            yield sent.number, result

    def _receive(self, reference: Any) -> tuple[_Sent, Any]:
        """What was sent, and the result, the error of a worker, or `Lost`."""
        import ray

        sent = self._out.pop(reference)
        try:
            return sent, ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return sent, _cause(error)
        except ray.exceptions.ActorDiedError as error:
            # Ray has given the actor up, which it does not do for a fault of its process.
            if sent.worker in self._workers:
                self._workers.remove(sent.worker)
                if self._spare:
                    self._spare -= 1
                    self._workers.append(self._make())
            if not self._workers:
                raise _no_worker(str(error)) from error
            return sent, Lost(str(error).splitlines()[0])
        except ray.exceptions.RayError as error:
            return sent, Lost(str(error).splitlines()[0])

    def _hand_out(self, method: str, items: Sequence[Any], waiting: list[int], call: int) -> None:
        """Give every actor what it can hold."""
        held = self._held()
        for _ in range(_HELD):
            for worker in self._workers:
                if waiting and held[id(worker)] < _HELD:
                    self._send(worker, method, items, waiting.pop(), call)
                    held[id(worker)] += 1

    def _send_copies(
        self, method: str, items: Sequence[Any], missing: set[int], call: int, longest: float
    ) -> None:
        """Give idle actors copies of what has been out for twice as long as any other unit."""
        limit = time.monotonic() - (max(_SLOW, 2 * longest) if longest else _PATIENCE)
        out: dict[int, list[_Sent]] = {}
        for sent in self._out.values():
            if sent.call == call and sent.number in missing:
                out.setdefault(sent.number, []).append(sent)
        slow = [n for n, copies in sorted(out.items()) if len(copies) < 2 and
                copies[0].since < limit]  # fmt: skip
        held = self._held()
        for worker in self._workers:
            if slow and not held[id(worker)]:
                self._send(worker, method, items, slow.pop(0), call)

    def _send(self, worker: Any, method: str, items: Sequence[Any], number: int, call: int) -> None:
        reference = getattr(worker, method).remote(items[number])
        self._out[reference] = _Sent(worker, number, call, time.monotonic())

    def _held(self) -> Counter[int]:
        return Counter(id(sent.worker) for sent in self._out.values())

    def _is_out(self, number: int, call: int) -> bool:
        return any((sent.number, sent.call) == (number, call) for sent in self._out.values())

    def _report(self, n_missing: int) -> None:
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        shares = ", ".join(
            f"{free.get(name, 0):g} of {total[name]:g} {name} free"
            for name in ("CPU", "GPU")
            if name in total
        )
        self._say(
            f"waiting for {n_missing} units; a worker needs {self._needs}, and there are "
            f"{shares or 'no resources'}"
        )


def _require_ray() -> None:
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(
            "engine: Ray is not installed",
            got='engine="ray"',
            valid='the extra "ray" of this package, or engine="local"',
            hint='pip install "tl-transfer[ray]"',
        ) from error


def _cause(error: Any) -> TransferError:
    """The error of a worker, as it would have been here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, TransferError):
        return cause
    last = str(error).strip().splitlines()
    failure = ModelError(
        "worker: a unit failed in a way that is no fault of a single record",
        got=last[-1] if last else type(error).__name__,
        valid="workers that can load both models and read the files",
        hint="in Python the worker's own traceback is above this one; or look at Ray's logs",
    )
    failure.__cause__ = error
    return failure


def _no_worker(why: str) -> ModelError:
    return ModelError(
        "workers: not one is left",
        got=why.strip().splitlines()[0] if why.strip() else "dead actors",
        valid="at least one that lives",
        hint="look at the logs of Ray (ray logs), e.g. for memory",
    )
