"""The perfect oracle: a model whose residual basis was rotated, scaled and widened.

The twin computes the same function, so the true map is known (methods: symmetry of pre-norm
transformers). Fits must recover it, and transferred vectors must steer the twin token for token
as they steer the original.
"""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts

LAYER = 1
SCALE = 1.7
WIDE = 72


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[tt.HookedModel, tt.HookedModel, torch.Tensor]:
    """A tiny model, its wider twin, and the true map between their streams."""
    constant = {"post_norm_constant": True} if request.param.startswith("gemma") else {}
    original = tiny.tiny_hf(request.param, **constant)
    moved, rotation = tiny.twin(original, d_model=WIDE, scale=SCALE)
    tokenizer = tiny.tiny_tokenizer("bos")
    here = tt.load_model(original, tokenizer=tokenizer, name="original")
    there = tt.load_model(moved, tokenizer=tokenizer, name="twin")
    return here, there, SCALE * rotation


@pytest.fixture(scope="module")
def fitted(pair: Any) -> tt.AffineMap:
    here, there, _ = pair
    return tt.fit(
        here.at(f"resid_post@{LAYER}"),
        there.at(f"resid_post@{LAYER}"),
        texts=random_texts(120, seed=1),
        progress=False,
    )


def vectors(pair: Any) -> tuple[tt.SteeringVector, tt.SteeringVector]:
    """The same contrast read in both models."""
    positive, negative = random_texts(12, seed=2), random_texts(12, seed=3)
    return tuple(  # type: ignore[return-value]
        tt.mean_difference(model.at(f"resid_post@{LAYER}"), positive=positive, negative=negative)
        for model in pair[:2]
    )


def test_the_map_is_the_rotation(pair: Any, fitted: tt.AffineMap) -> None:
    true = pair[2]
    assert float((fitted.weight - true).norm() / true.norm()) < 1e-4
    assert float(fitted.bias.norm()) < 1e-3 * fitted.target_norm
    card = fitted.scorecard
    assert card["held_out"]["fvu"] < 1e-6
    assert card["held_out"]["retrieval_top1"] == 1.0
    assert card["shuffled"]["fvu"] > 0.9 and card["shuffled"]["retrieval_top1"] < 0.2
    assert fitted.target_norm == pytest.approx(SCALE * fitted.source_norm, rel=0.002)


def test_a_transferred_vector_steers_like_the_native_one(pair: Any, fitted: tt.AffineMap) -> None:
    here, there, _ = pair
    ours, native = vectors(pair)
    moved = tt.transfer(ours, fitted)
    assert moved.cosine(native) > 1 - 1e-6
    assert moved.natural_strength == pytest.approx(native.natural_strength, rel=0.2)
    assert moved.provenance["direction_r2"] > 1 - 1e-6
    texts = [*tiny.prompts()[:3], "a"]
    rows = tiny.random_tokens(300, 2, 9)
    for where in (tt.everywhere(), tt.generated()):
        tokens, logits = [], []
        # natural_strength adds each vector as it is, whatever the rounding of the medians.
        for model, vector in ((here, ours), (there, native), (there, moved)):
            with tt.attach(model, tt.Add(vector, 3 * vector.natural_strength, where)) as live:
                tokens.append([g.tokens for g in live.generate(texts, max_new_tokens=6)])
                logits.append(live.logits(rows))
        with tt.attach(there) as live:
            plain = [g.tokens for g in live.generate(texts, max_new_tokens=6)]
        assert tokens[1] == tokens[2] != plain
        assert float((logits[0] - logits[1]).abs().max()) < 1e-3
        # Their lengths differ by the resolution of the median norms, 0.1 %.
        assert float((logits[1] - logits[2]).abs().max()) < 1e-2


def test_contrast_texts_among_the_fitting_texts_are_refused(pair: Any) -> None:
    here, there, _ = pair
    texts = random_texts(120, seed=1)
    mapper = tt.fit(
        here.at(f"resid_post@{LAYER}"),
        there.at(f"resid_post@{LAYER}"),
        texts=texts,
        progress=False,
    )
    vector = tt.mean_difference(
        here.at(f"resid_post@{LAYER}"), positive=texts[:5], negative=random_texts(5, seed=9)
    )
    with pytest.raises(tt.errors.InputError, match="among the texts the map was fitted on"):
        tt.transfer(vector, mapper)


def test_the_wrong_layer_is_told_by_the_card(pair: Any) -> None:
    """A map between different layers of the same function is not exact, and says so."""
    here, there, _ = pair
    mapper = tt.fit(
        here.at("resid_post@0"),
        there.at("resid_post@2"),
        texts=random_texts(120, seed=1),
        progress=False,
    )
    assert mapper.scorecard["held_out"]["fvu"] > 1e-3
