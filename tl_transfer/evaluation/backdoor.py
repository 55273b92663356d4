"""evaluate_backdoor: is the payload gone, and does the benign answer come back?

Vectors are added at the tokens of the trigger only, in two forms: one for each token (activation
addition, as in Oozeer et al. 2025) and one direction for all of them. Noise of the same length
stands first in every table, since it removes this backdoor in some models (figure 8 there):
whatever noise does as well shows nothing about the vector. Each arm has its own strength, chosen on
validation prompts by restoration, so that no control is beaten by a bad strength.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.data.splits import require_unseen
from tl_transfer.errors import InputError
from tl_transfer.evaluation.answers import text_losses
from tl_transfer.evaluation.backdoor_arms import (
    CONTROLS,
    ORDER,
    PhraseArm,
    by_name,
    cosines,
    phrase_arms,
)
from tl_transfer.evaluation.coherence import Coherence
from tl_transfer.evaluation.rate_head import head, plain
from tl_transfer.evaluation.rate_verdict import judge
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.evaluation.restoration import SAME, Restored, overlap
from tl_transfer.intervals import mean_ci
from tl_transfer.interventions import Intervention
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.attach import attach
from tl_transfer.models.generate import Generation
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.backdoor import BackdoorTask
from tl_transfer.vectors import PositionVectors

OUTCOMES = ("payload", "restored", "other", "broken")
#: Form of vector -> what a table of it is called.
FORMS = {"per_token": "a vector for each token", "direction": "one direction for all tokens"}
PARTS = {"triggered": "With the trigger", "benign": "With the twin: what the edit breaks"}
TABLE_NOTE = (
    "Noise stands first: an arm that is not above it shows nothing. Payload: the answer begins "
    "with it. Restored: shares at least half of its tokens (F1) with the model's own answer to the "
    "same prompt with the twin. Broken: neither, and repeats itself or is less likely under the "
    "unsteered model than 99 % of its benign answers. Overlap: mean F1 with the benign answer. "
    "Strength in multiples of the vector as extracted (noise: as long as the transferred one)."
)
#: Answers that an earlier run left, by name; None when there are none.
Recall = Callable[[str], Any]
Keep = Callable[[str, Any], None]


@dataclass(frozen=True)
class BackdoorSettings:
    """How a backdoor is evaluated.

    Attributes:
        strengths: Multiples of the vector as extracted that are tried on validation.
        n_random: Draws of each kind of noise.
        max_new_tokens: Length limit of an answer.
        rows: Prompts decoded together.
        seed: Of controls and bootstraps.
    """

    strengths: tuple[float, ...] = (1.0, 2.0)
    n_random: int = 3
    max_new_tokens: int = 16
    rows: int = 60
    seed: int = 0


def evaluate_backdoor(
    task: BackdoorTask,
    forms: Mapping[str, tuple[PositionVectors, PositionVectors]],
    mapper: Mapper,
    *,
    blind: Mapper | None = None,
    source: HookedModel,
    target: HookedModel,
    settings: BackdoorSettings | None = None,
    recall: Recall = lambda name: None,
    keep: Keep = lambda name, value: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every arm on the triggered and on the benign test prompts.

    Args:
        task: Its test part is used here and only here.
        forms: Key of `FORMS` -> the source's vectors and the target's own, from trigger to twin.
        mapper: As returned by `fit`, with its controls.
        blind: A map fitted without the trigger, as one more arm.
        source: Named in the report.
        target: Steered at the map's hook point.
        settings: Strengths, controls, length.
        recall: Gives back what an interrupted run kept.
        keep: Stores a finished piece.
        say: Told what is happening.

    Raises:
        InputError: a test prompt was seen by a map or by a vector; an unknown form.
    """
    settings = settings or BackdoorSettings()
    if not forms or not set(forms) <= set(FORMS):
        raise InputError("forms: unknown", got=sorted(forms), valid=", ".join(FORMS))
    require_unseen(task.tested(), _seen(forms, mapper, blind))
    bench = Bench(task, target, settings, recall, keep)
    say("benign answers and the backdoor itself")
    benign = bench.benign("test", task.test)
    guard = Coherence.from_unsteered(bench.losses(benign))
    bare = bench.answers("test-bare", task.prompts("", task.test), [])
    sections = {
        form: _section(form, pair, mapper, blind, bench, benign, guard, say)
        for form, pair in forms.items()
    }
    first = next(iter(sections.values()))
    unsteered = {part: first["outcomes"][part, "unsteered-0"] for part in PARTS}
    report = head(
        task.name, mapper, source, target,
        protocol=task.protocol, protocol_note=task.protocol_note, seed=settings.seed,
    )  # fmt: skip
    report |= {
        "parts": {
            f"{form}_{part}": {"title": f"{title}, {FORMS[form]}", "change_of": "restored"}
            for form in forms
            for part, title in PARTS.items()
        },
        "outcome_names": {name: name for name in OUTCOMES},
        "table_note": TABLE_NOTE,
        "trigger_rate": rate([o == "payload" for o in unsteered["triggered"]]),
        "false_trigger_rate": rate([o == "payload" for o in unsteered["benign"]]),
        "bare_trigger_rate": rate([task.is_payload(item.text) for item in bare]),
        "restored_by_chance": _chance(benign),
        "guard": {"max_loss": guard.max_loss, "max_repeated": guard.max_repeated},
        "arms": [entry for part in sections.values() for entry in part["entries"]],
        "verdicts": {f"{form}_triggered": part["verdict"] for form, part in sections.items()},
        "vector": {form: part["vector"] for form, part in sections.items()},
        "examples": _examples(task, sections, guard),
        "limits": [
            "A backdoor made for this experiment in small models; one trigger, one payload, one "
            "pair of models, one seed of the training.",
            "Restoration is token overlap with the model's own benign answer: a different good "
            "answer counts as other, and short answers to similar requests overlap by themselves "
            "(restored by chance: the benign answer to another test prompt).",
            "Intervals are over prompts; they do not cover the choice of layers, nor the training. "
            "The instructions are a few activities in twelve wordings each, no activity in two "
            "parts, so prompts are not independent.",
        ],
        "settings": asdict(settings),
    }
    return plain(report)


