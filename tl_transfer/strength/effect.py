"""NextTokenEffect: what an intervention does to the next token after each of some prompts."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.edited import after_prompts
from tl_transfer.errors import InputError
from tl_transfer.evaluation.behaviour import poles
from tl_transfer.extract.reading import encode_prompts
from tl_transfer.interventions import Intervention
from tl_transfer.metrics import log_odds
from tl_transfer.models.surface import HookedModel

#: Logits after each prompt -> one number a prompt.
Score = Callable[[Float[Tensor, "prompt d_vocab"]], Float[Tensor, " prompt"]]


@runtime_checkable
class Effect(Protocol):
    """What calibration asks of a measure of behaviour; bring your own (a judge of generations)."""

    def measure(self, interventions: Sequence[Intervention]) -> Float[Tensor, " prompt"]:
        """Change against the unsteered model, one number a prompt, in the unit you like."""
        ...


class NextTokenEffect:
    """Change of a score of the next token, on prompts of one split.

    Args:
        model: Who is steered.
        prompts: Texts, or chats as lists of messages (`user_messages` makes them of texts).
        positive_words: Continuations of the positive pole (with their leading space): the score
            is then the log-odds of any of them against any of `negative_words`, in nats.
        negative_words: Continuations of the negative pole.
        score: Any other score: logits after each prompt to one number a prompt.

    Attributes:
        baseline: Score of the unsteered model.
        words: The words that are one token in this model and are used.

    Raises:
        InputError: neither or both of words and score; fewer than four usable words of a pole.
    """

    def __init__(
        self,
        model: HookedModel,
        prompts: Sequence[Any],
        *,
        positive_words: Sequence[str] | None = None,
        negative_words: Sequence[str] | None = None,
        score: Score | None = None,
    ) -> None:
        words = positive_words is not None and negative_words is not None
        if words == (score is not None):
            raise InputError(
                "positive_words, negative_words, score: words of both poles, or a score",
                got="both" if words else "neither",
                valid="two lists of words, or a function of the logits",
                hint='positive_words=[" good", ...], negative_words=[" bad", ...]',
            )
        self.words: dict[str, list[str]] = {}
        if score is None:
            score = self._of_words(model, positive_words or (), negative_words or ())
        self._score = score
        encoded = encode_prompts(model, prompts)
        self._n = len(encoded)
        self._batches = after_prompts(model, encoded)
        self.baseline = self._scores(())

    def measure(self, interventions: Sequence[Intervention]) -> Float[Tensor, " prompt"]:
        """Score with the interventions on, minus the baseline."""
        return self._scores(interventions) - self.baseline

    def _scores(self, interventions: Sequence[Intervention]) -> Tensor:
        scores = torch.zeros(self._n)
        for group, batch in self._batches:
            scores[group] = self._score(batch.logits(interventions)[:, 0]).float().cpu()
        return scores

    def _of_words(
        self, model: HookedModel, positive: Sequence[str], negative: Sequence[str]
    ) -> Score:
        self.words, plus, minus = poles(positive, negative, model)
        return lambda logits: log_odds(logits, plus, minus)
