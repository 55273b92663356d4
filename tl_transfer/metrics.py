"""Pure measures on tensors: cosine, KL, retrieval, CKA, AUROC. No models, no files."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cosine(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@dataclass(frozen=True)
class Reference:
    """Next-token distributions that others are compared with.

    KL(p || q) = sum p log p - sum p z + logsumexp(z) for raw logits z of q: with p and its first
    term kept, a comparison is one dot product and one logsumexp over the vocabulary.

    Attributes:
        p: Probabilities.
        negative_entropy: sum p log p.
    """

    p: Float[Tensor, "token d_vocab"]
    negative_entropy: Float[Tensor, " token"]

    @classmethod
    def of(cls, logits: Float[Tensor, "token d_vocab"]) -> "Reference":
        """From raw logits."""
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        return cls(p, (p * log_p).sum(-1))

    def compare(
        self, logits: Float[Tensor, "token d_vocab"], following: Int[Tensor, " token"]
    ) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
        """KL(reference || logits) and cross-entropy of the following token, in nats a token."""
        z = logits.float()
        normaliser = z.logsumexp(-1)
        expected = torch.linalg.vecdot(self.p, z)
        kl = self.negative_entropy - expected + normaliser
        return kl, normaliser - z.gather(-1, following[:, None]).squeeze(-1)


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
