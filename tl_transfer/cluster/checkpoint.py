"""A total that is written down as it grows, so that an interrupted fit goes on where it was.

The order of merging does not matter, so the units that are done need only be named.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_transfer.cluster.partial import Partial
from tl_transfer.cluster.skips import Skipped
from tl_transfer.data.align import AlignmentReport
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.persistence import read_artefact, write_artefact
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import PairedMoments

#: Seconds between two writes: one of the larger pairs takes a few seconds to write.
EVERY = 300.0
_ARRAYS = ("x", "y", "document", "key")


class Checkpoint:
    """The file of a fit, or nothing where none is wanted.

    Args:
        folder: Where it is; None: nothing is written or read.
        spec: Whatever decides about the units and what is computed of them.
        clock: Tells seconds.
    """

    def __init__(
        self,
        folder: str | Path | None,
        spec: dict[str, Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = None if folder is None else Path(folder) / "total.safetensors"
        self._spec, self._clock = spec, clock
        self._written = clock()

    def read(self) -> tuple[Partial | None, set[int]]:
        """What was merged so far, and the numbers of its units.

        Raises:
            InputError: the folder holds another fit.
            ArtefactError: the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return None, set()
        header, tensors = read_artefact(self._path)
        if header.get("kind") != "partial" or header.get("spec") != self._spec:
            theirs = header.get("spec")
            known = theirs if isinstance(theirs, dict) else {}
            changed = sorted(k for k in self._spec if known.get(k) != self._spec[k])
            raise InputError(
                f"checkpoint: {self._path.parent} holds another fit",
                got=f"another {', '.join(changed) or 'kind of file'}",
                valid="an empty folder, or that of the same files, models and arguments",
                hint="choose another folder",
            )
        try:
            return _unpack(header, tensors), set(header["done"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(
                f"{self._path}: the header does not describe its contents",
                got=repr(error),
                valid="a file written by a fit on a corpus",
                hint="delete it and run again",
            ) from error

    def offer(self, total: Partial | None, done: set[int], *, now: bool = False) -> None:
        """Write the total, if there is one and the last write is long ago, or at once."""
        if (
            self._path is None
            or total is None
            or not (now or self._clock() - self._written >= EVERY)
        ):
            return
        header, tensors = _pack(total)
        header |= {"spec": self._spec, "done": sorted(done)}
        write_artefact(self._path, header, tensors)
        self._written = self._clock()


def _pack(total: Partial) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {name: torch.tensor(getattr(total, name)) for name in _ARRAYS}
    tensors["hashes"] = torch.tensor(np.concatenate(total.hashes))
    tensors["documents"] = torch.tensor(np.concatenate(total.documents))
    for side, counts in zip(("source", "target"), total.norms, strict=True):
        tensors[f"norms.{side}"] = torch.tensor(counts)
    for number, fold in enumerate(total.folds):
        tensors |= {
            f"fold{number}.{f.name}": getattr(fold, f.name) for f in fields(fold) if f.name != "n"
        }
    header = {
        "kind": "partial",
        "spaces": [space.to_json() for space in total.spaces],
        "n": [fold.n for fold in total.folds],
        "report": asdict(total.report),
        "dropped": total.dropped,
        "skipped": asdict(total.skipped),
    }
    return header, tensors


def _unpack(header: dict[str, Any], tensors: dict[str, Tensor]) -> Partial:
    source, target = (ActivationSpace.from_json(space) for space in header["spaces"])
    names = [f.name for f in fields(PairedMoments) if f.name != "n"]
    return Partial(
        spaces=(source, target),
        folds=[
            PairedMoments(n, **{name: tensors[f"fold{i}.{name}"] for name in names})
            for i, n in enumerate(header["n"])
        ],
        norms=(tensors["norms.source"].numpy(), tensors["norms.target"].numpy()),
        **{name: tensors[name].numpy() for name in _ARRAYS},
        hashes=[tensors["hashes"].numpy()],
        documents=[tensors["documents"].numpy()],
        report=AlignmentReport(**header["report"]),
        dropped=header["dropped"],
        skipped=Skipped(**header["skipped"]),
    )
