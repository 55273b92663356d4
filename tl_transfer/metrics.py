"""Pure measures on tensors: cosine, KL, retrieval, CKA, AUROC. No models, no files."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def kl_divergence(
    reference: Float[Tensor, "*token d_vocab"], logits: Float[Tensor, "*token d_vocab"]
) -> Float[Tensor, "*token"]:
    """KL(reference || other) in nats per token, from log-probabilities and raw logits.

    Args:
        reference: Log-probabilities of the unsteered model (already normalised).
        logits: Raw logits of the steered model.
    """
    # sum p (log p - z) + logsumexp(z): no second normalised copy of a 262k-wide array.
    normaliser = logits.float().logsumexp(-1)
    return (reference.exp() * (reference - logits.float())).sum(-1) + normaliser


def log_odds(
    logits: Float[Tensor, "*prompt d_vocab"],
    positive: Int[Tensor, " positive"],
    negative: Int[Tensor, " negative"],
) -> Float[Tensor, "*prompt"]:
    """Log P(any positive token) - log P(any negative token); the normaliser cancels."""
    return logits[..., positive].float().logsumexp(-1) - logits[..., negative].float().logsumexp(-1)


def retrieval(
    predicted: Float[Tensor, "row d"],
    actual: Float[Tensor, "row d"],
    document: Int[Tensor, " row"],
    *,
    k: int = 5,
) -> tuple[float, float]:
    """Share of rows whose own target is the nearest (and among the k nearest) by cosine.

    Candidates are the row's own target and the targets of all *other documents*: neighbours in
    the same text are near-copies and would make any map look bad, or good.
    """
    mean = actual.mean(0)
    a = torch.nn.functional.normalize(predicted - mean, dim=-1)
    b = torch.nn.functional.normalize(actual - mean, dim=-1)
    similarity = a @ b.T
    own = similarity.diagonal().clone()
    others = similarity.masked_fill(document[:, None] == document[None, :], float("-inf"))
    rank = (others > own[:, None]).sum(-1)
    return float((rank == 0).float().mean()), float((rank < k).float().mean())


def debiased_cka(x: Float[Tensor, "row d_source"], y: Float[Tensor, "row d_target"]) -> float:
    """Linear CKA with the unbiased HSIC (Song et al. 2012): near 0 for unrelated rows."""

    def gram(rows: Tensor) -> Tensor:
        rows = rows.double() - rows.double().mean(0)
        return (rows @ rows.T).fill_diagonal_(0.0)

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        total = (a * b).sum()
        total = total + a.sum() * b.sum() / ((n - 1) * (n - 2))
        total = total - 2.0 / (n - 2) * (a.sum(0) @ b.sum(0))
        return total / (n * (n - 3))

    kx, ky = gram(x), gram(y)
    return float(hsic(kx, ky) / (hsic(kx, kx) * hsic(ky, ky)).sqrt())


def auroc(scores: Float[Tensor, " row"], labels: Bool[Tensor, " row"]) -> float:
    """Probability that a positive row scores above a negative one (ties count half)."""
    positive, negative = scores[labels], scores[~labels]
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())