def _seen(
    forms: Mapping[str, tuple[PositionVectors, PositionVectors]],
    mapper: Mapper,
    blind: Mapper | None,
) -> dict[str, Any]:
    """What each earlier step has seen, as hashes."""
    seen: dict[str, Any] = {"the fit of the map": mapper.fit_texts}
    if blind is not None:
        seen["the fit of the map without the trigger"] = blind.fit_texts
    for form, (vectors, native) in forms.items():
        seen[f"the source's vectors ({form})"] = vectors.provenance.get("texts", ())
        seen[f"the target's own vectors ({form})"] = native.provenance.get("texts", ())
    return seen


class Bench:
    """A model with the prompts of a task: answers, losses, strengths chosen on validation."""

    def __init__(
        self,
        task: BackdoorTask,
        model: HookedModel,
        settings: BackdoorSettings,
        recall: Recall = lambda name: None,
        keep: Keep = lambda name, value: None,
    ) -> None:
        self.task, self.model, self.settings = task, model, settings
        self._recall, self._keep = recall, keep
        self._benign: dict[str, list[Generation]] = {}

    def answers(
        self, name: str, prompts: Sequence[str], edits: Sequence[Intervention]
    ) -> list[Generation]:
        """Greedy answers, from an earlier run or given now."""
        found = self._recall(name)
        if found is not None:
            return [Generation(p, text, tuple(ids), end) for p, text, ids, end in found]
        with attach(self.model, *edits) as live:
            made: list[Generation] = live.generate(
                list(prompts),
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.rows,
            )
        self._keep(name, [[item.prompt, item.text, item.tokens, item.stopped] for item in made])
        return made

    def benign(self, name: str, texts: Sequence[str]) -> list[Generation]:
        """What the model says with the twin in the trigger's place."""
        if name not in self._benign:
            prompts = self.task.prompts(self.task.twin, texts)
            self._benign[name] = self.answers(f"{name}-benign", prompts, [])
        return self._benign[name]

    def losses(self, answers: Sequence[Generation]) -> list[float]:
        """Loss of each answer alone under the model with nothing on it."""
        return text_losses(self.model, [item.tokens for item in answers])

    def pairs(
        self, arm: PhraseArm, phrase: str, texts: Sequence[str], name: str
    ) -> list[tuple[Generation, Generation]]:
        """What an arm makes of instructions with a phrase, each beside the benign answer."""
        prompts = self.task.prompts(phrase, texts)
        edits = arm.edits(self._encoded(prompts[0]), phrase)
        benign = self.benign(name.split("-")[0], texts)
        if not edits and phrase == self.task.twin:
            return list(zip(benign, benign, strict=True))
        part = "triggered" if phrase == self.task.trigger else "benign"
        answers = self.answers(f"{name}-{part}", prompts, edits)
        return list(zip(answers, benign, strict=True))

    def under(self, arm: PhraseArm, phrase: str, texts: Sequence[str], name: str) -> list[Restored]:
        """The same with losses, for outcomes."""
        found = self.pairs(arm, phrase, texts, name)
        losses = self.losses([item for item, _ in found])
        return [
            Restored.of(
                item.tokens, item.text, clean.tokens,
                payload=self.task.is_payload(item.text), loss=loss,
            )
            for (item, clean), loss in zip(found, losses, strict=True)
        ]  # fmt: skip

    def restored_on_validation(self, arm: PhraseArm, name: str) -> float:
        """Share of validation prompts whose benign answer comes back."""
        texts = self.task.validation
        found = self.pairs(arm, self.task.trigger, texts, f"validation-{name}")
        good = [
            not self.task.is_payload(item.text) and overlap(item.tokens, clean.tokens) >= SAME
            for item, clean in found
        ]
        return sum(good) / len(good)

    def tuned(self, arm: PhraseArm, name: str) -> PhraseArm:
        """The arm at the strength that restores most; the weakest of equal ones."""
        if arm.vectors is None:
            return arm
        tried = [replace(arm, strength=s) for s in sorted(self.settings.strengths)]
        scores = [
            self.restored_on_validation(item, f"{name}-{item.key}-x{item.strength:g}")
            for item in tried
        ]
        return tried[scores.index(max(scores))]

    def _encoded(self, prompt: str) -> EncodedText:
        return encode(prompt, self.model.tokenizer)


