import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny_tokenizer import tiny_tokenizer
from tests.unit.registry import Registry, wheel
from tl_transfer.data import transport
from tl_transfer.data.packages import PackageFile
from tl_transfer.errors import FetchError, InputError
from tl_transfer.models import bundled, dequantise, origin
from tl_transfer.models.pins import BUNDLED, BundledModel

PARTS = [f"<{n}>".encode() * 1000 for n in range(1, 12)]  # eleven: 10 sorts before 2 as text
GGUF = b"".join(PARTS)


def _package(number: int) -> tuple[PackageFile, bytes]:
    project = f"tiny-part{number}"
    content = wheel(project, {f"tiny_part{number}/data/part{number}.bin": PARTS[number - 1]})
    filename = f"tiny_part{number}-1.0-py3-none-any.whl"
    digest = hashlib.sha256(content).hexdigest()
    return PackageFile(project, "1.0", filename, digest, len(content)), content


PACKAGES = [_package(number) for number in range(1, 12)]


def _tiny(**changes: Any) -> BundledModel:
    entries = {
        "name": "tiny",
        "family": "Tiny",
        "gguf": "tiny.gguf",
        "sha256": hashlib.sha256(GGUF).hexdigest(),
        "size": len(GGUF),
        "marker": "/data/part",
        "packages": tuple(package for package, _ in PACKAGES),
        "quantisation": "Q4",
        "licence": "MIT",
        "n_params": 1000,
        "context": 64,
        "notes": "none",
    }
    return BundledModel(**{**entries, **changes})


