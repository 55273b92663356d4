"""Splicing has known answers: itself 100 %, an exact twin 100 %, the mean 0 %, noise no better."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.data.align import align, encode
from tl_transfer.data.texts import text_hash
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.splicing import with_splice

LAYER = "resid_post@1"
TEXTS = [*random_texts(10, seed=21), *random_texts(3, n_words=40, seed=22), "naïve café 🙂 日本"]
DOCUMENTS = [f"d{i // 2}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[tt.HookedModel, tt.HookedModel, torch.Tensor]:
    """A tiny model, its wider twin, and the true map between their streams."""
    constant = {"post_norm_constant": True} if request.param.startswith("gemma") else {}
    original = tiny.tiny_hf(request.param, **constant)
    moved, rotation = tiny.twin(original, d_model=72, scale=1.7)
    tokenizer = tiny.tiny_tokenizer("bos")
    return (
        tt.load_model(original, tokenizer=tokenizer, name="original"),
        tt.load_model(moved, tokenizer=tokenizer, name="twin"),
        1.7 * rotation,
    )


def affine(here: Any, there: Any, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    source, target = here.at(LAYER).space, there.at(LAYER).space
    bias = torch.zeros(weight.shape[1]) if bias is None else bias
    return tt.AffineMap(
        weight, bias, source=source, target=target, source_norm=1e9, target_norm=1e9, method="given"
    )


def measure(mapper: Any, here: Any, there: Any, **changes: Any) -> Any:
    settings = {"documents": DOCUMENTS, "progress": False}
    return tt.splice(mapper, here, there, TEXTS, **(settings | changes))


def test_a_model_spliced_into_itself_loses_nothing(pair: Any) -> None:
    model = pair[0]
    found = measure(affine(model, model, torch.eye(model.d_model)), model, model)
    for arm in ("mapped", "identity"):
        assert found.arms[arm]["recovered"] == pytest.approx(1.0, abs=1e-5)
        assert found.arms[arm]["kl"] < 1e-6
    assert found.coverage > 0.85 and found.arms["mean_ablation"]["kl"] > 1e-3
    assert found.loss == pytest.approx(direct_loss(model, TEXTS[0]), rel=0.3)


def direct_loss(model: Any, text: str) -> float:
    ids = torch.tensor([list(model.tokenizer(text)["input_ids"])])
    logits = model.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, 1:-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, 2:]))


def test_an_exact_twin_is_continued_without_loss(pair: Any) -> None:
    here, there, true = pair
    found = measure(affine(here, there, true), here, there)
    assert found.arms["mapped"]["recovered"] == pytest.approx(1.0, abs=1e-3)
    assert found.arms["mapped"]["kl"] < 1e-5
    assert "identity" not in found.arms  # the widths differ


def test_the_mean_recovers_nothing_and_a_wrong_rotation_shows(pair: Any) -> None:
    """The text means nothing to a random model, so what damage does is read off the KL."""
    here, there, true = pair
    good = measure(affine(here, there, true), here, there)
    mean = mean_activation(there, here)
    constant = measure(affine(here, there, torch.zeros_like(true), mean), here, there)
    assert constant.arms["mapped"]["recovered"] == pytest.approx(0.0, abs=1e-4)
    assert good.arms["mean_ablation"]["recovered"] == 0.0
    wrong = torch.linalg.qr(torch.randn(72, 72, generator=torch.Generator().manual_seed(0))).Q
    turned = measure(affine(here, there, true @ wrong), here, there)
    assert turned.arms["mapped"]["kl"] > 0.5 * turned.arms["mean_ablation"]["kl"] > 1e-3
    assert turned.arms["mapped"]["kl"] > 1000 * good.arms["mapped"]["kl"]


def mean_activation(there: Any, here: Any) -> torch.Tensor:
    """Mean over the positions that are spliced, by the plainest loop."""
    rows = []
    for text in TEXTS:
        ids = torch.tensor([encode(text, there.tokenizer).ids])
        pairs = align(encode(text, here.tokenizer), encode(text, there.tokenizer))
        point = there.at(LAYER).point
        read = there.residuals(ids, torch.ones_like(ids, dtype=torch.bool), [point])[point.name][0]
        inner = (pairs.source_positions > 0) & (pairs.target_positions > 0)
        rows.append(read[pairs.target_positions[inner]])
    return torch.cat(rows).double().mean(0).float()


def test_several_maps_at_once_are_each_alone(pair: Any) -> None:
    here, there, true = pair
    good, half = affine(here, there, true), affine(here, there, 0.5 * true)
    together = measure(good, here, there, others={"half": half})
    alone = measure(half, here, there)
    for score in ("loss", "recovered", "kl"):
        expected = alone.arms["mapped"][score]
        assert together.arms["half"][score] == pytest.approx(expected, abs=1e-5)
    assert together.arms["mapped"] == measure(good, here, there).arms["mapped"]
    seen = replace(half, fit_texts=frozenset({text_hash(TEXTS[0])}))
    with pytest.raises(InputError, match="flatter"):
        measure(good, here, there, others={"half": seen})
    backwards = affine(there, here, true.T)
    with pytest.raises(SpaceError, match="spliced at once"):
        measure(good, here, there, others={"back": backwards})


def test_a_step_added_is_the_intervention_and_replaces_nothing(pair: Any) -> None:
    here, there, true = pair
    step = torch.randn(there.d_model, generator=torch.Generator().manual_seed(4))
    found = measure(affine(here, there, true), here, there, added={"zero": 0 * step, "step": step})
    assert found.arms["zero"]["kl"] < 1e-6 and found.arms["zero"]["recovered"] > 0.9999
    vector = tt.SteeringVector(step, there.at(LAYER).space, 1.0, "test")
    losses = []
    for text in TEXTS[:4]:
        ids = torch.tensor([encode(text, there.tokenizer).ids])
        with tt.attach(there, tt.Add(vector, strength=float(step.norm()))) as live:
            z = live.logits(ids)[0, 1:-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(z, ids[0, 2:])))
    few = {"documents": None, "per_text": 999, "added": {"step": step}, "progress": False}
    for text, loss in zip(TEXTS[:4], losses, strict=True):
        one = tt.splice(affine(here, there, true), here, there, [text], **few)
        assert one.arms["step"]["loss"] == pytest.approx(loss, abs=2e-4)


def test_neither_batches_nor_order_matter(pair: Any) -> None:
    here, there, true = pair
    noisy = affine(here, there, true + 0.3 * true.std() * torch.randn_like(true))
    one = measure(noisy, here, there)
    for other in (
        measure(noisy, here, there, max_tokens=1),
        tt.splice(noisy, here, there, TEXTS[::-1], documents=DOCUMENTS[::-1], progress=False),
    ):
        assert (other.n_tokens, other.n_documents) == (one.n_tokens, one.n_documents)
        for name, arm in one.arms.items():
            for key in ("loss", "recovered", "kl"):
                assert other.arms[name][key] == pytest.approx(arm[key], abs=2e-5), (name, key)
            assert other.arms[name]["loss_ci95"] == pytest.approx(arm["loss_ci95"], abs=2e-5)


def test_texts_given_to_fit_are_refused_and_models_must_match(pair: Any) -> None:
    here, there, true = pair
    mapper = affine(here, there, true)
    seen = replace(mapper, fit_texts=frozenset({text_hash(TEXTS[3])}))
    with pytest.raises(InputError, match="given to fit"):
        measure(seen, here, there)
    with pytest.raises(SpaceError):
        measure(mapper, there, here)
    with pytest.raises(InputError, match="one id for each text"):
        measure(mapper, here, there, documents=["a"])


def test_the_card_shows_splice_beside_its_control(pair: Any) -> None:
    here, there, _ = pair
    mapper = tt.fit(
        here.at(LAYER), there.at(LAYER), texts=random_texts(120, seed=1), progress=False
    )
    found = measure(mapper, here, there)
    assert found.arms["shuffled"]["kl"] > 100 * found.arms["mapped"]["kl"]
    shown = with_splice(mapper, found)
    assert "splice: loss recovered" in repr(shown) and "recovered" in repr(found)
    assert shown.scorecard["shuffled"]["splice_kl"] == found.arms["shuffled"]["kl"]
