"""Charts: data as given, captions with n, escaping, and what a notebook stores of them."""

import json
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests.maps import HERE, THERE, exact, rows
from tests.sample_charts import fitted, grid
from tests.unit.sample_report import HOSTILE_TAG, hostile_report, sample_report
from tl_transfer import views
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.views.chart import MIME

NASTY = "<script>alert(1)</script>"


def test_the_matrix_holds_what_it_was_given_and_leaves_gaps_open() -> None:
    cells: dict[tuple[str, str], Any] = {
        ("a", "b"): {"value": 0.9, "ci95": (0.8, 1.0), "n": 40, "passes": True},
        ("b", "a"): {"value": 0.2, "ci95": (0.1, 0.3), "n": 30, "passes": False},
        ("c", "a"): 0.5,
    }
    chart = views.transfer_matrix(cells)
    data = chart.data
    assert (data.sources, data.targets) == (["a", "b", "c"], ["b", "a"])
    assert data.value == [[0.9, None], [None, 0.2], [None, 0.5]]
    assert data.ci95[0] == [(0.8, 1.0), None] and data.passes == [[True, None], [None, False],
                                                                 [None, None]]  # fmt: skip
    assert "3 pairs, n = 30 to 40 prompts" in chart.caption
    texts = chart.figure.data[0].text
    assert "0.90" in texts[0][0] and "[0.80, 1.00]" in texts[0][0] and texts[0][1] == ""
    assert chart.figure.data[0].y == (0, 1, 2), "sources are rows"
    square = views.transfer_matrix({("a", "b"): 1.0, ("b", "a"): 0.5})
    assert square.data.targets == square.data.sources == ["a", "b"]
    with pytest.raises(InputError, match="nothing to draw"):
        views.transfer_matrix({})


def test_names_are_text_in_the_figure_and_in_the_page() -> None:
    chart = views.transfer_matrix({(NASTY, "b"): 0.4})
    spec = json.dumps(chart._repr_mimebundle_()[MIME])
    assert "<script" not in spec and "&lt;script" in spec
    for text in (chart.html(), chart.still()):
        assert NASTY not in text and "&lt;script&gt;alert(1)" in text


def test_a_notebook_stores_the_figure_and_the_numbers_but_no_script() -> None:
    chart = views.transfer_matrix({("a", "b"): {"value": 0.4, "ci95": (0.3, 0.5), "n": 7}})
    bundle = chart._repr_mimebundle_()
    assert set(bundle) == {MIME, "text/html", "text/plain"}
    assert len(json.dumps(bundle)) < 30_000 and "<script" not in bundle["text/html"]
    assert "n = 7" in bundle["text/html"] and "0.40 [0.30, 0.50]" in bundle["text/html"]
    assert "n = 7" in bundle[MIME]["layout"]["title"]["subtitle"]["text"]


@pytest.mark.usefixtures("no_network")
def test_a_page_holds_the_script_once_and_stays_small(tmp_path: Any) -> None:
    charts = [views.transfer_matrix({("a", "b"): value}) for value in (0.1, 0.2)]
    page = views.save_page(tmp_path / "page.html", *charts, title=NASTY).read_text()
    assert len(page) < 3_000_000 and page.count('class="tl-transfer-plotly"') == 1
    assert page.count("<style>") == 2, "the page's and the views'"
    assert NASTY not in page and page.count("numbers</summary>") == 2
    with pytest.raises(InputError, match="nothing to write"):
        views.save_page(tmp_path / "page.html")


@pytest.fixture(scope="module")
def made() -> tuple[tt.Mapper, dict[str, tt.SteeringVector]]:
    return fitted()


