"""layer_grid on tiny models: equal to single fits, planted layers found, files, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer import plots
from tl_transfer.errors import ArtefactError, InputError, SpaceError

TEXTS = random_texts(160, seed=1)
DOCUMENTS = [f"d{i // 2}" for i in range(160)]


@pytest.fixture(scope="module")
def pair() -> tuple[tt.HookedModel, tt.HookedModel]:
    """A tiny Llama and its wider twin: the same function layer by layer."""
    original = tiny.tiny_hf("llama")
    moved, _ = tiny.twin(original, d_model=72, scale=1.7)
    tokenizer = tiny.tiny_tokenizer("bos")
    return (
        tt.load_model(original, tokenizer=tokenizer, name="original"),
        tt.load_model(moved, tokenizer=tokenizer, name="twin"),
    )


@pytest.fixture(scope="module")
def vectors(pair: Any) -> tt.VectorSet:
    sites = [pair[0].at(f"resid_post@{layer}") for layer in range(4)]
    return tt.mean_differences(
        sites, positive=random_texts(12, seed=2), negative=random_texts(12, seed=3)
    )


def make(pair: Any, **changes: Any) -> tt.LayerGrid:
    settings = {"texts": TEXTS, "documents": DOCUMENTS, "permutations": 19, "progress": False}
    return tt.layer_grid(*pair, **(settings | changes))


@pytest.fixture(scope="module")
def grid(pair: Any, vectors: tt.VectorSet) -> tt.LayerGrid:
    return make(pair, vector=vectors)


def test_the_same_layer_of_a_twin_is_the_best_match(grid: tt.LayerGrid) -> None:
    for measure, sign in (("fvu", -1), ("cka", 1), ("direction_r2", 1)):
        values = sign * torch.tensor(getattr(grid, measure))
        assert values.argmax(1).tolist() == [0, 1, 2, 3], measure
    assert max(grid.fvu[i][i] for i in range(4)) < 1e-4
    assert grid.best() in [(f"blocks.{i}.hook_resid_post",) * 2 for i in range(4)]
    assert grid.null is not None
    assert max(grid.null["measures"]["cka"]["p"][i][i] for i in range(4)) == pytest.approx(0.05)


def test_a_cell_is_the_ridge_of_that_pair(pair: Any, grid: tt.LayerGrid) -> None:
    """The same documents, so the training folds and the unread held-out part are those of fit."""
    mapper = tt.fit(
        pair[0].at("resid_post@1"),
        pair[1].at("resid_post@3"),
        texts=TEXTS,
        documents=DOCUMENTS,
        progress=False,
    )
    assert grid.fvu[1][3] == pytest.approx(mapper.scorecard["held_out"]["fvu"], rel=0.15)
    train = mapper.scorecard["n_tokens"]["train"]
    assert grid.n_rows["train"] + grid.n_rows["validation"] == pytest.approx(train, rel=0.01)


def test_neither_order_nor_batches_change_a_grid(pair: Any, grid: tt.LayerGrid) -> None:
    other = make(pair, texts=TEXTS[::-1], documents=DOCUMENTS[::-1], max_tokens=128, permutations=0)
    assert torch.allclose(torch.tensor(other.fvu), torch.tensor(grid.fvu), atol=1e-4)
    assert torch.allclose(torch.tensor(other.cka), torch.tensor(grid.cka), atol=1e-4)
    assert other.null is None and other.direction_r2 is None


def test_one_vector_scores_one_row_and_files_keep_everything(
    pair: Any, vectors: tt.VectorSet, tmp_path: Path
) -> None:
    found = make(
        pair,
        vector=vectors["blocks.2.hook_resid_post"],
        source_layers=["resid_post@0", "resid_post@2"],
        target_layers=["mlp_out@1", "resid_post@2"],
    )
    assert found.direction_r2 is not None
    assert found.direction_r2[0] == [None, None] and found.direction_r2[1][1] > 0.99
    assert tt.LayerGrid.load(found.save(tmp_path / "grid.json")).to_dict() == found.to_dict()
    json.dumps(found.to_dict(), allow_nan=False)
    assert "2 x 2 pairs" in repr(found)
    (tmp_path / "grid.json").write_text('{"format": "other"}')
    with pytest.raises(ArtefactError, match="not a readable layer grid"):
        tt.LayerGrid.load(tmp_path / "grid.json")


def test_the_heat_map_shows_every_cell_and_the_best(grid: tt.LayerGrid) -> None:
    for measure in ("fvu", "cka", "direction_r2"):
        figure = grid.plot(measure)
        assert figure.data[0].z[3][2] == getattr(grid, measure)[3][2]
        assert figure.data[-1].marker.symbol == "star"
    empty = plots.layer_grid({"source": {"hook_points": ["<b>"]}})
    assert empty.layout.meta["empty"]
    with pytest.raises(InputError, match="not in this grid"):
        grid.best("loss")
    with pytest.raises(InputError, match="not in this grid"):
        grid.plot("loss")


def test_refusals(pair: Any, vectors: tt.VectorSet) -> None:
    with pytest.raises(InputError, match="too much memory"):
        make(pair, max_bytes=1000)
    with pytest.raises(InputError, match="too few rows"):
        make(pair, texts=TEXTS[:3], documents=None)
    with pytest.raises(SpaceError):
        make(pair[::-1], vector=vectors)
    elsewhere = vectors["blocks.1.hook_resid_post"]
    with pytest.raises(InputError, match="at no source hook point of this grid"):
        make(pair, vector=elsewhere, source_layers=["resid_post@0"])
    seen = tt.mean_difference(
        pair[0].at("resid_post@1"), positive=TEXTS[:5], negative=random_texts(5, seed=8)
    )
    with pytest.raises(InputError, match="among texts"):
        make(pair, vector=seen)
