"""suggest_layers: the planted pair first, reasons in words, splice on unseen documents."""

from dataclasses import replace
from typing import Any

import pytest

import tl_transfer as tt
from tests.unit.test_layer_grid import DOCUMENTS, TEXTS, make, pair, vectors  # noqa: F401
from tl_transfer.errors import InputError
from tl_transfer.layers import suggest


def made(**changes: Any) -> tt.LayerGrid:
    """Three source and three target layers with known scores."""
    side = {"n_layers": 3, "layers": [0, 1, 2]}
    named = {"hook_points": [f"blocks.{i}.hook_resid_post" for i in range(3)]}
    fields: dict[str, Any] = {
        "source": {"model": "a", **side, **named},
        "target": {"model": "b", **side, **named},
        "fvu": [[0.5] * 3 for _ in range(3)],
        "strength": [[0.1] * 3 for _ in range(3)],
        "cka": [[0.2] * 3 for _ in range(3)],
        "direction_r2": [[0.9, 0.1, 0.1], [0.1, 0.6, 0.5], [None, None, None]],
        "vectors": {
            "blocks.0.hook_resid_post": {"auroc": 0.55},
            "blocks.1.hook_resid_post": {"auroc": 0.95},
        },
        "n_rows": {"train": 100, "validation": 20},
        "n_documents": {"train": 10, "validation": 2},
    }
    return tt.LayerGrid(**(fields | changes))


def test_a_well_mapped_vector_that_separates_nothing_is_not_first() -> None:
    found = tt.suggest_layers(made())
    first = found.rows[0]
    assert found.best == ("blocks.1.hook_resid_post",) * 2 and found.n_pairs == 6
    assert first["score"] == pytest.approx(0.6 * 0.9)
    assert "60% of the variance along the vector" in repr(found)
    assert "AUROC 0.95" in first["why"] and "same relative depth" in first["why"]
    assert [row["score"] for row in found.rows] == sorted(
        (row["score"] for row in found.rows), reverse=True
    )


def test_equal_depth_is_preferred_and_the_band_says_how_much() -> None:
    flat = made(direction_r2=[[0.5] * 3 for _ in range(3)], vectors={})
    assert {row["depth_gap"] for row in tt.suggest_layers(flat, top=3).rows} == {0.0}
    wide = tt.suggest_layers(flat, top=9, band=1e6)
    assert max(row["score"] for row in wide.rows) == pytest.approx(
        min(row["score"] for row in wide.rows)
    )


def test_without_a_vector_the_global_score_ranks_and_chance_is_named() -> None:
    fvu = [[0.9] * 3, [0.9, 0.9, 0.2], [0.9] * 3]
    p = [[0.9] * 3 for _ in range(3)]
    null = {"measures": {"explained": {"p": p}}}
    found = tt.suggest_layers(made(fvu=fvu, direction_r2=None, null=null), top=2)
    assert found.rows[0]["fvu"] == 0.2 and "1 - FVU" in found.criterion
    assert "chance would do as well" in found.rows[0]["why"]
    with pytest.raises(InputError, match="no pair has a score"):
        tt.suggest_layers(made(direction_r2=[[None] * 3] * 3))
    with pytest.raises(InputError, match="needs both"):
        tt.suggest_layers(made(), texts=["a"])


def test_twins_are_suggested_at_the_same_layer_and_splice_without_loss(
    pair: Any,  # noqa: F811
    vectors: tt.VectorSet,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = make(pair, vector=vectors)
    seen: list[set[str]] = []
    inner = suggest.fit

    def watched(*sites: Any, texts: list[str], **options: Any) -> tt.Mapper:
        seen.append(set(texts))
        return inner(*sites, texts=texts, **options)

    monkeypatch.setattr(suggest, "fit", watched)
    spliced: list[set[str]] = []
    run = suggest.splice

    def watching(mapper: Any, here: Any, there: Any, texts: list[str], **options: Any) -> tt.Splice:
        spliced.append(set(texts))
        return run(mapper, here, there, texts, **options)

    monkeypatch.setattr(suggest, "splice", watching)
    found = tt.suggest_layers(
        grid, top=1, models=pair, texts=TEXTS, documents=DOCUMENTS, progress=False
    )
    assert all(row["source"] == row["target"] for row in found.rows)
    assert all(row["splice_recovered"] == pytest.approx(1.0, abs=0.02) for row in found.rows)
    assert not seen[0] & spliced[0]
    # The held-out documents of a later fit stay unread.
    assert len(seen[0] | spliced[0]) < len(TEXTS)
    assert replace(grid, null=None).best()[0] in vectors


@pytest.mark.parametrize("top", [0, -1])
def test_no_pairs_cannot_be_asked_for(top: int) -> None:
    with pytest.raises(InputError, match="top: how many pairs"):
        tt.suggest_layers(made(), top=top)


def test_a_hook_point_is_in_a_grid_once(pair: Any) -> None:  # noqa: F811
    for layers, got in ((["resid_post@1", "blocks.1.hook_resid_post"], "twice"), ([], "none")):
        with pytest.raises(InputError, match="every hook point once") as error:
            make(pair, source_layers=layers)
        assert got in str(error.value)
