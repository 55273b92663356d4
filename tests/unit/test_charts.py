"""Charts: data as given, captions with n, escaping, and what a notebook stores of them."""

import json
from typing import Any

import pytest

from tl_transfer import views
from tl_transfer.errors import InputError
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
