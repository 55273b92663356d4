"""Cards of vectors: numbers of the model's own stream, agreement, text that stays text."""

from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.generation.test_laws import vector_for
from tests.words import random_texts
from tl_transfer import views
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.features.track import agreement
from tl_transfer.views.feature import _partner

TEXTS = [*random_texts(11, seed=6), "The <b>river</b> rose & </script> fell."]
DOCUMENTS = [str(i // 2) for i in range(12)]


@pytest.fixture(scope="module")
def read() -> tuple[tt.DirectionReading, tt.DirectionReading]:
    models = [tt.load_model(tiny.tiny_bridge(family)) for family in ("llama", "qwen2")]
    vectors = [vector_for(model) for model in models]
    sites = [m.at(v.space.hook_point) for m, v in zip(models, vectors, strict=True)]
    both = [
        tt.read_direction(site, vector, TEXTS, documents=DOCUMENTS, max_tokens=64)
        for site, vector in zip(sites, vectors, strict=True)
    ]
    with pytest.raises(SpaceError):
        tt.read_direction(sites[1], vectors[0], TEXTS)
    with pytest.raises(InputError, match="list of plain texts"):
        tt.read_direction(sites[0], vectors[0], "one text")
    with pytest.raises(InputError, match="no token to read"):
        tt.read_direction(sites[0], vectors[0], [""])
    return both[0], both[1]


def test_projections_are_those_of_the_models_stream(read: Any) -> None:
    reading = read[0]
    for text in (0, 11):
        tokens = torch.tensor([reading.texts[text].ids])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        point = reading.site.point
        stream = reading.site.model.residuals(tokens, mask, [point])[point.name][0]
        rows = slice(int(reading.start[text]), int(reading.start[text + 1]))
        expected = stream[reading.position[rows]] @ reading.vector.unit / reading.vector.median_norm
        assert torch.allclose(reading.projections[rows].float(), expected, atol=1e-5)
    assert 0 not in reading.position.tolist(), "an attention sink is not read"


def test_a_card_shows_both_ends_once_a_document(read: Any) -> None:
    card = read[0].card(top=3)
    values = read[0].projections
    highest = [context.value for context in card.contexts]
    lowest = [context.value for context in card.lowest]
    assert highest == sorted(highest, reverse=True) and lowest == sorted(lowest)
    assert highest[0] == pytest.approx(float(values.max()))
    assert lowest[0] == pytest.approx(float(values.min()))
    for found in (card.contexts, card.lowest):
        assert len({DOCUMENTS[context.text] for context in found}) == 3
    assert sum(n for _, n in card.histogram) == card.n_tokens == len(values)
    assert card.histogram[-1][0] == pytest.approx(float(values.max()), rel=1e-6)
    assert card.mean == pytest.approx(float(values.mean()))
    assert card.quantiles[0.5] == pytest.approx(float(values.median()), abs=0.02)
    assert f"{len(values):,} tokens of 6 documents" in str(card)
    assert len(read[0].card(top=20).contexts) == 6, "every document is found"


def ends_of(reading: tt.DirectionReading) -> list[int]:
    return [reading.texts[0].ends[place] for place in reading.position.tolist()]


def test_agreement_is_over_the_tokens_that_both_models_end_together(read: Any) -> None:
    here, there = read
    same = agreement(here.track, here.track)
    assert same is not None and same.r == pytest.approx(1.0) and same.n == len(here.projections)
    assert abs(same.turned) < 0.9
    minus = tt.read_direction(here.site, -here.vector, TEXTS, documents=DOCUMENTS)
    assert agreement(here.track, minus.track).r == pytest.approx(-1.0, abs=1e-6)
    across = agreement(here.track, there.track)
    assert across is not None and 0 < across.n <= min(len(here.projections), len(there.projections))
    assert across.n_documents == 6 and across.ci95[0] <= across.r <= across.ci95[1]
    # By hand, over one text.
    fewer = [tt.read_direction(r.site, r.vector, TEXTS[:1]) for r in read]
    ends = [
        {
            r.texts[0].ends[p]: float(v)
            for p, v in zip(r.position.tolist(), r.projections, strict=True)
        }
        for r in fewer
    ]
    shared = sorted(set(ends[0]) & set(ends[1]))
    rows = torch.tensor([[side[end] for end in shared] for side in ends], dtype=torch.float64)
    found = agreement(fewer[0].track, fewer[1].track)
    assert found.n == len(shared) and found.r == pytest.approx(float(torch.corrcoef(rows)[0, 1]))
    assert found.ci95 is None, "one document has no interval"
    assert agreement(here.track, fewer[1].track) is None, "other texts"


def test_the_view_is_offline_small_and_escaped(read: Any, no_network: None) -> None:
    view = views.direction(read[0], beside=read[1], top=2)
    shown = view.html()
    assert "<b>river" not in shown and "</script" not in shown
    assert "http" not in shown and shown.count("<svg") == 2 and len(shown) < 100_000
    assert len(view.data.same_texts) == 4 and view.data.agreement.n > 10
    assert "n = " in view.caption and "Correlation of both over" in view.caption
    assert len(read[0].projections) == view.data.card.n_tokens
    alone = views.direction(read[0])
    assert alone.data.beside is None and "highest" in alone.html() and "lowest" in alone.html()
    with pytest.raises(InputError, match="a reading of the other model"):
        _partner(read[0].vector, 2)
