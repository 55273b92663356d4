"""Full disks, closed folders, two writers, wrong clocks, poor locales, Ctrl-C: real, in forks."""

import ast
import fcntl
import locale
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.faults.artefacts import Kind, kinds, vector
from tests.faults.jobs import JOBS, Campaign, digests, leftovers
from tests.faults.victim import fork, require_done, start
from tl_transfer import cli
from tl_transfer.errors import ArtefactError, TransferError
from tl_transfer.files import write_atomic
from tl_transfer.sae.folder import write_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="faults happen to forks")
PACKAGE = Path(tt.__file__).parent


@pytest.fixture(scope="module")
def every_kind() -> dict[str, Kind]:
    hf = tiny.tiny_hf("llama", n_layers=3)
    return kinds(tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="llama"))


def require_refusal(write: Callable[[Path], object], folder: Path) -> None:
    with pytest.raises(TransferError, match="got:"):
        write(folder)


@pytest.mark.parametrize("limit", [0, 100])
def test_a_full_disk_is_an_error_of_ours_and_loses_nothing(
    limit: int, every_kind: dict[str, Kind], tmp_path: Path
) -> None:
    """The kernel refuses bytes beyond a limit, also those that libraries write for us."""
    for name, kind in every_kind.items():
        (tmp_path / name).mkdir()
        if name not in ("hook recipe", "store", "training state"):  # they are not written over
            kind.write(tmp_path / name)
    before = digests(tmp_path)

    def with_a_full_disk() -> None:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        for name, kind in every_kind.items():
            require_refusal(kind.write, tmp_path / name)

    require_done(fork(with_a_full_disk))
    after = digests(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all("store" in name for name in set(after) - set(before)), set(after) - set(before)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_read_only_folder_is_an_error_of_ours(every_kind: dict[str, Kind]) -> None:
    # A finished store is opened, which needs no permission; the others read files of this package,
    # which may itself be closed to nobody.
    unwritten = ("store", "hook recipe", "part of a run")
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to others
        Path(root).chmod(0o755)
        for name, kind in every_kind.items():
            folder = Path(root) / name
            folder.mkdir(mode=0o755)
            kind.write(folder)  # imports what it needs, and is there to be lost
            folder.chmod(0o555)
        before = digests(Path(root))

        def as_nobody() -> None:
            torch.set_num_threads(1)
            os.setgid(65534)
            os.setuid(65534)
            for name, kind in every_kind.items():
                if name not in unwritten:
                    require_refusal(kind.write, Path(root) / name)

        require_done(fork(as_nobody))
        assert digests(Path(root)) == before


def test_two_writers_of_one_file_never_show_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    wanted = [vector(seed).direction for seed in (1, 2)]
    tt.save(vector(1), path)

    def write(seed: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(60):
                tt.save(vector(seed), path)

        return work

    writers, seen = [start(write(1)), start(write(2))], 0
    while any(not _ended(writer) for writer in writers):
        found = tt.load(path)
        assert isinstance(found, tt.SteeringVector)
        assert any(torch.equal(found.direction, direction) for direction in wanted)
        seen += 1
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0] and seen > 5
    assert leftovers(tmp_path) == []


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def test_what_a_dead_writer_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"

    def die_while_writing() -> None:
        write_atomic(path, lambda part: os.kill(os.getpid(), signal.SIGKILL))

    assert fork(die_while_writing) == -signal.SIGKILL
    (left,) = leftovers(tmp_path)[:1]
    (tmp_path / f".{path.name}.too.part").mkdir()
    (tmp_path / f".{path.name}.own.txt.part").mkdir()  # the private folder of another name
    living = os.open(tmp_path / f".{path.name}.too.part", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    tt.save(vector(), path)
    os.close(living)
    assert not (tmp_path / left).exists()
    assert (tmp_path / f".{path.name}.too.part").is_dir()
    assert (tmp_path / f".{path.name}.own.txt.part").is_dir()


@pytest.mark.parametrize("what", ["clock", "locale"])
def test_neither_the_clock_nor_the_locale_changes_a_file(
    what: str, every_kind: dict[str, Kind], tmp_path: Path
) -> None:
    # The first two hold the code's hash; safetensors writes several descriptions in any order.
    names = [n for n in every_kind if n not in ("hook recipe", "part of a run", "plain tensors")]
    for name in names:
        (tmp_path / name).mkdir()
        every_kind[name].write(tmp_path / name)

    def elsewhere() -> None:
        torch.set_num_threads(1)
        if what == "locale":
            locale.setlocale(locale.LC_ALL, "C")
        else:
            time.time = lambda: -1e9  # type: ignore[assignment]
            for path in tmp_path.rglob("*"):
                os.utime(path, (4e9, 4e9))  # files from the future
        for name in names:
            there = every_kind[name]
            said = there.read(tmp_path / name)
            new = tmp_path / f"{name} again"
            new.mkdir()
            there.write(new)
            assert there.read(new) == said, name

    require_done(fork(elsewhere))
    found = digests(tmp_path)
    for name, digest in found.items():
        folder, _, file = name.partition("/")
        if not folder.endswith(" again"):
            assert found[f"{folder} again/{file}"] == digest, name


def test_every_text_file_is_opened_as_utf8() -> None:
    """What the locale says must not matter."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _needs_encoding(node)
    ]
    assert not found, found


def _needs_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name not in ("read_text", "write_text") or any(k.arg == "encoding" for k in call.keywords):
        return False
    # importlib.metadata's `read_text` takes a file name and knows its encoding.
    return name == "write_text" or not call.args


@pytest.mark.parametrize("name", [n for n in JOBS if n not in ("SAE training", "run and report")])
def test_ctrl_c_is_a_clean_end(name: str, tmp_path: Path) -> None:
    campaign = Campaign(JOBS[name](), tmp_path)
    campaign.interrupt(0)


def test_ctrl_c_on_the_command_line_is_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return 0

    monkeypatch.setattr(cli, "_models", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["models"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "finished files are kept" in capsys.readouterr().err


def test_an_sae_folder_is_the_old_one_or_the_new_one_whenever_its_writer_dies(
    every_kind: dict[str, Kind], tmp_path: Path
) -> None:
    rows = torch.randn(9, 12, generator=torch.Generator().manual_seed(5))
    zero = torch.zeros(12)
    other = tt.Dictionary.of(tt.SparseCoder(rows.T, torch.zeros(9), rows, zero, zero, "topk", 2))
    kind, replaces, seen = every_kind["SAE folder"], os.replace, []
    for before in (True, False):
        for deadly in range(3):
            folder = tmp_path / f"{before} {deadly}"
            folder.mkdir()
            if before:
                write_folder(other, folder)

            def die(at: Path = folder, deadly: int = deadly) -> None:
                count = iter(range(9))

                def replace(*names: Any) -> None:
                    if next(count) == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)
                    replaces(*names)

                os.replace = replace  # type: ignore[assignment]
                kind.write(at)

            assert fork(die) == (0 if deadly == 2 else -signal.SIGKILL)
            if deadly or before:
                seen.append((deadly, tt.load_sae(folder).identity == other.identity))
            else:
                with pytest.raises(ArtefactError, match="not an SAE folder"):
                    tt.load_sae(folder)
            kind.write(folder)  # whatever was left, it can be written again
            assert tt.load_sae(folder).identity != other.identity
    assert seen == [(0, True), (1, False), (2, False), (1, False), (2, False)]
    assert leftovers(tmp_path) == []
    # What is not a whole configuration of another SAE is damage.
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(text.replace('"d_sae": 9', '"d_sae": 8'))
    with pytest.raises(ArtefactError, match="changed since it was saved"):
        tt.load_sae(folder)
