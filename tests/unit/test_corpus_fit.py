"""A fit on files is the fit on a list, whatever the units; bad records are counted, not fatal."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import cluster_models as cm
from tl_transfer.cli import main
from tl_transfer.cluster.checkpoint import Checkpoint
from tl_transfer.cluster.engines import Local, engine_of
from tl_transfer.cluster.fit import _merged
from tl_transfer.cluster.job import Job, ModelSite
from tl_transfer.cluster.partial import Partial
from tl_transfer.cluster.records import Corpus, cut, read_unit
from tl_transfer.cluster.run import Run
from tl_transfer.cluster.skips import Skipped
from tl_transfer.cluster.worker import Worker
from tl_transfer.errors import ArtefactError, InputError, SpaceError

MOMENTS = ("mean_x", "mean_y", "xx", "xy", "yy")


def difference(one: tt.Sums, two: tt.Sums, *, control: bool = True) -> float:
    """Largest relative difference of any sum; everything that is counted must be equal."""
    assert one.hashes == two.hashes and one.documents == two.documents
    assert one.report == two.report
    for a, b in zip(one.norms, two.norms, strict=True):
        assert torch.equal(a.counts, b.counts)
    worst = 0.0
    pairs = zip([*one.folds, one.held_out.moments], [*two.folds, two.held_out.moments], strict=True)
    for a, b in pairs:
        assert a.n == b.n > 0
        for name in MOMENTS + (("xy_shuffled",) if control else ()):
            x, y = getattr(a, name), getattr(b, name)
            worst = max(worst, float((x - y).norm() / y.norm()))
    return worst


class Scrambled:
    """An engine that does units last first, each by both of its two workers."""

    @contextmanager
    def pool(self, job: Job) -> Iterator[Any]:
        self._workers = (Worker(job), Worker(job))
        yield self

    def map(self, method: str, items: Any) -> Iterator[tuple[int, Any]]:
        for number in reversed(range(len(items))):
            results = [getattr(worker, method)(items[number]) for worker in self._workers]
            yield number, results[number % 2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, cm.write_corpus(folder)


def test_a_fit_on_files_is_the_fit_on_a_list(rows: Any) -> None:
    folder, given = rows
    options: dict[str, Any] = {"document": "doc", "progress": False}
    sites = [load().at(hook) for load, hook in cm.SITES]
    texts, documents = zip(*given, strict=True)
    listed = tt.collect(*sites, texts=texts, documents=documents, progress=False)
    whole = tt.fit_corpus(*cm.SITES, folder, **options)
    assert difference(whole.sums, listed) < 1e-12  # one unit, one part: the control's pairs too
    small = tt.fit_corpus(*cm.SITES, folder, unit_bytes=700, **options)
    assert small.report.n_units > 5
    assert difference(small.sums, listed, control=False) < 1e-9
    assert small.sums.held_out.document.tolist() == whole.sums.held_out.document.tolist()
    assert torch.allclose(small.sums.held_out.x, whole.sums.held_out.x, atol=1e-5)

    other = tt.fit_corpus(*cm.SITES, folder, unit_bytes=700, engine=Scrambled(), **options)
    assert difference(other.sums, small.sums) < 1e-9 and other.report == small.report
    assert torch.allclose(other.mapper.weight, small.mapper.weight, rtol=1e-6)

    turned = folder.parent / f"{folder.name}-turned"
    turned.mkdir()
    for place, path in enumerate(sorted(folder.glob("*.jsonl"), reverse=True)):
        lines = path.read_bytes().splitlines()
        (turned / f"{place}.jsonl").write_bytes(b"\n".join(reversed(lines)))
    back = tt.fit_corpus(*cm.SITES, turned, unit_bytes=1700, **options)
    assert difference(back.sums, whole.sums, control=False) < 1e-9
    assert torch.allclose(back.sums.held_out.x, whole.sums.held_out.x, atol=1e-5)

    card, fitted = small.mapper.scorecard, tt.fit_sums(listed).scorecard
    assert abs(card["held_out"]["fvu"] - fitted["held_out"]["fvu"]) < 1e-9


def test_bad_records_are_counted_named_and_change_nothing_else(tmp_path: Path, rows: Any) -> None:
    clean = tt.fit_corpus(*cm.SITES, rows[0], document="doc", unit_bytes=700, progress=False)
    extra = [
        b'{"text": "\xff"}',
        b'{"text": "waves ~ and ~ foam", "doc": "poison"}',
        json.dumps({"text": "long " * 400, "doc": "x"}).encode(),
        json.dumps({"text": rows[1][0][0], "doc": rows[1][0][1]}).encode(),
    ]
    cm.write_corpus(tmp_path, extra=extra)
    poisoned = (cm.poisoned, "resid_post@1")
    options: dict[str, Any] = {"document": "doc", "unit_bytes": 900, "progress": False}
    found = tt.fit_corpus(poisoned, cm.SITES[1], tmp_path, **options)
    report = found.report
    assert {"not_utf8", "not_finite", "too_long", "repeated"} <= set(report.skipped.counts)
    assert report.skipped.n == 4 and report.n_texts == 90 == report.n_records - 4
    (place,) = report.skipped.names["not_finite"]
    raw = (tmp_path / "part-1.jsonl").read_bytes()
    assert place.endswith(f"byte {raw.index(extra[1])}")
    for a, b in zip(found.sums.folds, clean.sums.folds, strict=True):
        # Other weights, so only counts and the target's side can be compared.
        assert a.n == b.n and float((a.yy - b.yy).norm() / b.yy.norm()) < 1e-9
    assert found.sums.hashes == clean.sums.hashes
    assert found.sums.dropped["source"]["not_finite"] > 5

    stored = tt.capture_corpus(poisoned, tmp_path, store=tmp_path / "s", **options)
    assert stored.report.skipped.counts == report.skipped.counts
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("rows-*")}
    again = tt.capture_corpus(poisoned, tmp_path, store=tmp_path / "s", **options)
    assert again.report == stored.report
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("rows-*")} == before


class Fails(Scrambled):
    """An engine that breaks down after some units, like a driver that is killed."""

    def __init__(self, after: int) -> None:
        self._after = after

    def map(self, method: str, items: Any) -> Iterator[tuple[int, Any]]:
        for number, item in enumerate(items):
            if method == "sums" and number == self._after:
                raise KeyboardInterrupt
            yield number, getattr(self._workers[0], method)(item)


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path: Path, rows: Any) -> None:
    options: dict[str, Any] = {"document": "doc", "unit_bytes": 900, "progress": False}
    whole = tt.fit_corpus(*cm.SITES, rows[0], **options)
    options["checkpoint"] = tmp_path / "check"
    with pytest.raises(KeyboardInterrupt):
        tt.fit_corpus(*cm.SITES, rows[0], engine=Fails(4), **options)
    with pytest.raises(InputError, match=r"holds another fit\n +got: +another seed"):
        tt.fit_corpus(*cm.SITES, rows[0], seed=1, **options)
    with pytest.raises(KeyboardInterrupt):
        tt.fit_corpus(*cm.SITES, rows[0], engine=Fails(2), **options)
    for _ in range(2):  # the second time nothing is left to be read
        again = tt.fit_corpus(*cm.SITES, rows[0], engine=Fails(99), **options)
        assert difference(again.sums, whole.sums) < 1e-9 and again.report == whole.report
    damaged = bytearray((tmp_path / "check" / "total.safetensors").read_bytes())
    damaged[-9] ^= 1
    (tmp_path / "check" / "total.safetensors").write_bytes(damaged)
    with pytest.raises(ArtefactError, match="contents changed"):
        tt.fit_corpus(*cm.SITES, rows[0], **options)


class Remembered:
    """An engine that does every unit once, however often it is asked."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    @contextmanager
    def pool(self, job: Job) -> Iterator[Any]:
        self._worker = Worker(job)
        yield self

    def map(self, method: str, items: Any) -> Iterator[tuple[int, Any]]:
        for number, item in enumerate(items):
            key = (method, getattr(item, "number", number))
            if key not in self._known:
                self._known[key] = getattr(self._worker, method)(item)
            yield number, self._known[key]


