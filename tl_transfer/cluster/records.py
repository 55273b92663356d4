"""Records: a corpus of files, cut into units that depend on the files alone.

A unit is some rows of a Parquet file or some bytes of a file with one record a line, or several
such pieces of small files. Who reads it, and beside whom, changes nothing about what is in it; this
is why the files are not read through Ray Data, whose blocks follow the size of the cluster, and
whose readers of JSON and text end at the first line that they cannot decode.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.cluster.skips import Skipped
from tl_transfer.data.texts import Text, as_texts, text_hash
from tl_transfer.errors import InputError

LINES = (".jsonl", ".ndjson", ".txt")
SUFFIXES = (".parquet", *LINES)
#: Bytes of one record, at most: several times the longest context.
MAX_RECORD_BYTES = 16 << 20


@dataclass(frozen=True)
class Corpus:
    """Files, and the fields of their records.

    Attributes:
        files: Parquet, JSON lines, or plain text with one text a line; folders and patterns
            (``data/*.parquet``) stand for the files in them. Whatever ``fsspec`` opens, but every
            worker must see it under this name.
        text: Column or key of the text: a string, or a chat as a list of messages.
        document: Column or key of the document id; default, each text is its own document.
    """

    files: tuple[str, ...]
    text: str = "text"
    document: str | None = None

    @classmethod
    def of(
        cls, files: str | Path | Sequence[str | Path], text: str, document: str | None
    ) -> "Corpus":
        """The files behind some names, in the order of the alphabet.

        Raises:
            InputError: there are none, or one of a format that is not read.
        """
        given = [files] if isinstance(files, str | Path) else list(files)
        found = sorted({name for each in given for name in _expand(str(each))})
        wrong = [name for name in found if not name.endswith(SUFFIXES)]
        if wrong or not found:
            raise InputError(
                "files: nothing to read" if not found else "files: a format that is not read",
                got=", ".join(wrong[:3]) or ", ".join(map(str, given)) or "no names",
                valid="files that end in " + ", ".join(SUFFIXES),
                hint="decompress line files, or convert them to Parquet, which is compressed and "
                "can be cut",
            )
        return cls(tuple(found), text, document)


@dataclass(frozen=True)
class Slice:
    """Rows (Parquet) or bytes (lines) of one file; a line belongs to where it begins."""

    path: str
    start: int
    stop: int
    n_bytes: int


#: Pieces that are read together, whoever reads them.
Unit = tuple[Slice, ...]


@dataclass(frozen=True)
class Record:
    """One text of a corpus.

    Attributes:
        where: File and place, for people.
        text: A string or a chat.
        document: Its document; its own hash where none was asked for.
        hash: Its SHA-256.
    """

    where: str
    text: Text
    document: str
    hash: str


def cut(corpus: Corpus, unit_bytes: int) -> list[Unit]:
    """Units of about so many bytes of text each.

    Raises:
        InputError: a file that is gone, no Parquet file, or one without the columns asked for.
    """
    units: list[Unit] = []
    pending: list[Slice] = []
    size = 0
    for path in corpus.files:
        for piece in _slices(corpus, path, unit_bytes):
            pending.append(piece)
            size += piece.n_bytes
            if size >= unit_bytes:
                units.append(tuple(pending))
                pending, size = [], 0
    return [*units, tuple(pending)] if pending else units


def read_unit(corpus: Corpus, unit: Unit, skipped: Skipped) -> Iterator[Record]:
    """The sound records of a unit, always in the same order; the others are counted."""
    for piece in unit:
        read = _read_rows if piece.path.endswith(".parquet") else _read_lines
        for where, value, document in read(corpus, piece, skipped):
            record = _record(corpus, where, value, document, skipped)
            if record is not None:
                yield record


def _record(
    corpus: Corpus, where: str, value: Any, document: Any, skipped: Skipped
) -> Record | None:
    try:
        (text,) = as_texts([value])
    except (InputError, KeyError, TypeError):
        skipped.add("no_text", where, f"{type(value).__name__} in field {corpus.text!r}")
        return None
    said = [text] if isinstance(text, str) else [content for _, content in text.messages]
    try:
        size = sum(len(part.encode()) for part in said)
    except UnicodeEncodeError:
        skipped.add("not_utf8", where, "half of a surrogate pair")
        return None
    if not any(part.strip() for part in said):
        skipped.add("empty", where)
    elif size > MAX_RECORD_BYTES:
        skipped.add("too_large", where, f"{size} bytes")
    elif corpus.document is not None and not isinstance(document, str | int):
        skipped.add("no_document", where, f"field {corpus.document!r}")
    else:
        digest = text_hash(text)
        return Record(where, text, digest if document is None else str(document), digest)
    return None


# -- lines -------------------------------------------------------------------------------------


def _read_lines(corpus: Corpus, piece: Slice, skipped: Skipped) -> Iterator[tuple[str, Any, Any]]:
    try:
        yield from _parsed_lines(corpus, piece, skipped)
    except OSError as error:
        where = f"{piece.path} bytes {piece.start} to {piece.stop}"
        skipped.add("unreadable", where, _first_line(error))


def _parsed_lines(corpus: Corpus, piece: Slice, skipped: Skipped) -> Iterator[tuple[str, Any, Any]]:
    for place, line in _lines(piece):
        where = f"{piece.path} byte {place}"
        if line is None:
            skipped.add("too_large", where, f"more than {MAX_RECORD_BYTES} bytes")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            skipped.add("not_utf8", where, str(error))
            continue
        if piece.path.endswith(".txt"):
            yield where, text, None
            continue
        try:
            found = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            skipped.add("not_json", where, _first_line(error))
            continue
        if found is None and not text.strip():
            skipped.add("empty", where)
        elif not isinstance(found, dict):
            skipped.add("not_json", where, f"a {type(found).__name__}")
        else:
            yield where, found.get(corpus.text), _field(found, corpus.document)


def _lines(piece: Slice) -> Iterator[tuple[int, bytes | None]]:
    """Place and bytes of every line that begins in the slice; None for one that is too large."""
    with _open(piece.path) as file:
        place = max(0, piece.start - 1)
        file.seek(place)
        # One byte before: if it ends a line, the slice begins with a line of its own.
        while piece.start and place < piece.stop:
            part = file.readline(1 << 20)
            place += len(part)
            if not part or part.endswith(b"\n"):
                break
        while place < piece.stop:
            line = file.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            start, whole = place, len(line) <= MAX_RECORD_BYTES
            place += len(line)
            while not whole and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
                place += len(line)
                if not line:
                    break
            yield start, line.rstrip(b"\r\n") if whole else None


# -- Parquet -----------------------------------------------------------------------------------


def _read_rows(corpus: Corpus, piece: Slice, skipped: Skipped) -> Iterator[tuple[str, Any, Any]]:
    try:
        with _open(piece.path) as handle:
            file = _parquet().ParquetFile(handle)
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                rows = range(max(first, piece.start), min(last, piece.stop))
                if rows:
                    yield from _read_group(corpus, file, piece.path, group, first, rows, skipped)
                first = last
    except (OSError, ValueError) as error:  # the file itself; ArrowInvalid is a ValueError
        where = f"{piece.path} rows {piece.start} to {piece.stop - 1}"
        skipped.add("unreadable", where, _first_line(error), n=piece.stop - piece.start)


def _read_group(
    corpus: Corpus,
    file: Any,
    path: str,
    group: int,
    first: int,
    rows: range,
    skipped: Skipped,
) -> Iterator[tuple[str, Any, Any]]:
    """Some rows of one row group; where its pages are damaged, the rest of them are counted."""
    found, following = _scalars(corpus, file, group, first, rows), rows.start
    while True:
        try:
            row, value, document = next(found)
        except StopIteration:
            return
        except (OSError, ValueError) as error:
            where = f"{path} rows {following} to {rows.stop - 1}"
            skipped.add("unreadable", where, _first_line(error), n=rows.stop - following)
            return
        where, following = f"{path} row {row}", row + 1
        try:
            text = value.as_py()
            name = None if document is None else document.as_py()
        except UnicodeDecodeError as error:
            skipped.add("not_utf8", where, str(error))
            continue
        yield where, text, name


def _scalars(
    corpus: Corpus, file: Any, group: int, first: int, rows: range
) -> Iterator[tuple[int, Any, Any]]:
    """Row number, text and document (Arrow scalars, not yet decoded)."""
    columns = [corpus.text, *([corpus.document] if corpus.document else [])]
    for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
        texts = batch.column(corpus.text)
        names = batch.column(corpus.document) if corpus.document else None
        for i in range(max(0, rows.start - first), min(len(texts), rows.stop - first)):
            yield first + i, texts[i], None if names is None else names[i]
        first += len(texts)
        if first >= rows.stop:
            return


# -- cutting -----------------------------------------------------------------------------------


def _slices(corpus: Corpus, path: str, unit_bytes: int) -> list[Slice]:
    try:
        if path.endswith(".parquet"):
            return _row_slices(corpus, path, unit_bytes)
        system, name = _filesystem(path)
        size = int(system.info(name)["size"])
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"files: {path} cannot be opened",
            got=_first_line(error),
            valid="a complete file that every worker can read",
            hint="check it, or leave it out",
        ) from error
    return [
        Slice(path, start, min(start + unit_bytes, size), min(unit_bytes, size - start))
        for start in range(0, size, unit_bytes)
    ]


def _row_slices(corpus: Corpus, path: str, unit_bytes: int) -> list[Slice]:
    with _open(path) as handle:
        file = _parquet().ParquetFile(handle)
        names = set(file.schema_arrow.names)
        missing = [n for n in (corpus.text, corpus.document) if n is not None and n not in names]
        if missing:
            raise InputError(
                f"files: {path} has no column {', '.join(missing)}",
                got=", ".join(file.schema_arrow.names),
                valid="the name of a column of text (and one of document ids)",
                hint="name it with text= (and document=)",
            )
        n_rows, n_bytes = file.metadata.num_rows, 0
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            columns = [found.column(i) for i in range(found.num_columns)]
            n_bytes += sum(
                column.total_uncompressed_size
                for column in columns
                if column.path_in_schema.split(".")[0] == corpus.text
            )
    step = max(1, round(unit_bytes * n_rows / max(n_bytes, 1)))
    share = n_bytes / max(n_rows, 1)
    return [
        Slice(path, start, min(start + step, n_rows), round(share * min(step, n_rows - start)))
        for start in range(0, n_rows, step)
    ]


# -- files -------------------------------------------------------------------------------------


def _expand(name: str) -> list[str]:
    system, path = _filesystem(name)
    scheme = f"{name.split('://')[0]}://" if "://" in name else ""
    if any(mark in path for mark in "*?["):
        found = [str(each) for each in system.glob(path)]
    elif system.isdir(path):
        found = [str(each) for each in system.find(path) if str(each).endswith(SUFFIXES)]
    else:
        found = [path]
    return [scheme + each.removeprefix(scheme) for each in found]


def _filesystem(name: str) -> tuple[Any, str]:
    import fsspec

    system, path = fsspec.core.url_to_fs(name)
    return system, str(path)


def _open(path: str) -> Any:
    system, name = _filesystem(path)
    return system.open(name, "rb")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "files: Parquet needs the package pyarrow",
            got="a .parquet file",
            valid="JSON lines or plain text without it",
            hint='pip install "tl-transfer[ray]", or pyarrow alone',
        ) from error
    return pyarrow.parquet


def _field(found: dict[str, Any], name: str | None) -> Any:
    return None if name is None else found.get(name)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
