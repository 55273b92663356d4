"""Tiny random-weight models and tokenizers made in the test, without any file or network.

Every model is a real Hugging Face class with a small configuration, so that the hosts under test
(TransformerBridge, HookedTransformer) meet the same code paths as with a published checkpoint.
The weights are drawn so that the logits have a standard deviation near 1, attention depends on
the content, and greedy decoding wanders instead of repeating one token.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny_tokenizer import tiny_tokenizer
from tests.twins import twin

__all__ = [
    "FAMILIES",
    "RoutedModel",
    "prompts",
    "random_tokens",
    "tiny_bridge",
    "tiny_hf",
    "tiny_hooked",
    "tiny_tokenizer",
    "twin",
]

FAMILIES = ("llama", "qwen2", "gemma3")
TOKENIZER_OF = {
    "llama": "bos",
    "qwen2": "nobos",
    "qwen3": "nobos",
    "gemma2": "bos",
    "gemma3": "bos",
}

RoutedModel = Any
"""A live model of a host (HookedTransformer or TransformerBridge); the hosts share no class."""


def tiny_hf(
    family: str = "llama",
    seed: int = 0,
    *,
    d_model: int = 48,
    n_layers: int = 4,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    d_head: int = 16,
    d_mlp: int = 96,
    vocab_size: int | None = None,
    tied: bool | None = None,
    sliding_window: int = 8,
    post_norm_constant: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> nn.Module:
    """A fresh Hugging Face causal language model with random weights, in eval mode.

    Args:
        family: ``llama``, ``qwen2``, ``qwen3``, ``gemma2`` or ``gemma3``.
        seed: Private seed of the weights; the global generators are left alone.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_heads: Query heads.
        n_kv_heads: Key/value heads (grouped-query attention when fewer than `n_heads`).
        d_head: Width of a head, set explicitly and different from ``d_model / n_heads``.
        d_mlp: Hidden width of the gated MLP.
        vocab_size: Rows of the embedding; the length of the family's tokenizer by default.
        tied: Tie embedding and unembedding; the family's habit by default (Gemma ties).
        sliding_window: Window of the local layers of the Gemma families.
        post_norm_constant: Give Gemma's norms after the sublayers one constant gain each, which
            is the condition under which an exact twin exists.
        dtype: Parameter dtype.
        **config: Further fields of the Hugging Face configuration.

    Returns:
        A new model; nothing is cached, so a host may change it freely.
    """
    tied = family.startswith("gemma") if tied is None else tied
    common = dict(
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=d_head,
        intermediate_size=d_mlp,
        vocab_size=vocab_size or len(tiny_tokenizer(TOKENIZER_OF[family])),
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        **_special_ids(TOKENIZER_OF[family]),
    )
    build = _BUILDERS[family]
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
        model = build(common, sliding_window, config)
    model.config.architectures = [type(model).__name__]  # as saved checkpoints have it
    _draw_weights(model, seed=seed, tied=tied, post_norm_constant=post_norm_constant)
    return model.to(dtype).eval()


def tiny_bridge(
    family: str = "llama",
    seed: int = 0,
    *,
    tokenizer: str | None = None,
    hf_model: nn.Module | None = None,
    **shape: Any,
) -> RoutedModel:
    """A TransformerBridge around a fresh tiny model, on the CPU.

    The bridge rewires the Hugging Face model it is given, hence the fresh one.

    Args:
        family: As for `tiny_hf`.
        seed: As for `tiny_hf`.
        tokenizer: Kind for `tiny_tokenizer`; the family's habit by default.
        hf_model: Use this model (for instance a twin) instead of ``tiny_hf(family, seed)``.
        **shape: Passed to `tiny_hf`.
    """
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = tiny_hf(family, seed, **shape) if hf_model is None else hf_model
    return TransformerBridge.boot_transformers(
        f"tiny/{family}",
        hf_model=hf_model,
        tokenizer=tiny_tokenizer(tokenizer or TOKENIZER_OF[family]),
        device="cpu",
    )


def tiny_hooked(
    family: str = "llama",
    seed: int = 0,
    *,
    tokenizer: str | None = None,
    hf_model: nn.Module | None = None,
    **shape: Any,
) -> RoutedModel:
    """A raw HookedTransformer with the weights of ``tiny_hf(family, seed, **shape)`` (TL 3.x)."""
    from tl_transfer.models.convert import to_hooked_transformer

    hf_model = tiny_hf(family, seed, **shape) if hf_model is None else hf_model
    return to_hooked_transformer(hf_model, tiny_tokenizer(tokenizer or TOKENIZER_OF[family]))


def random_tokens(n_vocab: int, *shape: int, seed: int = 0) -> Tensor:
    """Token ids of the given shape from a private generator, special ids (< 8) left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, n_vocab, shape, generator=generator)


