"""The cache folder: where it is, who may write now, and what a full or closed disk means."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tl_transfer.errors import FetchError, TransferError

_LOG = logging.getLogger(__name__)
_SPARE = 64 << 20  # bytes left free on the disk


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
    except TransferError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(folder, str(error)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise FetchError(
                "the cache folder cannot be written",
                got=f"{folder}: {error}",
                valid="a folder you may write to",
                hint="set TL_TRANSFER_CACHE to another folder",
            ) from error
        raise FetchError(
            "the cache folder cannot be used",
            got=f"{folder}: {error}",
            hint="look at the disk, or set TL_TRANSFER_CACHE to another folder",
        ) from error


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
