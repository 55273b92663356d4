"""Files appear whole or not at all: written under a temporary name, then renamed into place."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_transfer.errors import InputError


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    Raises:
        InputError: the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise cannot_write("path", path.parent, error) from error
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files only their owner can read; artefacts are meant to be shared.
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        hint = "nothing was changed; free space or choose another folder"
        raise write_failed("path", path, error, hint=hint) from error
    finally:
        temporary.unlink(missing_ok=True)
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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise cannot_write("folder", folder.parent, error) from error
    try:
        yield building
        building.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    except OSError as error:
        hint = "nothing was left behind; free space or choose another folder"
        raise write_failed("folder", folder, error, hint=hint) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def cannot_write(what: str, folder: Path, error: OSError) -> InputError:
    """The error for a folder that takes no files."""
    return InputError(
        f"{what}: cannot write in {folder}",
        got=str(error),
        valid="a writable folder",
        hint="choose another folder or change its permissions",
    )


def write_failed(what: str, path: Path, error: OSError, *, hint: str) -> InputError:
    """The error for a file or folder that could not be finished."""
    return InputError(
        f"{what}: writing {path} failed",
        got=str(error),
        valid="enough space and permission",
        hint=hint,
    )