def prompts() -> list[str]:
    """Prompts of different lengths with spaces, digits, emoji and non-Latin script."""
    return [
        "The river rose in the night.",
        "Why do 17 cats sleep?",
        "naïve café 🙂 日本語 ends here, after a somewhat longer second sentence.",
        "A",
    ]


@functools.cache
def _special_ids(kind: str) -> dict[str, int]:
    tokenizer = tiny_tokenizer(kind)
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _build_llama(common: dict, window: int, extra: dict) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**common, **extra}))


def _build_qwen2(common: dict, window: int, extra: dict) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**{**common, "rope_theta": 1e6, **extra}))


def _build_qwen3(common: dict, window: int, extra: dict) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**{**common, "rope_theta": 1e6, **extra}))


def _build_gemma2(common: dict, window: int, extra: dict) -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    local = {"sliding_window": window, "query_pre_attn_scalar": 24}
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    return Gemma2ForCausalLM(Gemma2Config(**{**common, **local, **caps, **extra}))


def _build_gemma3(common: dict, window: int, extra: dict) -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(99)]
    local = {
        "sliding_window": window,
        "query_pre_attn_scalar": 24,  # not the head width, so a wrong scale shows
        "layer_types": kinds[: common["num_hidden_layers"]],
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**common, **local, **extra}))


_BUILDERS: dict[str, Callable[[dict, int, dict], nn.Module]] = {
    "llama": _build_llama,
    "qwen2": _build_qwen2,
    "qwen3": _build_qwen3,
    "gemma2": _build_gemma2,
    "gemma3": _build_gemma3,
}


def _draw_weights(model: nn.Module, *, seed: int, tied: bool, post_norm_constant: bool) -> None:
    """Overwrite every parameter from one private generator.

    Linear weights have s.d. ``gain / sqrt(fan_in)``; norm gains scatter around 1, so that folding
    them matters. A tied embedding is small against what the blocks write, or each token would
    predict itself; the final norm makes up for it in the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    one_plus = "Gemma" in type(model).__name__  # gains are stored as 1 + weight
    root = math.sqrt(model.config.hidden_size)  # Gemma multiplies the embedding by it
    final_gain = 3.0 if tied else 1.0
    embedding_std = 1 / (final_gain * root) if tied or one_plus else 1.0

    def normal(parameter: Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    def post_norm(parameter: Tensor, mean: float) -> None:
        if post_norm_constant:
            parameter.fill_(mean + 0.4 * torch.rand((), generator=generator).item())
        else:
            normal(parameter, 0.2, mean)

    with torch.no_grad():
        for name, parameter in _distinct(model.named_parameters()):
            if "embed_tokens" in name:
                normal(parameter, embedding_std)
            elif name == "model.norm.weight":
                normal(parameter, 0.2 * final_gain, final_gain - 1.0 if one_plus else final_gain)
            elif _is_after_sublayer(name, one_plus):
                post_norm(parameter, mean=0.5)
            elif "norm" in name:
                normal(parameter, 0.2, 0.0 if one_plus else 1.0)
            elif name.endswith("bias"):
                normal(parameter, 0.5)
            else:
                gain = 1.5 if any(part in name for part in ("q_proj", "k_proj")) else 1.0
                gain = 2.0 if any(part in name for part in ("o_proj", "down_proj")) else gain
                normal(parameter, gain / math.sqrt(parameter.shape[-1]))


def _is_after_sublayer(name: str, one_plus: bool) -> bool:
    """True for the norms whose output is added to the stream (Gemma 2 and 3 only)."""
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    return one_plus and any(part in name for part in after)


def _distinct(named: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, parameter in named:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter
