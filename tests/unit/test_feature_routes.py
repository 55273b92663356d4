"""Moving features between tiny models by every route; readings and views of features."""

import copy
from dataclasses import replace

import pytest
import torch

import tl_transfer as tt
from tests import tiny, words
from tests.sparse import PlantedCoder, unit_rows
from tl_transfer import views
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.features.edit import Reconstruction

POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def twins():
    """A model and its exact twin, so that a map is exact and every feature has its counterpart."""
    size = len(tiny.tiny_tokenizer("bos"))
    hf = tiny.tiny_hf("llama", seed=2, vocab_size=size)
    other, rotation = tiny.twin(hf, d_model=64, scale=1.7, seed=1)
    source, target = (
        tt.load_model(model, tokenizer=tiny.tiny_tokenizer("bos"), name=name)
        for model, name in ((hf, "source"), (other, "target"))
    )
    return source.at(POINT), target.at(POINT), 1.7 * rotation


@pytest.fixture(scope="module")
def texts():
    return words.random_texts(120)


@pytest.fixture(scope="module")
def coders(twins):
    here, there, weight = twins
    directions = unit_rows(40, here.model.d_model, 3)
    source = PlantedCoder(directions, here.space, "s" * 64)
    # In the twin a feature is the same up to scale and order; codes grow with the stream.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    turned = torch.nn.functional.normalize(directions @ weight, dim=-1)[order.argsort()]
    return source, PlantedCoder(turned, there.space, "t" * 64), order


@pytest.fixture(scope="module")
def routes(twins, coders, texts):
    here, there, _ = twins
    source, target, order = coders
    mapper = tt.fit(here, there, texts=texts, progress=False)
    sums = tt.correlate_features(here, there, source, target, texts=texts, progress=False)
    matches = tt.match_features(sums)
    folded = replace(target, directions=target.directions[order], identity="f" * 64)
    return tt.FeatureRoutes(
        here, there, source, texts=texts, mapper=mapper, target_sae=target, matches=matches,
        folded=folded, progress=False,
    )  # fmt: skip


def test_matching_through_two_models_finds_the_planted_order(routes, coders) -> None:
    order, found = coders[2], routes.matches
    right = found.target == order[found.source]
    assert right.float().mean() > 0.95 and len(found) > 30
    assert found.r[right].median() > 0.99


@pytest.mark.parametrize("route", ["live", "direction", "match", "fold"])
def test_every_route_gives_the_planted_direction_and_strength(routes, coders, twins, route) -> None:
    feature = int(routes.matches.best[0].source)
    moved = routes.move(feature, route)
    planted = coders[0].directions[feature] @ twins[2]
    cosine = torch.nn.functional.cosine_similarity(moved.vector.direction, planted, dim=0)
    assert cosine > 0.99
    reading = moved.card["reading"]
    # A random model is not sparse: what is below the six strongest features blurs a coordinate.
    least = 0.8 if route in ("match", "fold") else 0.4
    assert reading["r"] > least > max(reading["shuffled"], reading["random"])
    assert reading["ci95"][0] < reading["r"] <= reading["ci95"][1]
    assert moved.strength(0.5) < moved.strength(0.9) < moved.strength(1.0)
    # One unit of activation is 1.7 in the twin, up to what other features add to the coordinate.
    ratio = moved.step[0.9] / (1.7 * moved.activation[0.9])
    assert 0.5 < ratio < 2.0
    assert f"by {route}" in repr(moved)
    with pytest.raises(InputError, match="0.1 to 1"):
        moved.strength(0.01)


