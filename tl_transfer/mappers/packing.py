"""Maps of every kind, and sums, as a JSON header and tensors; `persistence` writes the file.

The shuffled control and the way back are maps themselves and lie under a prefix.
"""

import re
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.align import AlignmentReport
from tl_transfer.mappers.base import AffineMap, Mapper
from tl_transfer.mappers.relu import ReluMap
from tl_transfer.mappers.scorecard import HeldOut
from tl_transfer.mappers.sums import Sums
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import NormHistogram, PairedMoments

#: A kind's name in the header, and the class.
MAPS: dict[str, type[Mapper]] = {"affine_map": AffineMap, "relu_map": ReluMap}

_SUMS = ("mean_x", "mean_y", "xx", "xy", "yy")
_ROWS = ("x", "y", "document")
_ALL_SUMS = (*_SUMS, "xy_shuffled")
_PARTS = ("shuffled", "backward")
_SIDES = ("documents.train", "documents.test")
_SHA256 = re.compile("[0-9a-f]{64}")
_HEADER = ("source_norm", "target_norm", "method", "settings", "scorecard")


def pack_map(mapper: Mapper) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a map with all that belongs to it."""
    header, tensors = _pack_one(mapper)
    _pack_hashes("fit_texts", mapper.fit_texts, header, tensors)
    if mapper.held_out is not None:
        # In float64: scores of single directions must be the same after loading.
        header["n_held_out"] = mapper.held_out.n
        tensors |= {f"held_out.{name}": getattr(mapper.held_out, name) for name in _SUMS}
    if mapper.held_out_rows is not None:
        tensors |= {f"held_out.rows.{name}": getattr(mapper.held_out_rows, name) for name in _ROWS}
    for part in _PARTS:
        inner = getattr(mapper, part)
        if inner is not None:
            header[part], inside = _pack_one(inner)
            tensors |= {f"{part}.{name}": tensor for name, tensor in inside.items()}
    return header, tensors


def unpack_map(header: dict[str, Any], tensors: dict[str, Tensor]) -> Mapper:
    """Inverse of `pack_map`; a missing part raises KeyError or TypeError."""
    # Tensors of a mapped file lie where the file puts them. Aligned like any other tensor, they
    # give the same last bits as before they were saved.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    held_out = None
    if "n_held_out" in header:
        sums = {name: tensors[f"held_out.{name}"] for name in _SUMS}
        # The control's own sums are needed for fitting only and were not kept.
        held_out = PairedMoments(
            n=header["n_held_out"], xy_shuffled=torch.zeros_like(sums["xy"]), **sums
        )
    common: dict[str, Any] = {"fit_texts": _unpack_hashes("fit_texts", header, tensors)}
    rows = None
    if held_out is not None and "held_out.rows.x" in tensors:
        rows = HeldOut(held_out, *(tensors[f"held_out.rows.{name}"] for name in _ROWS))
    parts: dict[str, Any] = {}
    for part in _PARTS:
        if part in header:
            test = held_out
            if part == "backward" and held_out is not None:
                test = held_out.reversed()
            inside = {
                name.removeprefix(f"{part}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{part}.")
            }
            own = rows if part == "shuffled" else None
            parts[part] = _unpack_one(
                header[part], inside, held_out=test, held_out_rows=own, **common
            )
    return _unpack_one(header, tensors, held_out=held_out, held_out_rows=rows, **common, **parts)


def _pack_one(mapper: Mapper) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kind = next(name for name, cls in MAPS.items() if type(mapper) is cls)
    header: dict[str, Any] = {
        "kind": kind,
        "source": mapper.source.to_json(),
        "target": mapper.target.to_json(),
    }
    return header | {name: getattr(mapper, name) for name in _HEADER}, mapper.tensors()


def _unpack_one(header: dict[str, Any], tensors: dict[str, Tensor], **more: Any) -> Mapper:
    parameters: dict[str, Any] = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(("fit_texts", "held_out.", *(f"{part}." for part in _PARTS)))
    }
    return MAPS[header["kind"]](
        source=ActivationSpace.from_json(header["source"]),
        target=ActivationSpace.from_json(header["target"]),
        **{name: header[name] for name in _HEADER},
        **parameters,
        **more,
    )


def pack_sums(sums: Sums) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of sums, the control's own included."""
    held_out = sums.held_out
    tensors = {
        "rows.x": held_out.x,
        "rows.y": held_out.y,
        "rows.document": held_out.document,
        "norms.source": sums.norms[0].counts,
        "norms.target": sums.norms[1].counts,
    }
    parts = {**{f"fold{i}": fold for i, fold in enumerate(sums.folds)}, "test": held_out.moments}
    for name, moments in parts.items():
        tensors |= {f"{name}.{field}": getattr(moments, field) for field in _ALL_SUMS}
    for name, numbers in zip(_SIDES, sums.documents, strict=True):
        tensors[name] = torch.tensor(sorted(numbers), dtype=torch.int64)
    header: dict[str, Any] = {
        "kind": "sums",
        "source": sums.source.to_json(),
        "target": sums.target.to_json(),
        "n": {name: moments.n for name, moments in parts.items()},
        "report": asdict(sums.report),
        **{name: getattr(sums, name) for name in ("dropped", "tokens", "seed")},
    }
    _pack_hashes("hashes", sums.hashes, header, tensors)
    return header, tensors


def unpack_sums(header: dict[str, Any], tensors: dict[str, Tensor]) -> Sums:
    """Inverse of `pack_sums`; a missing part raises KeyError or TypeError."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def moments(name: str) -> PairedMoments:
        return PairedMoments(
            n=header["n"][name], **{field: tensors[f"{name}.{field}"] for field in _ALL_SUMS}
        )

    train, test = header.get("documents") or (tensors[name].tolist() for name in _SIDES)
    return Sums(
        source=ActivationSpace.from_json(header["source"]),
        target=ActivationSpace.from_json(header["target"]),
        folds=tuple(moments(f"fold{i}") for i in range(len(header["n"]) - 1)),
        held_out=HeldOut(
            moments("test"), tensors["rows.x"], tensors["rows.y"], tensors["rows.document"]
        ),
        norms=(_histogram(tensors["norms.source"]), _histogram(tensors["norms.target"])),
        hashes=_unpack_hashes("hashes", header, tensors),
        documents=(frozenset(train), frozenset(test)),
        report=AlignmentReport(**header["report"]),
        **{name: header[name] for name in ("dropped", "tokens", "seed")},
    )


def _pack_hashes(
    name: str, hashes: frozenset[str], header: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Hashes of texts as bytes: safetensors refuses headers over 100 MB, a million of them in hex.

    Whatever is no SHA-256 goes into the header.
    """
    if hashes and all(_SHA256.fullmatch(each) for each in hashes):
        raw = bytearray.fromhex("".join(sorted(hashes)))
        tensors[name] = torch.frombuffer(raw, dtype=torch.uint8).view(-1, 32)
    else:
        header[name] = sorted(hashes)


def _unpack_hashes(name: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> frozenset[str]:
    if name in header:
        return frozenset(header[name])
    return frozenset(row.tobytes().hex() for row in tensors[name].numpy())


def _histogram(counts: Tensor) -> NormHistogram:
    histogram = NormHistogram()
    histogram.counts = counts
    return histogram
