"""SAEs with drawn parameters, of every kind that sae-lens can make, for the tests."""

import warnings
from typing import Any

import pytest
import torch

#: name -> class and configuration of sae-lens; those in training are named by a star.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardSAE", {}),
    "standard, no b_dec at the input": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "standard, layer_norm": ("StandardSAE", {"normalize_activations": "layer_norm"}),
    "topk": ("TopKSAE", {"k": 6}),
    "topk, decoder norms": ("TopKSAE", {"k": 6, "rescale_acts_by_decoder_norm": True}),
    "topk, constant norm": ("TopKSAE", {"k": 6, "normalize_activations": "constant_norm_rescale"}),
    "abstopk": ("AbsTopKSAE", {"k": 6}),
    "jumprelu": ("JumpReLUSAE", {}),
    "jumprelu, layer_norm": ("JumpReLUSAE", {"normalize_activations": "layer_norm"}),
    "gated": ("GatedSAE", {}),
    "matching_pursuit": ("MatchingPursuitSAE", {"max_iterations": 5}),
    "batchtopk*": ("BatchTopKTrainingSAE", {"k": 6.0}),
    "matryoshka*": (
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": 6.0, "matryoshka_widths": [8, 40]},
    ),
    "topk*": ("TopKTrainingSAE", {"k": 6}),
}


def sae_lens_sae(kind: str, *, d_in: int = 24, d_sae: int = 40, seed: int = 0, **cfg: Any) -> Any:
    """An SAE of sae-lens with drawn parameters (its own start values would hide mistakes)."""
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens needs TransformerLens 3.x")
    name, settings = KINDS.get(kind, (kind, {}))
    # Neighbouring modules hold the configurations, under the same name with "Config" behind it.
    modules = [sae_lens, sae_lens.saes]
    sae_class = next(getattr(m, name) for m in modules if hasattr(m, name))
    cfg_class = next(getattr(m, f"{name}Config") for m in modules if hasattr(m, f"{name}Config"))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = sae_class(cfg_class(d_in=d_in, d_sae=d_sae, **{**settings, **cfg}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, value in made.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if parameter == "threshold":
                draw = draw.abs()
            value.copy_(draw * (0.3 if value.ndim == 1 else value.shape[1] ** -0.5))
        if hasattr(made, "topk_threshold"):
            made.topk_threshold.fill_(0.7)
    return made.eval()


def rows(n: int = 64, d: int = 24, *, seed: int = 1) -> torch.Tensor:
    """Rows with a mean, and of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + torch.rand(n, 1, generator=generator)
    return torch.randn(n, d, generator=generator) * scale + torch.randn(d, generator=generator)
