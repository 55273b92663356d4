"""Fidelity of full replacement: what the target writes while its stream is another model's.

The paper's question (Oozeer et al. 2025, section 3.3): is what the target writes with one layer
replaced, at every token it reads and writes, like what it writes by itself, more than with that
layer at its mean? Beside it stands how alike two of its own texts to different prompts are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tl_transfer.evaluation.answers import text_losses
from tl_transfer.evaluation.coherence import Coherence, n_words, repeated_runs
from tl_transfer.evaluation.likeness import Likeness, likenesses
from tl_transfer.evaluation.rates import rate
from tl_transfer.intervals import mean_ci
from tl_transfer.interventions import Intervention
from tl_transfer.models.attach import attach
from tl_transfer.models.surface import HookedModel

#: Prompts decoded together.
ROWS = 50


@dataclass(frozen=True)
class Text:
    """What was written after one prompt.

    Attributes:
        text: The words.
        tokens: Ids of the target.
        loss: Mean loss per token of the text alone under the unedited target, in nats.
    """

    text: str
    tokens: tuple[int, ...]
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def broken(self, guard: Coherence) -> bool:
        """Whether it is no whole text."""
        return guard.broken(
            loss=self.loss, repeated=repeated_runs(self.tokens), words=n_words(self.text)
        )


def write(
    model: HookedModel,
    prompts: Sequence[str],
    edits: Sequence[Intervention],
    *,
    max_new_tokens: int,
    judge: HookedModel | None = None,
) -> list[Text]:
    """Greedy continuations of prompts.

    Args:
        model: Who writes.
        prompts: Openings.
        edits: What is on the model.
        max_new_tokens: Length limit.
        judge: Whose tokens and losses they get; default the model itself, with nothing on it.
    """
    with attach(model, *edits) as live:
        made = live.generate(list(prompts), max_new_tokens=max_new_tokens, batch_size=ROWS)
    rows: list[tuple[int, ...]] = [item.tokens for item in made]
    if judge is not None:
        read = judge.tokenizer([item.text for item in made], add_special_tokens=False)["input_ids"]
        rows = [tuple(row) for row in read]
    losses = text_losses(judge or model, rows)
    return [Text(item.text, row, loss) for item, row, loss in zip(made, rows, losses, strict=True)]


def fidelity(
    target: HookedModel,
    own: Sequence[Text],
    source_own: Sequence[Text],
    arms: Mapping[str, Sequence[Text]],
    *,
    ablated: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Scores of every arm's texts against the target's own.

    Args:
        target: Whose embeddings and losses are used.
        own: Its texts with nothing on it.
        source_own: The source's texts after the same prompts, in the target's tokens.
        arms: Arm -> its texts.
        ablated: The arm that others are compared with.
        seed: Of the bootstraps.

    Returns:
        Arm -> ``rouge_1``, ``rouge_l``, ``cosine`` (means with intervals), ``beats_ablation`` and
        ``like_target`` (rates: nearer by ROUGE-L to the target's own text than the ablated one is,
        and than it is to the source's own text; a tie counts as no), ``broken``; also for
        ``another_prompt``, the target's own text of the next prompt, and ``source``, the source's.
    """
    guard = Coherence.from_unsteered([text.loss for text in own])

    def scores(texts: Sequence[Text], others: Sequence[Text]) -> list[Likeness]:
        return likenesses(
            target, [(t.text, t.tokens) for t in texts], [(t.text, t.tokens) for t in others]
        )

    rows = {**arms, "source": source_own, "another_prompt": [*own[1:], own[0]]}
    to_own = {name: scores(texts, own) for name, texts in rows.items()}
    floor = [item.rouge_l for item in to_own[ablated]]
    found = {}
    for name, texts in rows.items():
        mine = [item.rouge_l for item in to_own[name]]
        found[name] = {
            **{
                key: _mean([getattr(item, key) for item in to_own[name]], seed)
                for key in ("rouge_1", "rouge_l", "cosine")
            },
            "broken": rate([text.broken(guard) for text in texts]),
            "n": len(texts),
        }
        if name in arms:
            theirs = [item.rouge_l for item in scores(texts, source_own)]
            found[name]["like_target"] = rate(_more(mine, theirs))
            if name != ablated:
                found[name]["beats_ablation"] = rate(_more(mine, floor))
    return found


def _more(a: Sequence[float], b: Sequence[float]) -> list[bool]:
    return [x > y for x, y in zip(a, b, strict=True)]


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    numbers = torch.tensor(list(values))
    return {"mean": float(numbers.mean()), "ci95": mean_ci(numbers, seed=seed)}


#: Gives back the texts of an interrupted run by name, or None; keeps finished ones.
Recall = Callable[[str], Any]
Keep = Callable[[str, Any], None]


def texts_of(
    name: str, make: Callable[[], Sequence[Text]], recall: Recall, keep: Keep
) -> list[Text]:
    """The texts of an earlier run, or made now and kept."""
    stored = recall(name)
    if stored is not None:
        return [Text(item["text"], tuple(item["tokens"]), item["loss"]) for item in stored]
    made = list(make())
    keep(name, [text.to_dict() for text in made])
    return made