@contextmanager
def ctrl_c_at_line(name: str, n: int) -> Iterator[None]:
    """KeyboardInterrupt before the n-th line that a function runs."""
    left = [n]

    def local(frame: Any, event: str, _: Any) -> Any:
        left[0] -= event == "line"
        if left[0] < 0:
            raise KeyboardInterrupt
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: local if frame.f_code.co_name == name else None)
    try:
        yield
    finally:
        sys.settrace(before)


def test_ctrl_c_between_any_two_lines_counts_no_unit_twice(tmp_path: Path, rows: Any) -> None:
    job = Job(Corpus.of(rows[0], "text", "doc"), tuple(ModelSite(*site) for site in cm.SITES))
    engine, n = Remembered(), 0

    def merged(folder: Path) -> tuple[Partial, int]:
        run = Run(job, 2000, False)
        total = _merged(run, engine, Checkpoint(folder, run.spec()))
        assert total is not None and run.skipped == total.skipped
        return total, run.report(0).n_units

    whole, n_units = merged(tmp_path / "whole")
    while True:
        folder, n = tmp_path / str(n), n + 1
        try:
            with ctrl_c_at_line("_merged", n):
                merged(folder)
            break
        except KeyboardInterrupt:
            again, _ = merged(folder)
            assert difference(again.sums(job.tokens, 0), whole.sums(job.tokens, 0)) < 1e-9, n
    assert n_units > 2 and n > 3 * n_units


def test_other_contents_or_options_are_another_job(tmp_path: Path) -> None:
    """A file of the same name and size, or models of another dtype, do not go on with the old."""
    file = tmp_path / "a.txt"
    file.write_text("one text\nanother\n")

    def spec(**options: str) -> dict[str, Any]:
        sites = tuple(ModelSite(*site, options) for site in cm.SITES)
        return Run(Job(Corpus.of(tmp_path, "text", None), sites), 10**6, False).spec()

    first = spec()
    assert spec() == first and spec(dtype="bfloat16") != first
    file.write_text("two texts\nanothe\n")
    os.utime(file, ns=(1, 1))
    changed = {key for key, value in spec().items() if value != first[key]}
    assert changed == {"contents"}


