"""The check of a loaded model: logits and residual stream beside Hugging Face's own."""

import torch
from torch import Tensor

from tl_transfer.errors import ModelError
from tl_transfer.models.hugging_face import Source
from tl_transfer.models.surface import HookedModel

#: Read once at load; long enough for attention to matter, short enough to cost nothing.
CHECK_TEXT = "The quick brown fox jumps over the lazy dog, and then it rests for a while."


@torch.no_grad()
def reference(found: Source) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
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


def self_check(
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
