"""describe: what will be read and steered, before anything runs."""

import html.parser
import math
import warnings

import pytest
import torch

import tl_transfer as tt
from tests.generation.cases import PROMPTS, gate_for, other_model, recording, vector_for
from tl_transfer.data.encode import encode
from tl_transfer.positions import PositionWarning

POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> tt.HookedModel:
    return other_model("bos")


@pytest.mark.parametrize(
    "where",
    [tt.everywhere(), tt.prompt(), tt.generated(), tt.span("river"), tt.first_generated(3)],
    ids=str,
)
def test_it_names_the_positions_that_are_steered(model: tt.HookedModel, where: tt.Where) -> None:
    item = tt.Add(vector_for(model), 0.3, where)
    shown = tt.describe(model, PROMPTS[0], item, new=4)
    with (
        recording(model, POINT) as before,
        tt.attach(model, item) as live,
        recording(model, POINT) as after,
    ):
        live.generate(PROMPTS[0], max_new_tokens=4)
    # The recorder that was there first saw the stream before the edit.
    moved = (torch.cat(after, 1) - torch.cat(before, 1)).norm(dim=-1)[0] > 1e-6
    assert shown.steered() == moved.nonzero()[:, 0].tolist()


def test_the_text_says_it_in_words(model: tt.HookedModel) -> None:
    v = vector_for(model)
    gate = gate_for(model)
    items = [
        tt.Add(v, tt.schedules.linear(0.3, over=3), tt.generated()),
        tt.Ablate(v, where=tt.when(gate), layers="all"),
        tt.Add(v, 0.2, tt.token_ids(9)),
    ]
    shown = tt.describe(model, "The river", *items, new=3)
    text = str(shown)
    assert "1: Add, strength linear(0.3, over=3), at blocks.1.hook_resid_post, generated()" in text
    assert "7 hook points from blocks.0.hook_resid_pre" in text
    assert "attention sink" in text and "the first new token is predicted here" in text
    assert "(new token 1)" in text and "?" in text
    last = [mark for mark in shown.tokens if mark.id is not None][-1]
    assert last.strengths[0] == pytest.approx(0.3)
    assert shown.tokens[-1].strengths[0] == pytest.approx(0.1)
    assert math.isnan(shown.tokens[-1].strengths[2])
    (line,) = shown.gates
    with tt.attach(model, tt.Add(v, 3.0, tt.when(gate))) as live:
        steered = live.generate("The river", max_new_tokens=3).tokens
    with tt.attach(model) as live:
        plain = live.generate("The river", max_new_tokens=3).tokens
    assert line.endswith("open") == (steered != plain)


class Checker(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_html_escapes_what_the_prompt_spells(model: tt.HookedModel) -> None:
    prompt = "<script>alert('x')</script> & \"quotes\"\nline"
    item = tt.Add(vector_for(model), 0.3, tt.span("<script>"))
    page = tt.describe(model, prompt, item).html()
    checker = Checker()
    checker.feed(page)
    assert set(checker.tags) <= {"div", "span"} and "<script" not in page
    assert "alert" in checker.text.replace("\xa0", " ")
    assert page == tt.describe(model, prompt, item)._repr_html_()


def test_rules_that_do_less_than_they_seem_warn(model: tt.HookedModel) -> None:
    without_bos = other_model("nobos")
    one = "a"
    assert len(encode(one, without_bos.tokenizer).ids) == 1

    def run(m: tt.HookedModel, where: tt.Where, prompts: list[str]) -> None:
        with tt.attach(m, tt.Add(vector_for(m), 0.3, where)) as live:
            live.generate(prompts, max_new_tokens=1)

    for where in (tt.everywhere(), tt.generated(), tt.last_prompt_token()):
        with pytest.warns(PositionWarning, match=r"one token is all attention sink.*rows \[1\]"):
            run(without_bos, where, ["The river", one])
    with pytest.warns(PositionWarning, match="chooses no token of any prompt"):
        run(model, tt.span("volcano"), PROMPTS[:2])
    with pytest.warns(PositionWarning, match="or of what may follow"):
        run(model, tt.from_position(100), PROMPTS[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PositionWarning)
        run(without_bos, tt.everywhere(sinks=True), [one])
        run(without_bos, tt.from_position(1), [one])
        run(model, tt.everywhere(), [one])  # BOS is the sink here
        run(model, tt.span("river"), PROMPTS[:2])
        with tt.attach(model, tt.Add(vector_for(model), torch.zeros(2))) as live:
            live.generate(PROMPTS[:2], max_new_tokens=1)  # off on purpose
