"""fit_corpus and capture_corpus: the verbs, the same on one machine and on a cluster.

Two passes. The survey reads the files without a model and settles what depends on all of them; then
every unit becomes sums (or a store) on its own. The parts of a result are merged here.
"""

import hashlib
import json
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_transfer.cluster.checkpoint import Checkpoint
from tl_transfer.cluster.engines import engine_of
from tl_transfer.cluster.job import UNIT_BYTES, Job, ModelSite
from tl_transfer.cluster.partial import Partial, require_rows
from tl_transfer.cluster.pool import Engine, Lost, Pool
from tl_transfer.cluster.records import Corpus, Record, Slice, Unit, cut
from tl_transfer.cluster.skips import Skipped
from tl_transfer.cluster.survey import Counted, Survey
from tl_transfer.cluster.worker import Captured, Limits, Task
from tl_transfer.data.shards import read_json, write_json
from tl_transfer.data.store import ActivationStore
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit_sums
from tl_transfer.mappers.registry import find
from tl_transfer.mappers.sums import Sums
from tl_transfer.models.capture import MAX_TOKENS

#: What a capture of a corpus says about itself.
INDEX = "corpus.json"


@dataclass(frozen=True)
class CorpusReport:
    """What became of the records of a corpus.

    Attributes:
        n_files: Files.
        n_units: Units of work.
        n_records: Records found, sound or not.
        n_texts: Texts read by the models.
        n_bytes: Bytes of the different texts.
        skipped: Everything else, by reason; ``n_texts + skipped.n == n_records``.
    """

    n_files: int
    n_units: int
    n_records: int
    n_texts: int
    n_bytes: int
    skipped: Skipped

    def to_json(self) -> dict[str, Any]:
        """The counts, and what was skipped by reason, as plain fields."""
        return {**vars(self), "skipped": self.skipped.to_json()}

    def __str__(self) -> str:
        return (
            f"{self.n_texts} of {self.n_records} records read, from {self.n_files} files in "
            f"{self.n_units} units\n{self.skipped}"
        )


@dataclass(frozen=True)
class CorpusFit:
    """A map and what it was fitted on.

    Attributes:
        mapper: The map, with its score card.
        sums: The sums behind it, for `fit_sums` with other methods, and for adding others.
        report: What was read and what was skipped.
    """

    mapper: Mapper
    sums: Sums
    report: CorpusReport


@dataclass(frozen=True)
class CorpusCapture:
    """Stores that hold what one model reads of a corpus.

    Attributes:
        folder: Folder of all of them.
        stores: One for each unit that has rows, in the order of the units.
        report: What was read and what was skipped.
    """

    folder: Path
    stores: tuple[ActivationStore, ...]
    report: CorpusReport


