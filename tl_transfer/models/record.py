"""capture: what a model reads at some hook points, written into a store that survives a crash.

Texts are read in an order of their own and rows fill shards of a fixed size. The manifest, which
is replaced after every shard, says which batch comes next; so a capture that was killed goes on
there, and ends with the same bytes as one that was not.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.store import MANIFEST, ActivationStore
from tl_transfer.data.store_texts import TextTable
from tl_transfer.data.store_writer import StoreWriter, claimed
from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.data.tokens import Reading, Tokens, read_tokens
from tl_transfer.errors import InputError
from tl_transfer.memory import require_memory
from tl_transfer.models.capture import (
    MAX_TOKENS,
    OUTLIER,
    PROBE_BYTES,
    Reader,
    Rows,
    mean_rows,
    read_in_order,
    reading_order,
    take,
)
from tl_transfer.models.pairs import reader_of
from tl_transfer.models.surface import Site

#: Bytes of one shard, if its rows are not given.
SHARD_BYTES = 256 << 20
#: A capture is refused when the disk has less than this multiple of what it needs.
SPARE = 1.2


@dataclass(frozen=True)
class CapturePlan:
    """What a capture will read and need.

    Attributes:
        n_texts: Different texts.
        n_tokens: Tokens that pass through the model.
        n_rows: Rows of each hook point, at most (massive norms are left out).
        n_shards: Files.
        disk_bytes: Bytes on the disk, at most.
        free_bytes: Bytes that are free there.
        memory_bytes: Bytes beside the model and its own activations.
    """

    n_texts: int
    n_tokens: int
    n_rows: int
    n_shards: int
    disk_bytes: int
    free_bytes: int
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.n_rows} rows of {self.n_texts} texts ({self.n_tokens} tokens): "
            f"{_size(self.disk_bytes)} on disk in {self.n_shards} files "
            f"({_size(self.free_bytes)} free), {_size(self.memory_bytes)} of memory"
        )


def capture(
    sites: Site | Sequence[Site],
    texts: Sequence[Any],
    *,
    store: str | Path,
    documents: Sequence[str] | None = None,
    tokens: Tokens | str = "all",
    shard_rows: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
    strict: bool = True,
    limits: Mapping[str, float] | None = None,
) -> ActivationStore:
    """Read texts at one or more hook points of one model and keep the rows on the disk.

    Run it again with the same arguments to go on after a crash; a finished store is opened and
    nothing is read. Two stores of the same texts make a map: ``fit(source_store, target_store)``.

    Args:
        sites: ``model.at(hook_point)``, or several of one model.
        texts: Plain texts, and chats as lists of messages; a repeated text is read once.
        store: Folder, empty or of this very capture.
        documents: Document id of each text; default, each text is its own document.
        tokens: Which tokens: ``"all"`` of the content, the ``"last"`` or the ``"mean"`` of each
            text, or `Tokens`.
        shard_rows: Rows of one file; default, as many as fit in 256 MB.
        max_tokens: Cells of one forward batch.
        progress: Show a progress bar, and before it what the capture needs.
        strict: Stop at an activation that is not finite; else leave its text out, which the
            store's `not_finite` names.
        limits: Hook point -> norm above which a row is massive, where the texts are a part of more
            that should all be treated alike; default, ten times the median of these texts.

    Returns:
        The store. Rows are in the dtype of the model (means in float32).

    Raises:
        InputError: no texts, texts that cannot be read, a folder that holds something else or is
            in use, or too little space on its disk.
        ArtefactError: the folder holds a store of another version.
    """
    job = _Job.of(sites, texts, documents, Tokens.of_any(tokens), shard_rows, max_tokens)
    job = replace(job, strict=strict, limits=dict(limits or {}))
    folder = Path(store)
    if not (folder / MANIFEST).exists():
        # Before anything is written: what is refused can be asked for again in the same folder.
        _require_space(job.plan(folder), folder)
    with claimed(folder):
        writer = StoreWriter(folder, job.spec(), job.table(), min(job.shard_rows, job.n_rows))
        if not writer.complete:
            plan = job.plan(folder, done=writer.n_written)
            _require_space(plan, folder)
            _record(writer, job, plan, progress)
    return ActivationStore(folder)


def plan_capture(
    sites: Site | Sequence[Site],
    texts: Sequence[Any],
    *,
    store: str | Path,
    tokens: Tokens | str = "all",
    shard_rows: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> CapturePlan:
    """What `capture` would read and need; texts are tokenised, nothing is run or written.

    Raises:
        InputError: no texts, or texts that cannot be read.
    """
    job = _Job.of(sites, texts, None, Tokens.of_any(tokens), shard_rows, max_tokens)
    return job.plan(Path(store))


@dataclass(frozen=True)
class _Job:
    """A capture before it starts: texts in reading order, and all that decides about its bytes."""

    sites: list[Site]
    hashes: list[str]
    documents: list[str]
    readings: list[Reading]
    order: tuple[list[int], list[int]]
    tokens: Tokens
    dtype: torch.dtype
    shard_rows: int
    max_tokens: int
    strict: bool = True
    limits: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sites: Site | Sequence[Site],
        texts: Sequence[Any],
        documents: Sequence[str] | None,
        tokens: Tokens,
        shard_rows: int | None,
        max_tokens: int,
    ) -> "_Job":
        _require_amounts(shard_rows=shard_rows, max_tokens=max_tokens)
        given_sites: Sequence[Any] = sites if isinstance(sites, Sequence) else [sites]
        known = [site for site in given_sites if isinstance(site, Site)]
        sites = sorted(known, key=lambda site: site.point.name)
        if len(known) < len(given_sites) or len({id(site.model) for site in sites}) != 1:
            raise InputError(
                "sites: hook points of one loaded model",
                got=str(given_sites)[:200],
                valid="one or more sites of one model",
                hint="capture each model into a store of its own",
            )
        model = sites[0].model
        given = as_texts(texts)
        names = [text_hash(text) for text in given]
        documents = documents_of(names, documents)
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        kept = sorted(first.values())  # a repeated text once
        readings = read_tokens([given[i] for i in kept], model.tokenizer, tokens)
        hashes = [names[i] for i in kept]
        lengths = [len(r.ids) if (r.positions > 0).any() else 0 for r in readings]
        if not any(lengths):
            raise InputError(
                "texts: not one token to read (position 0 is an attention sink)",
                got=f"{len(readings)} texts",
                valid="texts of a few words, with the span, role or template that was asked for",
                hint="look at a text and at tokens=",
            )
        model.require_fits(max(lengths), "texts")
        order = reading_order(hashes, [r.n_bytes for r in readings], lengths)
        dtype = model.dtype
        if tokens.keep == "mean":
            dtype = torch.promote_types(dtype, torch.float32)
        rows = shard_rows or max(1, SHARD_BYTES // _row_bytes(sites, dtype))
        documents = [documents[i] for i in kept]
        return cls(sites, hashes, documents, readings, order, tokens, dtype, rows, max_tokens)

    @cached_property
    def numbers(self) -> list[int]:
        """Texts in the order in which they are read; those without tokens come last."""
        read = [*self.order[0], *self.order[1]]
        rest = set(range(len(self.hashes))) - set(read)
        return [*read, *sorted(rest, key=self.hashes.__getitem__)]

    @property
    def n_rows(self) -> int:
        """Rows, if none has a massive norm."""
        n = [int((reading.positions > 0).sum()) for reading in self.readings]
        return sum(map(bool, n)) if self.tokens.keep == "mean" else sum(n)

    def spec(self) -> dict[str, Any]:
        """Whatever decides about the bytes of the store; another spec needs another folder."""
        said = "\n".join(
            sorted(f"{h} {d}" for h, d in zip(self.hashes, self.documents, strict=True))
        )
        return {
            "spaces": [site.space.to_json() for site in self.sites],
            "tokens": self.tokens.to_json(),
            "texts": hashlib.sha256(said.encode()).hexdigest(),
            "n_texts": len(self.hashes),
            "dtype": str(self.dtype).removeprefix("torch."),
            "massive_norm": OUTLIER,
            "probe_bytes": PROBE_BYTES,
            "max_tokens": self.max_tokens,
            "shard_rows": self.shard_rows,
            **({"revision": self.sites[0].model.revision} if self.sites[0].model.revision else {}),
            **({"limits": self.limits} if self.limits else {}),
            **({} if self.strict else {"strict": False}),
        }

    def table(self) -> TextTable:
        """The texts in the order in which they are read."""
        readings = [self.readings[i] for i in self.numbers]
        return TextTable(
            [self.hashes[i] for i in self.numbers],
            [self.documents[i] for i in self.numbers],
            [reading.n_chosen for reading in readings],
            [reading.n_dropped for reading in readings],
            [reading.keys for reading in readings],
        )

    def plan(self, folder: Path, done: int = 0) -> CapturePlan:
        """What it needs, when some rows are there."""
        row = _row_bytes(self.sites, self.dtype)
        width = sum(site.space.d_model for site in self.sites) * self.dtype.itemsize
        n_rows = self.n_rows
        shard = min(self.shard_rows, n_rows) * row
        texts = sum(200 + 8 * len(reading.keys) for reading in self.readings)
        there = next(
            path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
        )
        return CapturePlan(
            n_texts=len(self.hashes),
            n_tokens=sum(len(self.readings[i].ids) for part in self.order for i in part),
            n_rows=n_rows,
            n_shards=-(-n_rows // self.shard_rows),
            disk_bytes=max(0, n_rows - done) * row + texts,
            free_bytes=shutil.disk_usage(there).free,
            memory_bytes=2 * shard + 2 * self.max_tokens * width,
        )


def _record(writer: StoreWriter, job: _Job, plan: CapturePlan, progress: bool) -> None:
    points = [site.point for site in job.sites]
    reader = reader_of(job.sites[0].model, points, job.readings, strict=job.strict)
    reader.limits.update(writer.limits or job.limits)
    reader.dropped.update(writer.dropped)
    number = {name: i for i, name in enumerate(job.hashes)}
    reader.not_finite |= {number[name] for name in writer.not_finite}
    place = np.empty(len(job.hashes), dtype=np.int64)
    place[job.numbers] = np.arange(len(job.hashes))
    lengths = [len(reading.ids) for reading in job.readings]
    if progress:
        tqdm.write(f"capture: {plan}")
    start = writer.next_batch
    batches = read_in_order([reader], job.order, lengths, max_tokens=job.max_tokens, skip=start)
    share = writer.n_written / max(job.n_rows, 1)
    with tqdm(
        total=plan.n_tokens,
        initial=round(plan.n_tokens * share),
        unit="tok",
        desc=f"capture {job.sites[0].model.name}",
        disable=not progress,
    ) as bar:
        for batch, (index, (rows,)) in enumerate(batches, start=start):
            before = dict(reader.dropped)
            kept = reader.keeps(rows)
            columns = _columns(rows, kept, index, job, reader)
            columns["text"] = torch.from_numpy(place[columns["text"].numpy()]).int()
            writer.limits = reader.limits
            writer.not_finite = sorted(job.hashes[i] for i in reader.not_finite)
            writer.add(columns, batch, before)
            bar.update(sum(lengths[i] for i in index))
    n_tokens = sum(len(reading.positions) for reading in job.readings)
    writer.finish({"n_tokens": n_tokens, **reader.dropped})


def _columns(
    rows: Rows, kept: Tensor, index: Sequence[int], job: _Job, reader: Reader
) -> dict[str, Tensor]:
    """What is stored of a batch."""
    if job.tokens.keep == "mean":
        rows = mean_rows(rows, kept)
        keys = torch.zeros(len(rows.text), dtype=torch.int64)
        positions = keys - 1
    else:
        found = [job.readings[i].keys[job.readings[i].positions > 0] for i in index]
        keys = torch.from_numpy(np.concatenate(found))[kept]
        positions = torch.from_numpy(np.concatenate([reader.positions[i] for i in index]))[kept]
        rows = take(rows, kept)
    values = {name: value.to(job.dtype) for name, value in rows.values.items()}
    return {**values, "text": rows.text, "key": keys, "position": positions.int()}


def _row_bytes(sites: Sequence[Site], dtype: torch.dtype) -> int:
    """Bytes of one row at all hook points, with text, key and position."""
    return sum(site.space.d_model for site in sites) * dtype.itemsize + 16


def _require_space(plan: CapturePlan, folder: Path) -> None:
    if plan.free_bytes < SPARE * plan.disk_bytes:
        raise InputError(
            f"store: too little space on the disk of {folder}",
            got=f"{_size(plan.free_bytes)} free",
            valid=f"{_size(int(SPARE * plan.disk_bytes))}: {SPARE} times what will be written",
            hint="choose another disk, fewer hook points or texts, or fit from texts directly: "
            "that stores no row",
        )
    require_memory(
        plan.memory_bytes, "store: the rows of one file", "shard_rows= makes smaller files"
    )


def _require_amounts(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(
                f"{name}: nothing fits in it",
                got=value,
                valid="1 or more",
                hint="leave it out for a size that suits most machines",
            )


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"
