"""TransferReport: the finished evaluation as one JSON value that renders itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.errors import ArtefactError
from tl_transfer.sealed import read_json, write_json

FORMAT = "tl_transfer.report/1"


@dataclass(frozen=True)
class TransferReport:
    """Arms x metrics with n and intervals, the map's score card, selection, verdict.

    Attributes:
        data: The report as documented in ``docs/reference/report_json.md``; plain JSON values.
    """

    data: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __repr__(self) -> str:
        from tl_transfer.report.tables import render_text, summary_table

        return f"{self.data['verdict']['sentence']}\n\n{render_text(summary_table(self.data))}"

    def _repr_html_(self) -> str:
        from tl_transfer.report.html import report_fragment

        return report_fragment(self.data)

    def save_json(self, path: str | Path) -> Path:
        """Write strict JSON (no NaN) with a checksum of it, atomically."""
        return write_json(Path(path), self.data, indent=1, allow_nan=False, ensure_ascii=False)

    def save_html(self, path: str | Path) -> Path:
        """Write one self-contained page that opens with no network."""
        from tl_transfer.report.html import save_html

        return save_html(self.data, path)

    @classmethod
    def load(cls, path: str | Path) -> "TransferReport":
        """Read what `save_json` wrote.

        Raises:
            ArtefactError: not JSON, not a report of this format, or changed since it was saved.
        """
        path, hint = Path(path), "run the job again"
        data = read_json(path, written_by="tl_transfer.run", hint=hint)
        if data.get("format") != FORMAT:
            raise ArtefactError(
                f"{path}: not a report of this version",
                got=data.get("format"),
                valid=FORMAT,
                hint=hint,
            )
        return cls(data)
