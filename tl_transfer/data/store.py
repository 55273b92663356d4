"""ActivationStore: rows of one model on the disk, which know where and how they were read.

A store is a folder: ``manifest.json`` (what was read, by whom, and the checksum of every file),
``texts.safetensors`` (hash, document and
chosen tokens of every text, in the order in which they were read) and shards
of equally many rows. Rows are named by the text and by the bytes that were read, so two stores of
two models join without either model. `tl_transfer.capture` writes one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.shards import map_shard, require_checksum
from tl_transfer.data.store_texts import TEXTS, TextTable
from tl_transfer.data.texts import Text, text_hash
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.models.point import HookPoint
from tl_transfer.sealed import MALFORMED, read_json
from tl_transfer.space import ActivationSpace

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoredRows:
    """Some rows of a store.

    Attributes:
        values: Hook point -> rows, in the dtype of the model.
        text: Number of the text of each row, in `ActivationStore.hashes`.
        key: What the token has read; equal keys of one text correspond (see `Tokens`).
        position: Position of the token; -1 for the mean of a text.
    """

    values: dict[str, Float[Tensor, "row d_model"]]
    text: Int[Tensor, " row"]
    key: Int[Tensor, " row"]
    position: Int[Tensor, " row"]


class ActivationStore:
    """A finished capture.

    Args:
        folder: Where it was written.
        verify: Compare every file with its checksum when it is first used.

    Attributes:
        spaces: Hook point -> space of its rows.
        tokens: Which tokens were read.
        hashes: SHA-256 of every text, in the order in which they were read.
        documents: Document of every text.
        texts: All that is known of them.
        n_rows: Rows of each hook point.
        counts: ``n_tokens`` chosen, and those left out: ``position_0``, ``massive_norm``.
        not_finite: Hashes of texts left out for an activation that is not finite.
        manifest: All that is known (JSON).

    Raises:
        ArtefactError: no store, an unfinished one, or one of another version.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder, self._verify = Path(folder), verify
        manifest = read_manifest(self.folder)
        if not manifest["complete"]:
            raise ArtefactError(
                f"{self.folder}: this capture was not finished",
                got=f"{sum(s['n_rows'] for s in manifest['shards'])} rows so far",
                valid="a complete store",
                hint="call tl_transfer.capture again with the same arguments: it goes on",
            )
        self.texts = TextTable.read(self.folder, manifest["texts"] if verify else None)
        self.manifest: dict[str, Any] = manifest
        spaces = [ActivationSpace.from_json(space) for space in manifest["spec"]["spaces"]]
        self.spaces = {space.hook_point: space for space in spaces}
        self.tokens = Tokens(**manifest["spec"]["tokens"])
        self.hashes, self.documents = self.texts.hashes, self.texts.documents
        self.counts: dict[str, int] = manifest["counts"]
        self.not_finite: tuple[str, ...] = tuple(manifest.get("not_finite", ()))
        sizes = [shard["n_rows"] for shard in manifest["shards"]]
        self._starts = np.cumsum([0, *sizes])
        self.n_rows = int(self._starts[-1])
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        space = next(iter(self.spaces.values()))
        return (
            f"ActivationStore({str(self.folder)!r}, {self.n_rows} rows, {len(self.hashes)} texts, "
            f"{space.model} @ {', '.join(self.spaces)}, {self.manifest['spec']['dtype']})"
        )

    def at(self, hook_point: str) -> "StoreSite":
        """One hook point of the store, as `fit` takes it.

        Raises:
            InputError: it was not captured.
        """
        found = [
            s for s in self.sites() if hook_point in (s.name, f"{s.point.kind}@{s.point.layer}")
        ]
        if not found:
            raise InputError(
                "hook_point: not in this store",
                got=repr(hook_point),
                valid=", ".join(self.spaces),
                hint="capture it, together with the others or into another folder",
            )
        return found[0]

    def sites(self) -> list["StoreSite"]:
        """All its hook points."""
        return [StoreSite(self, name) for name in self.spaces]

    def rows(self, text: Text) -> StoredRows:
        """The rows of one text.

        Raises:
            InputError: the text was not captured.
        """
        name = text_hash(text)
        if name not in self.number:
            raise InputError(
                "text: not in this store",
                got=repr(text)[:80],
                valid=f"one of the {len(self.hashes)} texts that were captured",
                hint="texts are compared by their hash: every character counts",
            )
        start, end = self.span(self.number[name])
        return self.take(np.arange(start, end))

    def batches(
        self,
        size: int = 4096,
        *,
        seed: int | None = None,
        hook_points: Sequence[str] | None = None,
    ) -> Iterator[StoredRows]:
        """All rows, in the order in which they were read, or in random order.

        Args:
            size: Rows of a batch.
            seed: Of a random order over the whole store; default, the order of reading.
            hook_points: Read these only.
        """
        names = [self.at(name).name for name in hook_points] if hook_points else None
        order = np.arange(self.n_rows)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.n_rows, generator=generator).numpy()
        for start in range(0, self.n_rows, size):
            yield self.take(order[start : start + size], names)

    def take(self, index: np.ndarray, names: Sequence[str] | None = None) -> StoredRows:
        """Rows by number, in any order.

        Args:
            index: Numbers of rows, from 0.
            names: Hook points; None: all.
        """
        names = list(self.spaces if names is None else names)
        shard = np.searchsorted(self._starts, index, side="right") - 1
        columns: dict[str, list[Tensor]] = {name: [] for name in (*names, *_COLUMNS)}
        places = []
        for k in np.unique(shard):
            here = np.flatnonzero(shard == k)
            rows = torch.from_numpy(index[here] - self._starts[k])
            places.append(here)
            for name, parts in columns.items():
                parts.append(self.shard(int(k))[name][rows])
        back = torch.from_numpy(np.argsort(np.concatenate([*places, np.empty(0, dtype=np.int64)])))
        found = {
            name: torch.cat(parts)[back] if parts else self._none(name)
            for name, parts in columns.items()
        }
        text, key, position = (found.pop(name).long() for name in _COLUMNS)
        return StoredRows(found, text, key, position)

    def _none(self, name: str) -> Tensor:
        return torch.empty(0, self.spaces[name].d_model) if name in self.spaces else torch.empty(0)

    def shard(self, number: int) -> dict[str, Tensor]:
        """Columns of one shard, mapped into memory and checked at its first use."""
        if number not in self._mapped:
            entry = self.manifest["shards"][number]
            path = self.folder / entry["file"]
            if self._verify:
                require_checksum(path, entry["sha256"])
            found = map_shard(path)
            wanted = {*self.spaces, *_COLUMNS}
            if set(found) != wanted or {len(t) for t in found.values()} != {entry["n_rows"]}:
                raise self._malformed(number, {k: tuple(t.shape) for k, t in found.items()})
            self._mapped[number] = found
        return self._mapped[number]

    def _malformed(self, number: int, got: object) -> ArtefactError:
        entry = self.manifest["shards"][number]
        return ArtefactError(
            f"{self.folder / entry['file']}: not the shard that the manifest describes",
            got=got,
            valid=f"{entry['n_rows']} rows of {', '.join((*self.spaces, *_COLUMNS))}, "
            f"texts below {len(self.hashes)}",
            hint="capture again",
        )

    def span(self, text: int) -> tuple[int, int]:
        """First row of a text and the row after its last one."""
        return int(self._ends[text] - self._n_of_text[text]), int(self._ends[text])

    @cached_property
    def number(self) -> dict[str, int]:
        """Hash of a text -> its number."""
        return {name: i for i, name in enumerate(self.hashes)}

    @cached_property
    def _n_of_text(self) -> np.ndarray:
        counts = np.zeros(len(self.hashes), dtype=np.int64)
        for k in range(len(self.manifest["shards"])):
            numbers = self.shard(k)["text"].numpy()
            # A number out of range would make as many counts as it says.
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(counts):
                raise self._malformed(k, f"texts {numbers.min()} to {numbers.max()}")
            counts += np.bincount(numbers, minlength=len(counts))
        return counts

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self._n_of_text)

    def verify(self) -> None:
        """Compare all files with their checksums.

        Raises:
            ArtefactError: one of them is missing or changed.
        """
        require_checksum(self.folder / TEXTS, self.manifest["texts"])
        for entry in self.manifest["shards"]:
            require_checksum(self.folder / entry["file"], entry["sha256"])


