"""What became of the records of a corpus."""

from dataclasses import dataclass
from typing import Any

from tl_transfer.cluster.skips import Skipped


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
