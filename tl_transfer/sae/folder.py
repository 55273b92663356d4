"""SAE folders in the form of sae-lens (cfg.json, sae_weights.safetensors), without sae-lens.

What is read here is read the same on TransformerLens 3 and 4, and what is written here sae-lens
loads with ``SAE.load_from_disk``. Space and card of an SAE that was trained or folded here are in
the metadata of its configuration, where sae-lens keeps what it does not know.

A folder of ours is replaced by one rename: the weights carry the configuration that belongs to them
too, so whoever is killed before the other file follows leaves the new SAE whole, beside the
configuration of the old one (which carries a seal of its own and is known by it).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.files import write_atomic
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sealed import SEAL, changed, is_sound, seal

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
#: Key of the metadata under which the activation space is kept.
SPACE = "activation_space"
#: Key of the checksum in the metadata of the weights; and of the sealed configuration, before.
_OURS = "tl_transfer.sha256"
#: Keys of the entry: the checksum of both files, and the configuration.
_BOTH, _OWN = "sha256", "cfg"
_WRITTEN = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abstopk": "abstopk",
            "gated": "gated"}  # fmt: skip


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of an SAE folder.

    Raises:
        ArtefactError: no such folder, or a file of it is missing, damaged or of another kind.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise _not_a_folder(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get(_OURS)
        there = (folder / CONFIG).is_file()
        beside = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if there else None
        own = json.loads(written) if written is not None and written.startswith("{") else None
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise ArtefactError(
            f"{folder}: damaged SAE folder",
            got=f"{type(error).__name__}: {error}",
            valid=f"JSON in {CONFIG}, tensors in {WEIGHTS}",
            hint="fetch or save it again",
        ) from error
    if there and not isinstance(beside, dict):
        raise ArtefactError(
            f"{folder}: {CONFIG} is not a configuration",
            got=type(beside).__name__,
            valid="a JSON object",
            hint="fetch or save it again",
        )
    if isinstance(own, dict):
        cfg = own.get(_OWN)
        # Another configuration that is whole is that of the SAE before: its writer was killed.
        stale = beside is None or (beside != cfg and _is_sealed(beside))
        if not isinstance(cfg, dict) or not (stale or beside == cfg):
            raise changed(folder, own.get(_BOTH), "train or save the SAE again")
        written = own.get(_BOTH)
    elif beside is None:
        raise _not_a_folder(folder)
    else:
        cfg = beside
    # Folders of other tools have no checksum.
    if written is not None and not is_sound({**cfg, SEAL: written}, tensors):
        raise changed(folder, written, "train or save the SAE again")
    return _unsealed(cfg), tensors


def _not_a_folder(folder: Path) -> ArtefactError:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no folder"
    return ArtefactError(
        f"{folder}: not an SAE folder",
        got=f"{', '.join(missing)} missing; found {there}",
        valid=f"a folder with {CONFIG} and {WEIGHTS}",
        hint="sae-lens writes it with save_model (save_inference_model while training)",
    )


def _sealed(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a hash of itself in its metadata, which sae-lens leaves alone."""
    bare = _unsealed(cfg)
    return {**bare, "metadata": {**bare["metadata"], SEAL: seal(bare)[SEAL]}}


def _is_sealed(cfg: dict[str, Any]) -> bool:
    metadata = cfg.get("metadata")
    return isinstance(metadata, dict) and SEAL in metadata and _sealed(cfg) == cfg


def _unsealed(cfg: dict[str, Any]) -> dict[str, Any]:
    metadata = cfg.get("metadata")
    if not isinstance(metadata, dict):
        return cfg
    return {**cfg, "metadata": {key: value for key, value in metadata.items() if key != SEAL}}


def write_folder(
    dictionary: Dictionary, folder: str | Path, *, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write an SAE as a folder that sae-lens loads.

    Args:
        dictionary: A plain SAE.
        folder: Where; files of the same names are replaced.
        metadata: JSON to keep beside what the SAE says of itself.

    Raises:
        InputError: an object that is only asked, or an encoder that no configuration describes.
    """
    folder, coder = Path(folder), dictionary.coder
    if not isinstance(coder, SparseCoder):
        raise InputError(
            "dictionary: its encoder is not known, only asked",
            got=repr(dictionary),
            valid="a plain SAE",
            hint="save the object itself with the library it comes from",
        )
    applied = bool(coder.offset.equal(coder.b_dec)) and bool(coder.b_dec.any())
    if not applied and bool(coder.offset.any()):
        raise InputError(
            "dictionary: what it subtracts from its input is not its decoder bias",
            got="another offset",
            valid="offset = b_dec, or none",
            hint="fold (b_dec - offset) W_enc into b_enc and set offset = b_dec",
        )
    cfg: dict[str, Any] = {
        "architecture": _WRITTEN[coder.activation],
        "d_in": dictionary.d_model,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": applied,
        "normalize_activations": coder.row_norm,
        "reshape_activations": "hook_z" if dictionary.heads else "none",
        **({"k": coder.k} if coder.k is not None else {}),
        "metadata": _metadata(dictionary, metadata or {}),
    }
    names = {"b_enc": "b_mag"} if coder.activation == "gated" else {}
    tensors = {names.get(n, n): t.cpu() for n, t in coder.tensors().items() if n != "offset"}
    # Through JSON: what is compared is what a reader gets.
    cfg = _sealed(json.loads(json.dumps(cfg)))
    # One entry: safetensors writes several in any order.
    about = {_OURS: json.dumps({_BOTH: seal(cfg, tensors)[SEAL], _OWN: cfg}, sort_keys=True)}
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path, about))
    text = json.dumps(cfg, indent=2, ensure_ascii=False)
    write_atomic(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def _metadata(dictionary: Dictionary, more: Mapping[str, Any]) -> dict[str, Any]:
    own = dictionary.origin.get("metadata")
    found: dict[str, Any] = {
        # sae-lens reads a folder without its version as one from before version 6.
        "sae_lens_version": "6.0.0",
        **(own if isinstance(own, dict) else {}),
        "hook_name": dictionary.hook_point,
    }
    if dictionary.space is not None:
        found |= {"model_name": dictionary.space.model, SPACE: dictionary.space.to_json()}
    return found | dict(more)
