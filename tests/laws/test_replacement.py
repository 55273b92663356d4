"""Replacement has known answers: an exact twin answers and writes as the model does by itself."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.data import capitals, questions
from tl_transfer.data.questions import Question
from tl_transfer.errors import InputError
from tl_transfer.evaluation.choices import (
    Choice,
    choice_entry,
    choices_of,
    choose,
    choose_alone,
    cost,
)
from tl_transfer.evaluation.likeness import rouge_l
from tl_transfer.experiments import replacement as experiment
from tl_transfer.report.replacement_tables import render_replacement
from tl_transfer.stitched import Stitched
from tl_transfer.tasks.replacement import ReplacementTexts

LAYER = "resid_post@1"


def asked(n: int, seed: int = 0) -> tuple[Question, ...]:
    """Questions of random words, answers in turn."""
    texts = random_texts(5 * n, n_words=5, seed=seed)
    return tuple(
        Question(
            f"subject {seed} {i % 12}", texts[5 * i], tuple(texts[5 * i + 1 : 5 * i + 5]), i % 4
        )
        for i in range(n)
    )


def facts_of(n: int) -> tuple[Question, ...]:
    """Sentences that a letter goes on with."""
    return tuple(replace(one, options=tuple("ABCD")) for one in asked(n, seed=6))


def lettered(vocab: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """A vocabulary in which a space and a letter are one token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<pad>", "</s>"], vocab_size=600, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator([*vocab, *["Answer: A B C D"] * 200], trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")
    found.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def twins(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[tt.HookedModel, tt.HookedModel, torch.Tensor]:
    """A tiny model, its wider twin, and the true map between their streams."""
    vocab = [question.prompt for question in asked(40)]
    tokenizer = lettered(vocab, tmp_path_factory.mktemp("letters"))
    original = tiny.tiny_hf("llama", vocab_size=len(tokenizer))
    moved, rotation = tiny.twin(original, d_model=72, scale=1.7)
    names = ("original", "twin")
    here, there = (
        tt.load_model(model, tokenizer=tokenizer, name=name)
        for model, name in zip((original, moved), names, strict=True)
    )
    return here, there, 1.7 * rotation


def affine(here: Any, there: Any, weight: torch.Tensor) -> tt.AffineMap:
    return tt.AffineMap(
        weight, torch.zeros(weight.shape[1]), source=here.at(LAYER).space,
        target=there.at(LAYER).space, source_norm=1e9, target_norm=1e9, method="given",
    )  # fmt: skip


def test_a_twin_in_place_answers_as_the_model_and_its_mean_does_not(twins: Any) -> None:
    here, there, true = twins
    some = asked(12)
    maps = {"true": affine(here, there, true), "half": affine(here, there, 0.5 * true)}
    stitched = Stitched(maps, here, there, [question.prompt for question in some])
    step = torch.randn(there.d_model, generator=torch.Generator().manual_seed(1))
    found = choose(stitched, some, {"nothing": 0 * step, "step": step})
    log_p = {name: torch.tensor([c.log_p for c in row]) for name, row in found.items()}
    for name in ("true", "nothing"):
        assert torch.allclose(log_p[name], log_p["own"], atol=1e-4)
        assert [c.right for c in found[name]] == [c.right for c in found["own"]]
    for name in ("half", "step", "mean_ablation"):
        assert (log_p[name] - log_p["own"]).abs().max() > 1e-3
    assert torch.allclose(
        torch.tensor([c.log_p for c in choose_alone(there, some)]), log_p["own"], atol=1e-4
    )
    vector = tt.SteeringVector(step, there.at(LAYER).space, 1.0, "test")
    ids = torch.tensor([there.tokenizer(some[3].prompt)["input_ids"]])
    with tt.attach(there, tt.Add(vector, strength=float(step.norm()))) as live:
        z = live.logits(ids, keep=1)[0, -1]
    letters = [there.tokenizer(f" {x}")["input_ids"][0] for x in "ABCD"]
    assert float(z[letters].log_softmax(-1)[some[3].answer]) == pytest.approx(
        found["step"][3].log_p, abs=1e-4
    )


def test_the_letter_and_the_form_are_scored_apart() -> None:
    letters = torch.tensor([[1, 2, 3, 4]] * 3)
    logits = torch.zeros(3, 9)
    logits[0, 2], logits[1, 2], logits[1, 7], logits[2, 1] = 5.0, 5.0, 9.0, 5.0
    right, loose, wrong = choices_of(logits, letters, [1, 1, 1])
    assert (right.right, right.said, right.on_form) == (True, True, True)
    assert (loose.right, loose.said, loose.on_form) == (True, False, False)
    assert (wrong.right, wrong.said, wrong.on_form) == (False, False, True)


def flags(k: int, n: int = 200) -> list[Choice]:
    return [Choice(i < k, i < k, True, -1.0) for i in range(n)]


@pytest.mark.parametrize(
    ("own", "arm", "verdict"),
    [(55, 30, "cannot be answered"), (120, 118, "no loss shown"), (120, 50, "collapses"),
     (160, 100, "costs"), (120, 2, "collapses")],
)  # fmt: skip
def test_a_verdict_needs_a_target_above_chance(own: int, arm: int, verdict: str) -> None:
    entries = [choice_entry(flags(k), flags(own), seed=0) for k in (arm, own)]
    assert cost(*entries) == verdict


@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_rouge_l_is_the_longest_common_subsequence(a: str, b: str) -> None:
    def longest(x: str, y: str) -> int:
        if not x or not y:
            return 0
        if x[0] == y[0]:
            return 1 + longest(x[1:], y[1:])
        return max(longest(x[1:], y), longest(x, y[1:]))

    expected = 2 * longest(a, b) / (len(a) + len(b)) if a and b else float(not a and not b)
    assert rouge_l(list(a), list(b)) == pytest.approx(expected)


def test_questions_are_read_from_a_page_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (
        "The following are questions.\n\nQ: What is\n 1 + 1?\n(A) one (B) two (C) three (D) four\n"
        "A: Let's think. The answer is (B).\n\nQ: Five?\n(A) 1 (B) 2 (C) 3 (D) 4 (E) 5\nA: It is. "
        "The answer is (D).\n\nQ: Twice the same?\n(A) 1 (B) 1 (C) 3 (D) 4\nA: So "
        "the answer is (C).\n\n"
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(questions._PATH, json.dumps({"sums": page}))
    path = tmp_path / questions.LM_EVAL.filename
    path.write_bytes(content.getvalue())
    monkeypatch.setattr(questions, "fetch_package", lambda package: path)
    questions.multiple_choice.cache_clear()
    (only,) = questions.multiple_choice()
    questions.multiple_choice.cache_clear()
    assert (only.subject, only.options, only.answer) == (
        "sums", ("one", "two", "three", "four"), 1,
    )  # fmt: skip
    assert only.prompt == "What is 1 + 1?\nA. one\nB. two\nC. three\nD. four\nAnswer:"


def test_capitals_are_read_and_no_name_gives_another_away(tmp_path: Path, monkeypatch: Any) -> None:
    names = [("Alland", "Quito"), ("Borduria", "Szohod"), ("Cania", "Arbo"), ("Dorne", "Tyrosh"),
             ("Eland", "Eland City"), ("none", "Nowhere"), ("Ferra", "Lima (on the coast)"),
             ("Gaul", "Lutet")]  # fmt: skip
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for i, (country, capital) in enumerate(names):
            state = {
                "Country name": {"conventional short form": {"text": country}},
                "Capital": {"name": {"text": capital}},
            }
            region = "north" if i < 7 else "south"
            path = f"{capitals._BELOW}{region}/{i}.json"
            archive.writestr(path, json.dumps({"Government": state}))
    path = tmp_path / capitals.FACTBOOK.filename
    path.write_bytes(content.getvalue())
    monkeypatch.setattr(capitals, "fetch_package", lambda package: path)
    found = capitals.capitals.__wrapped__()
    by_text = {one.prompt: one for one in found}
    assert {one.subject for one in found} == {"Alland", "Borduria", "Cania", "Dorne", "Gaul"}
    first = by_text["The capital of Alland is the city of"]
    assert first.options == ("Arbo", "Quito", "Szohod", "Tyrosh")  # the region has enough
    assert first.continuations[first.answer] == " Quito"
    back = by_text["Lutet is the capital city of the country of"]
    assert back.options[back.answer] == "Gaul" and len({x[0] for x in back.options}) == 4


def test_options_that_begin_alike_are_refused(twins: Any) -> None:
    here, _, _ = twins
    alike = Question("s", "The letter is", ("A", "A B", "C", "D"), 0, cloze=True)
    with pytest.raises(InputError, match="two of them with the same token"):
        choose_alone(here, [alike])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe of two random models, and the texts it reads."""
    folder = tmp_path_factory.mktemp("replacement")
    prose = random_texts(150, n_words=14, seed=1)
    texts = ReplacementTexts(
        fit=tuple(prose[:120]),
        fit_documents=tuple(f"d{i}" for i in range(120)),
        validation=tuple(random_texts(4, n_words=40, seed=2)),
        neutral=tuple(prose[120:130]),
        prompts=tuple(random_texts(6, n_words=5, seed=3)),
        fit_questions=asked(60, seed=4),
        questions=asked(10, seed=5),
        facts=tuple(replace(one, cloze=True) for one in facts_of(8)),
    )
    tokenizer = lettered([*prose, *(question.prompt for question in asked(40))], folder)
    for name, width in (("one", 32), ("two", 48)):
        model = tiny.tiny_hf("llama", len(name), vocab_size=len(tokenizer), d_model=width)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    recipe = experiment.ReplacementRecipe(
        source=str(folder / "one"), target=str(folder / "two"), dtype="float32", source_layer=1,
        target_layer=1, budgets=(0.002,), updates=5, batch_rows=16, max_new_tokens=3,
    )  # fmt: skip
    poles = random_texts(16, n_words=8, seed=6)
    task = type("Poles", (), {"positive": poles[:8], "negative": poles[8:]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.ReplacementRecipe, "build_texts", lambda self: texts)
        patch.setattr(experiment, "sentiment", lambda **sizes: task)
        yield recipe, texts, folder


def test_a_run_is_whole_and_goes_on_from_what_it_kept(run: Any) -> None:
    recipe, _, folder = run
    report = experiment.run(recipe, folder / "run", progress=False)
    replaced = {*experiment.KINDS, "shuffled", "mean_ablation"}
    assert set(report["fidelity"]) == {*replaced, "source", "another_prompt"}
    arms = report["capability"]["arms"]
    assert set(arms) == {*replaced, *(f"{name}@0.002" for name in experiment.ADDED)}
    assert report["capability"]["own"]["accuracy"]["n"] == 10
    for part in ("own_text", "neutral"):
        assert set(report["losses"][part]["arms"]) == set(arms)
    assert 0 < report["losses"]["neutral"]["arms"]["transferred@0.002"]["kl"] < 0.02
    assert set(report["knowledge"]["arms"]) == set(arms)
    assert report["knowledge"]["own"]["accuracy"]["n"] == 8
    text = render_replacement(report)
    assert "the paper's autoencoder" in text and "chance 25 %" in text
    again = experiment.run(recipe, folder / "run", progress=False)
    drop = {"created"}
    assert {k: v for k, v in again.items() if k not in drop} == {
        k: v for k, v in report.items() if k not in drop
    }


def test_without_openings_likeness_is_left_out(run: Any, monkeypatch: Any) -> None:
    recipe, texts, folder = run
    silent = replace(texts, prompts=())
    monkeypatch.setattr(experiment.ReplacementRecipe, "build_texts", lambda self: silent)
    report = experiment.run(replace(recipe, n_prompts=0, updates=2), folder / "mute",
                            progress=False)  # fmt: skip
    assert report["fidelity"] == {} and set(report["losses"]) == {"neutral"}
    assert "Fidelity" not in render_replacement(report)


def test_a_question_the_map_has_read_is_refused(run: Any, monkeypatch: Any) -> None:
    recipe, texts, folder = run
    leaked = replace(texts, questions=(*texts.questions, texts.fit_questions[0]))
    monkeypatch.setattr(experiment.ReplacementRecipe, "build_texts", lambda self: leaked)
    with pytest.raises(InputError, match="the fit of with_questions has seen"):
        experiment.run(recipe, folder / "run", progress=False)


def test_recipes_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="not a replacement experiment"):
        experiment.ReplacementRecipe(budgets=())
