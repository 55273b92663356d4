"""The report in a real browser: no request, no error, charts drawn, tables sort, themes apply."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit import sample_report as samples
from tl_transfer import plots
from tl_transfer.report.html import save_html

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture
def shown(opened: Open, tmp_path: Path) -> Open:
    """``shown(report, **context options)``: its page, once the charts are drawn."""

    def show(report: dict[str, Any], **options: Any) -> Any:
        page = opened(save_html(report, tmp_path / "report.html"), **options)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-plots]", state="attached", timeout=30_000)
        return page

    return show


def test_every_chart_is_drawn_with_its_marks(shown: Open) -> None:
    page = shown(samples.sample_report())
    assert page.get_attribute("html", "data-plots") == "drawn"
    assert page.locator(".plot .main-svg").count() >= len(plots.FIGURES)
    for plot in page.locator(".plot").all():
        assert plot.locator(".scatterlayer .point").count() > 0
        assert plot.get_attribute("aria-label")
    assert page.locator(".verdict .answer").inner_text() == "Transfers"


def test_hostile_texts_do_not_run_and_read_as_they_were_written(shown: Open) -> None:
    page = shown(samples.hostile_report())
    assert page.get_attribute("html", "data-plots") == "drawn"
    assert page.locator("img").count() == 0
    text = page.locator("body").inner_text()
    for hostile in (samples.HOSTILE_TAG, samples.HOSTILE_CLOSE, "שלום"):
        assert hostile in text
    legend = page.locator(".legendtext").all_text_contents()
    assert samples.HOSTILE_CLOSE in legend


def test_an_injected_script_would_be_stopped_by_the_policy(
    shown: Open, problems: list[str]
) -> None:
    page = shown(samples.minimal_report())
    blocked = page.evaluate(
        """() => new Promise(done => {
             document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
             const script = document.createElement('script');
             script.textContent = 'window.ran = true';
             document.body.append(script);
             setTimeout(() => done('not blocked'), 2000);
           })"""
    )
    assert blocked == "script-src-elem"
    assert page.evaluate("window.ran") is None
    (complaint,) = problems
    assert "Content Security Policy" in complaint
    problems.clear()


def test_a_table_sorts_by_number_from_the_keyboard_and_back(shown: Open) -> None:
    page = shown(samples.sample_report())
    table = page.locator("#effects table").first
    head = table.locator("thead th").nth(3)
    names = table.locator("tbody th")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert names.first.inner_text() == "unsteered"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names.first.inner_text() == "native"
    assert names.nth(1).inner_text() == "transferred"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_never_scrolls_sideways(shown: Open, width: int) -> None:
    page = shown(samples.hostile_report(), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_the_page_in_both_schemes(shown: Open, scheme: str) -> None:
    page = shown(samples.sample_report(), color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for selector in ("h1", ".note", ".answer", ".plot .xtick text", ".plot .legendtext", "a"):
        key = "fill" if ".plot" in selector else "color"
        ink = page.locator(f"{selector} >> nth=-1").evaluate(f"e => getComputedStyle(e).{key}")
        assert contrast(ink, paper) >= 4.5, f"{selector}: {ink} on {paper}"


def test_without_scripts_the_numbers_are_there(shown: Open) -> None:
    page = shown(samples.sample_report(), java_script_enabled=False)
    assert page.locator(".answer").inner_text() == "Transfers"
    assert page.locator("details table").count() >= len(plots.FIGURES)


def test_printing_fits_the_paper_and_is_dark_on_white(shown: Open, tmp_path: Path) -> None:
    page = shown(samples.sample_report(), color_scheme="dark")
    tall = "all => all.map(e => e.clientHeight)"
    before = page.eval_on_selector_all(".plot", tall)
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).color") == "rgb(0, 0, 0)"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = page.eval_on_selector_all(".plot .main-svg", "all => all.map(e => e.clientWidth)")
    assert max(widths) <= 680
    assert max(page.eval_on_selector_all(".plot", tall)) <= 300, "two charts fit on a page"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.eval_on_selector_all(".plot", tall) == before, "and are as they were"


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2)."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_the_keyboard_reaches_everything_and_pictures_have_words(
    shown: Open, tmp_path: Path, picture: Open
) -> None:
    page = shown(samples.sample_report())
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    # Whatever scrolls, sorts, opens or leads somewhere can have the focus.
    unreachable = page.evaluate(
        """() => Array.from(document.querySelectorAll('.scroll, th button, summary, a, .plot'))
             .filter(e => e.offsetParent && !e.matches('.plot') && e.tabIndex < 0)
             .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unreachable == []
    for plot in page.locator("[role=img]").all():
        words = plot.get_attribute("aria-label")
        assert len(words) > 60 and "table below" in words
    for table in page.locator("table.data").all():
        assert table.locator("caption").inner_text() or not table.is_visible()
        assert table.locator("thead th button").count() == table.locator("thead th").count()
    levels = page.evaluate(
        "Array.from(document.querySelectorAll('h1, h2, h3, h4')).map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert max(b - a for a, b in itertools.pairwise(levels)) <= 1, "no level is left out"
    picture(page, "report")


def test_on_a_phone_a_table_scrolls_in_its_own_frame(shown: Open, picture: Open) -> None:
    page = shown(samples.sample_report(), viewport={"width": 390, "height": 800}, has_touch=True)
    wide = page.locator("#effects .scroll").first
    assert wide.evaluate("e => e.scrollWidth > e.clientWidth")
    assert wide.get_attribute("role") == "region" and wide.get_attribute("aria-label")
    assert page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
    over = page.evaluate(
        """() => Array.from(document.querySelectorAll('.plot')).filter(e =>
             e.querySelector('.main-svg').getBoundingClientRect().bottom >
             e.closest('figure').querySelector('figcaption').getBoundingClientRect().top).length"""
    )
    assert over == 0, "no caption lies on its chart"
    small = page.evaluate(
        """() => Array.from(document.querySelectorAll('p, li, td, th, dd, dt, figcaption'))
             .filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).length"""
    )
    assert small == 0
    picture(page, "report-phone")
