"""Stores: what is on the disk is what was read, whatever happens on the way there."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from safetensors import SafetensorError

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.data.encode import encode
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.sealed import seal

TEXTS = random_texts(60, seed=1)
NAME = "blocks.1.hook_resid_post"


def load(family: str, kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    hf = tiny.tiny_hf(family, seed=seed, dtype=dtype)
    return tt.load_model(hf, tokenizer=tiny.tiny_tokenizer(kind), name=family)


@pytest.fixture(scope="module")
def pair() -> tuple[tt.HookedModel, tt.HookedModel]:
    """In float64, so that two ways of reading agree to more than the last digit of float32."""
    return load("llama", "bos"), load("qwen2", "nobos", seed=1)


@pytest.fixture(scope="module")
def bf16() -> tt.HookedModel:
    return load("llama", "bos", dtype=torch.bfloat16)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def test_rows_are_those_of_the_model_in_its_own_dtype(bf16: Any, tmp_path: Path) -> None:
    sites = [bf16.at("resid_post@1"), bf16.at("resid_post@2")]
    store = tt.capture(sites, TEXTS, store=tmp_path, shard_rows=100, progress=False)
    assert len(store) == store.n_rows > 500 and len(list(tmp_path.glob("rows-*"))) > 5
    assert store.at("resid_post@2").space == sites[1].space
    for text in (TEXTS[3], TEXTS[40]):
        rows = store.rows(text)
        tokens = torch.tensor([encode(text, bf16.tokenizer).ids])
        read = bf16.residuals(
            tokens, torch.ones_like(tokens, dtype=torch.bool), [site.point for site in sites]
        )
        assert rows.position.tolist() == list(range(1, tokens.shape[1]))
        assert rows.key[-1] == len(text.encode())
        for site in sites:
            mine, theirs = rows.values[site.point.name], read[site.point.name][0, 1:]
            assert mine.dtype == torch.bfloat16
            error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
            assert float(error) < 1e-2
    assert "bfloat16" in repr(store)


def test_batches_give_every_row_once(bf16: Any, tmp_path: Path) -> None:
    store = tt.capture(bf16.at(NAME), TEXTS, store=tmp_path, shard_rows=64, progress=False)
    plain = list(store.batches(77))
    values = torch.cat([batch.values[NAME] for batch in plain])
    assert len(values) == store.n_rows
    mixed = list(store.batches(77, seed=3, hook_points=["resid_post@1"]))
    order = [torch.cat([getattr(b, n) for b in mixed]) for n in ("text", "position")]
    names = [torch.cat([getattr(b, n) for b in plain]) for n in ("text", "position")]
    where = {key: i for i, key in enumerate(zip(*(n.tolist() for n in names), strict=True))}
    places = [where[key] for key in zip(*(n.tolist() for n in order), strict=True)]
    assert sorted(places) == list(range(store.n_rows)) != places
    shuffled = torch.cat([batch.values[NAME] for batch in mixed])
    assert torch.equal(shuffled, values[places])
    again = torch.cat([batch.values[NAME] for batch in store.batches(500, seed=3)])
    assert torch.equal(again, shuffled)


@pytest.mark.parametrize("tokens", ["all", "last", "mean", tt.Tokens(regex=r"\w+")])
def test_two_stores_make_the_map_of_two_models(pair: Any, tmp_path: Path, tokens: Any) -> None:
    sites = [pair[0].at("resid_post@1"), pair[1].at("resid_post@2")]
    texts = TEXTS if tokens not in ("last", "mean") else random_texts(160, seed=2)
    documents = [f"document {i // 2}" for i in range(len(texts))]
    live = tt.fit(*sites, texts=texts, documents=documents, tokens=tokens, progress=False)
    stores = [
        tt.capture(site, texts[:: 1 - 2 * i], store=tmp_path / str(i), tokens=tokens,
                   documents=documents[:: 1 - 2 * i], shard_rows=90, progress=False)
        for i, site in enumerate(sites)
    ]  # fmt: skip
    for mapper in (
        tt.fit(*stores, progress=False),
        tt.fit(stores[0].at("resid_post@1"), stores[1].at("resid_post@2"),
               max_tokens=50, progress=False),
    ):  # fmt: skip
        for one, two in ((mapper, live), (mapper.shuffled, live.shuffled)):
            # The maps themselves are rounded to float32.
            assert float((one.weight - two.weight).norm() / two.weight.norm()) < 1e-6
        for name in ("mean_x", "xx", "xy", "yy", "xy_shuffled"):
            a, b = getattr(mapper.held_out, name), getattr(live.held_out, name)
            assert float((a - b).norm() / b.norm()) < 1e-9
        assert mapper.held_out.n == live.held_out.n
        assert mapper.fit_texts == live.fit_texts
        assert mapper.scorecard["n_tokens"] == live.scorecard["n_tokens"]
        assert mapper.scorecard["coverage"] == live.scorecard["coverage"]
        if tokens != "mean":  # a store of means has no tokens left to compare
            assert mapper.scorecard["dropped"] == live.scorecard["dropped"]


def test_sums_of_the_same_rows_are_the_same_to_the_last_bit(bf16: Any, tmp_path: Path) -> None:
    """Rows of one batch composition: one model, itself its partner."""
    site = bf16.at(NAME)
    store = tt.capture(site, TEXTS, store=tmp_path, progress=False)
    live = tt.fit(site, site, texts=TEXTS, progress=False)
    stored = tt.fit(store, store, progress=False)
    assert torch.equal(stored.weight, live.weight) and torch.equal(stored.bias, live.bias)
    assert torch.equal(stored.held_out.xy_shuffled, live.held_out.xy_shuffled)


def test_an_interrupted_capture_goes_on(bf16: Any, tmp_path: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"shard_rows": 60, "max_tokens": 120, "progress": False}
    tt.capture(bf16.at(NAME), TEXTS, store=tmp_path / "whole", **options)
    whole, write = files(tmp_path / "whole"), safetensors.torch.save_file
    writes = 0

    def failing(tensors: Any, path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes % 5 == 0:
            raise SafetensorError("I/O error: no space left")  # as safetensors says it
        write(tensors, path)

    monkeypatch.setattr("safetensors.torch.save_file", failing)
    for _ in range(40):
        with contextlib.suppress(InputError):
            tt.capture(bf16.at(NAME), TEXTS[::-1], store=tmp_path / "part", **options)
            break
        with pytest.raises(ArtefactError, match="not finished"):
            tt.ActivationStore(tmp_path / "part")
    assert writes > 10 and files(tmp_path / "part") == whole


def test_a_finished_capture_is_opened_and_not_read_again(bf16: Any, tmp_path: Path) -> None:
    site = bf16.at(NAME)
    tt.capture(site, TEXTS, store=tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*s*")}
    renamed = tt.HookedModel(
        bf16.host, bf16.tokenizer, name="another name", weights=bf16.weights
    ).at(NAME)
    again = tt.capture(renamed, [*TEXTS, TEXTS[0]], store=tmp_path, progress=False)
    assert len(again.hashes) == len(TEXTS)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.*s*")}


def test_another_capture_in_the_same_folder_is_refused(bf16: Any, tmp_path: Path) -> None:
    tt.capture(bf16.at(NAME), TEXTS, store=tmp_path, progress=False)
    before = files(tmp_path)
    for field, sites, texts, options in (
        ("texts", bf16.at(NAME), TEXTS[1:], {}),
        ("spaces", bf16.at("resid_post@2"), TEXTS, {}),
        ("tokens", bf16.at(NAME), TEXTS, {"tokens": "last"}),
        ("shard_rows", bf16.at(NAME), TEXTS, {"shard_rows": 10}),
        ("max_tokens", bf16.at(NAME), TEXTS, {"max_tokens": 100}),
        ("spaces", load("llama", "bos", seed=5).at(NAME), TEXTS, {}),
    ):
        with pytest.raises(InputError, match="holds another capture") as error:
            tt.capture(sites, texts, store=tmp_path, progress=False, **options)
        assert field in str(error.value).splitlines()[0]
    assert files(tmp_path) == before
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        tt.capture(bf16.at(NAME), TEXTS, store=stranger, progress=False)
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another process"):
        tt.capture(bf16.at(NAME), TEXTS, store=tmp_path, progress=False)


def test_damage_is_found_and_mended(bf16: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_rows": 100, "progress": False}
    tt.capture(bf16.at(NAME), TEXTS, store=tmp_path, **options)
    whole = files(tmp_path)
    path = tmp_path / "rows-00002.safetensors"
    changed = bytearray(whole[path.name])
    changed[-5] ^= 1
    path.write_bytes(changed)
    store = tt.ActivationStore(tmp_path)
    with pytest.raises(ArtefactError, match="contents changed since they were captured"):
        list(store.batches())
    with pytest.raises(ArtefactError):
        store.verify()
    assert len(list(tt.ActivationStore(tmp_path, verify=False).batches(10**6))) == 1
    path.unlink()  # as the message says
    tt.capture(bf16.at(NAME), TEXTS, store=tmp_path, **options).verify()
    assert files(tmp_path) == whole
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match="not a readable file of .*store"):
        tt.ActivationStore(tmp_path)
    manifest = json.loads(whole["manifest.json"])
    for change, match in (({"format": 99}, "another format"), ({"kind": "x"}, "not a store")):
        (tmp_path / "manifest.json").write_text(json.dumps(seal({**manifest, **change})))
        with pytest.raises(ArtefactError, match=match):
            tt.ActivationStore(tmp_path)


def test_the_plan_is_what_is_written(bf16: Any, tmp_path: Path, monkeypatch: Any) -> None:
    sites = [bf16.at("resid_post@1"), bf16.at("resid_post@2")]
    plan = tt.plan_capture(sites, TEXTS, store=tmp_path / "new" / "er", shard_rows=200)
    assert not (tmp_path / "new").exists()
    store = tt.capture(sites, TEXTS, store=tmp_path, shard_rows=200, progress=False)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert plan.n_rows >= store.n_rows > 0.98 * plan.n_rows
    assert plan.n_shards == len(list(tmp_path.glob("rows-*")))
    assert written == pytest.approx(plan.disk_bytes, rel=0.1)
    assert "free" in str(plan) and "of memory" in str(plan)

    class Full:
        free = int(1.15 * plan.disk_bytes)

    monkeypatch.setattr("tl_transfer.models.record.shutil.disk_usage", lambda path: Full)
    with pytest.raises(InputError, match="too little space"):
        tt.capture(sites, TEXTS, store=tmp_path / "full", shard_rows=200, progress=False)
    # Nothing was written, so the same folder serves for less.
    tt.capture(sites[0], TEXTS, store=tmp_path / "full", shard_rows=200, progress=False)
    Full.free = int(1.25 * plan.disk_bytes)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    with monkeypatch.context() as less:
        less.setattr("tl_transfer.memory._MEMINFO", tmp_path / "meminfo")
        with pytest.raises(InputError, match="rows of one file: too little memory"):
            tt.capture(sites, TEXTS, store=tmp_path / "both", shard_rows=200, progress=False)
        with pytest.raises(InputError, match=r"sums of 2 x 2 hook points in 6 parts: too little"):
            tt.fit_grid(store, store, progress=False)
        less.setattr("tl_transfer.memory._MEMINFO", tmp_path / "not there")
        tt.capture(sites, TEXTS, store=tmp_path / "both", shard_rows=200, progress=False)
    with pytest.raises(InputError, match="shard_rows: nothing fits in it"):
        tt.capture(sites, TEXTS, store=tmp_path / "none", shard_rows=-1, progress=False)


def test_stores_that_do_not_belong_together(pair: Any, tmp_path: Path) -> None:
    here = tt.capture(pair[0].at(NAME), TEXTS, store=tmp_path / "a", progress=False)
    last = tt.capture(pair[1].at(NAME), TEXTS, store=tmp_path / "b", tokens="last", progress=False)
    other = tt.capture(pair[1].at(NAME), ["Q x y"], store=tmp_path / "c", progress=False)
    two = tt.capture([pair[1].at(NAME), pair[1].at("resid_post@2")], TEXTS,
                     store=tmp_path / "d", progress=False)  # fmt: skip
    for source, target, match, options in (
        (here, last, "different tokens", {}),
        (here, other, "not one token of the source", {}),
        (here, two, "several hook points", {}),
        (here, pair[1].at(NAME), "one is a store and the other a model", {"texts": TEXTS}),
        (here, here, "stores have read theirs", {"texts": TEXTS}),
        (pair[0].at(NAME), pair[1].at(NAME), "needs a list of texts", {}),
        (here, here, "a store does not hold", {"method": "embeddings"}),
    ):
        with pytest.raises(InputError, match=match):
            tt.fit(source, target, progress=False, **options)
    # A weight for each text means nothing where the store orders the texts.
    with pytest.raises(InputError, match="order of their own"):
        tt.fit(here, here, weights=[1.0] * len(TEXTS), progress=False)
    grouped = tt.capture(pair[1].at(NAME), TEXTS, store=tmp_path / "e", progress=False,
                         documents=[str(i // 2) for i in range(len(TEXTS))])  # fmt: skip
    for source, target in ((here, grouped), (grouped, here)):
        with pytest.raises(InputError, match="two stores with other documents"):
            tt.fit(source, target, progress=False)
    with pytest.raises(InputError, match="not in this store"):
        here.at("resid_post@3")
    with pytest.raises(InputError, match="not in this store"):
        here.rows("another text")
    grid = tt.fit_grid(here, two, progress=False)
    assert set(grid) == {(NAME, NAME), (NAME, "blocks.2.hook_resid_post")}
    space = replace(pair[0].at("resid_post@2").space)
    vector = tt.SteeringVector(torch.ones(48), space, 1.0, "m")
    with pytest.raises(tt.errors.SpaceError):
        tt.transfer(vector, grid[NAME, NAME])


def test_the_commit_of_a_hub_model_is_noted_and_not_compared(tmp_path: Path) -> None:
    model = load("llama", "bos")
    assert model.revision is None
    for commit in ("abc123", "def456"):
        model.hugging_face.config._commit_hash = commit
        store = tt.capture(model.at(NAME), TEXTS[:10], store=tmp_path, progress=False)
    assert store.manifest["spec"]["revision"] == "abc123"
