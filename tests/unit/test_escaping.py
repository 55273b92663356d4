"""Text stays text: prompts, model names and labels that hold markup, wherever they are shown."""

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import sample_charts, tiny
from tests.generation.test_laws import vector_for
from tests.sparse import PlantedCoder
from tests.unit.sample_report import hostile_report
from tl_transfer import views
from tl_transfer.report.html import render, report_fragment
from tl_transfer.report.table import Cell, Table
from tl_transfer.views.chart import MIME

NASTY = "a </script></style><img src=x onerror=alert(1)> <!-- \" ' & <svg onload=alert(1)>"


class Reader(HTMLParser):
    """Collects what a browser would run, and the text it would show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.run: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" or any(name.startswith("on") for name, _ in attrs):
            self.run.append(tag)
        self.text += [value or "" for name, value in attrs if name in ("title", "aria-label")]

    def handle_comment(self, data: str) -> None:
        if "plotly.js" not in data:
            self.run.append(data)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    model = tt.load_model(tiny.tiny_bridge("llama"), name=NASTY)
    vector = vector_for(model)
    add, site = tt.Add(vector, 1.0), model.at(vector.space.hook_point)
    rows = torch.randn(40, model.d_model, generator=torch.Generator().manual_seed(0))
    coder = PlantedCoder(torch.nn.functional.normalize(rows, dim=-1), site.space, "s" * 64)
    texts = [NASTY, f"{NASTY} again"]
    features = tt.read_features(site, coder, texts)
    number = int(features.counts.argmax())
    direction = tt.read_direction(site, vector, texts)
    mapper, vectors = sample_charts.fitted()
    hostile = hostile_report()
    live = views.live(model, {NASTY: vector}, [NASTY], max_new_tokens=2)
    live.generate()
    chat = [{"role": "user", "content": NASTY}]
    found: dict[str, Any] = {
        "attention": views.attention(model, "a <b>", {NASTY: add}, top=1),
        "chosen": views.chosen_tokens(model, [NASTY, chat]),
        "tokens": views.token_change(model, NASTY, add),
        "projection": views.projection(model, model, vector, vector, NASTY),
        "words": views.logit_effect({NASTY: (model, vector)}),
        "lens": views.logit_lens(model, NASTY, add),
        "feature": views.feature(features, number, beside=(features, number)),
        "direction": views.direction(direction, beside=direction),
        "steer": views.steer(model, {NASTY: vector}, NASTY, max_new_tokens=2),
        "live": live.view(),
        "matrix": views.transfer_matrix({(NASTY, "b"): 0.4}, measure=NASTY, unit=NASTY),
        "directions": views.direction_r2(mapper, {NASTY: vectors["transferred"]}),
        "card": views.score_card(mapper),
        "spectrum": views.singular_spectrum(mapper),
        "grid": views.layer_grid(sample_charts.grid()),
        "curves": views.strength_curves(hostile),
        "damage": views.effect_damage(hostile),
        "matched": views.matched_damage(hostile),
    }
    pages = {name: view.html() for name, view in found.items()}
    pages |= {
        "describe": tt.describe(model, NASTY, add).html(),
        "live widget": live.output.value,
        "live static": live._repr_mimebundle_()["text/html"],
        "still chart": found["matrix"].still(),
        "table": Table(NASTY, (NASTY, "b"), ((Cell(NASTY), Cell("1")),), NASTY)._repr_html_(),
        "map": mapper._repr_html_(),
        "report": render(hostile),
        "report fragment": report_fragment(hostile),
        "chart title": found["matrix"]._repr_mimebundle_()[MIME]["layout"]["title"]["text"],
    }
    return pages


ALL = [
    "attention", "chosen", "tokens", "projection", "words", "lens", "feature", "direction", "steer",
    "live", "matrix", "directions", "card", "spectrum", "grid", "curves", "damage", "matched",
    "describe", "table", "map", "report", "live widget", "live static", "still chart",
    "report fragment", "chart title",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_a_text_becomes_markup(shown: dict[str, str], name: str) -> None:
    reader = Reader(shown[name])
    assert reader.run == []
    if name in ("steer", "live", "live widget", "live static", "table"):
        assert NASTY in "".join(reader.text), "it reads as it was written"


def test_everything_that_is_shown_is_in_the_list(shown: dict[str, str]) -> None:
    assert sorted(shown) == sorted(ALL)
    drawn = {n for n in views.__all__ if n[0].islower()} - {"save_page"}
    kinds = {
        "attention", "chosen_tokens", "direction", "direction_r2", "effect_damage", "feature",
        "layer_grid", "live", "logit_effect", "logit_lens", "matched_damage", "projection",
        "score_card", "singular_spectrum", "steer", "strength_curves", "token_change",
        "transfer_matrix",
    }  # fmt: skip
    assert drawn == kinds, "a new view: add it to `shown`"
