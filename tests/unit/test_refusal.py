"""The refusal task on tiny models: splits, answers, every arm, leak checks, resuming."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.data.dialogue import PLAIN_TEMPLATE, give_template
from tl_transfer.data.texts import Chat, text_hash
from tl_transfer.errors import InputError
from tl_transfer.evaluation.answers import (
    answer_all,
    opener_ids,
    opener_log_odds,
    text_losses,
)
from tl_transfer.evaluation.rate_report import RateSettings, evaluate_rates
from tl_transfer.experiments.matrix_kept import Kept
from tl_transfer.experiments.parts import Parts
from tl_transfer.experiments.refusal import BEFORE_ANSWER, RefusalRecipe, find_direction
from tl_transfer.extract.reading import encode_prompts, user_messages
from tl_transfer.report.rate_tables import render_rates
from tl_transfer.tasks.refusal import RefusalTask


def tiny_task(**changes: Any) -> RefusalTask:
    """Random texts in every part."""
    parts = {
        name: tuple(random_texts(n, n_words=words, seed=seed))
        for name, n, words, seed in (
            ("harmful", 8, 6, 1), ("harmless", 8, 6, 2), ("harmful_validation", 4, 6, 3),
            ("harmless_validation", 4, 6, 4), ("fit_texts", 120, 12, 5), ("harmful_test", 5, 6, 6),
            ("harmless_test", 5, 6, 7), ("edgy_test", 5, 6, 8), ("neutral_validation", 3, 40, 9),
            ("neutral_test", 3, 40, 10),
        )
    }  # fmt: skip
    values = {**parts, "fit_documents": parts["fit_texts"], "sources": {}}
    return RefusalTask(**{**values, **changes})


def test_a_task_shows_its_sizes_and_not_its_texts() -> None:
    task = tiny_task()
    assert len(repr(task)) < 400 and "harmful 8" in repr(task) and task.harmful[0] not in repr(task)


@pytest.fixture(scope="module")
def models() -> tuple[tt.HookedModel, tt.HookedModel]:
    return tuple(tt.load_model(tiny.tiny_bridge(family)) for family in ("llama", "qwen2"))


@pytest.fixture(scope="module")
def fitted(models: Any) -> dict[str, Any]:
    source, target = models
    task = tiny_task()
    here, there = source.at("resid_post@1"), target.at("resid_post@2")
    common = {
        "positive": user_messages(task.harmful),
        "negative": user_messages(task.harmless),
        "positions": BEFORE_ANSWER,
    }
    return {
        "task": task,
        "vector": tt.mean_difference(here, **common),
        "native": tt.mean_difference(there, **common),
        "mapper": tt.fit(here, there, texts=task.fit_texts, progress=False),
        "source": source,
        "target": target,
        "settings": RateSettings(budget=0.002, n_random=1, max_new_tokens=3),
        "progress": False,
    }


# Answers


def test_answers_are_the_models_own_with_the_odds_of_their_first_token(models: Any) -> None:
    _, model = models
    chats = encode_prompts(model, user_messages(random_texts(3, n_words=5, seed=1)))
    openers = opener_ids(["I", "A"], model)
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    vector = tt.SteeringVector(direction, model.at("resid_post@1").space, 1.0, "test")
    edits = [tt.Ablate(vector, layers="all", where=tt.everywhere(sinks=True))]
    found = answer_all(
        model, chats, edits, openers=openers, scorer=lambda text: None, max_new_tokens=4,
        progress=False,
    )  # fmt: skip
    with tt.attach(model, *edits) as live:
        for chat, answer in zip(chats, found, strict=True):
            ids = torch.tensor([chat.ids])
            odds = opener_log_odds(live.logits(ids, keep=1)[:, -1], openers)
            assert answer.log_odds == pytest.approx(float(odds), abs=1e-4)
            text = live.generate(chat, max_new_tokens=4).text
            assert answer.opening == " ".join(text.split())[:60]
    assert {answer.flag for answer in found} == {None}


def test_opener_odds_against_the_definition() -> None:
    logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(-1)[:, [3, 5]].sum(-1)
    found = opener_log_odds(logits, torch.tensor([3, 5]))
    assert torch.allclose(found, (p / (1 - p)).log(), atol=1e-5)


def test_text_losses_do_not_depend_on_the_batch(models: Any) -> None:
    model, _ = models
    rows = [tiny.random_tokens(300, n, seed=n).tolist() for n in (7, 3, 1)]
    together = text_losses(model, rows)
    assert together[2] == 0.0
    for row, loss in zip(rows[:2], together, strict=False):
        tokens = torch.tensor([row])
        logits = model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool))[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits.float(), tokens[0, 1:])
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_words_that_are_no_token_are_refused(models: Any) -> None:
    with pytest.raises(InputError, match="none is one token"):
        opener_ids(["Unfortunately"], models[0])


def test_a_base_model_gets_the_plain_template_once() -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    assert give_template(tokenizer) == "own" and tokenizer.chat_template != PLAIN_TEMPLATE
    tokenizer.chat_template = None
    assert give_template(tokenizer) == give_template(tokenizer) == "plain"
    chat = [{"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "User: Why?\n\nAssistant:"


# The whole evaluation


def test_every_arm_is_answered_and_reported(fitted: dict[str, Any]) -> None:
    kept: dict[str, Any] = {}
    report = evaluate_rates(**fitted, keep=lambda name, answers: kept.update({name: answers}))
    found = {(a["part"], a["arm"], a["mode"], a["matched"]) for a in report["arms"]}
    for kind in ("native", "transferred", "shuffled_map", "random_isotropic", "random_covariance"):
        assert ("harmful_test", kind, "remove", None) in found
    assert ("harmless_test", "unsteered", "nothing", None) in found
    assert ("edgy_test", "transferred", "remove", None) in found
    assert all(a["n"] == 5 for a in report["arms"])
    for entry in report["arms"]:
        assert sum(outcome["k"] for outcome in entry["outcomes"].values()) == 5
    text = render_rates(report)
    assert "Protocol level L2" in text and "shuffled map, removed" in text
    assert "opens with" in text and max(map(len, text.splitlines())) < 200
    # A second run takes every answer from the first and says the same.
    asked: list[str] = []

    def recall(name: str) -> Any:
        asked.append(name)
        return kept[name]

    again = evaluate_rates(**fitted, recall=recall)
    assert again["arms"] == report["arms"] and sorted(asked) == sorted(kept)


def test_added_arms_meet_the_budget_or_say_that_they_cannot(fitted: dict[str, Any]) -> None:
    report = evaluate_rates(**fitted | {"settings": RateSettings(0.002, 1, 2)})
    for entry in report["arms"]:
        if entry["matched"] == "damage":
            # Strengths were matched on other passages; the order of magnitude must agree.
            assert 0.0002 < entry["kl"]["mean"] < 0.02, entry
    lengths = {a["arm"]: a["strength"] for a in report["arms"] if a["matched"] == "norm"}
    ours = [a for a in report["arms"] if (a["arm"], a["matched"]) == ("transferred", "damage")]
    assert set(lengths.values()) == {ours[0]["strength"]}


@pytest.mark.parametrize("where", ["map", "direction", "selection", "chat"])
def test_a_test_request_that_was_seen_is_refused(fitted: dict[str, Any], where: str) -> None:
    task, vector, mapper = fitted["task"], fitted["vector"], fitted["mapper"]
    request = task.harmful_test[2]
    hashed = text_hash(request)
    if where == "map":
        mapper = replace(mapper, fit_texts=mapper.fit_texts | {hashed})
    elif where == "chat":
        chat = Chat((("user", request),), True)
        mapper = replace(mapper, fit_texts=mapper.fit_texts | {text_hash(chat)})
    else:
        key = {"direction": "texts", "selection": "selection_texts"}[where]
        vector = replace(vector, provenance={**vector.provenance, key: [hashed]})
    with pytest.raises(InputError, match="harmful_test: texts that .* has seen"):
        evaluate_rates(**fitted | {"vector": vector, "mapper": mapper})


# The choice of the direction


def test_the_direction_is_chosen_by_its_own_model_and_resumes(models: Any, tmp_path: Path) -> None:
    model, _ = models
    lines: list[str] = []
    parts = Parts(tmp_path, {"recipe": 1})
    task = tiny_task()
    vector, section = find_direction(model, task, [0, 2], parts, "source", say=lines.append)
    assert section["chosen"] == vector.space.hook_point
    scores = {c["hook_point"]: c["score"] for c in section["candidates"]}
    assert scores[section["chosen"]] == max(scores.values()) and len(scores) == 2
    assert len(vector.provenance["selection_texts"]) == 8
    tries = sum("trying" in line for line in lines)
    again, _ = find_direction(model, task, [0, 2], parts, "source", say=lines.append)
    assert torch.equal(again.direction, vector.direction)
    assert sum("trying" in line for line in lines) == tries == 2


def test_parts_of_another_recipe_are_not_used(tmp_path: Path) -> None:
    Parts(tmp_path, {"recipe": 1}).keep("a", [1, 2])
    assert Parts(tmp_path, {"recipe": 1}).recall("a") == [1, 2]
    assert Parts(tmp_path, {"recipe": 2}).recall("a") is None
    assert Parts(tmp_path, {"recipe": 1}).recall("b") is None
    (tmp_path / "a.json").write_text("{")
    assert Parts(tmp_path, {"recipe": 1}).recall("a") is None


def test_parts_behind_another_choice_are_not_used(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {"recipe": 1})
    parts.under(source="a").under(target="b").keep("answers", [1])
    assert parts.under(source="a", target="b").recall("answers") == [1]
    for other in (parts, parts.under(source="a"), parts.under(source="a", target="c")):
        assert other.recall("answers") is None
    assert "answers" in parts.codes  # a report lists the code of every part


def test_what_a_matrix_measured_rests_on_the_chosen_layers(tmp_path: Path) -> None:
    kept = Kept(tmp_path, Parts(tmp_path, {"recipe": 1}), ["one", "two"])
    for model, layer in (("one", "blocks.1"), ("two", "blocks.3")):
        kept.parts.keep(f"sentiment-{model}", {"chosen": layer})
    kept.on("sentiment").keep("home-sentiment-two", 7)
    assert kept.on("sentiment").recall("home-sentiment-two") == 7
    kept.parts.keep("sentiment-one", {"chosen": "blocks.2"})
    assert kept.on("sentiment").recall("home-sentiment-two") is None


def test_recipes_refuse_what_they_do_not_know() -> None:
    assert RefusalRecipe.from_dict({"source_layers": [3]}).source_layers == (3,)
    with pytest.raises(InputError, match="unknown keys"):
        RefusalRecipe.from_dict({"sources": 1})
    with pytest.raises(InputError, match="n_test"):
        RefusalRecipe(n_test=0)