def fit_corpus(
    source: Any,
    target: Any,
    files: str | Path | Sequence[str | Path],
    *,
    text: str = "text",
    document: str | None = None,
    tokens: Tokens | str = "all",
    method: str = "ridge",
    backward: bool = True,
    seed: int = 0,
    engine: str | Engine = "local",
    actors: int | None = None,
    num_gpus: float | int | None = None,
    address: str | None = None,
    unit_bytes: int = UNIT_BYTES,
    max_tokens: int = MAX_TOKENS,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> CorpusFit:
    """Fit a map on files of any size, in one process or on Ray; nothing but sums travels.

    The result depends on the files and on the arguments that change what is computed, not on the
    engine, the number of workers, the order in which units are done, or repetitions after a fault.
    A record that cannot be read is counted and named, and ends nothing.

    Args:
        source: ``("model name", "resid_post@15")`` or a `ModelSite`: every worker loads it.
        target: The same where vectors go.
        files: Parquet, JSON lines or text files (one text a line); folders and patterns too.
        text: Column or key of the text.
        document: Column or key of the document id, which decides the fold; default, each text.
        tokens: Which tokens are rows, as for `fit`.
        method: A method that reads sums only, see `mapping_methods`.
        backward: Also fit the map from target to source.
        seed: Of the split by document and of the shuffled control.
        engine: ``"local"`` (this process, no Ray) or ``"ray"``.
        actors: Workers on Ray; default 1.
        num_gpus: GPUs of each of them; default 1 where the cluster has any.
        address: Of a running Ray cluster; default, see `RayEngine`.
        unit_bytes: Bytes of text in one unit of work. Larger units send fewer sums, and lose more
            work when a process dies. The shuffled control pairs within a unit.
        max_tokens: Cells of one forward batch.
        checkpoint: Folder in which the sums so far are written every few minutes: after Ctrl-C or
            a crash of this process the same call reads only the units that are missing.
        progress: Show a progress bar.
        **options: Hyperparameters of the method.

    Returns:
        The map, its sums, and what was skipped.

    Raises:
        InputError: no files, a method that needs rows, nothing left to read, or no Ray.
        SpaceError: two workers have loaded different weights.
        ArtefactError: a file changed while it was read.
    """
    chosen = find(method, options)
    if chosen.reads != "sums":
        raise InputError(
            "method: only methods that read sums can be fitted on a corpus",
            got=f"{method!r}, which reads {chosen.reads}",
            valid="a method such as ridge",
            hint="capture a part of the corpus and fit from the store",
        )
    job = Job(
        Corpus.of(files, text, document),
        (ModelSite.of(source, "source"), ModelSite.of(target, "target")),
        tokens=Tokens.of_any(tokens),
        seed=seed,
        max_tokens=max_tokens,
    )
    runner = _runner(engine, actors, num_gpus, address, progress)
    run = _Run(job, unit_bytes, progress)
    kept = Checkpoint(checkpoint, run.spec())
    total, done = kept.read()
    try:
        # Closed at once, whatever happens: workers must not outlive the job.
        with closing(run.results(runner, "sums", done)) as results:
            for number, packed in results:
                part = Partial.unpacked(packed)
                total = part if total is None else total + part
                done.add(number)
                kept.offer(total, done)
    finally:
        if total is not None:
            kept.offer(total, done, now=True)
    if total is not None:
        run.skipped.merge(total.skipped)
    total = require_rows(total, run.skipped, len(job.corpus.files))
    sums = total.sums(job.tokens, seed)
    mapper = fit_sums(sums, method=method, backward=backward, **options)
    return CorpusFit(mapper, sums, run.report(sum(len(piece) for piece in total.hashes)))


def capture_corpus(
    site: Any,
    files: str | Path | Sequence[str | Path],
    *,
    store: str | Path,
    text: str = "text",
    document: str | None = None,
    tokens: Tokens | str = "all",
    engine: str | Engine = "local",
    actors: int | None = None,
    num_gpus: float | int | None = None,
    address: str | None = None,
    unit_bytes: int = UNIT_BYTES,
    shard_rows: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
) -> CorpusCapture:
    """Keep what one model reads of a corpus: one `ActivationStore` for each unit.

    Run it again to go on after a crash: finished units are left as they are. Two captures of the
    same files with the same `unit_bytes` pair unit by unit: ``collect(a, b)`` for each, and ``+``.

    Args:
        site: ``("model name", "resid_post@15")`` or a `ModelSite`.
        files: As for `fit_corpus`, like all that follow.
        store: Folder that every worker sees.
        text: Column or key of the text.
        document: Column or key of the document id.
        tokens: Which tokens are rows.
        engine: ``"local"`` or ``"ray"``.
        actors: Workers on Ray.
        num_gpus: GPUs of each of them.
        address: Of a running Ray cluster.
        unit_bytes: Bytes of text in one unit.
        shard_rows: Rows of one file, as for `capture`.
        max_tokens: Cells of one forward batch.
        progress: Show a progress bar.

    Returns:
        The stores, and what was skipped.

    Raises:
        InputError: no files, nothing left to read, or a folder that holds another capture.
    """
    folder = Path(store).absolute()
    job = Job(
        Corpus.of(files, text, document),
        (ModelSite.of(site, "site"),),
        tokens=Tokens.of_any(tokens),
        max_tokens=max_tokens,
        store=str(folder),
        shard_rows=shard_rows,
    )
    runner = _runner(engine, actors, num_gpus, address, progress)
    run = _Run(job, unit_bytes, progress)
    names: dict[int, str] = {}
    n_texts = 0
    with closing(run.results(runner, "capture")) as results:
        for number, found in results:
            assert isinstance(found, Captured)
            names[number] = found.store
            n_texts += found.n_texts
            run.skipped.merge(found.skipped)
    report = run.report(n_texts)
    stores = [names[number] for number in sorted(names) if names[number]]
    if not stores:
        require_rows(None, run.skipped, len(job.corpus.files))
    write_json(folder / INDEX, {"kind": "corpus", "stores": stores, "report": report.to_json()})
    return CorpusCapture(folder, open_stores(folder), report)


def open_stores(folder: str | Path) -> tuple[ActivationStore, ...]:
    """The stores of a finished `capture_corpus`, in the order of its units.

    Raises:
        ArtefactError: no capture of a corpus, or one that was not finished.
    """
    found = read_json(Path(folder) / INDEX)
    names = found.get("stores")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.startswith("unit-") and name[5:].isdigit() for name in names
    ):
        raise ArtefactError(
            f"{folder}: not the capture of a corpus",
            got=f"{INDEX} of another kind",
            valid="a folder written by capture_corpus",
            hint="a single store opens with ActivationStore",
        )
    return tuple(ActivationStore(Path(folder) / name) for name in names)


class _Run:
    """Survey, then every unit; what was skipped on the way."""

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
            "fields": [job.corpus.text, job.corpus.document],
            "models": [[_name(site.model), site.hook_point] for site in job.sites],
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


def _runner(
    engine: str | Engine,
    actors: int | None,
    num_gpus: float | int | None,
    address: str | None,
    progress: bool,
) -> Engine:
    say = tqdm.write if progress and engine == "ray" else None
    return engine_of(engine, actors=actors, num_gpus=num_gpus, address=address, say=say)


#: Between two units.
_END = Slice("", 0, 0, 0)


def _name(model: Any) -> str:
    """A model as its name, or a function as where it is defined."""
    named = getattr(model, "__qualname__", None)
    return f"{model.__module__}.{named}" if named else str(model)


def _where(unit: Unit) -> str:
    first, last = unit[0], unit[-1]
    return f"{first.path} {first.start} to {last.path} {last.stop}"
