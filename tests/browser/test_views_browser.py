"""Views in a real browser: drawn, no error, no request, text that stays text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import tiny
from tests.generation.test_laws import vector_for
from tl_transfer import views

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
PROMPT = "The <b>river</b> </script> rose & fell."


@pytest.fixture(scope="module")
def made() -> dict[str, views.View]:
    model = tt.load_model(tiny.tiny_bridge("llama"))
    vector = vector_for(model)
    add = tt.Add(vector, 3.0)
    return {
        "attention": views.attention(model, PROMPT, {"native": add, "other": add}, top=2),
        "again": views.attention(model, PROMPT, {"native": add}, top=1),
        "tokens": views.token_change(model, PROMPT, add),
        "projection": views.projection(model, model, vector, vector, PROMPT),
        "words": views.logit_effect({"it": (model, vector)}),
        "steer": views.steer(model, {"native": vector}, [PROMPT, "A"], max_new_tokens=4),
        "lens": views.logit_lens(model, PROMPT, add),
    }


def test_all_views_on_one_page(
    opened: Open, picture: Open, made: dict[str, views.View], tmp_path: Path
) -> None:
    page = opened(views.save_page(tmp_path / "page.html", *made.values()))
    page.wait_for_function("document.querySelectorAll('[data-drawn]').length == 8", timeout=30_000)
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


def test_a_view_saves_as_a_page_and_as_a_picture(
    made: dict[str, views.View], tmp_path: Path
) -> None:
    page = made["lens"].save_html(tmp_path / "lens.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "The edit on its way up" in page
    picture = made["lens"].save_png(tmp_path / "lens.png", width=500, height=300).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 3000
