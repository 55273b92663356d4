"""Files that a stranger made, with checksums that fit: our own error or a result, nothing else.

No memory beyond what the file holds, nothing opened outside the folder, nothing run.
"""

import contextlib
import copy
import io
import json
import os
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

import tl_transfer as tt
from tests import tiny
from tests.faults.artefacts import affine, vector
from tests.fuzz import examples
from tests.tokenizers import shared
from tests.words import random_texts
from tl_transfer.data import packages
from tl_transfer.data.align import pair_many
from tl_transfer.data.encode import encode
from tl_transfer.data.texts import as_texts, read_lines, text_hash
from tl_transfer.errors import TransferError
from tl_transfer.experiments import registry
from tl_transfer.mappers.packing import pack_map
from tl_transfer.packing import pack
from tl_transfer.recipe import Recipe
from tl_transfer.sealed import SEAL, seal

_ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(max_size=12), st.sampled_from(["../../../etc/passwd", "rows-00000.safetensors", ""]),
)  # fmt: skip
JSON = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*at, key))


def changed(draw: Callable[..., Any], value: Any) -> Any:
    """The value with one to three parts replaced or removed."""
    new = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(new))[1:] or [("kind",)]))
        holder = new
        for key in at[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[at[-1]] = draw(JSON)
        else:
            del holder[at[-1]]
    return new


@pytest.fixture
def only_inside(tmp_path: Path) -> Iterator[None]:
    """Fail when a file is opened for writing, or one of the system for reading."""
    _GUARD["folder"] = str(tmp_path)
    yield
    _GUARD["folder"] = None


_GUARD: dict[str, str | None] = {"folder": None}


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if _GUARD["folder"] is None:
        return
    if event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class"):
        raise RuntimeError(f"something was run: {event} {arguments}")
    if event == "open" and "passwd" in str(arguments[0]):
        raise RuntimeError(f"opened outside the folder: {arguments[0]}")


sys.addaudithook(_forbid)  # cannot be taken off again; it does nothing without the fixture


@contextlib.contextmanager
def little_memory(most: int = 20_000_000) -> Iterator[None]:
    """No more memory than that, whatever sizes a file names."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


SOUND = {
    "vector": pack(vector()),
    "map": pack_map(affine()),
    "set": pack(tt.VectorSet.of(vector())),
}


@pytest.mark.usefixtures("only_inside")
@examples(120)
@given(data=st.data(), which=st.sampled_from(sorted(SOUND)))
def test_headers_of_artefacts(data: st.DataObject, which: str, tmp_path: Path) -> None:
    header, tensors = SOUND[which]
    header = changed(data.draw, {**header, "format": 2})
    names = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in names}
    if tensors and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(tensors)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        kind = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]))
        tensors = {**tensors, name: torch.zeros(shape, dtype=kind)}
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "a", {"tl_transfer": json.dumps(seal(header, plain))})
    with contextlib.suppress(TransferError):
        tt.load(tmp_path / "a")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    hf = tiny.tiny_hf("llama", n_layers=2)
    model = tt.load_model(hf, tokenizer=tiny.tiny_tokenizer("bos"), name="llama")
    texts = random_texts(12, seed=4)
    tt.capture(model.at("resid_post@0"), texts, store=folder, shard_rows=40, progress=False)
    return folder


@pytest.mark.usefixtures("only_inside")
@examples(100)
@given(data=st.data())
def test_manifests(data: st.DataObject, store: Path) -> None:
    path = store / "manifest.json"
    whole = path.read_text()
    manifest = {key: value for key, value in json.loads(whole).items() if key != SEAL}
    try:
        path.write_text(json.dumps(seal(changed(data.draw, manifest))))
        with contextlib.suppress(TransferError), little_memory():
            found = tt.ActivationStore(store, verify=data.draw(st.booleans()))
            list(found.batches(64))
            found.rows(random_texts(12, seed=4)[0])
            found.verify()
    finally:
        path.write_text(whole)


@pytest.mark.usefixtures("only_inside")
@examples(120)
@given(data=st.data())
@example(data=None)
def test_recipes(data: st.DataObject | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    if data is None:
        path.write_text("a = " + "[" * 5000)
    elif data.draw(st.booleans()):
        path.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        known = [*Recipe().to_dict(), "models", "seeds", "x"]
        values = data.draw(st.dictionaries(st.sampled_from(known), JSON, max_size=4))
        values["task"] = data.draw(
            st.sampled_from(["sentiment", "matrix", "refusal", "switch", [1]])
        )
        lines = [f"{k} = {json.dumps(v)}" for k, v in values.items()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    for read in (Recipe.read, registry.read):
        with contextlib.suppress(TransferError):
            read(path)


def _archive(kind: str, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in dict.fromkeys(names):
                archive.writestr(name or "x", b"content")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name in names:
                member = tarfile.TarInfo(name or "x")
                member.size = 7
                tar.addfile(member, io.BytesIO(b"content"))
    return buffer.getvalue()


@pytest.mark.usefixtures("only_inside")
@examples(120)
@given(data=st.data(), kind=st.sampled_from(["zip", "tar"]))
def test_archives_of_corpora(data: st.DataObject, kind: str, tmp_path: Path) -> None:
    names = st.sampled_from(["a/b.txt", "../../x", "/etc/passwd", "c:\\x", "..\\x", "a/../../x"])
    content = bytearray(_archive(kind, data.draw(st.lists(names, min_size=1, max_size=3))))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / ("a.whl" if kind == "zip" else "a.tgz")
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] or content)
    with contextlib.suppress(TransferError):
        for name in packages.read_members(path):
            assert ".." not in name.replace("\\", "/").split("/") and not os.path.isabs(name)
    assert sorted(os.listdir(tmp_path))[0].startswith("a.")


@pytest.mark.usefixtures("only_inside")
@examples(100)
@given(content=st.binary(max_size=300))
def test_files_of_texts(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    with contextlib.suppress(TransferError):
        assert all(line.strip() for line in read_lines(tmp_path / "texts.txt"))


ANY = st.text(st.characters(), max_size=40)  # lone surrogates too


@examples(60)
@given(text=ANY, style=st.sampled_from(["gemma", "qwen", "llama2"]), times=st.integers(1, 3))
@example(text="\ud800", style="qwen", times=1)
@example(text="a\udfff\ud800b", style="gemma", times=2)
@example(text="\u200b\u200d\ufeff" * 50, style="llama2", times=3)
@example(text="e" + "\u0301" * 500, style="gemma", times=1)
@example(text="\U0001f468\u200d" * 500, style="qwen", times=1)
@example(text="x" * 20_000, style="qwen", times=1)
def test_any_text_is_paired_or_refused(text: str, style: str, times: int) -> None:
    text = text * times
    assert len(text_hash(text)) == 64
    as_texts([text])
    try:
        item = encode(text, shared(style))
    except TransferError:
        assert any("\ud800" <= character <= "\udfff" for character in text)
        return
    assert len(item.ids) == len(item.ends) <= 4 * len(text.encode()) + 4
    assert pair_many([text], shared(style), shared("gemma")).report.n_texts == 1
