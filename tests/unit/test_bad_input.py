"""One clear error for each thing a user can get wrong: what came, what is valid, what to do."""

from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.errors import InputError, ModelError, SpaceError
from tl_transfer.models.sources import all_places, one_place
from tl_transfer.recipe import Recipe

TEXTS = random_texts(120, seed=1)


@pytest.fixture(scope="module")
def model() -> tt.HookedModel:
    return tt.load_model(tiny.tiny_bridge("llama", seed=3))


@pytest.fixture(scope="module")
def site(model: tt.HookedModel) -> Any:
    return model.at("resid_post@1")


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "got:" in text and "valid:" in text and "next:" in text
    return text


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_pst", "resid_post@99", "blocks.4.hook_resid_post", "", "layer 3"]
)
def test_unknown_hook_point(model: Any, name: str) -> None:
    with pytest.raises(InputError, match="has no residual hook point") as error:
        model.at(name)
    assert "nearest: blocks." in message(error) and "L from 0 to 3" in message(error)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("resid_post@2", "blocks.2.hook_resid_post"),
        ("blocks.2.hook_out", "blocks.2.hook_resid_post"),
        ("blocks.3.hook_resid_pre", "blocks.2.hook_resid_post"),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("attn_out@1", "blocks.1.hook_attn_out"),
    ],
)
def test_spellings_of_one_point(model: Any, name: str, canonical: str) -> None:
    assert model.at(name).point.name == canonical


def test_no_texts_and_a_single_string(site: Any) -> None:
    for texts in ([], "one text"):
        with pytest.raises((InputError,), match="needs a list of texts") as error:
            tt.fit(site, site, texts=texts, progress=False)
        message(error)
    with pytest.raises(InputError, match="positive: needs a list"):
        tt.mean_difference(site, positive=[], negative=["a b c"])


def test_one_document_only(site: Any) -> None:
    with pytest.raises(InputError, match="too few to hold any out") as error:
        tt.fit(site, site, texts=TEXTS, documents=["same"] * len(TEXTS), progress=False)
    assert "1 documents" in message(error)


def test_documents_of_the_wrong_length(site: Any) -> None:
    with pytest.raises(InputError, match="one id for each text"):
        tt.fit(site, site, texts=TEXTS, documents=["a"], progress=False)


def test_fewer_rows_than_dimensions(site: Any) -> None:
    with pytest.raises(InputError, match="fewer training rows than source dimensions") as error:
        tt.fit(site, site, texts=["a b c", "d e f", "g h i", "k l m"], progress=False)
    assert "d_source 48" in message(error)


def test_rows_enough_for_one_direction_only(site: Any) -> None:
    """The target is wider than there are rows: the map back cannot be fitted, and is named."""
    moved, _ = tiny.twin(tiny.tiny_hf("llama"), d_model=400)
    wide = tt.load_model(moved, tokenizer=tiny.tiny_tokenizer("bos"), name="wide")
    sites = site, wide.at("resid_post@1")
    with pytest.raises(InputError, match="backward: too few training rows") as error:
        tt.fit(*sites, texts=TEXTS[:8], progress=False)
    assert "d_target 400" in message(error) and "backward=False" in message(error)
    assert tt.fit(*sites, texts=TEXTS[:8], backward=False, progress=False).backward is None


def test_what_is_no_hook_point_is_named(model: Any, site: Any, tmp_path: Any) -> None:
    for given in (model, "a-folder", tmp_path):
        with pytest.raises(InputError, match="target: needs a hook point"):
            one_place(given, "target")
        with pytest.raises(InputError, match="source: needs a hook point"):
            all_places(given, "source")
    assert all_places(site, "source") == [site]


@pytest.mark.parametrize("texts", [["", "", ""], ["   ", "\n\n", "\t"]])
def test_texts_without_words(site: Any, texts: list[str]) -> None:
    with pytest.raises(InputError):
        tt.fit(site, site, texts=texts, progress=False)


def test_a_text_too_short_to_read(site: Any) -> None:
    with pytest.raises(InputError, match="no token to read") as error:
        tt.mean_difference(site, positive=["a b c", ""], negative=["d e f"])
    assert "text 1" in message(error)


def test_the_same_text_on_both_sides(site: Any) -> None:
    with pytest.raises(InputError, match="same text is on both sides"):
        tt.mean_difference(site, positive=["a b c"], negative=["a b c", "d e f"])