def test_the_written_spectrum_is_the_variance_of_the_prediction(made: Any) -> None:
    mapper, _ = made
    data = views.singular_spectrum(mapper).data
    explained = mapper.weight.double().T @ mapper.held_out.xx @ mapper.weight.double()
    total = float(mapper.held_out.yy.trace())
    assert float(data.written.sum()) == pytest.approx(float(explained.trace()) / total, rel=1e-6)
    assert data.written.tolist() == sorted(data.written.tolist(), reverse=True)
    scale = mapper.source_norm / mapper.target_norm
    norm = float(mapper.weight.double().norm()) * scale
    assert float(data.gain.norm()) == pytest.approx(norm, rel=1e-6)
    # A map of wrong pairs predicts next to nothing.
    assert float(data.control_written.sum()) < 0.5 * float(data.written.sum())
    rank_one = tt.AffineMap(
        torch.outer(mapper.weight[:, 0], mapper.weight[0]),
        mapper.bias,
        source=mapper.source,
        target=mapper.target,
        source_norm=1.0,
        target_norm=1.0,
        method="rank one",
    )
    chart = views.singular_spectrum(rank_one, "gain")
    assert float(chart.data.gain[1] / chart.data.gain[0]) < 1e-5
    assert "Effective rank: this map 1." in chart.caption
    with pytest.raises(InputError, match="no held-out sums"):
        views.singular_spectrum(rank_one)
    with pytest.raises(InputError, match="no score card"):
        views.score_card(rank_one)
    with pytest.raises(InputError, match="no held-out sums"):
        views.direction_r2(rank_one, {})


def test_a_map_to_a_wider_space_has_as_many_components_as_the_narrower_one() -> None:
    x, y, true = rows("linear", noise=0.1)
    mapper = tt.AffineMap(
        true.float(),
        (y.mean(0) - x.mean(0) @ true).float(),
        source=HERE,
        target=THERE,
        source_norm=1.0,
        target_norm=1.0,
        method="given",
        held_out=exact(x, y),
    )
    data = views.singular_spectrum(mapper).data
    assert len(data.written) == len(data.gain) == 12 and data.control_written is None
    assert float(data.written.sum()) == pytest.approx(1.0, abs=0.01)


def test_r2_along_a_direction_is_that_of_the_map_and_components_add_up(made: Any) -> None:
    mapper, vectors = made
    chart = views.direction_r2(mapper, vectors)
    for found, vector in zip(chart.data.directions, vectors.values(), strict=True):
        assert found["r2"] == pytest.approx(mapper.direction_r2(vector.unit), abs=1e-9)
        assert found["control"] == pytest.approx(mapper.shuffled.direction_r2(vector.unit))
        assert found["ci95"][0] <= found["r2"] <= found["ci95"][1]
    assert sum(c["share"] for c in chart.data.components) == pytest.approx(1.0, abs=1e-6)
    pooled = sum(c["share"] * c["r2"] for c in chart.data.components)
    assert pooled == pytest.approx(1.0 - mapper.scorecard["held_out"]["fvu"], abs=1e-6)
    assert "<b>native" not in chart.html()
    source = tt.SteeringVector(torch.ones(mapper.source.d_model), mapper.source, 1.0, "source's")
    with pytest.raises(SpaceError):
        views.direction_r2(mapper, {"source": source})


def test_the_card_shows_every_score_beside_its_control(made: Any) -> None:
    mapper, _ = made
    chart = views.score_card(mapper)
    control, own = chart.figure.data
    held_out, shuffled = mapper.scorecard["held_out"], mapper.scorecard["shuffled"]
    assert own.x[0] == held_out["fvu"] and control.x[0] == shuffled["fvu"]
    place = own.y.index("CKA of the spaces, debiased")
    assert own.x[place] == mapper.scorecard["spaces"]["cka_debiased"]
    assert control.x[place] == mapper.scorecard["spaces"]["floor"]["cka_debiased"]
    assert f"n = {mapper.scorecard['n_tokens']['test']:,} held-out tokens" in chart.caption


def test_the_grid_names_its_best_pairs() -> None:
    chart = views.layer_grid(grid(), top=3)
    first = chart.table.rows[0]
    assert (first[0].text, first[1].text) == grid().best()
    assert len(chart.table.rows) == 3 and "1,000 validation rows of 20 documents" in chart.caption
    assert "<b>here" not in chart.html()
    with pytest.raises(InputError, match="not in this grid"):
        views.layer_grid(grid(), "direction_r2")


def test_effect_views_hold_the_numbers_of_the_report() -> None:
    report = sample_report()
    for make in (views.strength_curves, views.effect_damage):
        chart = make(report)
        assert chart.data == report["arms"] and "n = " in chart.caption
        assert chart.figure.layout.xaxis.title.text and chart.figure.layout.yaxis.title.text
    assert views.matched_damage(report).data == report["matched"]
    assert HOSTILE_TAG not in views.strength_curves(hostile_report()).html()
