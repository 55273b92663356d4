"""SAE folders in the form of sae-lens (cfg.json, sae_weights.safetensors), without sae-lens.

What is read here is read the same on TransformerLens 3 and 4, and what is written here sae-lens
loads with ``SAE.load_from_disk``. Space and card of an SAE that was trained or folded here are in
the metadata of its configuration, where sae-lens keeps what it does not know.
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
#: Key of the checksum in the metadata of the weights.
_OURS = "tl_transfer.sha256"
_WRITTEN = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abstopk": "abstopk",
            "gated": "gated"}  # fmt: skip


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of an SAE folder.

    Raises:
        ArtefactError: no such folder, or a file of it is missing, damaged or of another kind.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no folder"
        raise ArtefactError(
            f"{folder}: not an SAE folder",
            got=f"{', '.join(missing)} missing; found {there}",
            valid=f"a folder with {CONFIG} and {WEIGHTS}",
            hint="sae-lens writes it with save_model (save_inference_model while training)",
        )
    try:
        cfg = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get(_OURS)
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise ArtefactError(
            f"{folder}: damaged SAE folder",
            got=f"{type(error).__name__}: {error}",
            valid=f"JSON in {CONFIG}, tensors in {WEIGHTS}",
            hint="fetch or save it again",
        ) from error
    if not isinstance(cfg, dict):
        raise ArtefactError(
            f"{folder}: {CONFIG} is not a configuration",
            got=type(cfg).__name__,
            valid="a JSON object",
            hint="fetch or save it again",
        )
    # Folders of other tools have no checksum.
    if written is not None and not is_sound({**cfg, SEAL: written}, tensors):
        raise changed(folder, written, "train or save the SAE again")
    return cfg, tensors


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
    # One checksum over both files: a configuration beside weights of another SAE is refused, too.
    # Nothing else beside it: safetensors writes several entries in any order.
    about = {_OURS: seal(cfg, tensors)[SEAL]}
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
