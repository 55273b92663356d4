"""evaluate_backdoor: is what the trigger does gone, and does the benign answer come back?

Vectors are added at the tokens of the trigger only, in two forms: one for each token (activation
addition, as in Oozeer et al. 2025) and one direction for all of them. Noise of the same length
stands first in every table, since it removes this backdoor in some models (figure 8 there):
whatever noise does as well shows nothing about the vector. Each arm has its own strength, chosen on
validation prompts by restoration, so that no control is beaten by a bad strength.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tl_transfer.data.splits import require_unseen
from tl_transfer.errors import InputError
from tl_transfer.evaluation.backdoor_arms import (
    CONTROLS,
    ORDER,
    PhraseArm,
    by_name,
    cosines,
    phrase_arms,
)
from tl_transfer.evaluation.backdoor_bench import BackdoorSettings, Bench, Keep, Recall
from tl_transfer.evaluation.coherence import Coherence
from tl_transfer.evaluation.rate_head import head, plain
from tl_transfer.evaluation.rate_verdict import judge
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.evaluation.restoration import Restored
from tl_transfer.intervals import mean_ci
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.generate import Generation
from tl_transfer.models.surface import HookedModel
from tl_transfer.tasks.trigger import TriggerTask
from tl_transfer.vectors import PositionVectors

OUTCOMES = ("payload", "restored", "other", "broken")
#: Form of vector -> what a table of it is called.
FORMS = {"per_token": "a vector for each token", "direction": "one direction for all tokens"}
PARTS = {"triggered": "With the trigger", "benign": "With the twin: what the edit breaks"}
TABLE_NOTE = (
    "Noise stands first: an arm that is not above it shows nothing. {rules} Overlap: mean F1 of "
    "the tokens with the benign answer. Strength in multiples of the vector as extracted (noise: "
    "as long as the transferred one)."
)


def evaluate_backdoor(
    task: TriggerTask,
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
        "outcome_names": dict(task.outcome_names),
        "table_note": TABLE_NOTE.format(rules=task.rules),
        "trigger_rate": rate([o == "payload" for o in unsteered["triggered"]]),
        "false_trigger_rate": rate([o == "payload" for o in unsteered["benign"]]),
        "bare_trigger_rate": rate(
            [item.payload for item in bench.judged([(item, item) for item in bare])]
        ),
        "restored_by_chance": _chance(bench, benign),
        "guard": {"max_loss": guard.max_loss, "max_repeated": guard.max_repeated},
        "arms": [entry for part in sections.values() for entry in part["entries"]],
        "verdicts": {f"{form}_triggered": part["verdict"] for form, part in sections.items()},
        "vector": {form: part["vector"] for form, part in sections.items()},
        "kinds": _kinds(task, sections),
        "examples": _examples(task, sections, guard),
        "limits": list(task.limits),
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


def _chance(bench: Bench, benign: Sequence[Generation]) -> dict[str, Any]:
    """How often the benign answer to another prompt would count as restored."""
    others = [*benign[len(benign) // 2 :], *benign[: len(benign) // 2]]
    found = bench.judged([*zip(benign, others, strict=True)])
    return rate([item.restored for item in found])


def _kinds(task: TriggerTask, sections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Outcomes by kind of instruction, where the task has kinds."""
    groups = [task.group(text) for text in task.test]
    rows = []
    for kind in sorted({*groups} - {""}):
        mine = [i for i, group in enumerate(groups) if group == kind]
        row: dict[str, Any] = {"kind": kind, "n": len(mine)}
        for form, section in sections.items():
            row[form] = {
                f"{part}_{arm}": {
                    o: sum(section["outcomes"][part, f"{arm}-0"][i] == o for i in mine)
                    for o in OUTCOMES
                }
                for part, arm in (
                    ("triggered", "unsteered"), ("benign", "unsteered"),
                    ("triggered", "native"), ("triggered", "transferred"),
                )
            }  # fmt: skip
        rows.append(row)
    return rows


def _examples(
    task: TriggerTask, sections: Mapping[str, Mapping[str, Any]], guard: Coherence, n: int = 4
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
