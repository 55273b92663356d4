"""Files appear whole or not at all: written in a private folder, then renamed into place.

A process may be killed at any moment. What it leaves then is its private folder, whose name begins
with a dot; whoever writes the same file next removes it. A living writer holds a lock on its
folder, so nobody removes that.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tl_transfer.errors import InputError, TransferError

if sys.platform != "win32":
    import fcntl

#: What a disk that is full, closed or broken raises; safetensors has an error of its own for it.
DISK_ERRORS = (OSError, SafetensorError)
_ENDING = ".part"


def write_atomic(
    path: str | Path,
    write: Callable[[Path], object],
    *,
    what: str = "path",
    hint: str = "nothing was changed; free space or choose another folder",
) -> Path:
    """Call `write` with a path in a private folder beside `path`, then rename it into place.

    Args:
        path: Final name.
        write: Writes the file that it is given.
        what: Begins the message when that fails.
        hint: Ends it.

    Raises:
        InputError: the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    with _private(path, what) as folder:
        temporary = folder / path.name
        try:
            temporary.touch()
            write(temporary)
            # Some writers make files only their owner can read; artefacts are meant to be shared.
            temporary.chmod(0o644)
            os.replace(temporary, path)
        except TransferError:  # some are disk errors themselves, and know more
            raise
        except DISK_ERRORS as error:
            raise write_failed(what, path, error, hint=hint) from error
    return path


@contextmanager
def fresh_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill beside `folder`; renamed to it at the end, or gone after an exception.

    Raises:
        InputError: `folder` holds something already, or cannot be made.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "folder: something is there already",
            got=str(folder),
            valid="a new folder, or an empty one",
            hint="choose another name; nothing is overwritten",
        )
    with _private(folder, "folder") as private:
        building = private / folder.name
        try:
            building.mkdir()
            yield building
            if folder.exists():
                folder.rmdir()
            building.rename(folder)
        except TransferError:
            raise
        except DISK_ERRORS as error:
            hint = "nothing was left behind; free space or choose another folder"
            raise write_failed("folder", folder, error, hint=hint) from error


@contextmanager
def _private(path: Path, what: str) -> Iterator[Path]:
    """A new folder beside `path`, locked while this process lives and gone at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        folder, lock = _locked_folder(path)
    except OSError as error:
        raise cannot_write(what, path.parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_ENDING))
        lock = _lock(folder, wait=True)
        # A sweep may have come between the two: it has taken the folder for an abandoned one.
        if folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _sweep(path: Path) -> None:
    """Remove the private folders of writers of `path` that are dead."""
    with os.scandir(path.parent) as entries:
        left = [e.path for e in entries if _is_private(e.name, path.name) and e.is_dir()]
    for folder in left:
        lock = _lock(Path(folder), wait=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _is_private(found: str, name: str) -> bool:
    """Whether a name is one of ours for a file: a word between its name and the ending."""
    if not (found.startswith(f".{name}.") and found.endswith(_ENDING)):
        return False
    return "." not in found[len(name) + 2 : -len(_ENDING)]


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A lock on a folder; None if another process holds it, or there are no locks here."""
    if sys.platform == "win32":  # what a killed writer leaves stays there
        return None
    handle = None
    with contextlib.suppress(OSError):  # gone, held, or a file system without locks
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return handle
    if handle is not None:
        os.close(handle)
    return None


def require_writable(folder: Path) -> None:
    """Make a folder, and try it with a file that has no name and so cannot be left behind.

    Raises:
        InputError: it takes no files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write("path", folder, error) from error


def cannot_write(what: str, folder: Path, error: OSError) -> InputError:
    """The error for a folder that takes no files."""
    return InputError(
        f"{what}: cannot write in {folder}",
        got=str(error),
        valid="a writable folder",
        hint="choose another folder or change its permissions",
    )


def write_failed(what: str, path: Path, error: Exception, *, hint: str) -> InputError:
    """The error for a file or folder that could not be finished."""
    return InputError(
        f"{what}: writing {path} failed",
        got=str(error),
        valid="enough space and permission",
        hint=hint,
    )
