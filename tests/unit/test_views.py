"""Views: the computed data against what the model says, escaping, size, and no network."""

import json
import re
import sys
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests.generation.test_laws import vector_for
from tl_transfer import views
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.views import circuits

TEXT = "The river rose in the night."


@pytest.fixture
def model(host_model: Any) -> tt.HookedModel:
    return tt.load_model(host_model)


def logits(model: tt.HookedModel, text: str, *interventions: Any) -> torch.Tensor:
    ids = torch.tensor([list(model.tokenizer(text)["input_ids"])])
    with tt.attach(model, *interventions) as live:
        return live.logits(ids)[0]


def test_token_change_is_the_divergence_of_the_two_models(model: Any) -> None:
    add = tt.Add(vector_for(model), 2.0)
    data = views.token_change(model, TEXT, add).data
    ids = list(model.tokenizer(TEXT)["input_ids"])
    p, q = (logits(model, TEXT, *i).log_softmax(-1) for i in ((), (add,)))
    assert torch.allclose(data.kl, (p.exp() * (p - q)).sum(-1), atol=1e-4)
    expected = [float(q[i, ids[i + 1]] - p[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    assert data.log_probability.tolist() == pytest.approx([0.0, *expected], abs=1e-4)
    assert "".join(t for t in data.tokens if t != "⟨control⟩") == TEXT
    nothing = views.token_change(model, TEXT, tt.Add(vector_for(model), 0.0)).data
    assert float(nothing.kl.abs().max()) < 1e-5


def test_attention_patterns_are_those_of_the_model_and_change_above_the_edit(model: Any) -> None:
    arms = {"transferred": tt.Add(vector_for(model, layer=1), 3.0)}
    data = views.attention(model, TEXT, arms).data
    assert torch.allclose(data.off.sum(-1), torch.ones_like(data.off[..., 0]), atol=1e-4)
    change = data.change["transferred"]
    assert float(change[:2].max()) < 1e-5 < 1e-3 < float(change[2:].max())
    assert data.ranked[0] == divmod(int(change.flatten().argmax()), change.shape[1])


def test_projection_reads_both_models_on_shared_spans(bridge_of: Any) -> None:
    source, target = tt.load_model(bridge_of("llama")), tt.load_model(bridge_of("qwen2"))
    vector, moved = vector_for(source), vector_for(target)
    data = views.projection(source, target, vector, moved, TEXT).data
    assert "".join(data.pieces) == TEXT[: len("".join(data.pieces))]
    ids = torch.tensor([list(target.tokenizer(TEXT)["input_ids"])])
    site = target.at(moved.space.hook_point)
    rows = target.residuals(ids, ids >= 0, [site.point])[site.point.name][0]
    last = float(rows[-1] @ moved.unit) / moved.median_norm
    assert float(data.target[-1]) == pytest.approx(last, abs=1e-4)
    with pytest.raises(SpaceError):
        views.projection(target, source, vector, moved, TEXT)


def test_logit_effect_finds_the_token_a_direction_spells(model: Any) -> None:
    """The gradient of a logit through the norm is not the row itself; the row still wins."""
    wanted = 77
    column = model.host.W_U[:, wanted].detach().float()
    site = model.at("resid_post@3")
    vector = tt.SteeringVector(column, site.space, 1.0, "a token's own column")
    effect = views.logit_effect({"it": (model, vector)}, top=3).data["it"]
    assert model.tokenizer.decode([wanted]) in [token for token, _ in effect.promoted]
    minus = views.logit_effect({"it": (model, -vector)}, top=3).data["it"]
    assert [t for t, _ in minus.suppressed] == [t for t, _ in effect.promoted]
    for vectors, top in (({}, 3), ({"it": (model, vector)}, 10**6)):
        with pytest.raises(InputError, match="nothing to show"):
            views.logit_effect(vectors, top=top)


def test_logit_lens_ends_at_the_models_own_prediction(model: Any) -> None:
    add = tt.Add(vector_for(model, layer=1), 3.0)
    data = views.logit_lens(model, TEXT, add).data
    for words, interventions in ((data.off, ()), (data.on, (add,))):
        best = int(logits(model, TEXT, *interventions)[-1].argmax())
        assert words[-1] == model.tokenizer.decode([best])
    assert float(data.moved[0]) == 0.0 < 1e-3 < float(data.moved[1])


def test_chosen_tokens_are_those_that_a_contrast_reads(model: Any) -> None:
    chats = [[{"role": "user", "content": text}] for text in (TEXT, "Rain in May.")]
    for texts, positions in ((chats, tt.Tokens("last", of="template")), ([TEXT, "Rain."], "last")):
        view = views.chosen_tokens(model, texts, positions)
        assert [len(found) for found in view.data.chosen] == [1, 1]
        assert "n = 2 texts, 2 of" in view.caption
    words = view.data.tokens[0]
    assert "".join(words).endswith(TEXT) and view.data.chosen[0] == [len(words) - 1]
    everything = views.chosen_tokens(model, [TEXT], "mean").data
    assert everything.chosen[0] == list(range(1, len(words)))


@pytest.mark.usefixtures("no_network")
def test_attention_needs_no_network_and_stays_small(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "a b c " * 9
    view = views.attention(model, prompt, {"one": tt.Add(vector_for(model), 1.0)})
    html = view._repr_html_()
    assert len(html) < 3_000_000 and "http" not in re.sub(r"<script type=.*?</script>", "", html)
    assert html.count("tl-transfer-circuits") >= 2  # the script once, and who reads it
    assert html.count(circuits.packed_script()) == 1
    (props, *_) = re.findall(r'-props">(.*?)</script>', html)
    assert len(json.loads(props)["attention"]) == 4
    with pytest.raises(InputError, match="too long to draw"):
        views.attention(model, "word " * 45, {"one": tt.Add(vector_for(model), 1.0)})
    with pytest.raises(InputError, match="nothing to compare"):
        views.attention(model, prompt, {})
    # More heads than a cell of 3 MB can hold; seven characters a number, and the script.
    monkeypatch.setattr(sys.modules["tl_transfer.views.attention"], "MAX_NUMBERS", 9000)
    with pytest.raises(InputError, match="heads to draw"):
        views.attention(model, prompt, {"one": tt.Add(vector_for(model), 1.0)}, top=16)


def test_views_leave_no_hook(model: Any) -> None:
    def count() -> int:
        return sum(len(point.fwd_hooks) for point in set(model.host.hook_dict.values()))

    before, add = count(), tt.Add(vector_for(model), 1.0)
    views.attention(model, TEXT, {"one": add})
    views.logit_lens(model, TEXT, add)
    views.token_change(model, TEXT, add)
    assert count() == before
