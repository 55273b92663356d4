"""select_direction: which layer and which token a direction is read at (Arditi et al. 2024).

For every layer and every token between the end of the message and the answer, the difference of
class means is a candidate. Each is judged by what it does to the model, on validation prompts:

bypass   score of the behaviour where it occurs, with the direction ablated at every write
induce   score where it does not occur, with the vector added once at its own layer
kl       KL(plain || ablated) of the next token where it does not occur: what ablation breaks

Discarded are candidates with a KL above 0.1, an induce score below 0, or from the last fifth of the
layers; of the rest the lowest bypass score wins. The behaviour may be refusal or anything else that
shows in the first token of the answer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText
from tl_transfer.data.texts import as_texts
from tl_transfer.errors import InputError
from tl_transfer.extract.contrast import hashes, said
from tl_transfer.extract.hygiene import check_contrast
from tl_transfer.extract.reading import encode_prompts
from tl_transfer.extract.steerability import steerability
from tl_transfer.extract.trial import Candidate, Rows, Score, Trial, compare
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.vectors import SteeringVector


@dataclass(frozen=True)
class Selection:
    """The chosen direction and the field it was chosen from.

    Attributes:
        vector: The winner, with its scores in the provenance.
        winner: Its row of the table.
        candidates: All rows: by layer, then position.
        baseline_positive: Score of the plain model where the behaviour occurs.
        baseline_negative: Score where it does not.
        n_positive: Validation prompts where it occurs.
        n_negative: Validation prompts where it does not.
    """

    vector: SteeringVector
    winner: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    baseline_positive: float
    baseline_negative: float
    n_positive: int
    n_negative: int

    def to_json(self) -> dict[str, Any]:
        """The table and the baselines."""
        kept = ("baseline_positive", "baseline_negative", "n_positive", "n_negative")
        return {
            "winner": asdict(self.winner),
            "candidates": [asdict(candidate) for candidate in self.candidates],
            **{name: getattr(self, name) for name in kept},
        }

    def __repr__(self) -> str:
        w = self.winner
        return (
            f"Selection({w.hook_point}, token {w.position}, of {len(self.candidates)} candidates\n"
            f"  bypass {w.bypass:.2f} (plain {self.baseline_positive:.2f}, "
            f"n {self.n_positive}), induce {w.induce:.2f} (plain {self.baseline_negative:.2f}, "
            f"n {self.n_negative}), KL {w.kl:.3f})"
        )


def opening_score(model: Any, openings: Sequence[str | int]) -> Score:
    """Log-odds that the answer opens with one of some tokens: log p - log(1 - p), in float64.

    Args:
        model: Whose tokens.
        openings: Token ids, or texts of which the first token counts, spelled as an answer begins:
            ``("I", "As", "Sorry")``.

    Raises:
        InputError: nothing to look for.
    """
    tokenizer = load_model(model).tokenizer
    found = [
        tokenizer(one, add_special_tokens=False)["input_ids"][:1] if isinstance(one, str) else [one]
        for one in openings
    ]
    ids = sorted({token for row in found for token in row})
    if not ids:
        raise InputError(
            "openings: no token",
            got=list(openings),
            valid="token ids or first words of an answer",
            hint='refusals of many models open with "I", "As" or "Sorry"',
        )

    def score(logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        z = logits.double()
        inside = z[:, ids].logsumexp(-1)
        rest = z.clone()
        rest[:, ids] = -torch.inf
        return inside - rest.logsumexp(-1)

    return score


def select_direction(
    model: Any,
    *,
    positive: Sequence[Any],
    negative: Sequence[Any],
    positive_validation: Sequence[Any],
    negative_validation: Sequence[Any],
    score: Score,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    kl_limit: float = 0.1,
    induce_limit: float = 0.0,
    depth: float = 0.8,
    where: Where | None = None,
    exhaustive: bool = False,
    progress: bool = True,
) -> Selection:
    """Choose the layer and token at which a behaviour's direction is read.

    Args:
        model: `HookedModel` or a live host.
        positive: Prompts on which the behaviour occurs (harmful requests, for refusal): chats as
            lists of messages (`user_messages`), or plain texts.
        negative: Prompts on which it does not.
        positive_validation: Other prompts on which it occurs; candidates are scored on them.
        negative_validation: Other prompts on which it does not.
        score: Measure of the behaviour in the next token, e.g. `opening_score`.
        layers: Layers tried; default, all that `depth` allows.
        positions: Tokens tried, from the end; default, all after the last message's content in
            chats, and -1 in plain texts.
        kl_limit: Most KL of the ablation on `negative_validation`.
        induce_limit: Least induce score.
        depth: Layers from this share of the depth on are not tried.
        where: Tokens that are edited; default everywhere but the attention sink.
        exhaustive: Measure every score of every candidate, for the table. Without it the choice is
            the same and much is saved: the bypass score is only measured of candidates that
            induce, and the KL from the best bypass on until one is within the limit.
        progress: Show a bar.

    Raises:
        InputError: shared prompts between training and validation, prompts with no common tokens
            after the message, or no candidate that passes the filters.
    """
    hooked = load_model(model)
    parts = {
        "positive": as_texts(positive, "positive"),
        "negative": as_texts(negative, "negative"),
        "positive_validation": as_texts(positive_validation, "positive_validation"),
        "negative_validation": as_texts(negative_validation, "negative_validation"),
    }
    _require_disjoint(parts)
    prompts = {name: encode_prompts(hooked, texts, name) for name, texts in parts.items()}
    everyone = [prompt for group in prompts.values() for prompt in group]
    tried = _positions(everyone) if positions is None else [int(p) for p in positions]
    rows = Rows(hooked, prompts["positive"], prompts["negative"], _layers(hooked, layers), tried)
    trial = Trial(hooked, prompts, score, where or everywhere())
    found = compare(rows, trial, hooked, kl_limit, induce_limit, depth, exhaustive, progress)
    return _selection(hooked, found, rows, trial, parts, (kl_limit, induce_limit, depth))


def _selection(
    model: HookedModel,
    table: dict[tuple[str, int], Candidate],
    rows: Rows,
    trial: Trial,
    parts: dict[str, list[Any]],
    limits: tuple[float, float, float],
) -> Selection:
    winner = _winner(table, trial, limits)
    plus, minus = rows.sides(winner.hook_point, winner.position)
    chosen = rows.vector(winner.hook_point, winner.position)
    assert chosen is not None
    point = model.hook_point(winner.hook_point)
    check = check_contrast(*([said(text) for text in parts[s]] for s in ("positive", "negative")))
    check.warn()
    provenance = {
        "n_positive": len(plus),
        "n_negative": len(minus),
        "position": winner.position,
        "check": check.to_json(),
        **steerability(plus, minus, lambda a, b: a.mean(0) - b.mean(0)),
        "selection": {
            "bypass": winner.bypass,
            "induce": winner.induce,
            "kl": winner.kl,
            "baseline_positive": trial.baseline_positive,
            "baseline_negative": trial.baseline_negative,
            "n_positive": trial.n_positive,
            "n_negative": trial.n_negative,
            "n_candidates": len(table),
            "kl_limit": limits[0],
            "induce_limit": limits[1],
            "depth": limits[2],
        },
        "texts": hashes([*parts["positive"], *parts["negative"]]),
        "validation_texts": hashes([*parts["positive_validation"], *parts["negative_validation"]]),
    }
    vector = SteeringVector(
        chosen.direction,
        chosen.space,
        read_texts(model, [point], parts["negative"])[point.name].median_norm,
        "selected_mean_difference",
        provenance,
        chosen.origin,
    )
    return Selection(
        vector,
        winner,
        tuple(table.values()),
        trial.baseline_positive,
        trial.baseline_negative,
        trial.n_positive,
        trial.n_negative,
    )


def _winner(
    table: Mapping[tuple[str, int], Candidate], trial: Trial, limits: tuple[float, float, float]
) -> Candidate:
    """The lowest bypass score among those that passed; refused if none did."""
    passed = [c for c in table.values() if not c.discarded and c.kl is not None]
    if passed:
        return min(passed, key=lambda c: c.bypass or 0.0)
    reasons = Counter(candidate.discarded for candidate in table.values())
    raise InputError(
        "select_direction: no candidate passes the filters",
        got=", ".join(f"{n} x {reason}" for reason, n in reasons.items()),
        valid=f"one with KL at most {limits[0]:g}, induce at least {limits[1]:g}, and depth "
        f"below {limits[2]:g}",
        hint="look at the plain scores first: does the model show the behaviour "
        f"(here {trial.baseline_positive:.2f} against {trial.baseline_negative:.2f})? Then "
        "loosen kl_limit or induce_limit",
    )


def _layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    return list(range(model.n_layers)) if layers is None else [int(layer) for layer in layers]


def _positions(prompts: Sequence[EncodedText | EncodedChat]) -> list[int]:
    """Tokens from the end that come after the content of every chat; -1 for plain texts."""
    after = []
    for prompt in prompts:
        if isinstance(prompt, EncodedText):
            return [-1]
        last = max((position for position, *_ in prompt.content_tokens()), default=-1)
        after.append(len(prompt.ids) - 1 - last)
    n = min(after)
    if n == 0:
        return [-1]
    return list(range(-n, 0))


def _require_disjoint(parts: dict[str, list[Any]]) -> None:
    owner: dict[Any, str] = {}
    for name, texts in parts.items():
        for text in texts:
            before = owner.setdefault(text, name)
            if before != name:
                raise InputError(
                    f"{name}: a prompt is also in {before}",
                    got=f"{said(text)!r:.100}",
                    valid="four lists with no prompt in common",
                    hint="a direction must be judged on prompts it was not made from",
                )
