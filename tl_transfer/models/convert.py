"""From a live Hugging Face model to a raw HookedTransformer (TransformerLens 3.x), offline.

``HookedTransformer.from_pretrained`` looks its configuration up on the hub by name, and folds and
centres the weights. Here the configuration comes from the live model, the weights go through
TransformerLens's own converters untouched, and the tokenizer is attached as it is.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tl_transfer.errors import ModelError

Fields = dict[str, Any]

#: Buffers that HookedTransformer makes itself.
_OWN_BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def to_hooked_transformer(
    hf_model: Any,
    tokenizer: Any,
    *,
    device: str | torch.device | None = None,
    share_memory: bool = False,
) -> Any:
    """Build a HookedTransformer that computes what `hf_model` computes, in raw space.

    Nothing is folded or centred, so the residual stream equals Hugging Face's. The network is
    never used, and neither `hf_model` nor `tokenizer` is changed.

    ``to_tokens(text)`` gives exactly ``tokenizer(text)``: a BOS token is put in front only where
    the tokenizer itself does so (``cfg.default_prepend_bos`` says which).

    Args:
        hf_model: Llama (SmolLM2 included), Qwen2/2.5, Qwen3, Gemma 2 or Gemma 3 text model.
        tokenizer: Its tokenizer; the model keeps a copy.
        device: Where the new model lives; default where `hf_model` is.
        share_memory: Let the new weights be views of the old ones where both models use the same
            numbers: no second copy, but an in-place change to one model then changes the other,
            and with tied embeddings ``W_E`` and ``W_U`` are one tensor. Default: copy.

    Returns:
        A HookedTransformer in eval mode, in the dtype of `hf_model`.

    Raises:
        ModelError: the architecture or one of its options has no faithful counterpart, or the
            installed TransformerLens is 4.x.
    """
    hooked_class, config_class = _hooked_classes()
    architecture = type(hf_model).__name__
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            "hf_model: this architecture cannot be converted to a HookedTransformer",
            got=architecture,
            valid=", ".join(sorted(_ARCHITECTURES)),
            hint='use host="bridge"',
        )
    describe, converter_name = _ARCHITECTURES[architecture]
    parameter = next(hf_model.parameters())
    where = torch.device(device) if device is not None else parameter.device
    fields = _common_fields(hf_model) | describe(hf_model.config)
    cfg = config_class.from_dict(
        fields | {"device": str(where), "dtype": parameter.dtype, "init_weights": False}
    )
    with warnings.catch_warnings():
        # Its message tells users to call another loader; they did not choose this one by name.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = hooked_class(cfg, tokenizer=None, move_to_device=False)
    _load(model, _converted(hf_model, cfg, converter_name, where, share_memory=share_memory))
    nn.Module.to(model, where)  # the rotary buffers; HookedTransformer.to prints
    if tokenizer is not None:
        _attach_tokenizer(model, tokenizer)
    return model.eval()


def _hooked_classes() -> tuple[Any, Any]:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        import transformer_lens

        raise ModelError(
            "HookedTransformer does not exist in the installed TransformerLens",
            got=f"transformer-lens {getattr(transformer_lens, '__version__', '>= 4')}",
            valid="transformer-lens >= 3.9, < 4",
            hint='use host="bridge", or install "transformer-lens<4"',
        ) from error
    return HookedTransformer, HookedTransformerConfig


# ---------------------------------------------------------------------- configuration


def _common_fields(hf_model: Any) -> Fields:
    """The fields that every supported architecture takes from the same place."""
    config = hf_model.config
    _refuse(hf_model, "attention_bias", "mlp_bias", "use_bidirectional_attention")
    # Not hf_model.is_quantized: it is also set for GGUF weights, which are dequantised on load.
    stored = {parameter.dtype for parameter in hf_model.parameters()} - set(_DTYPES)
    if stored:
        raise _unfaithful(hf_model, f"weights stored as {', '.join(map(str, stored))}")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ("silu", "gelu", "gelu_pytorch_tanh", "relu"):
        raise _unfaithful(hf_model, f"activation {activation}")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "model_name": str(getattr(config, "_name_or_path", "") or "custom").split("/")[-1],
        "original_architecture": type(hf_model).__name__,
        "d_model": config.hidden_size,
        "d_head": head,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        # The live matrix, not config.vocab_size: embeddings may have been resized.
        "d_vocab": hf_model.get_input_embeddings().weight.shape[0],
        "d_vocab_out": hf_model.get_output_embeddings().weight.shape[0],
        "eps": config.rms_norm_eps,
        "act_fn": activation,
        "gated_mlp": True,
        "normalization_type": "RMS",
        "final_rms": True,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": head,
        "use_attn_scale": True,
        "attn_scale": math.sqrt(head),
    }


def _llama_fields(config: Any) -> Fields:
    return _full_rope(config, config.rope_parameters) | _kv_heads_or_none(config)


def _qwen2_fields(config: Any) -> Fields:
    return _full_rope(config, config.rope_parameters) | _local_layers(config)


def _qwen3_fields(config: Any) -> Fields:
    return _qwen2_fields(config) | _kv_heads_or_none(config) | {"use_qk_norm": True}


def _gemma2_fields(config: Any) -> Fields:
    soft_caps = {}
    if config.attn_logit_softcapping is not None:
        soft_caps["attn_scores_soft_cap"] = config.attn_logit_softcapping
    return _gemma_fields(config) | _full_rope(config, config.rope_parameters) | soft_caps


def _gemma3_fields(config: Any) -> Fields:
    local = config.rope_parameters["sliding_attention"]
    if local["rope_type"] != "default":
        raise _unfaithful_config(config, f"rope_type {local['rope_type']} in sliding layers")
    # attn_logit_softcapping is in the configuration, but Hugging Face's Gemma 3 never applies it.
    return (
        _gemma_fields(config)
        | _full_rope(config, config.rope_parameters["full_attention"])
        | {"use_qk_norm": True, "rotary_base_local": local["rope_theta"]}
    )


def _gemma_fields(config: Any) -> Fields:
    fields = _local_layers(config) | {
        "use_normalization_before_and_after": True,
        "attn_scale": math.sqrt(config.query_pre_attn_scalar),
    }
    if config.final_logit_softcapping is not None:
        fields["output_logits_soft_cap"] = config.final_logit_softcapping
    return fields


def _full_rope(config: Any, rope: Fields) -> Fields:
    """Rotary fields of the layers with full attention."""
    fields = {"rotary_base": rope["rope_theta"]}
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        fields["rotary_scaling_factor"] = rope["factor"]
    elif kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    elif kind != "default":
        raise _unfaithful_config(config, f"rope_type {kind}")
    return fields


def _local_layers(config: Any) -> Fields:
    names = {"sliding_attention": "local", "full_attention": "global"}
    kinds = [names[kind] for kind in config.layer_types]
    if "local" not in kinds:
        return {}
    return {"use_local_attn": True, "window_size": config.sliding_window, "attn_types": kinds}


def _kv_heads_or_none(config: Any) -> Fields:
    # These converters write ungrouped names when every head has its own keys and values.
    grouped = config.num_key_value_heads != config.num_attention_heads
    return {"n_key_value_heads": config.num_key_value_heads if grouped else None}


def _refuse(hf_model: Any, *options: str) -> None:
    for option in options:
        if getattr(hf_model.config, option, False):
            raise _unfaithful(hf_model, f"{option}=True")


def _unfaithful(hf_model: Any, option: str) -> ModelError:
    return _unfaithful_config(hf_model.config, option, type(hf_model).__name__)


def _unfaithful_config(config: Any, option: str, architecture: str | None = None) -> ModelError:
    return ModelError(
        "hf_model: TransformerLens's converter would lose something that this model uses",
        got=f"{architecture or config.model_type} with {option}",
        valid="the architecture's standard options",
        hint='use host="bridge"',
    )


_ARCHITECTURES: dict[str, tuple[Callable[[Any], Fields], str]] = {
    "LlamaForCausalLM": (_llama_fields, "convert_llama_weights"),
    "Qwen2ForCausalLM": (_qwen2_fields, "convert_qwen2_weights"),
    "Qwen3ForCausalLM": (_qwen3_fields, "convert_qwen3_weights"),
    "Gemma2ForCausalLM": (_gemma2_fields, "convert_gemma_weights"),
    "Gemma3ForCausalLM": (_gemma3_fields, "convert_gemma_weights"),
}


# ------------------------------------------------------------------- weights, tokenizer


@torch.no_grad()
def _converted(
    hf_model: Any, cfg: Any, converter_name: str, where: torch.device, *, share_memory: bool
) -> dict[str, Tensor]:
    """TransformerLens's state dict of the model, tensor by tensor on the device and in the dtype.

    The converters return views in Hugging Face's memory layout. Keeping that layout (a clone does)
    also spares HookedTransformer a contiguous copy of every projection in each forward pass.
    """
    from transformer_lens.pretrained import weight_conversions

    state = getattr(weight_conversions, converter_name)(hf_model, cfg)
    originals = {parameter.data_ptr() for parameter in hf_model.parameters()}
    result = {}
    for name in list(state):
        tensor = state.pop(name).detach()
        moved = tensor.to(device=where, dtype=cfg.dtype)
        copied = share_memory or moved.data_ptr() not in originals
        result[name] = moved if copied else moved.clone()
    return result


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    outcome = model.load_state_dict(state, strict=False, assign=True)
    missing = [key for key in outcome.missing_keys if key.split(".")[-1] not in _OWN_BUFFERS]
    if missing or outcome.unexpected_keys:
        raise ModelError(
            "hf_model: TransformerLens's converter and its HookedTransformer do not fit together",
            got=f"missing {missing}, unexpected {outcome.unexpected_keys}",
            hint='use host="bridge", and report this with the version of TransformerLens',
        )


def _attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """What ``HookedTransformer.set_tokenizer`` does, without asking the hub for another one."""
    own = copy.deepcopy(tokenizer)
    own.pad_token = own.pad_token or own.eos_token
    bos_first = own.bos_token_id is not None and own("x").input_ids[:1] == [own.bos_token_id]
    if own.bos_token is None:  # only for to_tokens(..., prepend_bos=True), as TransformerLens does
        own.bos_token = own.eos_token
    model.tokenizer = own
    model.cfg.tokenizer_prepends_bos = bos_first
    model.cfg.default_prepend_bos = bos_first
