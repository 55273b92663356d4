"""Steering by hand: what the arms say, one generation at a time, with and without the widget."""

import itertools
import sys
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.generation.test_laws import vector_for
from tl_transfer import views
from tl_transfer.errors import InputError, ModelError
from tl_transfer.views.steering import Steering

PROMPTS = ("The river rose", "A <b>cold</b> night and")
NASTY = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def model() -> tt.HookedModel:
    return tt.load_model(tiny.tiny_bridge("llama"))


@pytest.fixture(scope="module")
def arms(model: tt.HookedModel) -> dict[str, Any]:
    vector = vector_for(model)
    return {"native": vector, "both": [tt.Ablate(vector), tt.Add(vector, 1.0)]}


def said(model: Any, prompt: str, *interventions: Any, n: int = 6) -> str:
    with tt.attach(model, *interventions) as live:
        return live.generate(prompt, max_new_tokens=n).text


def hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) for point in set(model.host.hook_dict.values()))


def test_every_row_is_what_attach_generates_at_its_strength(model: Any, arms: Any) -> None:
    steering = Steering(model, arms, PROMPTS, strength=(3.0, -2.0), max_new_tokens=6)
    found = steering.run()
    assert list(found.texts) == ["off", "native", "both"] and found.strengths == (3.0, -2.0)
    for i, (prompt, strength) in enumerate(zip(PROMPTS, (3.0, -2.0), strict=True)):
        assert found.texts["off"][i] == said(model, prompt)
        assert found.texts["native"][i] == said(model, prompt, tt.Add(arms["native"], strength))
    assert found.texts["native"] != found.texts["off"]
    steering.set(PROMPTS, 0.0)
    nothing = steering.run()
    assert nothing.texts["native"] == nothing.texts["off"] == found.texts["off"]


def test_it_streams_token_by_token_and_leaves_nothing_behind(model: Any, arms: Any) -> None:
    before = hooks(model)
    steering = Steering(model, arms, PROMPTS[0], strength=2.0, max_new_tokens=6)
    grown = list(steering.stream())
    assert len(grown) >= 3 * 5
    for earlier, later in itertools.pairwise(grown):
        for name, texts in earlier.texts.items():
            assert later.texts[name][0].startswith(texts[0])
    # Stopped in the middle, as by an interrupt.
    stream = steering.stream()
    for _ in range(3):
        next(stream)
    stream.close()
    assert hooks(model) == before
    assert steering.run() == grown[-1]


def test_off_is_generated_once_for_the_same_prompts(model: Any, arms: Any) -> None:
    steering = Steering(model, arms, PROMPTS[0], max_new_tokens=4)
    off = next(iter(list(steering.stream()))).texts["off"]
    steering.set(PROMPTS[0], 1.0)
    again = next(steering.stream())
    assert again.texts["off"][0].startswith(off[0]) and again.texts["off"] != off
    assert again.texts["native"] != ("",), "the first thing said is said by the next arm"
    steering.run()
    steering.on = False
    switched = list(steering.stream())
    assert len(switched) == 1
    assert switched[0].texts["native"] == switched[0].texts["off"]
    steering.set(PROMPTS[1], 1.0)
    assert steering.run().texts["off"] == (said(model, PROMPTS[1], n=4),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "names of their own"),
        ({"arms": {"off": tt.Ablate}}, "names of their own"),
        ({"prompts": ()}, "0 prompts"),
        ({"strength": (0.1, 0.2, 0.3)}, "2 prompts, 3 strengths"),
    ],
)
def test_what_makes_no_sense_is_refused(model: Any, arms: Any, changes: Any, message: str) -> None:
    given = {"arms": arms, "prompts": PROMPTS} | changes
    if "off" in given["arms"]:
        given["arms"] = {"off": arms["native"]}
    with pytest.raises(InputError, match=message):
        Steering(model, **given)


def test_a_view_has_every_strength_and_escapes_prompts(model: Any, arms: Any) -> None:
    view = views.steer(
        model, arms, [NASTY, "The river"], strengths=(-2.0, 0.0, 2.0), max_new_tokens=4
    )
    html = view.html()
    assert html.count('class="step"') == 3 and html.count("data-first>") == 1
    assert '<div class="step" data-strength="+2" data-first>' in html
    assert "<img" not in html and "n = 2 prompts" in view.caption and "3 strengths" in view.caption
    assert [round(s.strengths[0]) for s in view.data] == [-2, 0, 2]
    assert view.data[1].texts["native"] == view.data[1].texts["off"]
    with pytest.raises(InputError, match="strengths: none"):
        views.steer(model, arms, "The river", strengths=())


def test_the_widget_generates_when_a_control_moves(model: Any, arms: Any) -> None:
    pytest.importorskip("ipywidgets", reason="the widget needs ipywidgets (extra viz)")
    widget = views.live(
        model, arms, PROMPTS, strength=(2.0, 0.0), limits=(-4.0, 4.0), max_new_tokens=5
    )
    start = widget.output.value
    prompt, slider = widget.rows[0]
    slider.value = -3.0
    assert widget.output.value != start
    expected = said(model, PROMPTS[0], tt.Add(arms["native"], -3.0), n=5)
    assert widget.steering.said.texts["native"][0] == expected
    assert widget.steering.said.strengths == (-3.0, 0.0)
    prompt.value = NASTY
    assert "<img" not in widget.output.value and "onerror" in widget.output.value
    widget.power.value = False
    texts = widget.steering.said.texts
    assert texts["native"] == texts["off"] and widget.power.description == "steering off"
    widget.length.value = 2
    prompt.value = "long " * 4000
    assert "role=" in widget.output.value and "too long" in widget.output.value
    assert not widget.button.disabled
    assert set(widget._repr_mimebundle_()) >= {
        "text/html",
        "application/vnd.jupyter.widget-view+json",
    }


def test_a_strength_beyond_the_slider_is_refused_and_not_moved(model: Any, arms: Any) -> None:
    for options in ({"strength": 5.0}, {"limits": (1.0, -1.0)}):
        with pytest.raises(InputError, match="ends of the sliders"):
            views.live(model, arms, PROMPTS[0], **options)


def test_without_ipywidgets_the_hint_says_what_to_do(
    model: Any, arms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ModelError, match=r"tl-transfer\[viz\]"):
        views.live(model, arms, PROMPTS[0])


def test_rows_of_other_lengths_keep_their_strength(model: Any, arms: Any) -> None:
    """Left padding must not shift strengths between rows."""
    rows = ("The", "The river rose in the night and")
    found = Steering(model, arms, rows, strength=(0.0, 3.0), max_new_tokens=4).run()
    assert found.texts["native"][0] == found.texts["off"][0]
    assert found.texts["native"][1] == said(model, rows[1], tt.Add(arms["native"], 3.0), n=4)
    assert torch.equal(torch.tensor(found.strengths), torch.tensor([0.0, 3.0]))
