"""Effects of arms at equal damage, where what each arm says is built in."""

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.errors import InputError
from tl_transfer.evaluation import feature_effects
from tl_transfer.evaluation.behaviour import single_tokens

PROMPTS = ["The river", "a small", "Why do cats", "In the night", "the people of", "today there"]


@pytest.fixture(scope="module")
def model() -> tt.HookedModel:
    return tt.load_model(tiny.tiny_bridge("llama"))


@pytest.fixture(scope="module")
def words(model: tt.HookedModel) -> dict[str, list[str]]:
    """Two lists of words that are one token."""
    vocabulary = [model.tokenizer.decode([i]) for i in range(len(model.tokenizer))]
    plain = sorted({w for w in vocabulary if w.startswith(" ") and w.strip().isalpha()})
    plain = [w for w in plain if len(w.strip()) > 1 and single_tokens([w], model.tokenizer)[0]]
    return {"a": plain[:5], "b": plain[5:10]}


def saying(model: tt.HookedModel, words: list[str]) -> tt.Add:
    """The direction that the unembedding reads as these words, after the last block."""
    _, ids = single_tokens(words, model.tokenizer)
    direction = model.host.unembed.W_U.detach()[:, ids].sum(1).float()
    point = f"resid_post@{model.n_layers - 1}"
    return tt.Add(tt.SteeringVector(direction, model.at(point).space, 1.0, "words"), 1.0)


@pytest.fixture(scope="module")
def table(model: tt.HookedModel, words: dict[str, list[str]]) -> tt.EffectTable:
    arms = {name: saying(model, found) for name, found in words.items()}
    arms |= {
        f"random:{i}": tt.Add(vector, 1.0)
        for i, vector in enumerate(tt.random_directions(arms["a"].vector, 4))
    }
    neutral = random_texts(6, n_words=40)
    return tt.feature_effects(
        model, arms, words, prompts=PROMPTS, neutral=neutral, budget=0.05, tolerance=0.1
    )


def test_an_arm_moves_its_own_words_beyond_every_floor_and_not_those_of_another(table) -> None:
    floors = ["random:0", "random:1", "random:2", "random:3"]
    for name, other in (("a", "b"), ("b", "a")):
        own = table.of(name, name, floors=[*floors, other])
        assert own.beats_every_floor and own.mean > own.floor
        assert own.ci95[0] <= own.mean <= own.ci95[1]
        assert (own.n_floors, own.n_prompts) == (5, len(PROMPTS))
        assert not table.of(other, name, floors=[*floors, name]).beats_every_floor


def test_every_floor_must_be_led_not_only_the_one_with_the_largest_mean() -> None:
    """A noisy floor a little below the strongest one: no lead over it can be shown."""
    draw = torch.Generator().manual_seed(0)
    mine, tight, noisy = (
        mean + spread * (z - z.mean())
        for mean, spread, z in zip(
            (0.4, 0.3, 0.29), (0.05, 0.02, 1.0), torch.randn(3, 24, generator=draw), strict=True
        )
    )
    table = tt.EffectTable(
        ("A", "B", "C"), {"w": ["x"] * 4}, torch.stack([mine, tight, noisy])[:, None], {}, 0.1
    )
    assert table.of("A", "w", floors=["B"]).beats_every_floor
    both = table.of("A", "w", floors=["B", "C"])
    assert both.floor_arm == "B" and not both.beats_every_floor


def test_a_change_is_that_of_the_log_probability_of_any_of_the_words(model, words, table) -> None:
    tokens = torch.tensor([tt.encode(PROMPTS[2], model.tokenizer).ids])
    _, ids = single_tokens(words["b"], model.tokenizer)
    arm = table.calibrations["a"].interventions

    def said(logits: torch.Tensor) -> float:
        return float(logits[0, -1].log_softmax(-1)[ids].logsumexp(-1))

    plain = said(model.logits(tokens, tokens >= 0))
    with tt.attach(model, *arm) as live:
        change = said(live.logits(tokens)) - plain
    assert float(table.change[0, 1, 2]) == pytest.approx(change, abs=1e-4)


def test_all_arms_have_the_same_damage(table) -> None:
    damages = [calibration.point.kl for calibration in table.calibrations.values()]
    assert len(damages) == 6 and all(abs(kl / 0.05 - 1) < 0.25 for kl in damages)


def test_the_words_of_a_feature_are_those_that_it_says(model, words, monkeypatch) -> None:
    item = saying(model, words["a"])
    strong = tt.Add(item.vector, 60.0)
    found = tt.words_of_feature(model, strong, PROMPTS, shared_with=model)
    assert len(set(found[:5]) & set(words["a"])) >= 4
    # What stays improbable is not named, however much likelier it became.
    monkeypatch.setattr(feature_effects, "LEAST", 0.9)
    assert tt.words_of_feature(model, strong, PROMPTS, shared_with=model) == []


def test_what_is_refused(model, words, table) -> None:
    with pytest.raises(InputError, match="at least 4"):
        tt.feature_effects(
            model, {"a": saying(model, words["a"])}, {"few": words["a"][:2]},
            prompts=PROMPTS, neutral=random_texts(2, n_words=40),
        )  # fmt: skip
    with pytest.raises(InputError, match="not in this table"):
        table.of("a", "a", floors=["nothing"])
    with pytest.raises(InputError, match="not in this table"):
        table.of("c", "a", floors=["b"])
    assert "6 arms" in repr(table)
    assert torch.isfinite(table.change).all()
