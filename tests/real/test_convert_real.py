"""Conversion of the real small models: logits and residual stream against eager Hugging Face.

Run with ``--log-cli-level=INFO`` to see the measured differences.
"""

import gc
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import needs_hooked_transformer
from tl_transfer.errors import FetchError
from tl_transfer.models.convert import to_hooked_transformer

pytestmark = [pytest.mark.real, needs_hooked_transformer]

_LOG = logging.getLogger(__name__)
SENTENCE = "The river rose in the night, and 17 people carried their books upstairs. "


@pytest.fixture(
    scope="module", params=["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "gemma-3-270m"]
)
def pair(request: pytest.FixtureRequest) -> Any:
    """The eager Hugging Face model and its conversion (sharing memory, to fit small machines)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tl_transfer.models import bundled

    try:
        folder = bundled.fetch(request.param)
    except FetchError as error:
        pytest.skip(f"{request.param} cannot be fetched: {error}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    yield hf_model, to_hooked_transformer(hf_model, tokenizer, share_memory=True), request.param
    gc.collect()


def _hf(hf_model: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last 8 positions (Gemma's vocabulary is large) and every block's output."""
    stream: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        stream.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in hf_model.model.layers]
    with torch.no_grad():
        logits = hf_model(tokens, logits_to_keep=8).logits
    for handle in handles:
        handle.remove()
    return logits, stream


@pytest.mark.parametrize("length", [12, 700])  # Gemma 3 slides a window of 512
def test_real_model_equals_hugging_face(pair: Any, length: int) -> None:
    hf_model, hooked, name = pair
    tokens = hooked.to_tokens(SENTENCE * 50)[:, :length]
    assert tokens.shape[1] == length
    logits, stream = _hf(hf_model, tokens)
    with torch.no_grad():
        # HookedTransformer.forward would make the logits of all 700 positions at once.
        residual, cache = hooked.run_with_cache(
            tokens,
            stop_at_layer=hooked.cfg.n_layers,
            names_filter=lambda hook: hook.endswith("hook_resid_post"),
        )
        found = hooked.unembed(hooked.ln_final(residual[:, -8:]))
    errors = torch.stack(
        [
            (cache[f"blocks.{layer}.hook_resid_post"] - expected)[0].norm(dim=-1)
            / expected[0].norm(dim=-1)
            for layer, expected in enumerate(stream)
        ]
    )
    difference = (found - logits).abs().max().item()
    _LOG.info(
        "%s, %d tokens: logits differ by at most %.1e (s.d. %.1f); residuals by %.1e of their norm "
        "in the median, %.1e at worst",
        *(name, length, difference, logits.std(), errors.median(), errors.max()),
    )
    assert len(stream) == hooked.cfg.n_layers
    assert difference < 1e-3
    # Single tokens of Gemma 3 amplify rounding a thousandfold (float32 rotary angles differ by 6e-5
    # at position 700; Hugging Face's own two attention kernels differ by 6e-5 on such a token). So
    # the bounds are on each layer's median, on almost all tokens, and a loose one on the worst.
    assert errors.median(dim=1).values.max() < 1e-5
    assert errors.quantile(0.98, dim=1).max() < 1e-4
    assert errors.max() < 1e-2


def test_greedy_text_is_that_of_hugging_face(pair: Any) -> None:
    hf_model, hooked, _ = pair
    tokens = hooked.to_tokens("The capital of France is")
    found = hooked.generate(
        tokens, max_new_tokens=12, do_sample=False, stop_at_eos=False, verbose=False
    )
    expected = hf_model.generate(
        tokens,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=hooked.tokenizer.pad_token_id,
    )
    assert found.tolist() == expected.tolist()
    assert len(set(found[0, tokens.shape[1] :].tolist())) > 3
