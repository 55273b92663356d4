"""check_sae: the SAE of these activations is accepted, the one of others refused with numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests.tiny import tiny_bridge
from tests.words import random_texts
from tl_transfer.errors import InputError
from tl_transfer.sae.check import WrongSaeError
from tl_transfer.sae.measure import fidelity, fvu_of, principal_components, random_dictionary
from tl_transfer.sae.rows import read_rows

TEXTS = random_texts(60, seed=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return tt.load_model(tiny_bridge("llama", seed=3))


def made_for(site: Any, n: int = 16) -> tt.Dictionary:
    """A good SAE without training: the first principal directions of the rows, in both signs."""
    x = read_rows(site, TEXTS).x
    mean = x.mean(0)
    basis = torch.linalg.svd(x - mean, full_matrices=False).Vh
    rows = torch.cat([basis[:n], -basis[:n]])
    zeros = torch.zeros(len(rows))
    return tt.Dictionary.of(
        tt.SparseCoder(rows.T, zeros, rows, mean, mean, "topk", k=8), origin={"made": "here"}
    )


def test_the_right_one_gets_its_space_and_the_wrong_layer_is_refused(model: Any) -> None:
    here, other = model.at("resid_post@0"), model.at("resid_post@3")
    sae = made_for(here)
    found = tt.check_sae(sae, here, TEXTS)
    assert found.belongs and found.sae.space == here.space and found.fidelity.fvu < 0.5
    assert 7 <= found.fidelity.l0 <= 8
    assert "belongs" in repr(found) and "random dictionary" in repr(found)
    # Where it fits best is here; one layer on it explains more than half and is refused all the
    # same, whatever the limit.
    assert min(found.elsewhere, key=lambda name: found.elsewhere[name]) == here.point.name
    with pytest.raises(WrongSaeError, match=r"fits blocks.0.hook_resid_post better") as near:
        tt.check_sae(sae, model.at("resid_post@1"), TEXTS, max_fvu=2.0)
    assert near.value.check.fidelity.fvu < near.value.check.random_fvu
    found.sae.require_space(here.space)
    with pytest.raises(WrongSaeError) as error:
        tt.check_sae(sae, other, TEXTS)
    text = str(error.value)
    assert "FVU" in text and "L0" in text and "never on" in text and "next:" in text
    assert error.value.check.fidelity.fvu > 0.5
    same_width = tt.load_model(tiny_bridge("llama", seed=4)).at("resid_post@0")
    with pytest.raises(WrongSaeError, match="no better than a random dictionary"):
        tt.check_sae(sae, same_width, TEXTS)
    assert error.value.check.sae.space is None
    numbers = tt.check_sae(sae, other, TEXTS, refuse=False)
    assert not numbers.belongs and numbers.to_dict()["reasons"]
    assert "DOES NOT BELONG" in repr(numbers)


def test_the_attention_sink_is_no_row_and_is_counted_where_it_is_a_word() -> None:
    for family, n_words in (("llama", 0), ("qwen2", len(TEXTS))):  # one begins with a BOS
        site = tt.load_model(tiny_bridge(family, seed=3)).at("resid_post@1")
        found = read_rows(site, TEXTS)
        n_tokens = sum(len(tt.encode(text, site.model.tokenizer).ids) for text in TEXTS)
        assert found.dropped["position_0"] == n_words
        assert len(found.x) == n_tokens - len(TEXTS) - found.dropped["massive_norm"]


def test_the_limit_can_be_moved_and_other_units_are_named(model: Any) -> None:
    here = model.at("resid_post@0")
    sae = made_for(here)
    fvu = tt.check_sae(sae, here, TEXTS).fidelity.fvu
    with pytest.raises(WrongSaeError, match="leaves"):
        tt.check_sae(sae, here, TEXTS, max_fvu=fvu / 2)
    coder: Any = sae.coder
    small = replace(coder, W_dec=coder.W_dec / 10, b_dec=coder.b_dec / 10)
    with pytest.raises(WrongSaeError, match="another length: other units"):
        tt.check_sae(tt.Dictionary.of(small), here, TEXTS)


def test_an_sae_that_learned_nothing_is_refused_whatever_the_limit(model: Any) -> None:
    here = model.at("resid_post@0")
    x = read_rows(here, TEXTS).x
    # Uniform directions: worse than those drawn where the activations lie.
    rows = torch.nn.functional.normalize(
        torch.randn(96, 48, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    mean = x.mean(0)
    coder = tt.SparseCoder(rows.T, torch.zeros(96), 0.01 * rows, mean, mean, "topk", k=8)
    with pytest.raises(WrongSaeError, match="no better than a random dictionary"):
        tt.check_sae(tt.Dictionary.of(coder), here, TEXTS, max_fvu=2.0)


def test_what_it_says_of_its_training_is_remarked(model: Any) -> None:
    here = model.at("resid_post@0")
    said = {
        "model_name": "gpt2-small",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "prepend_bos": True,
    }
    sae = replace(made_for(here), origin={"metadata": said})
    text = repr(tt.check_sae(sae, here, TEXTS))
    assert "does not say where it was trained" in text and "trained on 'gpt2-small'" in text
    assert "'center_writing_weights': True}, here the weights are raw" in text
    assert "BOS before each text; position 0 is never read" in text


def test_too_few_rows_and_the_wrong_width_are_refused(model: Any) -> None:
    here = model.at("resid_post@0")
    with pytest.raises(InputError, match="too few tokens"):
        tt.check_sae(made_for(here), here, TEXTS[:2])
    wide = tt.load_model(tiny_bridge("llama", seed=3, d_model=64)).at("resid_post@0")
    with pytest.raises(InputError, match="wrong width"):
        tt.check_sae(made_for(here), wide, TEXTS)


def test_fvu_is_one_for_the_mean_zero_for_the_rows_and_falls_with_components() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 24, generator=g) * torch.linspace(0.1, 3, 24) + 5
    assert fvu_of(lambda r: x.mean(0).expand_as(r), x) == pytest.approx(1.0, abs=1e-6)
    assert fvu_of(lambda r: r, x) == 0.0
    pca = [fvu_of(principal_components(x, k), x) for k in (1, 4, 24)]
    assert pca[0] > pca[1] > pca[2] and pca[2] < 1e-6
    variances = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0)
    assert pca[1] == pytest.approx(float(1 - variances[:4].sum() / variances.sum()), abs=1e-5)
    chance = random_dictionary(x, 64, 4)
    assert fidelity(chance, x).fvu == pytest.approx(fvu_of(chance.reconstruct, x), rel=1e-9)
    assert 0 < fidelity(chance, x).fvu < 1.0
    assert fidelity(chance, x).l0 <= 4.0
