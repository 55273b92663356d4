"""Charts of maps and pairs in a real browser: marks drawn, no request, dark mode, phone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import sample_charts
from tests.browser.test_report_browser import contrast
from tests.unit.sample_report import sample_report
from tl_transfer import views

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
MODELS = ("smollm2-135m-instruct", "gemma-3-270m", "<b>qwen</b>2.5-coder-0.5b-instruct")


def matrix() -> views.Chart:
    cells: dict[tuple[str, str], Any] = {}
    for i, source in enumerate(MODELS):
        for j, target in enumerate(MODELS):
            if i != j:
                value = 0.15 + 0.13 * (3 * i + j)
                cells[source, target] = {
                    "value": value,
                    "ci95": (value - 0.1, value + 0.1),
                    "n": 40,
                    "passes": value > 0.5,
                }
    return views.transfer_matrix(cells)


@pytest.fixture(scope="module")
def made() -> dict[str, views.Chart]:
    mapper, vectors = sample_charts.fitted()
    report = sample_report()
    return {
        "matrix": matrix(),
        "grid": views.layer_grid(sample_charts.grid()),
        "card": views.score_card(mapper),
        "spectrum": views.singular_spectrum(mapper),
        "gain": views.singular_spectrum(mapper, "gain"),
        "directions": views.direction_r2(mapper, vectors),
        "strength": views.strength_curves(report),
        "damage": views.effect_damage(report),
        "matched": views.matched_damage(report),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_on_one_page_that_reads_in_both_schemes(
    opened: Open, picture: Open, made: dict[str, views.Chart], tmp_path: Path, scheme: str
) -> None:
    file = views.save_page(tmp_path / "page.html", *made.values())
    assert file.stat().st_size < 3_000_000
    page = opened(file, color_scheme=scheme, viewport={"width": 1000, "height": 900})
    wanted = f"document.querySelectorAll('[data-drawn]').length == {len(made)}"
    page.wait_for_function(wanted, timeout=30_000)
    for chart in page.locator(".chart").all():
        assert chart.locator(
            ".heatmaplayer image, .scatterlayer .point, .scatterlayer .js-line"
        ).count()
        assert chart.get_attribute("aria-label")
        assert len(chart.locator(".xtitle").inner_html()) > 2
        ink = chart.locator(".xtick text").first.evaluate("e => getComputedStyle(e).fill")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert contrast(ink, paper) > 4
    assert page.locator("b").filter(has_text="qwen").count() == 0
    picture(page, f"charts-{scheme}")


def test_on_a_phone_nothing_scrolls_sideways(
    opened: Open, picture: Open, made: dict[str, views.Chart], tmp_path: Path
) -> None:
    page = opened(
        views.save_page(tmp_path / "page.html", *made.values()),
        viewport={"width": 390, "height": 800},
    )
    page.wait_for_selector(".chart[data-drawn]", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "charts-phone")