@pytest.mark.parametrize(
    ("route", "steering", "holding"),
    [
        ("live", tt.FeatureFrom, tt.FeatureFrom),
        ("direction", tt.Add, tt.Clamp),
        ("match", tt.Add, tt.SetFeature),
        ("fold", tt.Add, tt.SetFeature),
    ],
)
def test_a_moved_feature_is_an_ordinary_intervention_of_the_quantile(
    routes, route, steering, holding
) -> None:
    """How these run (cache, batches, off) is a law for all operators: tests/generation."""
    moved = routes.move(int(routes.matches.best[0].source), route)
    where = tt.prompt()
    steer, hold = moved.steer(0.5, where=where), moved.hold(0.5, where=where)
    assert (type(steer), type(hold)) == (steering, holding)
    assert steer.where is hold.where is where
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(3))
    unit, step = moved.vector.unit, moved.step[0.5]
    if route == "live":
        assert steer.value == hold.value == moved.activation[0.5]
        return
    assert torch.allclose(steer.edit(x) - x, step * unit.expand_as(x), atol=1e-4)
    if route == "direction":
        reached = moved.base + step
        assert torch.allclose(hold.edit(x) @ unit, torch.tensor(reached), atol=1e-4)
    else:
        # A code counts in rows of the decoder, whatever their length.
        longer = replace(moved.coder, directions=2 * moved.coder.directions)
        assert hold.value == pytest.approx(step)
        assert replace(moved, coder=longer).hold(0.5).value == pytest.approx(step / 2)


def test_setting_a_feature_leaves_the_error_term_and_reaches_the_value(routes, coders) -> None:
    sae = replace(coders[1], k=40)
    x = torch.randn(2, 5, routes.target.model.d_model, generator=torch.Generator().manual_seed(1))
    item = tt.SetFeature(sae, 3, 2.5)
    moved = item.edit(x)
    assert torch.allclose(moved - x, (2.5 - sae.encode(x)[..., 3:4]) * sae.directions[3], atol=1e-5)
    # A row-normalising dictionary steps through its own decoder.
    odd = replace(sae, row_norm="layer_norm")
    assert torch.allclose(tt.SetFeature(odd, 3, 2.5).edit(x), moved, atol=1e-5)


def test_the_live_route_is_the_difference_and_not_the_reconstruction(routes) -> None:
    """Setting a feature to what it is changes nothing, however bad the dictionary is."""
    moved = routes.move(int(routes.matches.best[0].source), "live")
    x = torch.randn(7, routes.source.model.d_model, generator=torch.Generator().manual_seed(2))
    value = float(routes.sae.encode(x)[0, moved.feature])
    item = replace(moved.steer(), value=value)
    assert item._maker()(x[:1]).abs().max() < 1e-5
    rebuilt = Reconstruction(routes.sae, routes.mapper)
    assert (rebuilt.map_points(x) - routes.mapper.map_points(x)).abs().max() > 1e-2


@pytest.mark.parametrize("route", ["direction", "match", "fold"])
def test_strength_comes_from_training_documents_and_the_score_from_held_out_ones(
    routes, route
) -> None:
    rows = routes._rows
    feature = int(routes.matches.best[0].source)
    noise = torch.randn(rows.y.shape, generator=torch.Generator().manual_seed(4))

    def with_noise_in(where: torch.Tensor):
        other = copy.copy(routes)
        other.__dict__ = {k: v for k, v in routes.__dict__.items() if not k.endswith("codes")}
        other._rows = replace(rows, y=torch.where(where[:, None], noise, rows.y))
        return other.move(feature, route)

    true = routes.move(feature, route)
    held, train = with_noise_in(rows.held_out), with_noise_in(~rows.held_out)
    assert held.step == true.step and held.base == true.base
    assert held.card["reading"]["r"] < 0.3
    assert train.card["reading"]["r"] == true.card["reading"]["r"]
    assert train.step != true.step
    # Where the feature is silent, and nowhere else, is its base.
    silent = routes.sae.encode(rows.x)[:, feature] == 0
    along = rows.y @ true.vector.unit
    assert true.base == pytest.approx(float(along[silent & ~rows.held_out].mean()), abs=1e-4)


def test_random_features_of_the_floor_are_others(routes) -> None:
    for feature in routes.live_features.tolist():
        others = routes._others(feature, "direction")
        assert feature not in others and len(set(others)) == 10


def test_the_shuffled_control_has_the_same_length(routes) -> None:
    moved = routes.move(int(routes.matches.best[0].source))
    control = routes.shuffled(moved)
    assert control.norm == pytest.approx(float(moved.vector.norm), rel=1e-5)
    assert abs(control.cosine(moved.vector)) < 0.9


