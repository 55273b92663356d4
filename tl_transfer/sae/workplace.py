"""The folder that an SAE is trained in: what is made there, and what may not be overwritten."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tl_transfer import sealed
from tl_transfer.errors import InputError

CARD, SETTINGS, STATE, ROWS = "card.json", "training.json", "training.safetensors", "rows"
CLOCK = "seconds.json"


def claim(folder: Path, spec: dict[str, Any]) -> None:
    """Write down what is trained here; refuse a folder that holds something else."""
    there = folder / SETTINGS
    if there.is_file():
        _require_same(folder, read_json(there), spec)
        return
    # A hidden name is what a killed writer left.
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(
            "folder: something is there already",
            got=str(folder),
            valid="a new folder, or one of this very training",
            hint="choose another name; nothing is overwritten",
        )
    write_json(there, spec)


def finished(folder: Path, spec: dict[str, Any]) -> bool:
    """Whether this very training was done there; another one is refused."""
    there = folder / SETTINGS
    if not (folder / CARD).is_file() or not there.is_file():
        return False
    _require_same(folder, read_json(there), spec)
    return True


def clear(folder: Path, keep_rows: bool) -> None:
    """Remove what only an unfinished training needs; the card is there already."""
    for name in (STATE, CLOCK):
        (folder / name).unlink(missing_ok=True)
    if not keep_rows:
        shutil.rmtree(folder / ROWS, ignore_errors=True)


def _require_same(folder: Path, found: dict[str, Any], spec: dict[str, Any]) -> None:
    # A finished SAE stays one when sae-lens is upgraded; a state does not: its digest holds that.
    keys = [key for key in spec if key != "sae_lens" and found.get(key) != spec[key]]
    if keys:
        flat = {key: (found.get(key), spec[key]) for key in keys}
        raise InputError(
            f"folder: holds another SAE, which differs in {', '.join(keys)}",
            got=f"{folder}: { {key: pair[0] for key, pair in flat.items()} }"[:600],
            valid=f"{ {key: pair[1] for key, pair in flat.items()} }"[:600],
            hint="choose another folder, or remove this one",
        )


def digest(value: Any) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """With a checksum; whole or not at all."""
    sealed.write_json(path, value, indent=2, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        ArtefactError: it is damaged.
    """
    return sealed.read_json(path, written_by="train_sae", hint="remove the folder and train again")
