"""Survey: one reading of the corpus without a model, which settles what must not depend on units.

Which copy of a repeated text is read, the texts by which the usual norm is learned, and those whose
held-out rows are kept all follow from the hashes of the whole corpus; so they are the same for any
number of workers, and as on one machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_transfer.cluster.records import Corpus, Record, Unit, read_unit
from tl_transfer.cluster.skips import Skipped
from tl_transfer.data.texts import n_bytes
from tl_transfer.data.tokens import Tokens
from tl_transfer.mappers.split import spread_documents
from tl_transfer.mappers.sums import MAX_HELD_OUT_ROWS
from tl_transfer.models.capture import PROBE_BYTES

#: Bytes of text that are sent to be read first, of which `PROBE_BYTES` are needed: some may fail.
PROBE_SENT = 8 * PROBE_BYTES
#: Bytes of a token, about; twice that many are looked at to find enough held-out rows.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Counted:
    """What one unit holds, in the order of its records.

    Attributes:
        hashes: SHA-256 of every text, [record, 4] as big-endian words, so that they sort.
        document: Number of its document, which follows from its id and the seed.
        held_out: Whether that document is held out.
        size: Bytes of text.
        probe: The texts with the smallest hashes.
        skipped: What could not be read.
    """

    hashes: np.ndarray
    document: np.ndarray
    held_out: np.ndarray
    size: np.ndarray
    probe: tuple[Record, ...]
    skipped: Skipped


def count(corpus: Corpus, unit: Unit, seed: int) -> Counted:
    """Read a unit and keep next to nothing of it."""
    skipped = Skipped()
    hashes, documents, sizes = [], [], []
    probe: list[Record] = []
    held = 0
    for record in read_unit(corpus, unit, skipped):
        hashes.append(bytes.fromhex(record.hash))
        documents.append(record.document)
        sizes.append(n_bytes(record.text))
        probe.append(record)
        held += sizes[-1]
        if held > 4 * PROBE_SENT:
            probe = _smallest(probe)
            held = sum(n_bytes(each.text) for each in probe)
    split = spread_documents(documents, seed=seed)
    return Counted(
        np.frombuffer(b"".join(hashes), dtype=">u8").reshape(-1, 4).astype(np.uint64),
        np.asarray(split.document, dtype=np.int64),
        np.asarray(split.fold, dtype=np.int64) == split.n_folds,
        np.asarray(sizes, dtype=np.int64),
        tuple(_smallest(probe)),
        skipped,
    )


@dataclass(frozen=True)
class Survey:
    """What is to be read of a corpus.

    Attributes:
        repeated: For every unit the records that are left out because another one has their text.
        sample: For every unit the records whose held-out rows are kept.
        n_records: Sound records of every unit, repeated ones among them.
        probe: Texts by which the usual norm is learned, those with the smallest hashes.
        n_texts: Different texts.
        n_bytes: Their bytes.
        skipped: What is not read, and why.
    """

    repeated: list[np.ndarray]
    sample: list[np.ndarray]
    n_records: list[int]
    probe: tuple[Record, ...]
    n_texts: int
    n_bytes: int
    skipped: Skipped

    @classmethod
    def of(cls, counted: Sequence[Counted], units: Sequence[Unit], tokens: Tokens) -> "Survey":
        """Join the counts of all units."""
        skipped = Skipped()
        for each in counted:
            skipped.merge(each.skipped)
        unit = np.repeat(np.arange(len(counted)), [len(each.size) for each in counted])
        place = np.concatenate([np.arange(len(each.size)) for each in counted])
        hashes = np.concatenate([each.hashes for each in counted])
        document = np.concatenate([each.document for each in counted])
        held_out = np.concatenate([each.held_out for each in counted])
        size = np.concatenate([each.size for each in counted])
        # By hash; of copies in several documents, the first document by number.
        order = np.lexsort((place, unit, document, *hashes.T[::-1]))
        same = np.zeros(len(order), dtype=bool)
        same[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(1)
        again, first = order[same], order[~same]
        for i in again.tolist():
            piece = units[unit[i]][0]
            skipped.add("repeated", f"{piece.path}, record {place[i]} from {piece.start}")
        sample = _sample(first[held_out[first]], size, tokens)

        def by_unit(chosen: np.ndarray) -> list[np.ndarray]:
            chosen = np.sort(chosen)  # records are numbered unit by unit
            ends = np.searchsorted(unit[chosen], np.arange(1, len(counted)))
            return np.split(place[chosen], ends)

        probe = {record.hash: record for each in counted for record in each.probe}
        return cls(
            repeated=by_unit(again),
            sample=by_unit(sample),
            n_records=[len(each.size) for each in counted],
            probe=tuple(_smallest(list(probe.values()))),
            n_texts=len(first),
            n_bytes=int(size[first].sum()),
            skipped=skipped,
        )


def _sample(held_out: np.ndarray, size: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Held-out texts, in the order of their hashes, that should give enough rows."""
    if tokens.keep != "all":
        return held_out[:MAX_HELD_OUT_ROWS]
    enough = 2 * BYTES_PER_TOKEN * MAX_HELD_OUT_ROWS
    before = np.cumsum(size[held_out]) - size[held_out]
    return held_out[before < enough]


def _smallest(records: list[Record]) -> list[Record]:
    """Records with the smallest hashes, until they have enough bytes."""
    kept, total = [], 0
    for record in sorted(records, key=lambda record: record.hash):
        if total >= PROBE_SENT:
            break
        kept.append(record)
        total += n_bytes(record.text)
    return kept
