"""Calls of a Hugging Face model on whole sequences, exact with padding on either side."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def attention(mask: Bool[Tensor, "batch pos"]) -> dict[str, Tensor]:
    """Mask and positions for Hugging Face; nothing where they would change no real token.

    Padding on the right comes after every real token, which looks back only. Without a mask
    attention takes its fast causal path.
    """
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return {}
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return {"attention_mask": mask.to(torch.long), "position_ids": positions}


def call(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    *,
    keep: int | Int[Tensor, " kept"],
    **options: Any,
) -> Any:
    """Call a Hugging Face model (see `HookedModel.hugging_face`) on whole sequences.

    Args:
        model: What to call.
        tokens: Token ids, padded on either side.
        mask: True on real tokens.
        keep: Positions to unembed, as for `HookedModel.logits`.
        **options: Passed on.
    """
    width = tokens.shape[1]
    if isinstance(keep, int) and keep > 0:
        # Indices give contiguous rows. A slice does not, and then torch multiplies each row
        # with the whole unembedding on its own: 4 s instead of 0.5 s for 96 rows of Gemma.
        keep = torch.arange(width - keep, width, device=tokens.device)
    return model(
        input_ids=tokens,
        use_cache=False,
        logits_to_keep=keep,
        **attention(mask),
        **options,
    )
