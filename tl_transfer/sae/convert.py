"""From what sae-lens writes (a configuration and tensors) to a `SparseCoder`, without sae-lens.

Everything that the configuration changes about the numbers is done here once: an expected average
norm that was not folded, decoder norms that rescale the codes, b_dec at the input, the layouts of
older versions. What is no plain SAE is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.sae.coder import ROW_NORMS, SparseCoder

#: Name in a configuration -> activation of the coder.
ARCHITECTURES = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "gated": "gated",
}
#: Architectures that are not one encoder and one plain decoder of the same activations.
REFUSED = {
    "transcoder": "it reads one hook point and writes another",
    "skip_transcoder": "it reads one hook point and writes another",
    "jumprelu_transcoder": "it reads one hook point and writes another",
    "jumprelu_skip_transcoder": "it reads one hook point and writes another",
    "clt": "it reads one hook point and writes several",
    "crosscoder": "it reads several hook points at once",
    "temporal": "its codes depend on the tokens before, through attention",
}


@dataclass(frozen=True)
class Described:
    """What a configuration says beside the numbers.

    Attributes:
        architecture: Name of it.
        hook_point: Where the SAE was trained, if that is said.
        heads: The input is [..., head, d_head] and is flattened (``hook_z``).
        metadata: All it says.
    """

    architecture: str
    hook_point: str | None
    heads: bool
    metadata: dict[str, Any]


def describe(cfg: Mapping[str, Any]) -> Described:
    """Read the labels of a configuration of sae-lens, version 6 or before it.

    Raises:
        InputError: an architecture without a plain decoder, by name.
    """
    architecture = _architecture(cfg)
    if architecture in REFUSED:
        raise InputError(
            f"architecture: a {architecture} has no plain decoder",
            got=f"{architecture}: {REFUSED[architecture]}",
            valid=f"{', '.join(ARCHITECTURES)}, batchtopk, matryoshka_batchtopk",
            hint="use an SAE that was trained on the activations of one hook point",
        )
    # Before version 6 the metadata stood beside the settings.
    metadata = dict(cfg.get("metadata") or cfg)
    hook = metadata.get("hook_name") or metadata.get("hook_point")
    reshape = cfg.get("reshape_activations", "none")
    heads = reshape == "hook_z" or (not cfg.get("metadata") and "hook_z" in str(hook))
    head = metadata.get("hook_head_index", metadata.get("hook_point_head_index"))
    if head is not None:
        raise InputError(
            "hook_head_index: an SAE of one attention head",
            got=f"head {head} of {hook}",
            valid="an SAE of a whole hook point",
            hint="a head has no activation space of its own here",
        )
    return Described(architecture, str(hook) if hook else None, heads, metadata)


def coder_of(
    cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], *, input_scale: float | None = None
) -> SparseCoder:
    """The coder of a plain architecture in the units of the raw activations.

    Args:
        cfg: Configuration of sae-lens.
        tensors: Its weights.
        input_scale: For ``normalize_activations = "expected_average_only_in"`` that was not folded:
            sqrt(d_model) over the mean norm of the activations it was trained on.

    Raises:
        InputError: an architecture that is not plain, a normalisation that cannot be undone.
        ArtefactError: a tensor is missing.
    """
    name = describe(cfg).architecture
    if name not in ARCHITECTURES:
        raise InputError(
            "architecture: unknown",
            got=name,
            valid=", ".join(ARCHITECTURES),
            hint="install sae-lens (TransformerLens 3.x) and pass the loaded SAE itself",
        )
    activation = ARCHITECTURES[name]
    t = {key: value.detach().float() for key, value in tensors.items()}
    needed = ["W_enc", "W_dec", "b_dec"]
    needed += {"gated": ["b_gate", "b_mag", "r_mag"], "jumprelu": ["b_enc", "threshold"]}.get(
        activation, ["b_enc"]
    )
    if missing := [key for key in needed if key not in t]:
        raise ArtefactError(
            f"weights: a {name} SAE needs {', '.join(missing)}",
            got=", ".join(sorted(t)),
            valid=", ".join(needed),
            hint="the configuration and the weights belong to different SAEs",
        )
    bias = t["b_mag" if activation == "gated" else "b_enc"]
    w_enc, w_dec, b_dec = t["W_enc"], t["W_dec"], t["b_dec"]
    if activation in ("topk", "abstopk") and cfg.get("rescale_acts_by_decoder_norm"):
        norms = w_dec.norm(dim=-1).clamp(min=1e-8)
        w_enc, bias, w_dec = w_enc * norms, bias * norms, w_dec / norms[:, None]
    scaling = t.get("finetuning_scaling_factor", t.get("scaling_factor"))
    if scaling is not None:  # before version 6, codes were rescaled on their way to the decoder
        w_dec = w_dec * scaling[:, None]
    scale = _scale(cfg, w_dec.shape[1], input_scale)
    w_enc, w_dec, b_dec = w_enc * scale, w_dec / scale, b_dec / scale
    applied = bool(cfg.get("apply_b_dec_to_input", True))
    row_norm = str(cfg.get("normalize_activations") or "none")
    return SparseCoder(
        w_enc,
        bias,
        w_dec,
        b_dec,
        b_dec if applied else torch.zeros_like(b_dec),
        activation,
        k=_k(cfg) if activation in ("topk", "abstopk") else None,
        threshold=t["threshold"] if activation == "jumprelu" else None,
        b_gate=t.get("b_gate") if activation == "gated" else None,
        r_mag=t.get("r_mag") if activation == "gated" else None,
        row_norm=row_norm if row_norm in ROW_NORMS else "none",
    )


def _architecture(cfg: Mapping[str, Any]) -> str:
    name = str(cfg.get("architecture", "standard"))
    act = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if name == "standard" and act == "topk":  # so did version 5 write it
        return "topk"
    if name in ARCHITECTURES and act not in ("relu", "topk"):
        raise InputError(
            "activation_fn: not one of a plain SAE",
            got=f"{name} with {act!r}",
            valid="relu, or topk",
            hint="convert the SAE with the version of sae-lens that made it",
        )
    return name


def _k(cfg: Mapping[str, Any]) -> int | None:
    k = cfg.get("k") or (cfg.get("activation_fn_kwargs") or {}).get("k")
    return None if k is None else int(k)


def _scale(cfg: Mapping[str, Any], d_model: int, given: float | None) -> float:
    """The constant that the input is multiplied with, if it is not folded yet."""
    kind = cfg.get("normalize_activations") or "none"
    kind = "expected_average_only_in" if kind is True else kind
    if kind == "expected_average_only_in":
        if given is None or not given > 0:
            raise InputError(
                "input_scale: this SAE expects activations of a certain mean norm, and the factor "
                "that brings them there was not folded into its weights",
                got=f"normalize_activations = {kind!r}, input_scale={given}",
                valid=f"input_scale = sqrt({d_model}) / mean norm of the activations it was "
                "trained on",
                hint="sae-lens folds it at the end of training; a release may name it as "
                "norm_scaling_factor",
            )
        return given
    if kind not in ROW_NORMS:
        raise InputError(
            "normalize_activations: cannot be undone from the file alone",
            got=repr(kind),
            valid=f"{', '.join(ROW_NORMS)}, expected_average_only_in",
            hint="fold it with sae-lens before saving (fold_activation_whitening)",
        )
    if given is not None:
        raise InputError(
            "input_scale: this SAE takes raw activations",
            got=f"input_scale={given}, normalize_activations = {kind!r}",
            valid="no input_scale",
            hint="leave it out",
        )
    return 1.0
