"""Effect of adding a direction: shift of next-token log-odds on prompts, one number a prompt."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.data.encode import encode_many
from tl_transfer.errors import InputError
from tl_transfer.metrics import log_odds
from tl_transfer.models.batches import pad
from tl_transfer.models.resume import TOGETHER, Resumed, edited_copies
from tl_transfer.models.surface import HookedModel, Site
from tl_transfer.positions import Layout, Where, everywhere

#: Fewer words than this on one side make the log-odds hang on single tokens.
MIN_WORDS = 4


def single_tokens(
    words: Sequence[str], tokenizer: object
) -> tuple[list[str], Int[Tensor, " word"]]:
    """The words that are one token in this tokenizer (with their leading space), and their ids."""
    kept: dict[int, str] = {}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        if len(ids) == 1:
            kept[ids[0]] = word
    return list(kept.values()), torch.tensor(list(kept), dtype=torch.long)


def poles(
    positive: Sequence[str], negative: Sequence[str], model: HookedModel
) -> tuple[dict[str, list[str]], Int[Tensor, " plus"], Int[Tensor, " minus"]]:
    """The words of both poles that are one token, and their ids, on the device of the model.

    Raises:
        InputError: fewer than four words of a pole are single tokens.
    """
    kept, ids = {}, []
    for pole, words in (("positive", positive), ("negative", negative)):
        kept[pole], found = single_tokens(words, model.tokenizer)
        if len(found) < MIN_WORDS:
            raise InputError(
                f"{pole}_words: too few are single tokens in {model.name}",
                got=f"{len(found)} of {len(words)}: {kept[pole]}",
                valid=f"at least {MIN_WORDS} words that are one token with a leading space",
                hint="add common words",
            )
        ids.append(found.to(model.device))
    return kept, ids[0], ids[1]


class PromptEffect:
    """Log-odds of positive against negative words after each prompt, steered or not.

    Args:
        site: Target model and hook point (resid_post).
        prompts: Prompts of one split.
        positive_words: Continuations of the positive pole.
        negative_words: Continuations of the negative pole.
        where: Positions that are steered.

    Raises:
        InputError: fewer than four words of a pole are single tokens.
    """

    def __init__(
        self,
        site: Site,
        prompts: Sequence[str],
        positive_words: Sequence[str],
        negative_words: Sequence[str],
        *,
        where: Where | None = None,
    ) -> None:
        model = site.model
        self.words, positive, negative = poles(positive_words, negative_words, model)
        self._positive, self._negative = positive, negative
        rows = [text.ids for text in encode_many(prompts, model.tokenizer)]
        batch = pad(rows, side="left", pad_id=model.tokenizer.pad_token_id or 0)
        self._resumed = Resumed(model, site.point, batch.tokens, batch.mask)
        self._chosen = (where or everywhere()).choose(Layout.of(self._resumed.mask))
        self._last = torch.tensor([batch.tokens.shape[1] - 1])
        self._unembed = _word_logits(model, torch.cat([self._positive, self._negative]))
        self.baseline = self._log_odds(self._resumed.residual)

    @torch.no_grad()
    def shifts(self, steps: Float[Tensor, "arm d_model"]) -> Float[Tensor, "arm prompt"]:
        """Change of each prompt's log-odds under each step, added at the chosen positions."""
        found = [
            self._log_odds(edited_copies(self._resumed.residual, self._chosen, part))
            for part in steps.split(TOGETHER)
        ]
        return torch.cat(found).view(len(steps), -1) - self.baseline

    @torch.no_grad()
    def _log_odds(self, residual: Tensor) -> Tensor:
        logits = self._unembed(self._resumed.final(residual, keep=self._last)[:, 0])
        n = len(self._positive)
        words = torch.arange(logits.shape[-1], device=logits.device)
        return log_odds(logits, words[:n], words[n:]).cpu()


def _word_logits(
    model: HookedModel, ids: Int[Tensor, " word"]
) -> Callable[[Float[Tensor, "prompt d_model"]], Float[Tensor, "prompt word"]]:
    """Unembed a few words only: the normaliser cancels in log-odds, and a full one costs most."""
    weight = model.host.W_U[:, ids].detach().float()
    bias = getattr(model.host, "b_U", None)
    offset = bias[ids].detach().float() if isinstance(bias, Tensor) else 0.0

    def logits(final: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt word"]:
        return model.capped(final.float() @ weight + offset)

    return logits
