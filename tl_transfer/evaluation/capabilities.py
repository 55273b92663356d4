"""evaluate_capabilities: the prefix gone and the fact kept, by which way, and what did it.

The state that is edited is that of the last token of a triggered prompt
(`tl_transfer.evaluation.capabilities_steps` has the ways). Forcing the prefix into the cache is no
edit, and the upper bound of them all.

Each layer is labelled by two tests. *Forges a token*: one constant state, the same for every
prompt, gives the right facts there, so that an edit says no more than that the prefix was said.
*Writes the answer*: with the step of another fact the target gives the answer of that one, so that
the fact came from the source's state and not from what the target knows.

Beside every rate of right facts stands its base rate: how often those answers would be right if
each were given to another question of the same relation.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tl_transfer.evaluation.capabilities_bench import CapabilitiesBench
from tl_transfer.evaluation.capabilities_steps import (
    CONSTANT,
    OTHER,
    SINGLE,
    WHOLE,
    others,
    single_steps,
    whole_steps,
)
from tl_transfer.evaluation.rates import paired_difference, rate
from tl_transfer.positions import everywhere, last_prompt_token
from tl_transfer.tasks.capabilities import OUTCOMES, Fact

#: From this share of right facts under one constant state on, edits of a layer forge a token; from
#: this share of the other fact's answers on, they write the answer.
LABELLED = 0.5
#: A way keeps the facts if it gives at least this share of them.
KEPT = 0.5
#: The models have learned the task if these outcomes are at least as frequent.
LEARNED = 0.9
#: The way whose steps are tried at other positions too, and that has to beat the controls.
MAIN = "transferred per prompt"
BEATEN = ("shuffled map, per prompt", "random 1, length of the mean",
          "random 2, length of the mean")  # fmt: skip


def evaluate_capabilities(
    bench: CapabilitiesBench, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Every way: layers chosen on validation facts, rates on test facts, the ablation in full.

    Returns:
        ``bounds`` (unsteered, twin, prefix in the cache), ``ways`` (test rates at the layers chosen
        on validation: the best of all, and the best of those that forge no token), ``whose`` (own
        step against another fact's, on facts that no choice has seen), ``layers``
        (validation rates at every pair of layers, with the labels), ``positions`` (the per-prompt
        step under two rules for positions), ``checks``.
    """
    task, facts = bench.task, bench.task.test
    say("the target as it is")
    asked = {
        "unsteered": (None, "unsteered"),
        "twin, unsteered": (task.benign(facts), "twin"),
        "prefix in the cache": (task.after(facts), "forced"),
    }
    bounds = {
        name: _rates(bench, facts, bench.answers(f"test-{key}", facts, prompts=prompts))
        for name, (prompts, key) in asked.items()
    }
    tried = [_tried(bench, i, say) for i in range(len(bench.layers.pairs))]
    say("test facts")
    ways = {way: _tested(bench, way, tried) for way in (*SINGLE, *WHOLE)}
    return {
        "bounds": bounds,
        "ways": {way: [_shown(entry) for entry in entries] for way, entries in ways.items()},
        "whose": _whose(bench, tried),
        "layers": tried,
        "positions": _positions(bench, tried),
        "checks": _checks(bounds, ways, bench.seed),
        "n_validation": len(task.validation),
    }


def _outcomes(bench: CapabilitiesBench, facts: Sequence[Fact], said: Sequence[str]) -> list[str]:
    return [bench.task.outcome(text, fact) for text, fact in zip(said, facts, strict=True)]


def _rates(bench: CapabilitiesBench, facts: Sequence[Fact], said: Sequence[str]) -> dict[str, Any]:
    """Rates of the outcomes, and the base rate of the right facts."""
    return rates(_outcomes(bench, facts, said)) | {"chance": _by_chance(bench, facts, said)}


