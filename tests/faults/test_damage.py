"""A changed bit or a cut in any artefact is refused, or changes nothing of what it says.

Here some places of each file; ``make soak`` turns every bit (`tools/soak.py`).
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import tiny
from tests.faults.artefacts import Kind, kinds
from tl_transfer.errors import TransferError

NAMES = [
    "steering vector", "vector set", "subspace", "probe", "position vectors", "affine map",
    "relu map", "sums", "feature map", "safety switch", "SAE folder", "training state", "store",
    "report", "layer grid", "part of a run", "hook recipe", "control vector", "plain tensors",
]  # fmt: skip
#: `steer.py` runs without this package, so it has none of our errors.
REFUSALS = {"hook recipe": (ValueError, KeyError)}


@pytest.fixture(scope="module")
def every_kind() -> dict[str, Kind]:
    hf = tiny.tiny_hf("llama", n_layers=3)
    model = tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="llama")
    found = kinds(model)
    assert sorted(found) == sorted(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_or_harmless(name: str, every_kind: Any, tmp_path: Path) -> None:
    chance = random.Random(name)
    n = 25 if name in ("store", "SAE folder", "sums") else 60
    refused = tried = 0
    for file, size in written(every_kind[name], tmp_path):
        places = [*range(12), *(chance.randrange(size) for _ in range(n)), size - 1]
        flips = [(place, 1 << chance.randrange(8)) for place in places if place < size]
        refused += count_refused(every_kind[name], name, tmp_path, file, flips)
        tried += len(flips)
        cuts = [0, 1, 7, 8, 9, size // 2, size - 1]
        assert count_refused(every_kind[name], name, tmp_path, file, cuts) >= len(cuts) - 1
    # Plain tensors carry a description for people, which nobody reads back.
    assert refused > (0.4 if name == "plain tensors" else 0.9) * tried


def written(kind: Kind, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write a kind; its files and their sizes."""
    kind.write(folder)
    for name in kind.files:
        yield folder / name, (folder / name).stat().st_size


def count_refused(
    kind: Kind, name: str, folder: Path, file: Path, damages: Iterable[tuple[int, int] | int]
) -> int:
    """How many changed bits or lengths are refused; the others must change nothing."""
    whole, said = file.read_bytes(), kind.read(folder)
    refused = 0
    for damage in damages:
        changed = bytearray(whole)
        if isinstance(damage, int):
            del changed[damage:]
        else:
            changed[damage[0]] ^= damage[1]
        file.write_bytes(changed)
        try:
            assert kind.read(folder) == said, f"{name}: {file.name}, {damage}"
        except REFUSALS.get(name, TransferError):
            refused += 1
    file.write_bytes(whole)
    return refused