def test_what_routes_refuse(routes, twins, coders, texts) -> None:
    here, there, _ = twins
    bare = tt.FeatureRoutes(here, there, coders[0], texts=routes._rows, folded=routes.folded)
    assert bare.routes == ("fold",)
    with pytest.raises(InputError, match="it needs target_sae and matches"):
        bare.move(0, "match")
    with pytest.raises(SpaceError, match="folded dictionary"):
        tt.FeatureRoutes(here, there, coders[0], texts=texts, folded=coders[0])
    with pytest.raises(InputError, match="both or neither"):
        tt.FeatureRoutes(here, there, coders[0], texts=texts, target_sae=coders[1])
    silent = replace(coders[0], k=1, directions=-coders[0].directions.abs())
    with pytest.raises(InputError, match="0 to 39"):
        routes.move(40)
    assert silent.d_sae == 40


def test_rows_of_two_stores_are_those_of_two_models(twins, texts, tmp_path) -> None:
    stores = [
        tt.capture(site, texts, store=tmp_path / name, progress=False)
        for name, site in zip("ab", twins[:2], strict=True)
    ]
    stored, read = tt.Estimate.read(*stores), tt.Estimate.read(*twins[:2], texts)
    # In an order of their own.
    assert stored.x.shape == read.x.shape and stored.held_out.sum() == read.held_out.sum()
    assert torch.allclose(stored.x.sum(0), read.x.sum(0), rtol=1e-3, atol=1e-2)


def test_a_reading_knows_where_a_feature_is_active(twins, coders, texts) -> None:
    here, sae = twins[0], coders[0]
    reading = tt.read_features(here, sae, texts)
    feature = int(reading.counts.argmax())
    card = reading.card(feature, top=3)
    assert card.n_tokens == len(reading.codes) and 0 < card.density <= 1
    assert sum(n for _, n in card.histogram) == card.n_active
    values = [found.value for found in card.contexts]
    assert values == sorted(values, reverse=True) and len({c.text for c in card.contexts}) == 3
    assert values[0] == pytest.approx(float(reading.activations(feature).max()))
    # The activation shown at a token is that of the model at this token.
    text = card.contexts[0].text
    tokens = torch.tensor([reading.texts[text].ids])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    stream = here.model.residuals(tokens, mask, [here.point])[here.point.name][0]
    whole = reading.context(feature, text, around=None)
    codes = sae.encode(stream)[:, feature].double()
    shown = torch.tensor(whole.activations, dtype=torch.float64)
    assert torch.allclose(shown[1:], codes[1:], atol=1e-4) and shown[0].isnan()
    assert "".join(whole.pieces).endswith(texts[text])
    assert str(feature) in str(card)
    with pytest.raises(SpaceError):
        tt.read_features(twins[1], sae, texts)


def test_feature_views_are_offline_and_escaped(twins, coders, tmp_path, no_network) -> None:
    texts = ["The <b>river</b> rose & fell.", "A </script> cat sleeps.", "Rain in May."]
    readings = [
        tt.read_features(site, sae, texts) for site, sae in zip(twins[:2], coders[:2], strict=True)
    ]
    feature = int(readings[0].counts.argmax())
    partner = int(coders[2][feature])
    view = views.feature(readings[0], feature, beside=(readings[1], partner), top=2)
    shown = view.html()
    assert "<b>river" not in shown and "</script>" not in shown and "&lt;" in shown
    assert "http" not in shown.replace("http://www.w3.org", "") and "<svg" in shown
    assert len(view.data.same_texts) == 2 and view.data.beside.feature == partner
    assert view.save_html(tmp_path / "feature.html").stat().st_size > 1000
    alone = views.feature(readings[0], feature)
    assert alone.data.beside is None
    assert (
        "active nowhere"
        in views.feature(readings[0], int((readings[0].counts == 0).nonzero()[0, 0])).html()
        if bool((readings[0].counts == 0).any())
        else True
    )