def test_activations_that_are_not_finite() -> None:
    broken = tiny.tiny_hf("llama", seed=4)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model = tt.load_model(broken, tokenizer=tiny.tiny_tokenizer("bos"), name="broken", check=False)
    with pytest.raises(InputError, match="not finite at blocks.1.hook_resid_post") as error:
        site = model.at("resid_post@1")
        tt.fit(site, site, texts=TEXTS, progress=False)
    assert "text " in message(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_text_that_is_not_finite_is_named(value: float) -> None:
    """One token's embedding is broken, and one text has the token."""
    broken, tokenizer = tiny.tiny_hf("llama", seed=4), tiny.tiny_tokenizer("bos")
    texts = [text for text in TEXTS if "17" not in text]
    texts.insert(7, "Why do 17 cats sleep?")
    alone = set(tokenizer(texts[7])["input_ids"])
    alone -= {
        token for i, text in enumerate(texts) if i != 7 for token in tokenizer(text).input_ids
    }
    with torch.no_grad():
        broken.model.embed_tokens.weight[alone.pop()] = value
    model = tt.load_model(broken, tokenizer=tokenizer, name="broken", check=False)
    with pytest.raises(InputError, match=r"not finite at blocks\.1\.hook_resid_post") as error:
        tt.collect(model.at("resid_post@1"), model.at("resid_post@1"), texts=texts, progress=False)
    assert "first in text 7" in message(error)


def test_training_mode_is_refused() -> None:
    model = tt.load_model(tiny.tiny_bridge("llama", seed=5))
    model.host.train()
    with pytest.raises(ModelError, match="training mode") as error:
        tt.mean_difference(model.at("resid_post@1"), positive=["a b"], negative=["c d"])
    message(error)


def test_vector_of_another_space(model: Any, site: Any) -> None:
    good = tt.SteeringVector(torch.ones(48), site.space, 1.0, "m")
    for field, value in (("hook_point", "blocks.2.hook_resid_post"), ("weights", "0" * 64)):
        bad = replace(good, space=replace(good.space, **{field: value}))
        with pytest.raises(SpaceError, match=field if field == "weights" else "") as error:
            if field == "hook_point":
                good.cosine(bad)
            else:
                tt.Add(bad).fwd_hooks(model)
        message(error)


def test_vector_of_the_wrong_width_or_zero(site: Any) -> None:
    with pytest.raises(InputError, match="wrong shape"):
        tt.SteeringVector(torch.ones(7), site.space, 1.0, "m")
    for bad in (torch.zeros(48), torch.full((48,), float("nan"))):
        with pytest.raises(InputError, match="finite and not zero"):
            tt.SteeringVector(bad, site.space, 1.0, "m")


def test_map_refuses_other_widths_and_spaces(site: Any, model: Any) -> None:
    mapper = tt.fit(site, site, texts=TEXTS, progress=False)
    with pytest.raises(InputError, match="wrong width"):
        mapper.map_points(torch.ones(3, 7))
    other = tt.SteeringVector(torch.ones(48), model.at("resid_post@2").space, 1.0, "m")
    with pytest.raises(SpaceError, match="hook_point"):
        tt.transfer(other, mapper)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), torch.ones(2, 2)])
def test_strengths_that_make_no_sense(site: Any, strength: Any) -> None:
    vector = tt.SteeringVector(torch.ones(48), site.space, 1.0, "m")
    with pytest.raises(InputError, match="strength"):
        tt.Add(vector, strength)


def test_sources_that_cannot_be_loaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing that can be loaded"):
        tt.load_model(str(tmp_path / "missing"))
    with pytest.raises(InputError, match="holds no model"):
        tt.load_model(tmp_path)
    with pytest.raises(InputError, match="unknown host class"):
        tt.load_model("smollm2-135m-instruct", host="other")
    with pytest.raises(InputError, match="not a model this package can use"):
        tt.load_model(3.14)
    with pytest.raises(InputError, match="needs its tokenizer"):
        tt.load_model(tiny.tiny_hf("llama"))
    # The variable of the same name is read at import: too late to spare the retries.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="neither a bundled model"):
        tt.load_model("no-such-org/no-such-model")


def test_a_wrapped_model_is_refused_and_a_changed_one_fails_its_check() -> None:
    bridge = tiny.tiny_bridge("llama", seed=6)
    with pytest.raises(ModelError, match="already wrapped"):
        tt.load_model(bridge.original_model, tokenizer=tiny.tiny_tokenizer("bos"))


@pytest.mark.parametrize(
    "values",
    [
        {"sorce": "x"},
        {"n_fit": 0},
        {"n_random": 1},
        {"budgets": []},
        {"main_budget": 0.3},
        {"strengths": [-1.0]},
        {"n_fit": "many"},
        {"seed": True},
        {"source_layers": "resid_post@1"},
        {"max_new_tokens": -1},
    ],
)
def test_recipes_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        Recipe.from_dict(values)
    message(error)


def test_recipe_round_trip(tmp_path: Any) -> None:
    recipe = Recipe(source_layers=("resid_post@3",), budgets=(0.05,), seed=3)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.read(path) == recipe and Recipe.read(path).key == recipe.key
    path.write_text("not = [toml")
    with pytest.raises(InputError, match="cannot read"):
        Recipe.read(path)


def test_what_is_no_vector(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    wrong: tuple[Any, ...] = (torch.ones(48), "v.safetensors", None)
    for value in wrong:
        with pytest.raises(InputError, match="vector: not a steering vector") as error:
            tt.Add(value).fwd_hooks(model)
        assert type(value).__name__ in message(error)


@pytest.mark.parametrize("strength", [[0.1, 0.2], "strong", None, float("nan"), torch.ones(2, 2)])
def test_what_is_no_strength(site: Any, strength: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a user meets, whose annotations nobody checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    vector = tt.SteeringVector(torch.ones(48), site.space, 1.0, "ones")
    for make in (
        lambda: tt.Add(vector, strength),
        lambda: tt.Ablate(vector, strength),
        lambda: tt.schedules.linear(strength, over=3),
    ):
        with pytest.raises(
            InputError, match="strength: must be finite, one number or one"
        ) as error:
            make()
        assert "torch.tensor" in message(error)