def test_a_text_that_a_tokenizer_refuses_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello there"}]
    lines = [json.dumps({"text": text}) for text in ("a plain text", chat, "another one")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus, skipped = Corpus.of(tmp_path, "text", None), Skipped()
    sites = tuple(ModelSite(*site) for site in cm.SITES)
    worker = Worker(Job(corpus, sites, tokens=tt.Tokens(role="user")))
    found = list(read_unit(corpus, cut(corpus, 10**6)[0], skipped))
    texts, readings = worker._readable(found, skipped)
    assert [text.hash for text in texts] == [found[1].hash] and len(readings[1]) == 1
    assert skipped.counts == {"not_tokenised": 2}
    assert "llama: tokens: a plain text has no template" in skipped.names["not_tokenised"][0]


def test_stores_of_two_captures_make_the_same_sums(tmp_path: Path, rows: Any) -> None:
    options: dict[str, Any] = {"document": "doc", "unit_bytes": 3000, "progress": False}
    live = tt.fit_corpus(*cm.SITES, rows[0], **options).sums
    for i, site in enumerate(cm.SITES):
        tt.capture_corpus(site, rows[0], store=tmp_path / str(i), **options)
    total = None
    stores = [tt.open_stores(tmp_path / str(i)) for i in (0, 1)]
    assert len(stores[0]) > 1
    for here, there in zip(*stores, strict=True):
        sums = tt.collect(here, there, progress=False)
        total = sums if total is None else total + sums
    assert total is not None and difference(total, live, control=False) < 1e-9
    with pytest.raises(ArtefactError, match="not the capture of a corpus"):
        (tmp_path / "0" / "corpus.json").write_text('{"stores": ["../../etc"]}')
        tt.open_stores(tmp_path / "0")


def test_what_ends_a_job_says_why(tmp_path: Path, rows: Any) -> None:
    (tmp_path / "blank.txt").write_text("\n\n  \n")
    with pytest.raises(InputError, match=r"not one row(.|\n)*3 records were skipped\n +3 empty"):
        tt.fit_corpus(*cm.SITES, tmp_path / "blank.txt", progress=False)
    (tmp_path / "nothing.txt").touch()
    with pytest.raises(InputError, match=r"not one row(.|\n)*nothing was skipped"):
        tt.fit_corpus(*cm.SITES, tmp_path / "nothing.txt", progress=False)
    with pytest.raises(InputError, match=r"which reads rows"):
        tt.fit_corpus(*cm.SITES, rows[0], method="autoencoder")
    with pytest.raises(InputError, match="a model that every worker can load"):
        tt.fit_corpus((cm.source(), "resid_post@1"), cm.SITES[1], rows[0])
    with pytest.raises(InputError, match="engine: unknown"):
        engine_of("spark")
    with pytest.raises(InputError, match="actors: only workers on Ray"):
        engine_of("local", actors=2)


def test_workers_with_other_weights_are_refused(rows: Any) -> None:
    job = Job(Corpus.of(rows[0], "text", "doc"), tuple(ModelSite(*site) for site in cm.SITES))
    (one, two, *_) = [
        Partial.unpacked(packed) for _, packed in Run(job, 3000, False).results(Local(), "sums")
    ]
    assert (one + two).report.n_texts == 90
    other = replace(one.spaces[0], weights="of another revision")
    with pytest.raises(SpaceError, match="sums of two workers"):
        one + replace(two, spaces=(other, two.spaces[1]))


def test_without_ray_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = ["--source", "a@resid_post@1", "--target", "b@resid_post@1", "--engine", "ray"]
    assert main(["fit", str(rows[0]), *flags, "--actors", "2"]) == 2
    assert 'pip install "tl-transfer[ray]"' in capsys.readouterr().err
    assert main(["fit", str(rows[0]), "--source", "resid_post@1", "--target", "b@x"]) == 2
    assert "--source: a model and a hook point" in capsys.readouterr().err


def test_the_command_writes_what_it_says(
    tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import tiny

    flags = []
    for side, (family, kind) in {"source": ("llama", "bos"), "target": ("qwen2", "nobos")}.items():
        tokenizer = tiny.tiny_tokenizer(kind)
        tiny.tiny_hf(family, vocab_size=len(tokenizer)).save_pretrained(tmp_path / side)
        tokenizer.save_pretrained(tmp_path / side)
        flags += [f"--{side}", f"{tmp_path / side}@resid_post@1"]
    out = tmp_path / "out"
    command = ["fit", str(rows[0]), *flags, "--document", "doc", "--out", str(out), "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "90 of 90 records read, from 3 files in 1 units\nnothing was skipped" in said
    assert "held-out FVU 0." in said
    mapper = tt.load(out / "mapper.safetensors")
    assert json.loads((out / "corpus.json").read_text())["report"]["n_texts"] == 90
    again = tt.fit_sums(tt.load(out / "sums.safetensors"))
    assert torch.equal(again.weight, mapper.weight)
