"""Tiny models that worker processes make for themselves, and corpora for them."""

import itertools
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts


def source() -> tt.HookedModel:
    """In float64, so that nothing but the order of sums can make a difference."""
    return _load("llama", "bos", 0)


def target() -> tt.HookedModel:
    return _load("qwen2", "nobos", 1)


def wide() -> tt.HookedModel:
    """Wide enough for its sums to travel through shared memory."""
    return _load("llama", "bos", 2, d_model=128)


def poisoned() -> tt.HookedModel:
    """A source that gives NaN for every text with a tilde."""
    model = source()
    (token,) = model.tokenizer("~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.host.original_model.get_input_embeddings().weight[token] = float("nan")
    return model


@dataclass(frozen=True)
class Mortal:
    """The poisoned source, whose process dies once at its third batch.

    Attributes:
        grave: File that is made before dying; while it is there nobody dies.
        token: Die at every batch with this token instead.
    """

    grave: str
    token: str | None = None

    def __call__(self) -> tt.HookedModel:
        model = poisoned()
        read, batches = model.residuals, itertools.count(1)
        fatal = model.tokenizer(self.token or "", add_special_tokens=False)["input_ids"]

        def residuals(tokens: Any, *args: Any) -> Any:
            dies = any(bool((tokens == token).any()) for token in fatal)
            if not fatal and next(batches) == 3 and not Path(self.grave).exists():
                Path(self.grave).touch()
                dies = True
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(tokens, *args)

        model.residuals = residuals  # type: ignore[method-assign]
        return model


SITES = ((source, "resid_post@1"), (target, "resid_post@2"))


def _load(family: str, kind: str, seed: int, **shape: Any) -> tt.HookedModel:
    hf = tiny.tiny_hf(family, seed=seed, dtype=torch.float64, **shape)
    return tt.load_model(hf, tokenizer=tiny.tiny_tokenizer(kind), name=family, check=False)


def write_corpus(folder: Path, n: int = 90, *, extra: list[bytes] | None = None) -> list[Any]:
    """Three files of texts in documents of three; returns (text, document) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(text, f"document {i // 3}") for i, text in enumerate(random_texts(n, seed=7))]
    for part in range(3):
        lines = [
            json.dumps({"text": text, "doc": document}).encode() for text, document in rows[part::3]
        ]
        if part == 1:
            lines[4:4] = extra or []
        (folder / f"part-{part}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return rows