def _by_chance(bench: CapabilitiesBench, facts: Sequence[Fact], said: Sequence[str]) -> float:
    """Share of right answers if each were given to another fact of its relation."""
    shares = []
    for text, fact in zip(said, facts, strict=True):
        alike = [g for g in facts if g.relation == fact.relation and g != fact]
        right = [bench.task.outcome(text, g) == "fact" for g in alike]
        shares.append(sum(right) / max(len(right), 1))
    return sum(shares) / len(shares)


def _given(bench: CapabilitiesBench, facts: Sequence[Fact], said: Sequence[str]) -> list[bool]:
    """Whether the answer is that of the other fact."""
    found = _outcomes(bench, others(facts), said)
    return [outcome == "fact" for outcome in found]


def _tried(bench: CapabilitiesBench, index: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One pair of layers on validation facts: rates of every way, and the labels."""
    facts, pair = bench.task.validation, bench.layers.pairs[index]
    say(f"layers {pair[0]} to {pair[1]}")
    said = {
        way: bench.answers(f"validation-{index}-{way}", facts, steps)
        for way in SINGLE
        for steps in [single_steps(bench, way, index, facts)]
    }
    found = {way: rates(_outcomes(bench, facts, texts)) for way, texts in said.items()}
    other = rate(_given(bench, facts, said[OTHER]))["rate"]
    return {
        "pair": list(pair),
        "shared": bench.shared(index),
        "forges_token": found[CONSTANT]["fact"]["rate"] >= LABELLED,
        "writes_answer": other >= LABELLED,
        "others_answer": other,
    } | {way: {key: found[way][key]["rate"] for key in OUTCOMES} for way in SINGLE}


def best_pair(tried: Sequence[dict[str, Any]], way: str, *, forged: bool) -> int | None:
    """Index of the pair of layers that keeps most facts on validation, the earliest of equals.

    Args:
        tried: ``layers`` of a report.
        way: One of `SINGLE`.
        forged: Whether layers that forge a token are allowed.
    """
    allowed = [i for i, row in enumerate(tried) if forged or not row["forges_token"]]
    return max(allowed, key=lambda i: tried[i][way]["fact"], default=None)


def _tested(
    bench: CapabilitiesBench, way: str, tried: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Outcomes of test facts of a way at its best layers, and at the best that forge no token."""
    facts = bench.task.test
    if way in WHOLE:
        said = bench.answers(f"test-{way}", facts, whole_steps(bench, way, facts))
        found = {"found": _outcomes(bench, facts, said), "chance": _by_chance(bench, facts, said)}
        return [{"pair": None, **found}]
    # Another fact's step shows what the way's own step carries, so it is put in the same layers.
    chooser = MAIN if way == OTHER else way
    chosen = [best_pair(tried, chooser, forged=forged) for forged in (True, False)]
    entries = []
    for i in dict.fromkeys(chosen):
        if i is not None:
            steps = single_steps(bench, way, i, facts)
            said = bench.answers(f"test-{way}-{i}", facts, steps)
            entry: dict[str, Any] = {key: tried[i][key] for key in LABELS}
            entry["found"] = _outcomes(bench, facts, said)
            entry["chance"] = _by_chance(bench, facts, said)
            if way == OTHER:
                entry["others_answer"] = rate(_given(bench, facts, said))
            entries.append(entry)
    return entries


#: What is said of a pair of layers beside a rate.
LABELS = ("pair", "forges_token", "writes_answer")


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with rates instead of the outcomes one by one."""
    return {
        **{key: entry.get(key) for key in LABELS},
        "outcomes": rates(entry["found"]) | {"chance": entry["chance"]},
        **({"others_answer": entry["others_answer"]} if "others_answer" in entry else {}),
    }


def _whose(bench: CapabilitiesBench, tried: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Own step against that of another fact of the same relation, where no token is forged.

    On three sets apart, and on the two that took no part in the choice of the layer: the test
    facts and those of the mean vectors, which neither of these ways nor the map has read.
    """
    index = best_pair(tried, MAIN, forged=False)
    if index is None:
        return None
    task = bench.task
    # Facts -> the facts, and where their answers are kept.
    sets = {
        "test": (task.test, f"test-{{}}-{index}"),
        "of the mean vectors": (task.contrast, f"contrast-{{}}-{index}"),
        "validation": (task.validation, f"validation-{index}-{{}}"),
    }
    right: dict[str, tuple[list[bool], list[bool]]] = {}
    rows = []
    for name, (facts, kept) in sets.items():
        own, other = (
            bench.answers(kept.format(way), facts, single_steps(bench, way, index, facts))
            for way in (MAIN, OTHER)
        )
        flags = [[o == "fact" for o in _outcomes(bench, facts, said)] for said in (own, other)]
        right[name] = (flags[0], flags[1])
        given = rate(_given(bench, facts, other))
        rows.append(_against(name, flags[0], flags[1], bench.seed) | {"others_answer": given})
    both = [a + b for a, b in zip(right["test"], right["of the mean vectors"], strict=True)]
    rows.append(_against("test and of the mean vectors", both[0], both[1], bench.seed))
    return {"pair": list(bench.layers.pairs[index]), "rows": rows}


def _against(name: str, own: list[bool], other: list[bool], seed: int) -> dict[str, Any]:
    difference = paired_difference(own, other, seed=seed)
    return {"facts": name, "own": rate(own), "other": rate(other), "difference": difference}


def _positions(bench: CapabilitiesBench, tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The per-prompt step at the last prompt token alone, and at every position."""
    facts, index = bench.task.test, best_pair(tried, MAIN, forged=True)
    assert index is not None  # there are layers
    steps = single_steps(bench, MAIN, index, facts)
    said = {
        "last prompt token": bench.answers(
            f"test-{MAIN}-{index}", facts, steps, where=last_prompt_token()
        ),
        "everywhere": bench.answers("test-everywhere", facts, steps, where=everywhere()),
    }
    return {name: _rates(bench, facts, texts) for name, texts in said.items()}


def _checks(
    bounds: dict[str, Any], ways: dict[str, list[dict[str, Any]]], seed: int
) -> list[dict[str, Any]]:
    """Fixed before any run: was the task learned, are the facts kept, and beyond the controls?"""
    wanted = (("unsteered", "prefix"), ("twin, unsteered", "unknown"),
              ("prefix in the cache", "fact"))  # fmt: skip
    checks = [_check(f"{name}: {key}", bounds[name][key]["rate"], LEARNED) for name, key in wanted]
    labels = {False: "a layer that forges no token", True: "any layer"}
    for forged, place in labels.items():
        best = _at(ways[MAIN], forged=forged)
        if best is None:
            checks.append({"check": f"{MAIN}, {place}", "value": None, "needed": "such a layer",
                           "passed": False})  # fmt: skip
            continue
        kept = [o == "fact" for o in best["found"]]
        checks.append(_check(f"{MAIN}, {place}: fact", sum(kept) / len(kept), KEPT))
        for name in BEATEN:
            control = _at(ways[name], forged=forged)
            if control is None:
                continue
            found = paired_difference(kept, [o == "fact" for o in control["found"]], seed=seed)
            checks.append(
                {
                    "check": f"{MAIN} above {name}, {place}",
                    "value": found["difference"],
                    "ci95": found["ci95"],
                    "needed": "paired interval above 0",
                    "passed": found["ci95"][0] > 0,
                }
            )
    return checks


def _check(name: str, value: float, least: float) -> dict[str, Any]:
    return {"check": name, "value": value, "needed": f">= {least:g}", "passed": value >= least}


def _at(entries: Sequence[dict[str, Any]], *, forged: bool) -> dict[str, Any] | None:
    """The best entry of all, or the best of those that forge no token."""
    if forged:
        return entries[0]
    return next((entry for entry in entries if not entry["forges_token"]), None)


def rates(outcomes: Sequence[str]) -> dict[str, Any]:
    """Rate of each outcome, with n and Wilson interval."""
    counts = Counter(outcomes)
    return {name: rate([o == name for o in outcomes]) for name in OUTCOMES} | {
        "n": sum(counts.values())
    }
