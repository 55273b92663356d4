"""Sums of several machines give the map of one; mixes, files, and what cannot be added."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.maps import relative
from tests.words import random_texts
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.mappers.split import spread_documents

TEXTS = random_texts(150, seed=1)
DOCUMENTS = [f"d{i // 2}" for i in range(150)]


@pytest.fixture(scope="module")
def sites() -> tuple[Any, Any]:
    tokenizer = tiny.tiny_tokenizer("bos")
    models = [
        tt.load_model(tiny.tiny_hf("llama", seed), tokenizer=tokenizer, name=f"m{seed}")
        for seed in (0, 1)
    ]
    return models[0].at("resid_post@1"), models[1].at("resid_post@2")


def part(sites: tuple[Any, Any], index: slice, **more: Any) -> tt.Sums:
    return tt.collect(
        *sites, texts=TEXTS[index], documents=DOCUMENTS[index], progress=False, **more
    )


def test_two_machines_are_one(sites: tuple[Any, Any], tmp_path: Path) -> None:
    whole = part(sites, slice(None))
    first, second = part(sites, slice(0, 60)), part(sites, slice(60, None))
    carried = tt.load(tt.save(second, tmp_path / "second.safetensors"))
    assert isinstance(carried, tt.Sums)
    for both in (first + carried, carried + first):
        assert both.hashes == whole.hashes and both.documents == whole.documents
        assert both.report == whole.report and repr(both) == repr(whole)
        for a, b in zip((*both.folds, both.held_out.moments),
                        (*whole.folds, whole.held_out.moments), strict=True):  # fmt: skip
            assert a.n == b.n
            for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
                assert relative(getattr(a, name), getattr(b, name)) < 1e-6
        for method in ("ridge", "whitened_procrustes"):
            one = tt.fit_sums(whole, method=method, strength=1e-2)
            two = tt.fit_sums(both, method=method, strength=1e-2)
            assert relative(two.weight, one.weight) < 1e-5
            assert two.source_norm == one.source_norm and two.fit_texts == one.fit_texts
            for score in ("fvu", "retrieval_top1", "cosine"):
                a, b = (m.scorecard["held_out"][score] for m in (one, two))
                assert a == pytest.approx(b, abs=1e-5)
    merged = tt.fit_sums(first + second)
    assert merged.backward is not None
    # Reasons for which no token was left out are still counted, and shown.
    assert (first + second).dropped["source"].keys() == whole.dropped["source"].keys()
    assert "0 of massive norm" in repr(merged)


def test_weights_do_not_pass_for_rows(sites: tuple[Any, Any]) -> None:
    few = part(sites, slice(0, 12))
    with pytest.raises(InputError, match="fewer training rows|too few training rows"):
        tt.fit_sums(replace(few, folds=few.folds[:1]).weighted(1000))
    plain = tt.fit_sums(part(sites, slice(0, 100)), strength=1e-2)
    heavy = tt.fit_sums(part(sites, slice(0, 100)).weighted(50), strength=1e-2)
    assert relative(heavy.weight, plain.weight) < 1e-9
    assert heavy.scorecard["n_tokens"] == plain.scorecard["n_tokens"]
    assert heavy.scorecard["warnings"] == plain.scorecard["warnings"]


def test_files_are_exact(sites: tuple[Any, Any], tmp_path: Path) -> None:
    before = part(sites, slice(None))
    path = tt.save(before, tmp_path / "s.safetensors")
    after = tt.load(path)
    assert after.hashes == before.hashes and after.documents == before.documents
    # A header of a million hashes could not be read again.
    assert min(before.hashes).encode() not in path.read_bytes()
    one, two = tt.fit_sums(before), tt.fit_sums(after)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
    assert torch.equal(one.shuffled.weight, two.shuffled.weight)
    assert one.scorecard == two.scorecard and one.settings == two.settings


def test_a_weighted_mix_is_a_fit_with_weights(sites: tuple[Any, Any]) -> None:
    general, task = part(sites, slice(0, 80)), part(sites, slice(80, None))
    mixed = tt.fit_sums(general + task.weighted(5), strength=1e-2)
    plain = tt.fit_sums(general + task, strength=1e-2)
    assert relative(mixed.weight, plain.weight) > 1e-2
    # The same as reading the task texts five times.
    folds = tuple(a + b + b + b + b + b for a, b in zip(general.folds, task.folds, strict=True))
    repeated = tt.fit_sums(replace(general + task, folds=folds), strength=1e-2)
    assert relative(mixed.weight, repeated.weight) < 1e-9
    with pytest.raises(InputError, match="leave these sums out"):
        task.weighted(0)


def test_what_cannot_be_added(sites: tuple[Any, Any]) -> None:
    one = part(sites, slice(0, 100))
    with pytest.raises(InputError, match="100 shared texts"):
        one + one
    with pytest.raises(InputError, match="different seed"):
        one + part(sites, slice(100, None), seed=1)
    with pytest.raises(InputError, match="different tokens"):
        one + part(sites, slice(100, None), tokens="last")
    with pytest.raises(SpaceError):
        one + part((sites[1], sites[0]), slice(100, None))
    with pytest.raises(InputError, match="anchors' needs rows"):
        tt.fit_sums(one, method="anchors")


def test_the_split_follows_from_the_id_alone() -> None:
    names = [f"n{i}" for i in range(3000)]
    split = spread_documents(names, seed=3)
    again = spread_documents(names[::-1][:50], seed=3)
    assert again.fold == split.fold[::-1][:50] and again.document == split.document[::-1][:50]
    assert len(set(split.document)) == 3000
    share = sum(fold == 5 for fold in split.fold) / 3000
    assert 0.17 < share < 0.23
    assert all(split.fold.count(k) > 400 for k in range(5))
    assert spread_documents(names, seed=4).fold != split.fold