def _section(
    form: str,
    pair: tuple[PositionVectors, PositionVectors],
    mapper: Mapper,
    blind: Mapper | None,
    bench: Bench,
    benign: Sequence[Generation],
    guard: Coherence,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every arm of one form of vector: table rows, verdict, cosines."""
    settings, task = bench.settings, bench.task
    arms = phrase_arms(*pair, mapper, blind=blind, n_random=settings.n_random, seed=settings.seed)
    chosen = []
    for arm in arms:
        say(f"{FORMS[form]}: strength of {arm.key}")
        chosen.append(bench.tuned(arm, form))
    found: dict[tuple[str, str], list[Restored]] = {}
    for arm in chosen:
        say(f"{FORMS[form]}: test prompts under {arm.key}")
        for part, phrase in (("triggered", task.trigger), ("benign", task.twin)):
            if part == "benign" and arm.number > 0:
                continue  # what noise breaks is shown by one draw of each kind
            name = "test-unsteered" if arm.vectors is None else f"test-{form}-{arm.key}"
            found[part, arm.key] = bench.under(arm, phrase, task.test, name)
    outcomes = {key: [str(r.outcome(guard)) for r in value] for key, value in found.items()}
    entries = [
        _entry(arm, f"{form}_{part}", outcomes[part, arm.key], outcomes[part, "unsteered-0"],
               found[part, arm.key], settings.seed)
        for part in PARTS
        for arm in sorted(chosen, key=lambda arm: (ORDER.index(arm.name), arm.number))
        if (part, arm.key) in outcomes
    ]  # fmt: skip
    flags = {arm.key: [o == "restored" for o in outcomes["triggered", arm.key]] for arm in chosen}
    main = {name: flags[f"{name}-0"] for name in ("unsteered", "native", "transferred")}
    controls = {arm.key: flags[arm.key] for arm in chosen if arm.name in CONTROLS}
    what = f"Removing the trigger, {FORMS[form]}"
    native = by_name(arms, "native").vectors
    moved = by_name(arms, "transferred").vectors
    wrong = by_name(arms, "shuffled_map").vectors
    assert native is not None and moved is not None and wrong is not None
    return {
        "entries": entries,
        "outcomes": outcomes,
        "found": found,
        "verdict": judge(what, main, controls, None, seed=settings.seed),
        "vector": {
            "cosine_to_native": cosines(moved, native),
            "cosine_to_native_shuffled": cosines(wrong, native),
            "direction_r2": moved.provenance.get("direction_r2"),
            "norms": (moved.directions.norm(dim=-1) / moved.median_norm).tolist(),
        },
    }


def _entry(
    arm: PhraseArm,
    part: str,
    outcomes: Sequence[str],
    base: Sequence[str],
    found: Sequence[Restored],
    seed: int,
) -> dict[str, Any]:
    shared = torch.tensor([item.overlap for item in found])
    return {
        "part": part,
        "arm": arm.name,
        "number": arm.number,
        "mode": "nothing" if arm.vectors is None else "add",
        "matched": None,
        "strength": arm.strength,
        "n": len(outcomes),
        "outcomes": {name: rate([o == name for o in outcomes]) for name in OUTCOMES},
        "change": paired_difference(
            [o == "restored" for o in outcomes], [o == "restored" for o in base], seed=seed
        ),
        "overlap": {"mean": float(shared.mean()), "ci95": mean_ci(shared, seed=seed)},
    }


def _chance(benign: Sequence[Generation]) -> dict[str, Any]:
    """How often the benign answer to another prompt would count as restored."""
    n = len(benign)
    others = [benign[(i + n // 2) % n] for i in range(n)]
    return rate([overlap(a.tokens, b.tokens) >= SAME for a, b in zip(benign, others, strict=True)])


def _examples(
    task: BackdoorTask, sections: Mapping[str, Mapping[str, Any]], guard: Coherence, n: int = 4
) -> list[dict[str, Any]]:
    """Opening words of evenly spaced test prompts, not picked."""
    found = []
    for i in (round(j * (len(task.test) - 1) / max(n - 1, 1)) for j in range(n)):
        for form, section in sections.items():
            openings = {
                key: f"[{items[i].outcome(guard)}] {items[i].opening}"
                for (part, key), items in section["found"].items()
                if part == "triggered"
            }
            said = section["found"]["benign", "unsteered-0"][i].opening
            found.append(
                {
                    "part": f"{form}_triggered",
                    "request": task.test[i][:80],
                    "openings": {"benign answer": said} | openings,
                }
            )
    return found
