"""Memory that an experiment needs, stage by stage, from the shapes of its models.

Estimates for planning, in bytes: weights, sums and cache are counted, activations of a training
after Korthikanti et al. (2022, equation 2). What allocators keep beside it is not in them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tl_transfer.models.skeleton import Skeleton
from tl_transfer.streaming import MomentGrid
from tl_transfer.tuning.tune import TARGETS, Tuning

#: Rows that are answered together, and tokens of a long prompt.
ROWS, PROMPT = 32, 256
#: Parts of the documents of which sums are kept: five folds and what is held out.
PARTS = 6


def dtype_bytes(name: str) -> int:
    """Bytes of a number; "auto" is what an accelerator takes, two."""
    return 2 if name == "auto" else getattr(torch, name).itemsize


def of_weights(model: Skeleton, dtype: str) -> int:
    """The parameters."""
    return model.n_params * dtype_bytes(dtype)


def of_answers(model: Skeleton, dtype: str, new_tokens: int) -> int:
    """Key/value cache and logits of a batch of answers."""
    cache = ROWS * (PROMPT + new_tokens) * model.n_cached * dtype_bytes(dtype)
    return cache + 4 * ROWS * int(model.model.config.vocab_size)


def of_sums(source: Skeleton, target: Skeleton, n_sources: int, n_targets: int) -> int:
    """Streaming sums of a map at every pair of the candidate layers."""
    here, there = (int(m.model.config.hidden_size) for m in (source, target))
    sources = {str(i): here for i in range(n_sources)}
    return MomentGrid.n_bytes(sources, {str(i): there for i in range(n_targets)}, PARTS)


def of_tuning(model: Skeleton, dtype: str, tuning: Tuning) -> int:
    """Weights, what the optimiser keeps, and the activations of a batch."""
    config: Any = model.model.config
    size = dtype_bytes(dtype)
    if tuning.method == "full":
        learned = model.n_params
    else:
        named = model.model.named_modules()
        adapted = [m for name, m in named if name.rpartition(".")[2] in TARGETS]
        learned = sum(tuning.rank * (m.in_features + m.out_features) for m in adapted)
    optimiser = learned * (4 + 4 + size)  # two moments and the gradient
    tokens = tuning.batch * tuning.max_length
    spread = 5 * config.num_attention_heads * tuning.max_length / config.hidden_size
    layers = tokens * config.hidden_size * (34 + spread) * config.num_hidden_layers * size / 2
    logits = 3 * 4 * tokens * config.vocab_size
    return round(of_weights(model, dtype) + optimiser + layers + logits)


def gigabytes(parts: Sequence[int]) -> str:
    """Their sum, to read."""
    return f"{sum(parts) / 1e9:.1f} GB"
