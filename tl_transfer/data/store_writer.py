"""Writing a store: shards of a fixed size, and a manifest that is always in step with them.

After every shard the manifest says which batch comes next and how many of its rows are written.
Whoever goes on reads that batch again and leaves those out; so a store that was interrupted ends
with the same bytes as one that was not.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tl_transfer.data.shards import require_checksum, write_json, write_shard
from tl_transfer.data.store import FORMAT, MANIFEST, read_manifest
from tl_transfer.data.store_texts import TEXTS, TextTable
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.files import cannot_write


class BusyError(InputError):
    """Another process writes into the same store."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the lock of a killed one is free.

    Raises:
        BusyError: another process writes there.
        InputError: nobody may write there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"store: another process is capturing into {folder}",
            got="a lock that is held",
            valid="a folder of its own for each capture",
            hint="wait for it, or choose another folder",
        ) from error
    except OSError as error:
        raise cannot_write("store", folder, error) from error
    try:
        yield
    finally:
        lock.release()


class StoreWriter:
    """Goes on with a capture, or begins one.

    Args:
        folder: An empty one, or one of the same spec; see `claimed`.
        spec: Whatever decides about the bytes of the store.
        table: The texts, in the order in which they are read.
        shard_rows: Rows of a shard.

    Attributes:
        complete: Nothing is left to do.
        next_batch: The batch to go on with.
        limits: Norms above which a row is massive, as the capture learned them.
        dropped: Tokens left out before `next_batch`, by reason.
        not_finite: Hashes of the texts left out for an activation that is not finite.
        n_written: Rows that are there.

    Raises:
        InputError: the folder holds something else.
        ArtefactError: it holds a store of another version.
    """

    def __init__(
        self, folder: Path, spec: dict[str, Any], table: TextTable, shard_rows: int
    ) -> None:
        self._folder, self._size = folder, shard_rows
        self._manifest = _begin(folder, spec, table)
        shards = self._manifest["shards"]
        self.complete: bool = self._manifest["complete"]
        self.limits: dict[str, float] = self._manifest["limits"]
        self.not_finite: list[str] = self._manifest.get("not_finite", [])
        self.next_batch: int
        self._skip: int
        self.next_batch, self._skip = shards[-1]["next"] if shards else (0, 0)
        self.dropped: dict[str, int] = shards[-1]["dropped"] if shards else {}
        self.n_written: int = sum(shard["n_rows"] for shard in shards)
        self._buffer: dict[str, Tensor] = {}
        self._fill = 0

    def add(self, columns: dict[str, Tensor], batch: int, dropped: dict[str, int]) -> None:
        """Add the rows of the next batch.

        Args:
            columns: Name -> one value or row each.
            batch: Its number.
            dropped: What had been left out before it.
        """
        n, offset, self._skip = len(columns["text"]), self._skip, 0
        while offset < n:
            part = min(self._size - self._fill, n - offset)
            for name, column in columns.items():
                if name not in self._buffer:
                    shape = (self._size, *column.shape[1:])
                    self._buffer[name] = torch.empty(shape, dtype=column.dtype)
                into = self._buffer[name][self._fill : self._fill + part]
                into.copy_(column[offset : offset + part])
            self._fill += part
            offset += part
            if self._fill == self._size:
                self._write((batch, offset), dropped)
        self.next_batch, self.dropped = batch + 1, dict(dropped)

    def finish(self, counts: dict[str, int]) -> None:
        """Write the rows that are left, and say that the store is complete."""
        if self._fill:
            left_out = {reason: n for reason, n in counts.items() if reason in self.dropped}
            self._write((self.next_batch, 0), left_out)
        self._manifest |= {"complete": True, "counts": counts, **self._left_out()}
        write_json(self._folder / MANIFEST, self._manifest)

    def _write(self, following: tuple[int, int], dropped: dict[str, int]) -> None:
        name = f"rows-{len(self._manifest['shards']):05d}.safetensors"
        path = self._folder / name
        digest = write_shard(path, {k: rows[: self._fill] for k, rows in self._buffer.items()})
        entry = {
            "file": name,
            "n_rows": self._fill,
            "n_bytes": path.stat().st_size,
            "sha256": digest,
            "next": list(following),
            "dropped": dict(dropped),
        }
        self._manifest["shards"].append(entry)
        self._manifest["limits"] = self.limits
        self._manifest |= self._left_out()
        write_json(self._folder / MANIFEST, self._manifest)
        self.n_written += self._fill
        self._fill = 0

    def _left_out(self) -> dict[str, list[str]]:
        return {"not_finite": self.not_finite} if self.not_finite else {}


def _begin(folder: Path, spec: dict[str, Any], table: TextTable) -> dict[str, Any]:
    """The manifest to go on from: what is sound of an earlier capture, or a new one."""
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        _require_same(folder, manifest["spec"], spec)
        try:
            require_checksum(folder / TEXTS, manifest["texts"])
        except ArtefactError:
            table.write(folder)
        return _sound(folder, manifest)
    strangers = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if strangers - {TEXTS}:  # a table without a manifest was killed early
        raise InputError(
            f"store: {folder} holds something else",
            got=", ".join(sorted(strangers)[:5]),
            valid="an empty folder, or one of the same capture",
            hint="choose another folder",
        )
    manifest = {
        "kind": "activation_store",
        "format": FORMAT,
        "complete": False,
        "spec": spec,
        "texts": table.write(folder),
        "limits": {},
        "counts": {},
        "shards": [],
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _sound(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest up to the first shard that is missing or of another length."""
    sound = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["n_bytes"]:
            break
        sound.append(entry)
    complete = manifest["complete"] and len(sound) == len(manifest["shards"])
    return {**manifest, "shards": sound, "complete": complete}


def _require_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    def compared(spec: dict[str, Any]) -> dict[str, Any]:
        # The name under which a model was loaded, and its commit on the hub, are for people: its
        # weights are compared.
        spaces = [{k: v for k, v in space.items() if k != "model"} for space in spec["spaces"]]
        return {**{k: v for k, v in spec.items() if k != "revision"}, "spaces": spaces}

    old, new = compared(old), compared(new)
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if changed:
        raise InputError(
            f"store: {folder} holds another capture; it differs in {', '.join(changed)}",
            got=str({name: new.get(name) for name in changed})[:400],
            valid=str({name: old.get(name) for name in changed})[:400],
            hint="choose another folder, or capture what is there with the same arguments",
        )