_COLUMNS = ("text", "key", "position")


@dataclass(frozen=True)
class StoreSite:
    """A store at one hook point."""

    store: ActivationStore
    name: str

    @property
    def space(self) -> ActivationSpace:
        """Identity of the rows."""
        return self.store.spaces[self.name]

    @property
    def point(self) -> HookPoint:
        """The hook point."""
        _, layer, kind = self.name.split(".")
        return HookPoint(kind.removeprefix("hook_"), int(layer))

    def __repr__(self) -> str:
        return f"StoreSite({str(self.store.folder)!r} @ {self.name})"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ArtefactError: there is none, or it is of another kind or version.
    """
    manifest = read_json(
        folder / MANIFEST,
        written_by="tl_transfer.capture (a store)",
        hint="capture into another folder",
    )
    if manifest.get("kind") != "activation_store":
        raise ArtefactError(
            f"{folder}: not a store of activations",
            got=f"{MANIFEST} of another kind",
            valid="a folder written by tl_transfer.capture",
            hint="check the path",
        )
    if manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder}: a store of another format version",
            got=manifest.get("format"),
            valid=FORMAT,
            hint="read it with the version of tl_transfer that wrote it, or capture again",
        )
    try:
        _require_form(manifest)
    except MALFORMED as error:
        raise ArtefactError(
            f"{folder}: {MANIFEST} does not describe a store",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="a manifest written by tl_transfer.capture",
            hint="capture into another folder",
        ) from error
    return manifest


def _require_form(manifest: dict[str, Any]) -> None:
    """Raise any of `MALFORMED` if something is missing, or would lead out of the folder."""
    spec = manifest["spec"]
    for space in spec["spaces"]:
        ActivationSpace.from_json(space)
    Tokens(**spec["tokens"])
    for name, kind in {"complete": bool, "counts": dict, "limits": dict, "texts": str}.items():
        if not isinstance(manifest[name], kind):
            raise TypeError(name)
    for number, shard in enumerate(manifest["shards"]):
        if shard["file"] != f"rows-{number:05d}.safetensors":
            raise ValueError(f"shard {number} in {shard['file']!r}")
        batch, skipped = shard["next"]
        sizes = (shard["n_rows"], shard["n_bytes"], batch, skipped)
        if min(sizes) < 0 or not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"sizes of shard {number}")
        if not isinstance(shard["sha256"], str) or not isinstance(shard["dropped"], dict):
            raise TypeError(f"shard {number}")
