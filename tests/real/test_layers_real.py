"""On real models: the map beats its controls when spliced, and chance does not explain the grid."""

import pytest

import tl_transfer as tt
from tl_transfer.errors import FetchError

PAIR = ("smollm2-135m-instruct", "gemma-3-270m")


@pytest.mark.real
def test_grid_suggestion_and_splice_of_the_bundled_pair() -> None:
    try:
        source, target = (tt.load_model(name) for name in PAIR)
        task = tt.tasks.sentiment(n_fit=90, n_contrast=24, n_neutral=4)
    except FetchError as error:
        pytest.skip(f"the models cannot be fetched: {error}")
    layers = ["resid_post@1", "resid_post@15"]
    vectors = tt.mean_differences(
        [source.at(name) for name in layers], positive=task.positive, negative=task.negative
    )
    grid = tt.layer_grid(
        source,
        target,
        texts=task.fit_texts,
        documents=task.fit_documents,
        vector=vectors,
        source_layers=layers,
        target_layers=["resid_post@8", "resid_post@16"],
        permutations=39,
        progress=False,
    )
    assert grid.null is not None
    # Against the best of the whole permuted grid: only a middle layer must stand out everywhere.
    assert max(grid.null["measures"]["cka"]["p"][1]) <= 0.05
    assert grid.fvu[1][0] < 0.8
    here, there = tt.suggest_layers(grid, top=1).best
    assert here == "blocks.15.hook_resid_post"
    mapper = tt.fit(
        source.at(here),
        target.at(there),
        texts=task.fit_texts,
        documents=task.fit_documents,
        progress=False,
    )
    found = tt.splice(mapper, source, target, list(task.neutral_test), per_text=4, progress=False)
    assert found.arms["mapped"]["kl"] < found.arms["shuffled"]["kl"]
    assert found.arms["mapped"]["recovered"] > found.arms["shuffled"]["recovered"]
