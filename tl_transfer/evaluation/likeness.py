"""How alike two texts are, without a judge: ROUGE-1, ROUGE-L (Lin 2004) and embedding cosine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.evaluation.restoration import overlap
from tl_transfer.models.surface import HookedModel


@dataclass(frozen=True)
class Likeness:
    """Of one text to another.

    Attributes:
        rouge_1: F1 of shared words.
        rouge_l: F1 of the longest common run of words, gaps allowed.
        cosine: Of mean token embeddings, from the mean of all texts.
    """

    rouge_1: float
    rouge_l: float
    cosine: float


def words(text: str) -> list[str]:
    """Words and numbers, in lower case."""
    return re.findall(r"\w+", text.lower())


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of the longest common subsequence; two empty texts are the same."""
    if not a or not b:
        return float(not a and not b)
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the cell above and to the left
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = before + 1 if word == other else max(above, row[j - 1])
            before = above
    return 2 * row[-1] / (len(a) + len(b))


def mean_embeddings(
    model: HookedModel, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "text d_model"]:
    """Mean input embedding of each text's tokens; zero for an empty one."""
    table = model.host.W_E
    found = torch.zeros(len(rows), table.shape[1])
    for i, row in enumerate(rows):
        if len(row):
            ids = torch.tensor(list(row), device=table.device)
            found[i] = table[ids].detach().float().mean(0).cpu()
    return found


def likenesses(
    model: HookedModel,
    texts: Sequence[tuple[str, Sequence[int]]],
    others: Sequence[tuple[str, Sequence[int]]],
) -> list[Likeness]:
    """Of each text to the other at its place.

    Args:
        model: Whose embeddings are compared.
        texts: Text and token ids in the model's vocabulary.
        others: The same; the mean of their embeddings is the origin of the cosine.
    """
    x, y = (mean_embeddings(model, [ids for _, ids in side]) for side in (texts, others))
    cosines = torch.nn.functional.cosine_similarity(x - y.mean(0), y - y.mean(0), dim=-1)
    return [
        Likeness(overlap(words(a), words(b)), rouge_l(words(a), words(b)), float(cosine))
        for (a, _), (b, _), cosine in zip(texts, others, cosines, strict=True)
    ]
