"""fit_corpus: a map from files of any size, the same on one machine and on a cluster."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.cluster.checkpoint import Checkpoint
from tl_transfer.cluster.engines import engine_of
from tl_transfer.cluster.job import UNIT_BYTES, Job, ModelSite
from tl_transfer.cluster.partial import Partial, require_rows
from tl_transfer.cluster.pool import Engine
from tl_transfer.cluster.records import Corpus
from tl_transfer.cluster.report import CorpusReport
from tl_transfer.cluster.run import Run
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit_sums
from tl_transfer.mappers.registry import find
from tl_transfer.mappers.sums import Sums
from tl_transfer.models.capture import MAX_TOKENS


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
    runner = engine_of(engine, actors=actors, num_gpus=num_gpus, address=address, progress=progress)
    run = Run(job, unit_bytes, progress)
    total = _merged(run, runner, Checkpoint(checkpoint, run.spec()))
    total = require_rows(total, run.skipped, len(job.corpus.files))
    sums = total.sums(job.tokens, seed)
    mapper = fit_sums(sums, method=method, backward=backward, **options)
    return CorpusFit(mapper, sums, run.report(sum(len(piece) for piece in total.hashes)))


def _merged(run: Run, engine: Engine, kept: Checkpoint) -> Partial | None:
    """The sums of all units, those that a checkpoint holds and the others; None if no unit has any.

    What is merged so far is written however this ends.
    """
    # One value, so that Ctrl-C cannot come between a sum and the number of what was added.
    state = kept.read()
    try:
        # Closed at once, whatever happens: workers must not outlive the job.
        with closing(run.results(engine, "sums", state[1])) as results:
            for number, packed in results:
                part, (total, done) = Partial.unpacked(packed), state
                state = (part if total is None else total + part, done | {number})
                kept.offer(*state)
    finally:
        kept.offer(*state, now=True)
    total, _ = state
    if total is not None:
        run.skipped.merge(total.skipped)
    return total
