"""What a transfer's card says of its own direction: intervals, gaps, random labels, duplicates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.data.overlap import overlap
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.evaluation.random_labels import random_label_cosines

TEXTS = random_texts(120, seed=1)
POSITIVE, NEGATIVE = random_texts(12, seed=2), random_texts(12, seed=3)


@pytest.fixture(scope="module")
def sites() -> tuple[Any, Any]:
    """One layer of two unrelated tiny models with one tokenizer."""
    return tuple(  # type: ignore[return-value]
        tt.load_model(tiny.tiny_bridge("llama", seed=seed)).at("resid_post@1") for seed in (1, 2)
    )


@pytest.fixture(scope="module")
def mapper(sites: Any) -> tt.Mapper:
    return tt.fit(*sites, texts=TEXTS, progress=False)


@pytest.fixture(scope="module")
def contrasts(sites: Any) -> tuple[tt.Contrast, tt.Contrast]:
    return tuple(  # type: ignore[return-value]
        tt.read_contrast(site, positive=POSITIVE, negative=NEGATIVE) for site in sites
    )


def test_a_transfer_knows_the_interval_of_its_r2_also_from_disk(
    mapper: Any, contrasts: Any, tmp_path: Path
) -> None:
    vector = tt.mean_difference(contrasts[0])
    found = tt.transfer(vector, mapper).provenance
    low, high = found["direction_r2_ci95"]
    assert low < found["direction_r2"] < high < 1
    shown = f"held-out R2 along it {found['direction_r2']:.2f} [{low:.2f}, {high:.2f}])"
    assert shown in repr(tt.transfer(vector, mapper)) and "R2" not in repr(vector)
    loaded = tt.load(tt.save(mapper, tmp_path / "m.safetensors"))
    again = tt.transfer(vector, loaded).provenance
    assert (again["direction_r2"], again["direction_r2_ci95"]) == (
        found["direction_r2"],
        [low, high],
    )
    bare = replace(mapper, held_out_rows=None)
    assert tt.transfer(vector, bare).provenance["direction_r2_ci95"] is None


def test_the_gap_of_two_maps_is_paired(sites: Any, mapper: Any) -> None:
    other = tt.fit(*sites, texts=TEXTS, method="ridge", strength=1.0, progress=False)
    gap = tt.fvu_gap(other, mapper)
    assert gap["gap"] == pytest.approx(gap["first"] - gap["second"]) and gap["gap"] > 0
    own = mapper.scorecard["held_out"]["fvu_ci95"]
    assert gap["ci95"][1] - gap["ci95"][0] < 0.7 * (own[1] - own[0])
    assert tt.fvu_gap(mapper, mapper)["ci95"] == [0.0, 0.0]
    with pytest.raises(InputError, match="same held-out rows"):
        tt.fvu_gap(mapper, tt.fit(*sites, texts=random_texts(120, seed=5), progress=False))


def test_a_card_shows_the_gap_to_ridge_and_the_cycle(sites: Any, mapper: Any) -> None:
    assert "gap_to_ridge" not in mapper.scorecard and mapper.scorecard["cycle"]["fvu"] > 0
    rigid = tt.fit(*sites, texts=TEXTS, method="procrustes", progress=False)
    assert rigid.scorecard["gap_to_ridge"]["gap"] > 0
    assert "FVU minus that of ridge: +" in repr(rigid) and "there and back" in repr(rigid)


def test_random_labels_show_what_a_cosine_is_worth(sites: Any, mapper: Any, contrasts: Any) -> None:
    """A map that interpolates the contrast rows carries any labels; a control carries none."""
    here, there = contrasts
    x, y = (torch.cat([c.plus, c.minus]).double() for c in contrasts)
    weight = torch.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0))
    leaky = replace(mapper, weight=weight.float(), bias=torch.zeros(mapper.target.d_model))
    found = random_label_cosines(leaky, here, there, draws=50)
    assert found["real"] > 0.999 and found["range95"][0] > 0.999 and found["p"] > 0.05
    honest = random_label_cosines(mapper, here, there, draws=50)
    assert honest["range95"][0] < honest["mean"] < honest["range95"][1] < 0.999
    control = random_label_cosines(mapper.shuffled, here, there, draws=50)
    assert abs(control["mean"]) < honest["mean"] and control["n_texts"] == 24
    vector = tt.mean_difference(here)
    cosine = tt.transfer(vector, mapper).cosine(tt.mean_difference(there))
    assert honest["real"] == pytest.approx(cosine, abs=1e-5)
    assert honest == random_label_cosines(mapper, here, there, draws=50)
    with pytest.raises(SpaceError):
        random_label_cosines(mapper, there, here)
    with pytest.raises(InputError, match="different texts"):
        random_label_cosines(
            mapper, here, tt.read_contrast(sites[1], positive=POSITIVE[:5], negative=NEGATIVE)
        )


def test_near_duplicates_are_found_whatever_the_punctuation() -> None:
    long = " ".join(f"word{i}" for i in range(30))
    quoted = "He said: '" + long.upper().replace(" ", ", ", 5) + "' and left."
    found = overlap(["short text", long, "another " * 20], [quoted, "unrelated"])
    assert (found.n_texts, found.n_shared, found.n_runs, found.n_too_short) == (3, 1, 18, 1)
    assert "1 of 3 contrast texts share a run of 13 words" in str(
        found.warning("contrast texts", "the fitting texts")
    )
    assert overlap([long], ["nothing"]).warning("a", "b") is None
