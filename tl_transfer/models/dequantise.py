"""Turn a GGUF file into an ordinary Hugging Face folder: bf16 safetensors, config, tokenizer.

Run as a program (``python -m tl_transfer.models.dequantise GGUF FOLDER``) so that the several
gigabytes of the conversion are given back when it ends. The values stay those of the 4-5 bit file;
only their storage changes.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_transfer.errors import FetchError, ModelError

_APART = "--apart"


def convert(gguf: Path, folder: Path) -> dict[str, str]:
    """Load a GGUF file and save it as bf16 safetensors with a repaired tokenizer.

    Args:
        gguf: File to read.
        folder: Folder to fill.

    Returns:
        Versions of the converting packages.

    Raises:
        ModelError: a weight is not finite after conversion.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        where,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ModelError("gguf: weights are not finite after conversion", got=broken[:5])
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    header = read_header(gguf)
    repair_tokenizer(tokenizer, header)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config._name_or_path = gguf.stem
    repair_generation(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_traces(folder)
    packages = ("torch", "transformers", "gguf")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def convert_apart(gguf: Path, folder: Path, *, progress: bool) -> dict[str, str]:
    """`convert` in a process of its own, whose memory is free again afterwards.

    Args:
        gguf: File to read.
        folder: Folder to fill.
        progress: Show a clock on stderr.

    Returns:
        Versions of the converting packages.

    Raises:
        FetchError: the conversion failed or was killed.
    """
    command = [
        sys.executable,
        "-m",
        "tl_transfer.models.dequantise",
        str(gguf),
        str(folder),
        _APART,
    ]
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile() as log,
        tqdm(
            desc=f"converting {gguf.name} (once, 1-3 minutes)", bar_format="{desc} {elapsed}",
            disable=not progress, leave=False, file=sys.stderr,
        ) as bar,
    ):  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            while True:
                try:
                    process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    bar.refresh()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        killed = process.returncode in (-9, 137)
        raise FetchError(
            f"{gguf.name}: could not be converted"
            + (" (the process was killed, probably for lack of memory)" if killed else ""),
            got=" | ".join(said[-3:])[-500:],
            hint="close other programs" if killed else "check the installed transformers and gguf",
        )
    versions = folder / "versions.json"
    found: dict[str, str] = json.loads(versions.read_text(encoding="utf-8"))
    versions.unlink()
    return found


def read_header(gguf: Path) -> dict[str, Any]:
    """The scalar and text entries of a GGUF header (the vocabulary lists are left out)."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    long = ("tokens", "merges", "scores", "token_type")
    return {key: f.contents() for key, f in fields.items() if not key.endswith(long)}


def repair_tokenizer(tokenizer: Any, header: dict[str, Any]) -> None:
    """Put back what transformers' GGUF reader drops from the tokenizer.

    It ignores ``tokenizer.ggml.pre``, which names the preprocessing. For SmolLM that loses the
    splitting of digits, so the spaces before a number join differently; for Qwen, the NFC
    normalisation. GGUF also names a BOS token for Qwen, whose own tokenizer has none.

    Args:
        tokenizer: Fast tokenizer, changed in place.
        header: GGUF header.
    """
    from tokenizers import normalizers, pre_tokenizers

    kind = header.get("tokenizer.ggml.pre")
    if kind == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind == "qwen2":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        tokenizer.bos_token = None


def repair_generation(model: Any, tokenizer: Any) -> None:
    """Give the model the stop and padding tokens of its tokenizer.

    Args:
        model: Hugging Face model, changed in place.
        tokenizer: Its tokenizer.
    """
    stops = [tokenizer.eos_token_id]
    document_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    # Qwen's own settings stop at the end of a document as well as at the end of a turn.
    if model.config.model_type == "qwen2" and document_end is not None:
        stops.append(document_end)
    settings = model.generation_config
    settings.eos_token_id = stops if len(stops) > 1 else stops[0]
    settings.pad_token_id = tokenizer.pad_token_id
    settings.bos_token_id = tokenizer.bos_token_id


def _drop_traces(folder: Path) -> None:
    """Remove entries that describe the converting machine, not the tokenizer."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended.

    Its end of the pipe is closed then. Without this, a conversion whose parent was killed would go
    on for minutes with several gigabytes.
    """

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    if sys.argv[3:] == [_APART]:
        _end_with_parent()
    os.environ["HF_HUB_OFFLINE"] = "1"
    converted = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    (Path(sys.argv[2]) / "versions.json").write_text(json.dumps(converted), encoding="utf-8")
