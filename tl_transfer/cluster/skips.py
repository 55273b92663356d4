"""What was left out of a corpus, why, and where: counts by reason, and a few names of each."""

from dataclasses import dataclass, field

#: Names kept of each reason; the counts are of all.
MAX_NAMES = 20

#: Reason -> what it means.
REASONS = {
    "unreadable": "the file, or this part of it, cannot be read",
    "not_utf8": "bytes or characters that are no UTF-8",
    "not_json": "a line that is no JSON object",
    "no_text": "no text (or chat) in the field that was asked for",
    "no_document": "no document id in the field that was asked for",
    "too_large": "a record of more bytes than any context holds",
    "empty": "nothing but white space",
    "repeated": "a text that another record has too: it is read once",
    "not_tokenised": "a tokenizer or chat template refused it",
    "too_long": "more tokens than a model's context",
    "not_finite": "an activation is NaN or infinite",
    "worker_died": "every process that worked on its unit died",
}


@dataclass
class Skipped:
    """Counts of what was left out.

    Attributes:
        counts: Reason (see `REASONS`) -> records.
        names: Reason -> where the first of them are, in the order of the alphabet, at most
            `MAX_NAMES`, each with what was wrong.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Records left out, whatever the reason."""
        return sum(self.counts.values())

    def add(self, reason: str, where: str, detail: str = "", *, n: int = 1) -> None:
        """Count a record (or `n` of them in one place)."""
        self._count(reason, n, [f"{where}: {detail}" if detail else where])

    def merge(self, other: "Skipped") -> None:
        """Count what another one has counted; the order of merging does not matter."""
        for reason, n in other.counts.items():
            self._count(reason, n, other.names.get(reason, []))

    def to_json(self) -> dict[str, dict[str, object]]:
        """Reason -> count, meaning and names, in the order of `REASONS`."""
        return {
            reason: {
                "n": self.counts[reason],
                "meaning": meaning,
                "names": self.names.get(reason, []),
            }
            for reason, meaning in REASONS.items()
            if reason in self.counts
        }

    def __str__(self) -> str:
        if not self.counts:
            return "nothing was skipped"
        lines = [f"{self.n} records were skipped"]
        for reason, meaning in REASONS.items():
            if reason in self.counts:
                first = self.names.get(reason, [])[:1]
                example = f", e.g. {first[0]}" if first else ""
                lines.append(f"  {self.counts[reason]} {reason}: {meaning}{example}")
        return "\n".join(lines)

    def _count(self, reason: str, n: int, names: list[str]) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + n
        kept = sorted([*self.names.get(reason, []), *names])[:MAX_NAMES]
        self.names[reason] = kept
