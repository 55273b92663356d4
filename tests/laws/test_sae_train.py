"""Training an SAE: interrupted or not the same weights, read by sae-lens, better than chance."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests.laws.test_sae_fold import affine
from tests.tiny import tiny_bridge, tiny_hf, tiny_tokenizer, twin
from tests.words import random_texts
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.sae import run as run_module
from tl_transfer.sae import train as train_module
from tl_transfer.sae.clock import Clock
from tl_transfer.sae.corpus import Corpus, kept_back, texts_corpus
from tl_transfer.sae.measure import fvu_of
from tl_transfer.sae.run import TrainingRun
from tl_transfer.sae.trainer_state import interrupts_between_steps

pytest.importorskip("sae_lens", reason="sae-lens needs TransformerLens 3.x")

SETTINGS = tt.SaeSettings(
    d_sae=96, k=4, epochs=3, batch_rows=64, learning_rate=3e-3, dead_after_rows=256
)


@pytest.fixture(scope="module")
def site() -> Any:
    return tt.load_model(tiny_bridge("llama", seed=3)).at("resid_post@1")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return texts_corpus(random_texts(160, seed=1))


@pytest.fixture(scope="module")
def trained(site: Any, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sae") / "whole"
    return tt.train_sae(site, folder=folder, corpus=corpus, settings=SETTINGS, progress=False)


def test_it_beats_chance_and_its_card_says_so(trained: Any, site: Any) -> None:
    card = json.loads((trained.folder / "card.json").read_text())
    assert card.pop("sha256") and card == trained.card
    assert card["held_out"]["fvu"] < 0.8 * card["controls"]["random_dictionary"]["fvu"]
    assert card["held_out"]["n_documents"] > 2 and len(card["held_out"]["fvu_ci95"]) == 2
    assert card["held_out"]["n_rows"] == card["rows"]["held_out"]
    assert card["train"]["n_rows"] == card["rows"]["train"]
    assert 2 < card["held_out"]["l0"] < 8 and 0 <= card["dead_share"] < 0.5
    # A random model has no loss to recover, but what the reconstruction changes can be compared.
    arms = card["loss"]["arms"]
    assert arms["identity"]["kl"] < 1e-5 < arms["mapped"]["kl"]
    assert arms["mapped"]["kl"] < arms["random_dictionary"]["kl"] < arms["mean_ablation"]["kl"]
    for side, left in card["left_out"].items():  # every token is a row or is counted
        n_left = left["position_0"] + left["massive_norm"]
        assert left["n_tokens"] == card["rows"][side] + n_left
    assert trained.sae.space == site.space
    assert sorted(p.name for p in trained.folder.iterdir()) == [
        "card.json",
        "cfg.json",
        "sae_weights.safetensors",
        "training.json",
    ]


def test_sae_lens_reads_the_folder_and_the_scale_is_folded(trained: Any, site: Any) -> None:
    from sae_lens import SAE

    sae = SAE.load_from_disk(trained.folder)
    assert sae.cfg.architecture() == "jumprelu"
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae.cfg.normalize_activations == "none"
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    x = x * trained.card["median_norm"] / 48**0.5
    with torch.no_grad():
        codes = sae.encode(x)
        assert torch.allclose(trained.sae.encode(x), codes, atol=1e-5)
        assert torch.allclose(trained.sae.decode(codes), sae.decode(codes), atol=1e-5)


def test_a_finished_folder_is_read_and_another_training_refused(
    trained: Any, site: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(train_module, "capture", never)
    again = tt.train_sae(site, folder=trained.folder, corpus=corpus, settings=SETTINGS)
    assert again.sae.identity == trained.sae.identity and again.card == trained.card
    with pytest.raises(InputError, match="differs in settings"):
        tt.train_sae(site, folder=trained.folder, corpus=corpus, settings=replace(SETTINGS, seed=1))
    with pytest.raises(InputError, match="something is there already"):
        tt.train_sae(site, folder=trained.folder.parent, corpus=corpus, settings=SETTINGS)


def test_interrupted_and_resumed_it_has_the_same_weights(
    trained: Any, site: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    require_finite = run_module._require_finite

    def interrupt(loss: Any, step: int) -> None:
        require_finite(loss, step)
        steps.append(step)
        if step in (7, 20):
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of the loop

    monkeypatch.setattr(run_module, "_require_finite", interrupt)

    def once() -> Any:
        return tt.train_sae(
            site, folder=tmp_path, corpus=corpus, settings=SETTINGS, loss=False, progress=False
        )

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            once()
        assert (tmp_path / "training.safetensors").is_file()
    found = once()
    assert steps == list(range(1, trained.card["steps"] + 1))  # no step twice, none left out
    assert found.sae.identity == trained.sae.identity


def test_a_state_of_other_settings_is_refused(tmp_path: Path, site: Any, corpus: Corpus) -> None:
    import sae_lens

    from tl_transfer.models.record import capture
    from tl_transfer.sae.trainer_state import load_state, save_state

    store = capture(site, corpus.held_out, store=tmp_path / "rows", progress=False)
    one = TrainingRun(sae_lens, store, site, SETTINGS, None)
    save_state(one.trainer, tmp_path / "state", "a")
    with pytest.raises(ArtefactError, match="state of another training"):
        load_state(one.trainer, tmp_path / "state", "b")
    (tmp_path / "state").write_bytes(b"half")
    with pytest.raises(ArtefactError, match="not a readable file of train_sae"):
        load_state(one.trainer, tmp_path / "state", "a")


def test_a_folded_sae_is_where_training_begins_and_helps(
    trained: Any, corpus: Corpus, tmp_path: Path
) -> None:
    """An exact twin: at the first step it is the folded SAE, after few steps ahead of a new one."""
    import sae_lens

    from tl_transfer.models.record import capture

    other, rotation = twin(tiny_hf("llama", seed=3), d_model=64, scale=1.7, seed=1)
    there = tt.load_model(other, tokenizer=tiny_tokenizer("bos"), name="twin").at("resid_post@1")
    back = affine(rotation.T / 1.7, torch.zeros(48), there.space, trained.sae.space)
    forth = affine(1.7 * rotation, torch.zeros(64), trained.sae.space, there.space, backward=back)
    folded = tt.fold_sae(trained.sae, forth)
    store = capture(there, corpus.held_out, store=tmp_path / "rows", progress=False)
    x = next(store.batches(400, seed=0)).values[there.point.name].float()

    run = TrainingRun(sae_lens, store, there, replace(SETTINGS, batch_rows=16), folded)
    sae = run.trainer.sae
    sae.fold_activation_norm_scaling_factor(run.scale)
    began = tt.Dictionary.of(sae)
    # sae-lens saves rows of unit length and puts their length into the codes.
    cosine = torch.nn.functional.cosine_similarity(began.directions, folded.directions)
    assert cosine.min() > 1 - 1e-5
    assert torch.allclose(began.bias, folded.bias, atol=1e-5)
    assert torch.allclose(began.reconstruct(x), folded.reconstruct(x), atol=1e-4)
    assert fvu_of(began.reconstruct, x) == pytest.approx(trained.card["held_out"]["fvu"], rel=0.2)

    # One that does not subtract its bias from the input is written as one that does.
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(96, 64, generator=g), dim=-1)
    bias, mean = torch.randn(96, generator=g), x.mean(0)
    odd = tt.SparseCoder(rows.T, bias, rows, mean, torch.zeros(64), "relu")
    run = TrainingRun(
        sae_lens, store, there, replace(SETTINGS, batch_rows=16), tt.Dictionary.of(odd)
    )
    run.trainer.sae.fold_activation_norm_scaling_factor(run.scale)
    began = tt.Dictionary.of(run.trainer.sae)
    pre = began.coder.pre_activations(x) + began.coder.b_enc
    assert torch.allclose(pre, odd.pre_activations(x) + bias, atol=1e-4)

    short = replace(SETTINGS, epochs=1)
    fvu = {
        name: tt.train_sae(
            there, folder=tmp_path / name, corpus=corpus, settings=short, start=start,
            loss=False, progress=False,
        ).card["held_out"]["fvu"]
        for name, start in (("folded", folded), ("new", None))
    }  # fmt: skip
    assert fvu["folded"] < fvu["new"]
    assert fvu["folded"] < 1.05 * fvu_of(folded.reconstruct, x)
    with pytest.raises(InputError, match="start: cannot be trained on"):
        tt.train_sae(
            there, folder=tmp_path / "odd", corpus=corpus, start=folded, progress=False,
            settings=replace(short, d_sae=64),
        )  # fmt: skip


def test_a_second_interrupt_breaks_in() -> None:
    with interrupts_between_steps() as event:
        os.kill(os.getpid(), signal.SIGINT)
        assert event.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"k": 5000}, {"architecture": "relu"}, {"epochs": 0}, {"start": "zeros"}]
)
def test_settings_that_cannot_be_trained_with_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot be trained with"):
        tt.SaeSettings(**wrong)


def test_documents_are_kept_back_whole() -> None:
    texts = random_texts(120, seed=2)
    documents = [f"d{i // 3}" for i in range(120)]
    found = texts_corpus(texts, documents)
    assert not set(found.train_documents) & set(found.held_out_documents)
    assert len(found.train) + len(found.held_out) == 120
    assert all(map(kept_back, found.held_out_documents))
    assert not any(map(kept_back, found.train_documents))
    with pytest.raises(InputError, match="too few documents"):
        texts_corpus(texts[:2], ["a", "a"])


def test_what_a_training_cost_is_added_up_over_its_calls(tmp_path: Path) -> None:
    path, times = tmp_path / "seconds.json", []
    for _ in range(2):
        clock = Clock(path)
        with pytest.raises(KeyboardInterrupt), clock.part("train"):
            sum(range(300_000))
            clock.write()
            time.sleep(0.02)
            raise KeyboardInterrupt
        times.append((clock.wall["train"], clock.processor["train"]))
    (wall, processor), (both_wall, both_processor) = times
    assert both_wall > wall + 0.02 and both_processor > processor > 0
    assert processor < wall  # it slept
    assert Clock(path).wall["train"] == both_wall
