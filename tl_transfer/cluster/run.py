"""Run: the two passes over a corpus, whatever the engine.

The survey reads the files without a model and settles what depends on all of them; then every unit
becomes sums (or a store) on its own. Whoever asks for the results merges them.
"""

import hashlib
import json
import os
from collections.abc import Collection, Generator, Sequence
from typing import Any

from tqdm.auto import tqdm

from tl_transfer.cluster.job import Job
from tl_transfer.cluster.pool import Engine, Lost, Pool
from tl_transfer.cluster.records import Record, Slice, Unit, cut
from tl_transfer.cluster.report import CorpusReport
from tl_transfer.cluster.skips import Skipped
from tl_transfer.cluster.survey import Counted, Survey
from tl_transfer.cluster.worker import Limits, Task
from tl_transfer.errors import InputError


class Run:
    """One job on a corpus: survey, then every unit.

    Args:
        job: What to do.
        unit_bytes: Bytes of text in a unit.
        progress: Show progress bars.

    Attributes:
        skipped: Records left out so far.

    Raises:
        InputError: units of no size, or a file that cannot be cut.
    """

    def __init__(self, job: Job, unit_bytes: int, progress: bool) -> None:
        if unit_bytes < 1:
            raise InputError(
                "unit_bytes: size of a unit of work",
                got=unit_bytes,
                valid="at least 1",
                hint="leave it out for 16 MB",
            )
        self._job, self._progress = job, progress
        self._units = cut(job.corpus, unit_bytes)
        self.skipped = Skipped()
        self._survey: Survey | None = None

    def spec(self) -> dict[str, Any]:
        """Whatever decides about the units and what is computed of them (JSON)."""
        job = self._job
        pieces = [[p.path, p.start, p.stop] for unit in self._units for p in (*unit, _END)]
        return {
            "files": hashlib.sha256(json.dumps(pieces).encode()).hexdigest(),
            "contents": _contents({p.path for unit in self._units for p in unit}),
            "fields": [job.corpus.text, job.corpus.document],
            "models": [
                [
                    _name(site.model),
                    site.hook_point,
                    sorted((k, str(v)) for k, v in site.options.items()),
                ]
                for site in job.sites
            ],
            "tokens": job.tokens.to_json(),
            "seed": job.seed,
            "batches": [job.max_tokens, job.part_bytes],
        }

    def results(
        self, engine: Engine, method: str, done: Collection[int] = ()
    ) -> Generator[tuple[int, Any], None, None]:
        """What every unit gave that is not done, in any order; lost units are counted."""
        if not self._units:
            return
        with engine.pool(self._job) as pool:
            survey = self._survey = self._count(pool)
            self.skipped.merge(survey.skipped)
            if not survey.n_texts:
                return
            # A unit whose every record is repeated has nothing to do.
            left = [
                i
                for i in range(len(self._units))
                if survey.n_records[i] > len(survey.repeated[i]) and i not in done
            ]
            if not left:
                return
            limits = _learn(pool, survey.probe)
            tasks = [
                Task(
                    i,
                    self._units[i],
                    survey.n_records[i],
                    survey.repeated[i],
                    survey.sample[i],
                    limits,
                )
                for i in left
            ]
            sizes = [sum(piece.n_bytes for piece in task.unit) for task in tasks]
            with self._bar(sum(sizes), method) as bar:
                for number, found in pool.map(method, tasks):
                    bar.update(sizes[number])
                    if isinstance(found, Lost):
                        self._lose(tasks[number], found)
                    else:
                        yield tasks[number].number, found

    def report(self, n_texts: int) -> CorpusReport:
        """Counts, when all is done."""
        survey = self._survey
        return CorpusReport(
            n_files=len(self._job.corpus.files),
            n_units=len(self._units),
            n_records=n_texts + self.skipped.n,
            n_texts=n_texts,
            n_bytes=survey.n_bytes if survey else 0,
            skipped=self.skipped,
        )

    def _count(self, pool: Pool) -> Survey:
        sizes = [sum(piece.n_bytes for piece in unit) for unit in self._units]
        counted: dict[int, Counted] = {}
        with self._bar(sum(sizes), "survey") as bar:
            for number, found in pool.map("count", self._units):
                bar.update(sizes[number])
                if isinstance(found, Lost):
                    # Without its hashes nothing can be said about copies elsewhere.
                    raise InputError(
                        "workers: every one died that read a part of the files",
                        got=f"{_where(self._units[number])}: {found.why}",
                        valid="files that can be read within the memory of a worker",
                        hint="leave that file out, or look at the memory of the nodes",
                    )
                counted[number] = found
        in_order = [counted[i] for i in range(len(self._units))]
        return Survey.of(in_order, self._units, self._job.tokens)

    def _lose(self, task: Task, lost: Lost) -> None:
        n = task.n_records - len(task.repeated)
        self.skipped.add("worker_died", _where(task.unit), lost.why, n=n)

    def _bar(self, total: int, name: str) -> Any:
        return tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=not self._progress)


def _learn(pool: Pool, probe: Sequence[Record]) -> Limits:
    """Norms above which a row is massive; a text that kills its reader is left aside."""
    ((_, limits),) = pool.map("learn", [probe])
    if not isinstance(limits, Lost):
        return limits
    step = max(1, len(probe) // 8)
    parts = [probe[i : i + step] for i in range(0, len(probe), step)]
    found = dict(pool.map("learn", parts))
    for _, part in sorted(found.items()):
        if not isinstance(part, Lost) and all(part):
            return part
    raise InputError(
        "workers: every one died that read the first texts",
        got=limits.why,
        valid="workers with enough memory for both models and one batch",
        hint="fewer workers on a node, or a smaller max_tokens",
    )


#: Between two units.
_END = Slice("", 0, 0, 0)


def _contents(paths: Collection[str]) -> str:
    """Size and time of the last change of every file: another text in its place is another job."""
    stats = [(path, os.stat(path)) for path in sorted(paths)]
    seen = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _name(model: Any) -> str:
    """A model as its name, or a function as where it is defined."""
    named = getattr(model, "__qualname__", None)
    return f"{model.__module__}.{named}" if named else str(model)


def _where(unit: Unit) -> str:
    first, last = unit[0], unit[-1]
    return f"{first.path} {first.start} to {last.path} {last.stop}"
