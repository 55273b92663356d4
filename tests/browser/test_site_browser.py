"""The built documentation in a real browser, from disk: every page, and the search.

`make docs` builds the site and runs this file; elsewhere it is skipped unless a site is there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).resolve().parents[2] / "site"
# 404.html is for a server: its paths begin at the root.
PAGES = [page for page in sorted(SITE.rglob("*.html")) if page.name != "404.html"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="no site/: `make docs` builds it and runs this file"),
]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A phone's page; the test fails on what it complains about or asks for outside the site."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))

    def failed(request: Any) -> None:
        # What was still loading when the next page was opened is none.
        if "ABORTED" not in request.failure:
            problems.append(f"{page.url} has no {request.url}: {request.failure}")

    def requested(request: Any) -> None:
        inside = (SITE.as_uri(), "data:", "blob:", "about:")
        if not request.url.startswith(inside):
            problems.append(f"{page.url} asks for {request.url}")

    page.on("request", requested)
    page.on("requestfailed", failed)
    yield page
    context.close()
    assert problems == []


def test_every_page_opens_from_disk_and_reads_on_a_phone(
    page: Any, picture: Callable[..., Path]
) -> None:
    assert len(PAGES) > 30
    wrong = []
    for file in PAGES:
        page.goto(file.as_uri())
        found = page.evaluate(
            """() => ({
                 heads: document.querySelectorAll('h1').length,
                 wide: document.documentElement.scrollWidth,
                 broken: Array.from(document.images).filter(i => !i.complete || !i.naturalWidth)
                   .map(i => i.src),
                 silent: Array.from(document.images).filter(i => !i.alt).map(i => i.src)
               })"""
        )
        if found != {"heads": 1, "wide": 390, "broken": [], "silent": []}:
            wrong.append((file.relative_to(SITE).as_posix(), found))
        if file.name in ("glossary.html", "look.html", "demo.html"):
            picture(page, f"docs-phone-{file.stem}")
    assert wrong == []


def test_the_search_finds_a_page_without_any_server(
    page: Any, picture: Callable[..., Path]
) -> None:
    page.set_viewport_size({"width": 1200, "height": 900})
    page.emulate_media(color_scheme="dark")
    page.goto((SITE / "index.html").as_uri())
    # Keys, as the search listens for them.
    page.locator("input.md-search__input").press_sequentially("procrustes")
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=20_000)
    assert "procrustes" in page.locator(".md-search-result__list").inner_text().lower()
    picture(page, "docs-search")
    first.click()
    page.wait_for_function("location.pathname.endsWith('.html') && !/index/.test(location.href)")
    assert "rocrustes" in page.locator("article").inner_text()
