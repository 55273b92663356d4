"""With a warm cache nothing contacts the network, from loading to a steered generation."""

import pytest

import tl_transfer as tt
from tl_transfer.errors import FetchError
from tl_transfer.models import bundled

PAIR = ("smollm2-135m-instruct", "gemma-3-270m")


@pytest.fixture(scope="module", autouse=True)
def warm_cache() -> None:
    try:
        for name in PAIR:
            bundled.fetch(name)
        tt.tasks.sentiment(n_fit=20, n_contrast=4, n_neutral=2)
    except FetchError as error:
        pytest.skip(f"the models cannot be fetched: {error}")


@pytest.mark.real
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("host", ["bridge", "hooked_transformer"])
def test_the_main_steps_need_no_network(host: str) -> None:
    source = tt.load_model(PAIR[0], host=host)
    target = tt.load_model(PAIR[1], host=host)
    here, there = source.at("resid_post@15"), target.at("resid_post@9")
    task = tt.tasks.sentiment(n_fit=45, n_contrast=8, n_neutral=2)
    mapper = tt.fit(here, there, texts=task.fit_texts, documents=task.fit_documents, progress=False)
    assert mapper.scorecard["held_out"]["fvu"] < mapper.scorecard["shuffled"]["fvu"]
    vector = tt.mean_difference(here, positive=task.positive, negative=task.negative)
    moved = tt.transfer(vector, mapper)
    prompts = ["The new restaurant was", "Looking back, I would say the concert was"]
    with tt.attach(target, tt.Add(moved, 0.04)) as live:
        batched = live.generate(prompts, max_new_tokens=5)
        assert [g.tokens for g in batched] == [
            live.generate(p, max_new_tokens=5).tokens for p in prompts
        ]
        slow = live.generate(prompts, max_new_tokens=5, use_cache=False)
        assert [g.tokens for g in batched] == [g.tokens for g in slow]


@pytest.mark.real
def test_both_hosts_are_one_space() -> None:
    """An artefact made on the bridge works on HookedTransformer, and the other way round."""
    bridge = tt.load_model(PAIR[0])
    hooked = tt.load_model(PAIR[0], host="hooked_transformer")
    assert bridge.at("resid_post@15").space == hooked.at("resid_post@15").space
