"""Corpora: every record once, whatever the size of a unit, and every bad one by its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from tl_transfer.cluster import records
from tl_transfer.cluster.records import Corpus, cut, read_unit
from tl_transfer.cluster.skips import MAX_NAMES, Skipped
from tl_transfer.errors import InputError

TEXTS = [f"record {i} " + "word " * (i % 7) for i in range(60)]


def read(corpus: Corpus, unit_bytes: int) -> tuple[list[Any], Skipped]:
    skipped, found = Skipped(), []
    for unit in cut(corpus, unit_bytes):
        found += [(r.text, r.document, r.where) for r in read_unit(corpus, unit, skipped)]
    return found, skipped


def test_every_line_is_read_once_however_the_files_are_cut(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "doc": i // 4}) for i, text in enumerate(TEXTS)]
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines[20:]))  # no end of line at the end
    (tmp_path / "a.ndjson").write_text("\n".join(lines[:20]) + "\n")
    (tmp_path / "notes.md").write_text("not a corpus")
    corpus = Corpus.of(tmp_path, "text", "doc")
    whole, skipped = read(corpus, 10**9)
    assert [text for text, _, _ in whole] == TEXTS and not skipped.counts
    assert [document for _, document, _ in whole] == [str(i // 4) for i in range(60)]
    sizes = {size: cut(corpus, size) for size in (1, 7, 50, 333)}
    assert len(sizes[7]) > len(sizes[333]) > 3
    for size in sizes:
        assert read(corpus, size) == (whole, skipped)


def test_bad_lines_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2000)
    bad = {
        "not_utf8": [b'{"text": "\xff"}', b'{"text": "\\ud800"}'],
        "not_json": [b"{", b"[" * 1500, b"[1]", b"7"],
        "no_text": [b'{"text": 5}', b'{"other": "x"}', b'{"text": [{"role": "user"}]}'],
        "empty": [b"", b"   ", b'{"text": " \\n"}', b'{"text": ""}'],
        "too_large": [b'{"text": "' + b"x" * 5000 + b'"}', b"y" * 9000],
        "no_document": [b'{"text": "fine", "doc": null}', b'{"text": "fine"}'],
    }
    good = b'{"text": "good", "doc": "d"}'
    lines = [line for group in bad.values() for each in group for line in (each, good)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    corpus = Corpus.of(path, "text", "doc")
    for size in (10**6, 100):
        found, skipped = read(corpus, size)
        assert len(found) == len(lines) // 2
        assert skipped.counts == {reason: len(group) for reason, group in bad.items()}
    place = path.read_bytes().index(b"y" * 9000)
    assert f"{path} byte {place}: more than 2000 bytes" in skipped.names["too_large"]
    assert "2 no_document: no document id" in str(skipped)
    chat = [{"role": "user", "content": "hi"}]
    path.write_text(json.dumps({"text": chat}))
    (only,) = read(Corpus.of(path, "text", None), 100)[0]
    assert only[0].to_messages() == chat


def test_names_do_not_depend_on_the_order_of_merging() -> None:
    parts = []
    for i in range(30):
        parts.append(Skipped())
        parts[-1].add("empty", f"line {i:02d}")
    one, two = Skipped(), Skipped()
    for part in parts:
        one.merge(part)
    for part in reversed(parts):
        two.merge(part)
    assert one == two and one.n == 30 and len(one.names["empty"]) == MAX_NAMES


def test_parquet_is_cut_by_rows_and_survives_a_damaged_part(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = [text.encode() for text in TEXTS]
    raw[3], raw[8] = b"\xff\xfe", b" "
    column = arrow.array([None, *raw], arrow.binary()).view(arrow.string())
    table = arrow.table({"text": column, "doc": list(range(61)), "more": [0.5] * 61})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=17)
    corpus = Corpus.of(str(tmp_path / "*.parquet"), "text", "doc")
    whole, skipped = read(corpus, 10**9)
    assert len(whole) == 58 and whole[0] == (TEXTS[0], "1", f"{path} row 1")
    assert skipped.counts == {"no_text": 1, "not_utf8": 1, "empty": 1}
    assert len(cut(corpus, 200)) > 3 and read(corpus, 200) == (whole, skipped)
    with pytest.raises(InputError, match=r"has no column body\n.*got: +text, doc, more"):
        cut(Corpus.of(path, "body", None), 100)

    group = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    damaged[start : start + group.total_compressed_size] = b"\0" * group.total_compressed_size
    path.write_bytes(damaged)
    found, skipped = read(corpus, 200)
    assert skipped.counts["unreadable"] == 17 and len(found) == len(whole) - 17


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone/*.jsonl", "files: nothing to read"),
        ("data.jsonl.gz", r"files: a format that is not read\n.*\n.*\n.*decompress"),
        ("gone.txt", r"files: .*gone.txt cannot be opened\n.*FileNotFoundError"),
        ("broken.parquet", r"files: .*broken.parquet cannot be opened"),
    ],
)
def test_files_that_cannot_be_a_corpus(tmp_path: Path, name: str, message: str) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        (tmp_path / name).write_text("no parquet")
    with pytest.raises(InputError, match=message):
        cut(Corpus.of(tmp_path / name, "text", None), 100)
