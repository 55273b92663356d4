"""Every file this package writes or reads, with unpickling forbidden while it runs.

`tests/test_repository.py` searches the source for it; this watches what really happens, libraries
included: CPython announces each class that a pickle asks for to audit hooks.
"""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts

_GUARD = {"on": False, "installed": False}


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if _GUARD["on"] and event == "pickle.find_class":
        raise AssertionError(f"unpickled while it was forbidden: {arguments}")


@pytest.fixture
def no_unpickling() -> Iterator[None]:
    """Make every look-up of a class by a pickle fail."""
    if not _GUARD["installed"]:
        sys.addaudithook(_forbid)  # cannot be taken off again, hence the switch
        _GUARD["installed"] = True
    _GUARD["on"] = True
    yield
    _GUARD["on"] = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tiny_tokenizer("bos")
    tiny.tiny_hf("llama", seed=5, vocab_size=len(tokenizer)).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def test_the_guard_sees_an_unpickling(no_unpickling: None) -> None:
    packed = pickle.dumps(Path("x"))
    with pytest.raises(AssertionError, match="unpickled while it was forbidden"):
        pickle.loads(packed)


def test_no_journey_unpickles_anything(folder: Path, tmp_path: Path, no_unpickling: None) -> None:
    model = tt.load_model(folder, name="llama")
    here, there = model.at("resid_post@1"), model.at("resid_post@2")
    texts = random_texts(60, seed=1)
    store = tt.capture([here, there], texts, store=tmp_path / "store", progress=False)
    store = tt.ActivationStore(store.folder)
    mapper = tt.fit(store.at("resid_post@1"), store.at("resid_post@2"), progress=False)
    vector = tt.mean_difference(
        here, positive=random_texts(5, seed=2), negative=random_texts(5, seed=3)
    )
    sums = tt.collect(here, there, texts=texts, progress=False)
    for number, value in enumerate((mapper, vector, sums, tt.VectorSet.of(vector))):
        path = tt.save(value, tmp_path / f"{number}.safetensors")
        assert type(tt.load(path)) is type(value)
    write, read = tt.exchange.write_control_vector, tt.exchange.read_control_vector
    read(write(tt.VectorSet.of(vector), tmp_path / "v.gguf"), model)
    edit = tt.Ablate(vector, where=tt.everywhere(sinks=True), layers="all")
    baked = tt.bake(model, [edit], tmp_path / "baked")
    assert tt.load_model(baked, check=False).n_layers == model.n_layers