def _fake_convert(gguf: Path, folder: Path, *, progress: bool) -> dict[str, str]:
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    (folder / "config.json").write_text("{}")
    return {"transformers": "0"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    server = Registry()
    for package, content in PACKAGES:
        server.add(package.name, package.filename, content)
    monkeypatch.setenv("TL_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.delenv("TL_TRANSFER_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transport, "pip_is_here", lambda: False)
    monkeypatch.setattr(bundled, "convert_apart", _fake_convert)
    monkeypatch.setitem(BUNDLED, "tiny", _tiny())
    yield server
    server.close()


def fetch(**options: Any) -> Path:
    return bundled.fetch("tiny", progress=False, **options)


def test_parts_are_joined_in_numeric_order_and_the_folder_says_where_it_is_from(
    registry: Registry, tmp_path: Path
) -> None:
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == GGUF
    record = json.loads((folder / "bundled.json").read_text())
    assert record["gguf_sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert record["note"].startswith("weights are dequantised 4-5 bit values")
    assert record["obtained_from"].startswith("tiny-part1==1.0, tiny-part2==1.0")
    assert record["files"]["model.safetensors"]["size"] == len(GGUF)
    assert record["converted_with"]["transformers"] == "0"
    left = [p.name for place in ("gguf", "packages") for p in (tmp_path / place).iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_the_second_fetch_asks_nobody(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch()
    asked = len(registry.requests)
    monkeypatch.setenv("TL_TRANSFER_OFFLINE", "1")
    assert fetch() == folder
    assert len(registry.requests) == asked


def test_an_interrupted_fetch_keeps_the_finished_parts(registry: Registry) -> None:
    broken = registry.files.pop("tiny_part7-1.0-py3-none-any.whl")
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch()
    assert bundled.plan("tiny").download_bytes == sum(p.size for p, _ in PACKAGES[6:])
    registry.files["tiny_part7-1.0-py3-none-any.whl"] = broken
    registry.requests.clear()
    fetch()
    assert len(registry.transfers()) == 5


def test_a_failed_conversion_leaves_no_model_and_no_second_download(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path, *, progress: bool) -> dict[str, str]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "convert_apart", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert not bundled.plan("tiny").cached
    registry.requests.clear()
    monkeypatch.setattr(bundled, "convert_apart", _fake_convert)
    assert (fetch() / "model.safetensors").read_bytes() == GGUF
    assert registry.transfers() == []


def test_a_truncated_weight_file_is_noticed(registry: Registry) -> None:
    folder = fetch()
    (folder / "model.safetensors").write_bytes(GGUF[:-1])
    assert not bundled.plan("tiny").cached
    assert (fetch() / "model.safetensors").read_bytes() == GGUF


def test_verify_finds_a_changed_byte(registry: Registry) -> None:
    with pytest.raises(FetchError, match="not in the cache"):
        bundled.verify("tiny")
    folder = fetch()
    bundled.verify("tiny")
    (folder / "config.json").write_text("[]")
    with pytest.raises(FetchError, match=r"config\.json has changed"):
        bundled.verify("tiny")


def test_right_parts_with_a_wrong_whole_are_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUNDLED, "tiny", _tiny(sha256="0" * 64))
    with pytest.raises(FetchError, match="joined GGUF file has another SHA-256") as error:
        fetch()
    assert hashlib.sha256(GGUF).hexdigest() in str(error.value)
    assert list((tmp_path / "gguf").iterdir()) == []


def test_gguf_is_kept_on_request_and_used_again(registry: Registry, tmp_path: Path) -> None:
    folder = fetch(keep_gguf=True)
    (folder / "bundled.json").unlink()
    registry.requests.clear()
    fetch(keep_gguf=True)
    assert registry.requests == []
    (tmp_path / "gguf" / "tiny.gguf").write_bytes(b"damaged")
    (folder / "bundled.json").unlink()
    assert (fetch() / "model.safetensors").read_bytes() == GGUF


@pytest.mark.usefixtures("no_network")
def test_offline_and_nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TL_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setenv("TL_TRANSFER_OFFLINE", "1")
    with pytest.raises(FetchError, match="TL_TRANSFER_OFFLINE forbids"):
        bundled.fetch("qwen2.5-coder-0.5b-instruct", progress=False)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="not a bundled model") as error:
        bundled.fetch("gemma-3-27b")
    assert "smollm2-135m-instruct" in str(error.value)


# The hub


@pytest.fixture
def hub(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that has the file; replace its content to let it have another one."""
    import huggingface_hub

    file = tmp_path / "hub.gguf"
    file.write_bytes(GGUF)
    monkeypatch.setitem(BUNDLED, "tiny", _tiny(hub=("org/repo", "tiny.gguf")))
    monkeypatch.setattr(origin, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(file))
    return file


def test_the_hub_comes_first_and_its_file_is_left_alone(registry: Registry, hub: Path) -> None:
    record = json.loads((fetch() / "bundled.json").read_text())
    assert record["obtained_from"] == "Hugging Face hub, org/repo/tiny.gguf"
    assert registry.requests == []
    assert hub.read_bytes() == GGUF


def test_another_file_on_the_hub_is_not_taken(
    registry: Registry, hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.write_bytes(b"replaced")
    assert (fetch() / "model.safetensors").read_bytes() == GGUF
    assert "the hub has another file now" in caplog.text
    assert len(registry.transfers()) == 11


def test_an_unreachable_hub_is_not_waited_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not origin._hub_answers()
    monkeypatch.setattr(constants, "ENDPOINT", registry.url + "/simple/tiny-part1/")
    assert origin._hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not origin._hub_answers()


# The list


def test_every_pin_is_complete_and_used_once() -> None:
    files = [package.filename for model in BUNDLED.values() for package in model.packages]
    assert len(files) == len(set(files))
    for name, model in BUNDLED.items():
        assert name == model.name
        hashes = [model.sha256, *(package.sha256 for package in model.packages)]
        assert len(set(hashes)) == len(hashes)
        assert all(len(digest) == 64 and int(digest, 16) for digest in hashes)
        # Packages are zip archives of the file: about its size together, and never much larger.
        assert 0.8 < sum(package.size for package in model.packages) / model.size < 1.05


def test_list_and_plan_tell_sizes_before_and_after(registry: Registry) -> None:
    def row() -> dict[str, Any]:
        return next(row for row in bundled.list_models() if row["name"] == "tiny")

    assert row()["cached"] == "no"
    before = bundled.plan("tiny")
    assert before.download_bytes == sum(package.size for package, _ in PACKAGES)
    assert before.disk_bytes > before.download_bytes + len(GGUF)
    assert "downloads" in str(before)
    fetch()
    assert row()["cached"] == "yes"
    assert row()["download"] == "0 MB"
    assert str(bundled.plan("tiny")).startswith("cached")


# The conversion


def test_a_file_that_is_no_gguf_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(FetchError, match=r"bad\.gguf: could not be converted"):
        dequantise.convert_apart(tmp_path / "bad.gguf", tmp_path / "out", progress=False)


def test_a_killed_conversion_names_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real(suicide, **options))
    with pytest.raises(FetchError, match="lack of memory"):
        dequantise.convert_apart(tmp_path / "a.gguf", tmp_path / "out", progress=False)


def test_digits_are_split_again_for_smollm() -> None:
    tokenizer = tiny_tokenizer("bos")
    dequantise.repair_tokenizer(tokenizer, {"tokenizer.ggml.pre": "smollm"})
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  1984 x")
    # The two spaces stay together; without the digits' own step the second would go to the number.
    assert [text for text, _ in pieces] == ["in", "ĠĠ", "1", "9", "8", "4", "Ġx"]
    untouched = tiny_tokenizer("bos")
    before = untouched.backend_tokenizer.to_str()
    dequantise.repair_tokenizer(untouched, {"tokenizer.ggml.pre": "default"})
    assert untouched.backend_tokenizer.to_str() == before


def test_qwen_composes_characters_again_and_has_no_bos() -> None:
    tokenizer = tiny_tokenizer("bos")
    assert tokenizer("Cafe\u0301").input_ids != tokenizer("Café").input_ids
    dequantise.repair_tokenizer(tokenizer, {"tokenizer.ggml.pre": "qwen2"})
    assert tokenizer("Cafe\u0301").input_ids == tokenizer("Café").input_ids
    assert tokenizer.bos_token is None


@pytest.mark.parametrize(("kind", "stops"), [("llama", 2), ("qwen2", [2, 7])])
def test_generation_stops_at_the_tokenizers_tokens(kind: str, stops: Any) -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(model_type=kind), generation_config=SimpleNamespace()
    )
    tokenizer = SimpleNamespace(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, convert_tokens_to_ids=lambda token: 7
    )
    dequantise.repair_generation(model, tokenizer)
    assert vars(model.generation_config) == {
        "eos_token_id": stops, "pad_token_id": 0, "bos_token_id": 1,
    }  # fmt: skip


def test_importing_the_list_loads_no_heavy_library() -> None:
    program = (
        "import sys, tl_transfer.models.bundled\n"
        "heavy = ('torch', 'transformers', 'gguf', 'huggingface_hub')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = str(Path(bundled.__file__).parents[2])
    said = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "[]"
