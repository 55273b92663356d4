"""capture_corpus: the rows that one model reads of a corpus, in one store for each unit."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.cluster.engines import engine_of
from tl_transfer.cluster.job import UNIT_BYTES, Job, ModelSite
from tl_transfer.cluster.partial import require_rows
from tl_transfer.cluster.pool import Engine
from tl_transfer.cluster.records import Corpus
from tl_transfer.cluster.report import CorpusReport
from tl_transfer.cluster.run import Run
from tl_transfer.cluster.worker import Captured
from tl_transfer.data.shards import read_json, write_json
from tl_transfer.data.store import ActivationStore
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import ArtefactError
from tl_transfer.models.capture import MAX_TOKENS

#: What a capture of a corpus says about itself.
INDEX = "corpus.json"


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
    runner = engine_of(engine, actors=actors, num_gpus=num_gpus, address=address, progress=progress)
    run = Run(job, unit_bytes, progress)
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
