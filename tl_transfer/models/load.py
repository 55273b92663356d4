"""load_model: from a name, a path or a live model to a checked HookedModel, in raw space.

Sources, in the order they are recognised: a live `HookedModel`, `TransformerBridge`,
`HookedTransformer`, PEFT model or Hugging Face model; a bundled name; a GGUF file; a PEFT adapter
folder; a model folder; a hub id. Folders and cached bundled models never touch the network.
"""

import gc
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from tl_transfer.errors import InputError, TransferError
from tl_transfer.models.fingerprints import weights_fingerprint
from tl_transfer.models.hugging_face import Source, read, require_fast
from tl_transfer.models.placement import is_fixed, quantiser_of, require_placed
from tl_transfer.models.self_check import reference, self_check
from tl_transfer.models.stops import generation_stops
from tl_transfer.models.surface import HookedModel

#: Hosts of models loaded here: their identity is known, though converted weights would hash anew.
_LOADED: "WeakValueDictionary[int, HookedModel]" = WeakValueDictionary()


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
        found = read(
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
    require_fast(found.tokenizer, found.name)
    weights = weights_fingerprint(iter(found.model.parameters()))
    expected = reference(found) if check else None
    model = _wrap(found, host, weights)
    if expected is not None:
        self_check(model, *expected)
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
    require_fast(tokenizer, label)
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


def _wrap(found: Source, host: str, weights: str) -> HookedModel:
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
