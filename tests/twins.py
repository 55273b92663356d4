"""Exact twins: the same function in a rotated, scaled and widened residual basis.

A pre-RMSNorm model whose norm gains are folded into the matrices that read the normalised stream
computes the same logits in every basis ``h' = c * h @ R`` with ``R @ R.T = I`` (R may be wider
than it is tall). So a map between the two models is known exactly: ``A = c * R``, ``b = 0``.

With widths d and d', the mean square of h' is ``c**2 * d / d'`` times that of h. Hence

=====================  =========================================  ===========================
part                   source                                     twin
=====================  =========================================  ===========================
readers (out x d)      ``W`` after a norm with gain g             ``sqrt(d/d') * W diag(g) R``
writers (d x in)       ``W``                                      ``c * R.T W``
embedding              ``E``                                      ``c * E R``
eps of the stream      ``eps``                                    ``eps * c**2 * d / d'``
=====================  =========================================  ===========================

Gemma needs three more steps. Its embedding is multiplied by ``sqrt(width)``, so the twin's matrix
carries ``sqrt(d/d')``. A norm *after* a sublayer is equivariant only with one constant gain g:
then ``c * g * sqrt(d/d')`` is the twin's gain. And the norms of queries and keys, which share the
configuration's eps, keep their output when their input grows by ``sqrt(eps'/eps)``.
"""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

_AFTER_SUBLAYER = ("post_attention_layernorm", "post_feedforward_layernorm")


def twin(
    hf_model: nn.Module,
    *,
    d_model: int | None = None,
    scale: float = 1.0,
    seed: int = 0,
    fold: bool = True,
) -> tuple[nn.Module, Float[Tensor, "d_source d_target"]]:
    """An exactly equivalent model in another residual basis, and the rotation between the two.

    At every layer ``twin_stream = scale * source_stream @ rotation``.

    Args:
        hf_model: Llama, Qwen2 or Gemma 3 (the latter with constant gains after the sublayers,
            ``tiny_hf("gemma3", post_norm_constant=True)``); left unchanged.
        d_model: Width of the twin, at least that of `hf_model`; default the same.
        scale: Length of the twin's stream relative to the source's.
        seed: Private seed of the rotation.
        fold: False leaves the norm gains in place, which is the classical mistake and breaks the
            equivalence (for the test that shows it; same width only).

    Returns:
        The twin (float32, untied, eval mode) and the rotation with orthonormal rows.

    Raises:
        ValueError: width too small, gains after the sublayers not constant, or an unknown family.
    """
    source = hf_model.config.hidden_size
    target = d_model or source
    if target < source:
        raise ValueError(f"d_model={target}: a twin is at least as wide as its source ({source})")
    rotation = _rotation(source, target, seed)
    config = copy.deepcopy(hf_model.config)
    eps_ratio = scale**2 * source / target
    config.hidden_size = target
    config.head_dim = hf_model.model.layers[0].self_attn.head_dim
    config.tie_word_embeddings = False
    config.rms_norm_eps = hf_model.config.rms_norm_eps * eps_ratio
    with torch.random.fork_rng(devices=[]):
        other = type(hf_model)(config)
    basis = _Basis(rotation, math.sqrt(source / target), scale, fold)
    weights = hf_model.state_dict()
    one_plus = "Gemma" in type(hf_model).__name__
    with torch.no_grad():
        for name, parameter in other.state_dict().items():
            parameter.copy_(_moved(name, weights, basis, one_plus, math.sqrt(eps_ratio)))
    return other.eval(), rotation.float()


class _Basis:
    """The four kinds of matrices and how each changes basis (float64 inside)."""

    def __init__(self, rotation: Tensor, root: float, scale: float, fold: bool) -> None:
        self.rotation, self.root, self.scale, self.fold = rotation, root, scale, fold

    def reader(self, weight: Tensor, gain: Tensor) -> Tensor:
        gain = gain if self.fold else torch.ones_like(gain)
        return self.root * (weight.double() * gain) @ self.rotation

    def writer(self, weight: Tensor) -> Tensor:
        return self.scale * self.rotation.T @ weight.double()

    def embedding(self, weight: Tensor, *, multiplied: bool) -> Tensor:
        return self.scale * (self.root if multiplied else 1.0) * weight.double() @ self.rotation

    def norm(self, gain: Tensor) -> Tensor:
        if not self.fold:
            return gain
        return torch.ones(self.rotation.shape[1], dtype=torch.float64)

    def norm_after_sublayer(self, gain: Tensor) -> Tensor:
        if not torch.allclose(gain, gain[:1].expand_as(gain)):
            raise ValueError("gains after the sublayers are not constant: no exact twin exists")
        return gain[:1].expand(self.rotation.shape[1]) * self.scale * self.root


def _moved(
    name: str, weights: dict[str, Tensor], basis: _Basis, one_plus: bool, qk_growth: float
) -> Tensor:
    """The twin's value of the parameter `name`."""
    weight = weights[name]

    def gain(norm: str) -> Tensor:
        return weights[norm].double() + (1.0 if one_plus else 0.0)

    block, _, part = name.rpartition("self_attn." if "self_attn." in name else "mlp.")
    qk_norm = f"{block}self_attn.q_norm.weight" in weights
    before_mlp = "pre_feedforward_layernorm" if one_plus else "post_attention_layernorm"
    if part == "model.embed_tokens.weight":
        return basis.embedding(weight, multiplied=one_plus)
    if part == "lm_head.weight":
        return basis.reader(weight, gain("model.norm.weight"))
    if part in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
        moved = basis.reader(weight, gain(f"{block}input_layernorm.weight"))
        return moved * (qk_growth if qk_norm and part[0] in "qk" else 1.0)
    if part in ("gate_proj.weight", "up_proj.weight"):
        return basis.reader(weight, gain(f"{block}{before_mlp}.weight"))
    if part in ("o_proj.weight", "down_proj.weight"):
        return basis.writer(weight)
    if part in ("q_proj.bias", "k_proj.bias", "v_proj.bias", "q_norm.weight", "k_norm.weight"):
        return weight  # inside a head nothing changes
    if one_plus and part.endswith(tuple(f"{norm}.weight" for norm in _AFTER_SUBLAYER)):
        return basis.norm_after_sublayer(gain(name)) - 1.0
    if part.endswith("norm.weight"):
        return basis.norm(gain(name)) - (1.0 if one_plus else 0.0)
    raise ValueError(f"no rule for {name} ({tuple(weight.shape)})")


def _rotation(source: int, target: int, seed: int) -> Float[Tensor, "d_source d_target"]:
    """Orthonormal rows, uniformly distributed (float64)."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(target, target, generator=generator, dtype=torch.float64)
    orthogonal, triangle = torch.linalg.qr(square)
    return (orthogonal * triangle.diagonal().sign())[:source]
