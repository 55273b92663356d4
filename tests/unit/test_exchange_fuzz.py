"""Files from strangers: our own error or a result, and no memory beyond the file."""

import contextlib
import json
import struct
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_transfer as tt
from tests.fuzz import examples
from tl_transfer import exchange
from tl_transfer.errors import ArtefactError, TransferError
from tl_transfer.exchange import gguf_format
from tl_transfer.space import ActivationSpace

SPACE = ActivationSpace(
    "tiny", "w" * 64, "blocks.1.hook_resid_post", 6, "raw", "t" * 64, "none", "float32"
)
FUZZ = examples(150)


def vector() -> tt.SteeringVector:
    return tt.SteeringVector(torch.arange(1.0, 7.0), SPACE, 2.5, "mean_difference", {"n": 3})


@cache
def sound(folder: Path, kind: str) -> bytes:
    path = folder / f"sound.{kind}"
    if kind == "gguf":
        exchange.write_control_vector(vector(), path)
    elif kind == "tensors":
        exchange.write_tensors(vector(), path)
    elif kind == "map":
        torch.save({"linear.weight": torch.ones(3, 6), "linear.bias": torch.ones(3)}, path)
    else:
        tt.save(vector(), path)
    return path.read_bytes()


def read(path: Path, kind: str) -> object:
    if kind == "gguf":
        return exchange.read_control_vector(path)
    if kind == "tensors":
        from tl_transfer.exchange.tensors import _read

        return _read(path)
    if kind == "map":
        from tl_transfer.exchange.published_mappers import _state

        return _state(path, {"source_dim": 6, "target_dim": 3})
    return tt.load(path)


@pytest.mark.parametrize("kind", ["gguf", "tensors", "artefact", "map"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    content = sound(tmp_path, kind)
    path = tmp_path / "damaged"

    @FUZZ
    @given(data=st.data())
    def damage(data: st.DataObject) -> None:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        cut = data.draw(st.integers(0, len(changed)))
        path.write_bytes(bytes(changed[: cut if data.draw(st.booleans()) else None]))
        with contextlib.suppress(TransferError):
            read(path, kind)

    damage()


@FUZZ
@given(noise=st.binary(max_size=400), headed=st.booleans())
def test_noise(noise: bytes, headed: bool, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes((b"GGUF" + struct.pack("<I", 3) if headed else b"") + noise)
    for kind in ("gguf", "tensors", "artefact", "map"):
        with pytest.raises(TransferError):
            read(path, kind)


def header(n_tensors: int, n_entries: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor_info(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


BOMBS = {
    "tensors without end": (header(1 << 60, 0, b""), "implausible count"),
    "entries without end": (header(0, 1 << 60, b""), "implausible count"),
    "a long name": (header(0, 1, struct.pack("<Q", 1 << 62)), "ends too early"),
    "a long array": (header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 6, 1 << 61)), "too early"),
    "a long list of texts": (
        header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 61)),
        "too early",
    ),
    "arrays in arrays": (
        header(0, 1, text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 40),
        "unknown type",
    ),
    "a large tensor": (header(1, 0, tensor_info(b"direction.1", (1 << 50,))), "more tensors"),
    "an offset far out": (
        header(1, 0, tensor_info(b"direction.1", (2,), offset=1 << 63) + bytes(64)),
        "ends before the data",
    ),
    "shared bytes": (
        header(100, 0, b"".join(tensor_info(b"direction.%d" % i, (900,)) for i in range(100)))
        + bytes(4000),
        "more tensors than data",
    ),
    "a quantised tensor": (header(1, 0, tensor_info(b"direction.1", (32,), kind=8)), "quantised"),
    "many dimensions": (header(1, 0, tensor_info(b"direction.1", (1,) * 9)), "too many dimensions"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "another version"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path) -> None:
    content, message = BOMBS[name]
    (tmp_path / "bomb.gguf").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ArtefactError, match=message):
        exchange.read_control_vector(tmp_path / "bomb.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_whole_model_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(gguf_format.MAX_BYTES + 1)
    with pytest.raises(ArtefactError, match="too large for a control vector"):
        exchange.read_control_vector(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "lie",
    [
        "{",
        "[]",
        "null",
        json.dumps({"1": {}}),
        json.dumps({"1": {"space": 3, "median_norm": 1, "method": "", "provenance": {}}}),
        json.dumps(
            {
                "1": {
                    "space": {**SPACE.to_json(), "hook_point": "blocks.7.hook_resid_post"},
                    "median_norm": 1.0,
                    "method": "",
                    "provenance": {},
                }
            }
        ),
        "[" * 100_000,
    ],
)
def test_a_false_identity(lie: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "lie.gguf", "controlvector")
    writer.add_string("tl_transfer.vectors", lie)
    writer.add_tensor("direction.1", np.ones(6, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtefactError, match="does not fit them"):
        exchange.read_control_vector(tmp_path / "lie.gguf")
