"""A headless Chromium for the tests of this folder, and pages that must not complain or call out.

Screenshots are kept under `runs/screenshots/` (ignored by git), for people to look at.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SCREENSHOTS = Path(__file__).resolve().parents[2] / "runs" / "screenshots"
Open = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker here, so that a single file runs without the project settings."""
    config.addinivalue_line("markers", "browser: needs playwright and an installed chromium")


# A module at a time: while it runs, nothing else in this thread can start an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium or chrome on the PATH")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def problems() -> list[str]:
    """What the pages of a test complained about; `opened` fails on whatever is left in it."""
    return []


@pytest.fixture
def opened(browser: Any, problems: list[str]) -> Iterator[Open]:
    """``opened(file, **context options)``: its page; the test fails on any error or request."""
    contexts = []

    def open_file(path: Path, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        inside = (path.as_uri(), "blob:", "data:")
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append("a dialog opened"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(inside)
                else problems.append(f"request: {request.url}")
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def picture() -> Callable[..., Path]:
    """``picture(page, name)``: a screenshot of the whole page, kept for people to look at."""

    def take(page: Any, name: str) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path

    return take
