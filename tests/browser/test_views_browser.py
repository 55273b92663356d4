"""Views in a real browser: drawn, no error, no request, text that stays text."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.browser.test_report_browser import contrast
from tests.generation.test_laws import vector_for
from tests.sparse import PlantedCoder
from tests.words import random_texts
from tl_transfer import views

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
PROMPT = "The <b>river</b> </script> rose & fell <img src=x onerror=alert(1)>."


@pytest.fixture(scope="module")
def made() -> dict[str, views.View]:
    model = tt.load_model(tiny.tiny_bridge("llama"))
    vector = vector_for(model)
    add = tt.Add(vector, 3.0)
    site = model.at(vector.space.hook_point)
    rows = torch.randn(40, model.d_model, generator=torch.Generator().manual_seed(0))
    coder = PlantedCoder(torch.nn.functional.normalize(rows, dim=-1), site.space, "s" * 64)
    texts = [PROMPT, *random_texts(6, seed=1)]
    features = tt.read_features(site, coder, texts)
    often = int(features.counts.argmax())
    read = tt.read_direction(site, vector, texts)
    return {
        "attention": views.attention(model, PROMPT, {"native": add, "other": add}, top=2),
        "again": views.attention(model, PROMPT, {"native": add}, top=1),
        "tokens": views.token_change(model, PROMPT, add),
        "projection": views.projection(model, model, vector, vector, PROMPT),
        "words": views.logit_effect({"it": (model, vector)}),
        "steer": views.steer(model, {"native": vector}, [PROMPT, "A"], max_new_tokens=4),
        "lens": views.logit_lens(model, PROMPT, add),
        "chosen": views.chosen_tokens(model, texts, "last"),
        "feature": views.feature(features, often, top=2),
        "direction": views.direction(read, beside=read, top=2),
    }


def test_all_views_on_one_page(
    opened: Open, picture: Open, made: dict[str, views.View], tmp_path: Path
) -> None:
    page = opened(views.save_page(tmp_path / "page.html", *made.values()))
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 9", timeout=30_000)
    assert page.locator("canvas, svg, img").count() >= 7, "the heads are drawn"
    shown = page.locator("body").inner_text()
    assert "<b>river</b>" in shown and "Attention with and without" in shown
    picture(page, "views")
    steps = page.locator(".step:visible")
    assert steps.count() == 1 and steps.get_attribute("data-strength") == "+0.05"
    page.locator(".slider input").focus()
    page.keyboard.press("ArrowLeft")
    assert steps.count() == 1 and steps.get_attribute("data-strength") == "+0"
    assert page.locator(".slider output").inner_text().strip() == "strength +0"


def test_views_read_in_the_dark_and_on_a_phone(
    opened: Open, picture: Open, made: dict[str, views.View], tmp_path: Path
) -> None:
    shown = [view for name, view in made.items() if name != "again"]
    page = opened(
        views.save_page(tmp_path / "page.html", *shown),
        color_scheme="dark",
        viewport={"width": 390, "height": 800},
    )
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 6", timeout=30_000)
    picture(page, "views-dark-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    # What is drawn by circuitsvis brings a paper of its own.
    for selector in (".note", "h4", ".text span", "td", "dd", "svg text"):
        found = page.locator(f".tlt:not(:has(.heads)) {selector}").first
        key = "fill" if selector == "svg text" else "color"
        ink = found.evaluate(f"e => getComputedStyle(e).{key}")
        assert contrast(ink, paper) > 4.5, f"{selector}: {ink} on {paper}"


def test_a_view_saves_as_a_page_and_as_a_picture(
    made: dict[str, views.View], tmp_path: Path
) -> None:
    page = made["lens"].save_html(tmp_path / "lens.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "The edit on its way up" in page
    cut = made["lens"].save_png(tmp_path / "lens.png", width=500, height=300).read_bytes()
    assert cut[:8] == b"\x89PNG\r\n\x1a\n" and len(cut) > 3000
    whole = made["lens"].save_png(tmp_path / "lens.png", width=500).read_bytes()
    (width, tall), lines = struct.unpack(">II", whole[16:24]), len(made["lens"].data.kl)
    assert width == 500 and 25 * lines < tall < 60 * lines + 300
