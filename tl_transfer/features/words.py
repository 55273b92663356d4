"""Words of a direction: what it makes likelier when it is unembedded alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.models.surface import HookedModel

#: (token, logit), strongest first.
Words = list[tuple[str, float]]


@torch.no_grad()
def words_of(
    model: HookedModel, direction: Float[Tensor, " d_model"], top: int = 10
) -> tuple[Words, Words]:
    """Tokens that a direction promotes, and those it suppresses, strongest first.

    The direction goes through the final norm and the unembedding as if it were the whole stream.
    """
    host = model.host
    unit = torch.nn.functional.normalize(direction.float(), dim=0)
    unit = unit.to(model.device, model.dtype)[None, None]
    # The bias of the unembedding says nothing of the direction: take it out with a zero stream.
    bias = host.unembed(torch.zeros_like(unit))
    logits = (host.unembed(host.ln_final(unit)) - bias)[0, 0].float()
    # The mean over the vocabulary changes no probability.
    logits = logits - logits.mean()
    # A padded vocabulary has rows that no token uses.
    logits = logits[: len(model.tokenizer)]

    def named(found: Tensor) -> Words:
        return [(model.tokenizer.decode([i]), float(logits[i])) for i in found.tolist()]

    return named(logits.topk(top).indices), named((-logits).topk(top).indices)
