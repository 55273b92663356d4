"""Effects of moved features at equal damage: each on its own words, beside every other one on them.

Words are those that the feature makes likelier in the source, measured there on other prompts, so
that nothing of the target chose them. Every arm is brought to the same damage on neutral text, and
its effect on every list of words is measured. What the arms of other features do to the words of
one is its floor: random features, moved by the same route, at the same damage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.edited import after_prompts
from tl_transfer.errors import InputError
from tl_transfer.evaluation.behaviour import MIN_WORDS, single_tokens
from tl_transfer.extract.reading import encode_prompts
from tl_transfer.intervals import mean_ci
from tl_transfer.interventions import Intervention
from tl_transfer.models.surface import HookedModel
from tl_transfer.strength.bench import StrengthBench
from tl_transfer.strength.curve import Calibration

#: Nats a token of damage at which arms are compared.
BUDGET = 0.1
#: Words of a feature, and the least probability that steering must give a word to count.
N_WORDS, LEAST = 12, 1e-4


@dataclass(frozen=True)
class Effect:
    """What one arm does to the words of one feature.

    Attributes:
        mean: Mean change over prompts of the log-probability of the words, nats.
        ci95: Its interval over prompts.
        floor: The largest mean among the floors.
        floor_arm: Which floor that is.
        lead_ci95: Interval of the paired difference to the floor that is led by least: the one with
            the lowest lower end, which need not be the one with the largest mean.
        n_floors: Floors there were.
        n_prompts: Prompts.
    """

    mean: float
    ci95: list[float]
    floor: float
    floor_arm: str
    lead_ci95: list[float]
    n_floors: int
    n_prompts: int

    @property
    def beats_every_floor(self) -> bool:
        """Whether the interval of the lead over each of the floors lies above zero."""
        return self.lead_ci95[0] > 0


@dataclass(frozen=True, eq=False, repr=False)
class EffectTable:
    """Arms at equal damage and what each does to each list of words.

    Attributes:
        arms: Names of the arms that reached the damage.
        words: Name -> words, single tokens of the target.
        change: Change of the log-probability of any of the words, nats.
        calibrations: How each arm reached its strength, or why it did not.
        budget: The damage.
    """

    arms: tuple[str, ...]
    words: dict[str, list[str]]
    change: Float[Tensor, "arm words prompt"]
    calibrations: dict[str, Calibration]
    budget: float

    def of(self, arm: str, words: str, *, floors: Sequence[str]) -> Effect:
        """The effect of an arm on a list of words beside floors, which are other arms.

        Args:
            arm: Name of the arm.
            words: Name of the list of words.
            floors: Names of the arms it is compared with.

        Raises:
            InputError: an arm that is not in the table, or no floor that is.
        """
        present = [name for name in floors if name in self.arms and name != arm]
        if arm not in self.arms or words not in self.words or not present:
            raise InputError(
                "arm, words, floors: not in this table",
                got=f"{arm!r} on {words!r} beside {len(present)} floors",
                valid=f"arms {list(self.arms)}, words {list(self.words)}",
                hint="an arm that cannot spend the budget is left out: see calibrations",
            )
        column = list(self.words).index(words)
        mine = self.change[self.arms.index(arm), column]
        theirs = {name: self.change[self.arms.index(name), column] for name in present}
        best = max(theirs, key=lambda name: float(theirs[name].mean()))
        leads = [mean_ci(mine - floor) for floor in theirs.values()]
        return Effect(
            float(mine.mean()),
            mean_ci(mine),
            float(theirs[best].mean()),
            best,
            min(leads, key=lambda lead: lead[0]),
            len(present),
            len(mine),
        )

    def __repr__(self) -> str:
        return (
            f"EffectTable({len(self.arms)} arms at {self.budget:g} nats a token of damage, "
            f"{len(self.words)} lists of words, {self.change.shape[-1]} prompts)"
        )


def feature_effects(
    model: HookedModel,
    arms: Mapping[str, Intervention],
    words: Mapping[str, Sequence[str]],
    *,
    prompts: Sequence[Any],
    neutral: Sequence[str],
    budget: float = BUDGET,
    tolerance: float = 0.15,
) -> EffectTable:
    """Bring every arm to equal damage and measure what it does to every list of words.

    Args:
        model: The target.
        arms: Name -> intervention, such as ``moved.steer()``; its strength is scaled.
        words: Name -> words, from `words_of_feature`.
        prompts: Texts or chats; the next token is looked at.
        neutral: Texts on which damage (KL) is measured.
        budget: Nats a token.
        tolerance: Relative distance from the budget that is near enough.

    Raises:
        InputError: a list with fewer than four words that are one token in the target.
    """
    ids = {name: _ids(name, found, model) for name, found in words.items()}
    encoded = encode_prompts(model, prompts)
    batches = after_prompts(model, encoded)
    bench = StrengthBench(model, neutral=neutral)

    def scores(interventions: Sequence[Intervention]) -> Tensor:
        table = torch.zeros(len(ids), len(encoded))
        for group, batch in batches:
            logp = batch.logits(interventions)[:, 0].float().log_softmax(-1)
            for row, (_, tokens) in enumerate(ids.values()):
                table[row, group] = logp[:, tokens.to(logp.device)].logsumexp(-1).cpu()
        return table

    baseline = scores(())
    found, changes, calibrations = [], [], {}
    for name, item in arms.items():
        calibration = bench.calibrate(item, budget=budget, start=1.0, tolerance=tolerance)
        calibrations[name] = calibration
        if calibration.reached:
            found.append(name)
            changes.append(scores(calibration.interventions) - baseline)
    change = torch.stack(changes) if changes else torch.zeros(0, *baseline.shape)
    kept = {name: list(shown) for name, (shown, _) in ids.items()}
    return EffectTable(tuple(found), kept, change, calibrations, budget)


def words_of_feature(
    model: HookedModel,
    steered: Intervention,
    prompts: Sequence[Any],
    *,
    shared_with: HookedModel,
    top: int = N_WORDS,
) -> list[str]:
    """Words that steering a model makes likelier, which are one token there and in another model.

    Args:
        model: The source.
        steered: The feature's own intervention in the source, at the strength wanted.
        prompts: Other prompts than those the effect is measured on.
        shared_with: The target.
        top: How many.

    Returns:
        The words (with their leading space) whose log-probability rises most on average, among
        those that get a probability of `LEAST` and more; fewer where there are no more.
    """
    encoded = encode_prompts(model, prompts)
    rise = p = None
    for group, batch in after_prompts(model, encoded):
        off = batch.logits()[:, 0].float().log_softmax(-1)
        on = batch.logits((steered,))[:, 0].float().log_softmax(-1)
        part, level = (on - off).sum(0).cpu(), on.exp().sum(0).cpu()
        rise, p = (part, level) if rise is None or p is None else (rise + part, p + level)
        del group
    assert rise is not None and p is not None
    rise = torch.where(p / len(encoded) >= LEAST, rise, -torch.inf)[: len(model.tokenizer)]
    found: list[str] = []
    for index in rise.argsort(descending=True).tolist():
        if len(found) == top or float(rise[index]) <= 0:
            break
        word = model.tokenizer.decode([index])
        bare = word.strip()
        plain = word.startswith(" ") and bare.isalpha() and len(bare) > 1
        if plain and word not in found and single_tokens([word], shared_with.tokenizer)[0]:
            found.append(word)
    return found


def _ids(
    name: str, words: Sequence[str], model: HookedModel
) -> tuple[list[str], Int[Tensor, " word"]]:
    kept, ids = single_tokens(words, model.tokenizer)
    if len(kept) < MIN_WORDS:
        raise InputError(
            f"words: too few of {name!r} are single tokens in {model.name}",
            got=kept,
            valid=f"at least {MIN_WORDS}",
            hint="words_of_feature(..., shared_with=model) gives such words",
        )
    return kept, ids
