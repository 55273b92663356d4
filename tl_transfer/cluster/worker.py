"""Worker: loads the models once and turns units into sums, or into stores.

It keeps nothing from one unit to the next, so a unit gives the same result in whichever process it
is done, and however often; the control's wrong pairs, too, stay within their unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl_transfer.cluster.job import Job
from tl_transfer.cluster.pool import Lost
from tl_transfer.cluster.records import Record, Unit, read_unit
from tl_transfer.cluster.skips import Skipped
from tl_transfer.cluster.survey import Counted, count
from tl_transfer.cluster.unit import UnitSums
from tl_transfer.data.store_writer import BusyError
from tl_transfer.data.texts import n_bytes
from tl_transfer.data.tokens import Reading, read_tokens
from tl_transfer.errors import ArtefactError, TransferError
from tl_transfer.models.pairs import ModelPairs
from tl_transfer.models.record import capture
from tl_transfer.models.surface import Site

#: Norms above which a row is massive, of every model.
Limits = tuple[dict[str, float], ...]
#: Texts that all models can read, and what each makes of them.
Readable = tuple[list[Record], list[list[Reading]]]


@dataclass(frozen=True)
class Task:
    """One unit and what the survey says about it.

    Attributes:
        number: Of the unit.
        unit: Its pieces.
        n_records: Sound records in it.
        repeated: Those that are left out.
        sample: Those whose held-out rows are kept.
        limits: Norms above which a row is massive.
    """

    number: int
    unit: Unit
    n_records: int
    repeated: np.ndarray
    sample: np.ndarray
    limits: Limits = ()


@dataclass(frozen=True)
class Captured:
    """What became of one unit of a capture.

    Attributes:
        store: Name of its store in the folder of the capture; empty if it has no rows.
        n_rows: Rows of each hook point.
        n_texts: Texts read.
        skipped: Texts left out by the model or its tokenizer.
    """

    store: str
    n_rows: int
    n_texts: int
    skipped: Skipped


class Worker:
    """One process with both models; they are loaded when the first unit needs them.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.threads is not None:
            torch.set_num_threads(job.threads)

    @cached_property
    def sites(self) -> list[Site]:
        """Source and target; two hook points of one model share it."""
        loaded: dict[Any, Any] = {}
        found = []
        for site in self.job.sites:
            name = (str(site.model), repr(sorted(site.options.items())))
            if name not in loaded:
                loaded[name] = site.load()
            found.append(loaded[name].at(site.hook_point))
        return found

    def count(self, unit: Unit) -> Counted:
        """See `survey`."""
        return count(self.job.corpus, unit, self.job.seed)

    def learn(self, probe: Sequence[Record]) -> Limits:
        """Norms above which a row is massive, from the texts with the smallest hashes."""
        texts, readings = self._readable(probe, Skipped())
        if not texts:
            return tuple({} for _ in self.sites)
        # A capture has one model: it is paired with itself.
        sites, both = self._both(readings)
        pairs = self._pairs(sites, texts, both)
        next(iter(pairs.batches(progress=False, max_tokens=self.job.max_tokens)), None)
        return pairs.limits[: len(self.sites)]

    def sums(self, task: Task) -> dict[str, Any]:
        """The sums of one unit, as `Partial.packed` gives them."""
        unit = UnitSums(self.sites[0], self.sites[1], self.job.seed)
        for part, sampled in self._parts(task):
            texts, readings = self._readable(part, unit.skipped)
            if texts:
                pairs = self._pairs(self.sites, texts, readings, task.limits)
                unit.read(pairs, texts, sampled, self.job.max_tokens)
        return unit.partial().packed()

    def capture(self, task: Task) -> "Captured | Lost":
        """Write the rows of one unit into a store of its own; a finished one is left as it is.

        `Lost` where another process writes it at this moment.
        """
        skipped = Skipped()
        texts: list[Record] = []
        n_chosen = 0
        for part, _ in self._parts(task):
            kept, (readings,) = self._readable(part, skipped)
            texts += kept
            n_chosen += sum(int((reading.positions > 0).sum()) for reading in readings)
        name = f"unit-{task.number:06d}"
        if not n_chosen:
            return Captured("", 0, len(texts), skipped)
        try:
            store = capture(
                self.sites,
                [record.text for record in texts],
                store=Path(str(self.job.store)) / name,
                documents=[record.document for record in texts],
                tokens=self.job.tokens,
                shard_rows=self.job.shard_rows,
                max_tokens=self.job.max_tokens,
                limits=task.limits[0],
                strict=False,
                progress=False,
            )
        except BusyError as error:
            return Lost(str(error).splitlines()[0])
        where = {record.hash: record.where for record in texts}
        for digest in store.not_finite:
            skipped.add("not_finite", where[digest])
        return Captured(name, store.n_rows, len(texts) - len(store.not_finite), skipped)

    # -- texts ---------------------------------------------------------------------------------

    def _parts(self, task: Task) -> Iterator[tuple[list[Record], set[str]]]:
        """The texts of a unit, some at a time, and the hashes of those whose rows are kept.

        Raises:
            ArtefactError: a file is not what it was when it was surveyed.
        """
        left_out, sample = set(task.repeated.tolist()), set(task.sample.tolist())
        part: list[Record] = []
        sampled: set[str] = set()
        size = number = 0
        for number, record in enumerate(read_unit(self.job.corpus, task.unit, Skipped()), 1):
            if number - 1 in left_out:
                continue
            part.append(record)
            size += n_bytes(record.text)
            if number - 1 in sample:
                sampled.add(record.hash)
            if size >= self.job.part_bytes:
                yield part, sampled
                part, sampled, size = [], set(), 0
        if part:
            yield part, sampled
        if number != task.n_records:
            raise ArtefactError(
                f"{task.unit[0].path}: not what it was when the corpus was surveyed",
                got=f"{number} records in unit {task.number}",
                valid=f"{task.n_records} records",
                hint="leave the files alone while they are read, and run again",
            )

    def _readable(self, records: Sequence[Record], skipped: Skipped) -> Readable:
        """What all models can tokenise and hold; the rest is counted."""
        kept = list(records)
        readings: list[list[Reading]] = []
        for site in self.sites:
            found = self._read(site, kept, skipped)
            for earlier in readings:
                earlier[:] = [r for r, new in zip(earlier, found, strict=True) if new is not None]
            kept = [record for record, new in zip(kept, found, strict=True) if new is not None]
            readings.append([reading for reading in found if reading is not None])
        return kept, readings

    def _read(
        self, site: Site, records: Sequence[Record], skipped: Skipped
    ) -> list[Reading | None]:
        """What one model makes of each text; None for those that it cannot read."""
        tokenizer, tokens = site.model.tokenizer, self.job.tokens
        found: list[Reading | None]
        try:
            found = [*read_tokens([record.text for record in records], tokenizer, tokens)]
        except TransferError:
            # One of them at least; each alone says which.
            found = []
            for record in records:
                try:
                    found += read_tokens([record.text], tokenizer, tokens)
                except TransferError as error:
                    found.append(None)
                    why = str(error).splitlines()[0]
                    skipped.add("not_tokenised", record.where, f"{site.model.name}: {why}")
        limit = site.model.n_context
        for i, reading in enumerate(found):
            if reading is not None and limit and len(reading.ids) > limit:
                found[i] = None
                detail = f"{len(reading.ids)} tokens of {site.model.name}, at most {limit}"
                skipped.add("too_long", records[i].where, detail)
        return found

    def _both(self, readings: list[list[Reading]]) -> tuple[list[Site], list[list[Reading]]]:
        return [self.sites[0], self.sites[-1]], [readings[0], readings[-1]]

    def _pairs(
        self,
        sites: Sequence[Site],
        texts: Sequence[Record],
        readings: Sequence[list[Reading]],
        limits: Limits = (),
    ) -> ModelPairs:
        return ModelPairs(
            [sites[0]],
            [sites[1]],
            [record.text for record in texts],
            documents=[record.document for record in texts],
            tokens=self.job.tokens,
            readings=readings,
            limits=limits or ({}, {}),
            strict=False,
        )
