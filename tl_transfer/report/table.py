"""A small table of texts and sort keys, printed for terminals or written as HTML."""

import html
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tl_transfer.report.reading import number, real

# Marks that reorder the text around them: shown by their code so that a model's output cannot
# rearrange what a terminal prints beside it.
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the number it sorts by (None sorts last)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the row.

    Args:
        title: What the table shows, with the unit.
        columns: Column heads.
        rows: Cells, as many as columns in each row.
        note: How to read it; printed below.
        numeric: Whether the columns after the first hold numbers (set to the right).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    numeric: bool = True

    def __post_init__(self) -> None:
        """Refuse ragged rows: a shifted column would be read as another number."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns: {row}")

    def _repr_html_(self) -> str:
        return render_html(self)

    def __str__(self) -> str:
        return render_text(self)


def plain(value: object) -> Cell:
    """A cell with a bare number, or n/a."""
    return Cell(number(value), real(value))


def render_text(table: Table) -> str:
    """Aligned monospace text; control and reordering characters are shown by their code."""
    heads = [printable(column) for column in table.columns]
    body = [[printable(cell.text) for cell in row] for row in table.rows]
    widths = [
        max(display_width(text) for text in column) for column in zip(heads, *body, strict=True)
    ]
    lines = [printable(table.title), _line(heads, widths, table.numeric)]
    lines.append("  ".join("-" * width for width in widths))
    lines += [_line(row, widths, table.numeric) for row in body]
    if table.note:
        lines += textwrap.wrap(printable(table.note), 96)
    return "\n".join(lines)


def render_html(table: Table, *, css_class: str = "data") -> str:
    """A captioned HTML table with row and column heads; every text is escaped."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    title = escape(table.title)
    kind = f"{css_class} numeric" if table.numeric else css_class
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    rows = "".join(_html_row(row) for row in table.rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
        f'<table class="{escape(kind)}"><caption><span>{title}</span></caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def printable(text: str) -> str:
    """The text on one line, safe for a terminal."""
    return "".join(_visible(character) for character in text)


def escape(text: str) -> str:
    """The text for HTML, quotes included; control and reordering characters by their code."""
    return html.escape("".join(c if c in "\n\t" else _visible(c) for c in text))


def display_width(text: str) -> int:
    """Columns a terminal needs: wide characters two, combining marks none."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def _visible(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or ord(character) in _REORDERING:
        return character.encode("unicode_escape").decode()
    return character


def _line(cells: Sequence[str], widths: Sequence[int], numeric: bool) -> str:
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        gap = " " * (width - display_width(cell))
        parts.append(gap + cell if numeric and index else cell + gap)
    return "  ".join(parts).rstrip()


def _html_row(row: tuple[Cell, ...]) -> str:
    first, *rest = row
    head = f'<th scope="row"{_sort_key(first)}><bdi>{escape(first.text)}</bdi></th>'
    cells = "".join(f"<td{_sort_key(cell)}><bdi>{escape(cell.text)}</bdi></td>" for cell in rest)
    return f"<tr>{head}{cells}</tr>"


def _sort_key(cell: Cell) -> str:
    return "" if cell.value is None else f' data-value="{cell.value!r}"'
