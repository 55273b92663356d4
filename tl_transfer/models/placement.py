"""Placement: models over several GPUs, and quantised ones, stay where and what they are.

A bridge runs them as Hugging Face and accelerate have laid them out. What accelerate keeps outside
the modules and fetches at every call (a part on the CPU beside GPUs, a disk) is refused: a bridge
computes from the weights in the modules, which are empty then.
"""

from typing import Any

from tl_transfer.errors import InputError, ModelError


def devices_of(model: Any) -> list[str]:
    """Devices of the parameters, in order; also where accelerate says that it keeps some."""
    mapped = getattr(model, "hf_device_map", None) or {}
    found = {str(parameter.device) for parameter in model.parameters()}
    found |= {f"cuda:{d}" if isinstance(d, int) else str(d) for d in mapped.values()}
    # "cuda" and "cuda:0" are one device when a map says the first and a tensor the second.
    return sorted(found - {d for d in found if any(o.startswith(f"{d}:") for o in found)})


def quantiser_of(model: Any) -> str | None:
    """Name of what has quantised a Hugging Face model, or None."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if getattr(model, "hf_quantizer", None) is None and not getattr(model, "is_quantized", False):
        return None
    named = config.get("quant_method") if isinstance(config, dict) else None
    named = (
        named or getattr(config, "quant_method", None) or getattr(model, "quantization_method", "")
    )
    return str(getattr(named, "value", named)) or "an unnamed quantiser"


def is_fixed(model: Any) -> bool:
    """Whether it must not be moved or cast: it was laid out by a device map, or is quantised."""
    return bool(getattr(model, "hf_device_map", None)) or quantiser_of(model) is not None


def require_placed(model: Any, name: str, *, host: str, device: Any) -> None:
    """Refuse layouts in which some host would compute from weights that are not there.

    Args:
        model: A Hugging Face model for which `is_fixed` holds.
        name: Its name.
        host: Host class that was asked for.
        device: Device that was asked for; None: none was.

    Raises:
        ModelError: a part is on the CPU beside accelerators, on a disk or nowhere, or the host
            copies weights, which it can do neither across devices nor from quantised ones.
        InputError: a device was asked for as well.
    """
    places = devices_of(model)
    away = [place for place in places if place in ("meta", "disk")]
    if away or ("cpu" in places and len(places) > 1):
        raise ModelError(
            f"source: accelerate keeps a part of {name} away from its modules",
            got=", ".join(places),
            valid="all of it on GPUs (any number), or all of it on the CPU",
            hint='load it over more GPUs (device_map="balanced"), in a smaller dtype, or '
            "quantised: offloaded weights cannot be hooked",
        )
    what = quantiser_of(model)
    said = f"quantised by {what}" if what else f"laid out over {', '.join(places)}"
    if host != "bridge" and (what or len(places) > 1):
        raise ModelError(
            f"host: {name} is {said}, and this host copies weights to one device and dtype",
            got=repr(host),
            valid='"bridge", which runs the model as it is',
            hint="leave host out",
        )
    if device is not None:
        raise InputError(
            f"device: {name} is {said} and stays where it is",
            got=str(device),
            valid="None",
            hint="say where when you load it with Hugging Face, or use device_map",
        )
