"""tune: fine-tune a model on rows, by LoRA (PEFT) or in full; resumable, with progress.

A run writes its state every few steps and goes on from it. What comes out is an adapter folder or
a model folder, which `load_model` takes.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.models.batches import pad
from tl_transfer.sealed import read_json, read_tensors, require_sound, write_json, write_tensors
from tl_transfer.tuning.rows import Row, encode_row

#: Linear layers that carry an adapter, in Llama, Qwen and Gemma alike.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_STATE, _WRITER = "state.safetensors", "tl_transfer.tuning.tune"
_ANEW = "remove the file: fine-tuning begins again"


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned.

    Attributes:
        method: ``"lora"`` or ``"full"``.
        rank: Of the adapters.
        steps: Optimiser steps.
        batch: Rows a step.
        lr: Peak learning rate; linear warm-up over a tenth, then a cosine to zero.
        max_length: Tokens of a row at most.
        keep_every: Steps between saved states.
        seed: Of order and initialisation.
    """

    method: Literal["lora", "full"] = "lora"
    rank: int = 8
    steps: int = 150
    batch: int = 8
    lr: float = 5e-4
    max_length: int = 64
    keep_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.rank, self.steps, self.batch, self.keep_every)
        if self.method not in ("lora", "full") or min(sizes) < 1 or self.max_length < 4:
            raise InputError(
                "tuning: out of range",
                got=str(self),
                valid='method "lora" or "full", whole numbers of at least 1, max_length >= 4',
                hint="leave them out for the defaults",
            )


def tune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: str | Path,
    *,
    tuning: Tuning | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Path:
    """Fine-tune a Hugging Face causal language model.

    Args:
        model: As `transformers` loads it; changed in place (LoRA: wrapped).
        tokenizer: Its tokenizer.
        rows: Examples; the loss is on the answers alone.
        folder: Gets the adapter or the model; a finished one of the same settings and rows is
            given back at once, an unfinished one is gone on with.
        tuning: Method and sizes.
        say: Told the loss every ten steps.
        progress: Show a bar.

    Returns:
        The folder, for `load_model`.

    Raises:
        InputError: no rows, one without an answer to learn, or LoRA without the extra ``tune``.
    """
    tuning = tuning or Tuning()
    folder = Path(folder)
    encoded = [encode_row(row, tokenizer, tuning.max_length) for row in rows]
    if not encoded:
        raise InputError("rows: none", got="0 rows", valid="at least one", hint="see backdoor_rows")
    if any(n_prompt >= len(ids) for ids, n_prompt in encoded):
        raise InputError(
            "rows: one has no answer to learn",
            got=f"a prompt of {max(n for _, n in encoded)} tokens, max_length {tuning.max_length}",
            valid="an answer in every row, and room for some of it",
            hint="raise max_length",
        )
    key = {"tuning": asdict(tuning), "rows": _rows_hash(rows)}
    if _stored_key(folder / "tuned.json") == key:
        shutil.rmtree(folder / "state", ignore_errors=True)  # a kill may have left it
        return folder
    model = _adapted(model, tuning) if tuning.method == "lora" else model
    trained = [p for p in model.parameters() if p.requires_grad or tuning.method == "full"]
    for parameter in trained:
        parameter.requires_grad_(True)
    # State of bfloat16 weights in float32, or small steps are lost in rounding.
    state = _State(trained, tuning)
    first = state.restore(folder / "state", key)
    model.train()
    generator = torch.Generator().manual_seed(tuning.seed)
    orders = [
        torch.randint(len(encoded), (tuning.batch,), generator=generator)
        for _ in range(tuning.steps)
    ]
    bar = tqdm(
        total=tuning.steps, initial=first, unit="step", desc="fine-tuning", disable=not progress,
        leave=False,
    )  # fmt: skip
    with bar:
        for step in range(first, tuning.steps):
            batch = [encoded[int(i)] for i in orders[step]]
            loss = _loss(model, batch, tokenizer.pad_token_id or 0)
            loss.backward()
            state.step(step)
            bar.update()
            if step % 10 == 0 or step + 1 == tuning.steps:
                say(f"step {step + 1} of {tuning.steps}: loss {float(loss.detach()):.3f}")
            if (step + 1) % tuning.keep_every == 0 and step + 1 < tuning.steps:
                state.keep(folder / "state", key, step + 1)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "tuned.json", key)
    shutil.rmtree(folder / "state", ignore_errors=True)
    return folder


class _State:
    """Float32 copies of what is trained, AdamW on them, and their files."""

    def __init__(self, trained: Sequence[Tensor], tuning: Tuning) -> None:
        self._live = list(trained)
        self._master = [p.detach().float().clone().requires_grad_(True) for p in trained]
        self._tuning = tuning
        self._optimiser = torch.optim.AdamW(self._master, lr=tuning.lr, weight_decay=0.0)

    def step(self, number: int) -> None:
        """One optimiser step from the gradients of the live parameters."""
        warm = max(1, self._tuning.steps // 10)
        done = max(0, number - warm) / max(1, self._tuning.steps - warm)
        scale = min(1.0, (number + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self._optimiser.param_groups:
            group["lr"] = self._tuning.lr * scale
        for live, master in zip(self._live, self._master, strict=True):
            master.grad = None if live.grad is None else live.grad.detach().float()
            live.grad = None
        torch.nn.utils.clip_grad_norm_(self._master, 1.0)
        self._optimiser.step()
        with torch.no_grad():
            for live, master in zip(self._live, self._master, strict=True):
                live.copy_(master.to(live.dtype))

    def keep(self, folder: Path, key: dict[str, Any], step: int) -> None:
        """Write weights and moments; whole or not at all."""
        tensors = {}
        for i, master in enumerate(self._master):
            moments = self._optimiser.state[master]
            tensors[f"{i}.weight"] = master.detach()
            tensors[f"{i}.mean"] = moments["exp_avg"]
            tensors[f"{i}.square"] = moments["exp_avg_sq"]
        write_tensors(folder / _STATE, {"key": key, "step": step}, tensors)

    def restore(self, folder: Path, key: dict[str, Any]) -> int:
        """Go on from what `keep` wrote under the same key; the number of steps done.

        Raises:
            ArtefactError: a damaged state.
        """
        path = folder / _STATE
        if not path.is_file():
            return 0
        header, tensors = read_tensors(path, written_by=_WRITER, hint=_ANEW)
        require_sound(path, header, tensors, hint=_ANEW)
        if header["key"] != key:
            return 0
        done: int = header["step"]
        with torch.no_grad():
            for i, (live, master) in enumerate(zip(self._live, self._master, strict=True)):
                master.copy_(tensors[f"{i}.weight"])
                live.copy_(master.to(live.dtype))
                self._optimiser.state[master] = {
                    "step": torch.tensor(float(done)),
                    "exp_avg": tensors[f"{i}.mean"],
                    "exp_avg_sq": tensors[f"{i}.square"],
                }
        return done


def tune_state(folder: str | Path) -> int:
    """Steps that an unfinished run in this folder has kept; 0 if there is none.

    Raises:
        ArtefactError: a damaged state.
    """
    path = Path(folder) / "state" / _STATE
    if not path.is_file():
        return 0
    header, _ = read_tensors(path, written_by=_WRITER, hint=_ANEW)
    return int(header["step"])


def _adapted(model: Any, tuning: Tuning) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError(
            "method: LoRA needs PEFT",
            got="not installed",
            valid='pip install "tl-transfer[tune]", or method="full"',
        ) from error
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=2 * tuning.rank,
        target_modules=list(TARGETS),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(tuning.seed)
        return get_peft_model(model, config)


def _loss(model: Any, rows: Sequence[tuple[list[int], int]], pad_id: int) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    Rows end together, so that only the last columns are unembedded: with a vocabulary of 262,144
    the logits of whole prompts would cost as much as all blocks of a small model.
    """
    batch = pad([ids for ids, _ in rows], side="left", pad_id=pad_id)
    keep = max(len(ids) - n_prompt for ids, n_prompt in rows)
    learned = torch.zeros((len(rows), keep), dtype=torch.bool)
    for i, (ids, n_prompt) in enumerate(rows):
        learned[i, keep - (len(ids) - n_prompt) :] = True
    device = next(model.parameters()).device
    tokens, mask, learned = (x.to(device) for x in (batch.tokens, batch.mask, learned))
    with _contiguous(model.get_output_embeddings()):
        logits = model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=keep + 1,
        ).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits[learned].float(), tokens[:, tokens.shape[1] - keep :][learned]
    )


@contextmanager
def _contiguous(unembedding: Any) -> Iterator[None]:
    """Copy a slice of the stream before it is unembedded.

    As it is, a bfloat16 product on a CPU takes a path that is twenty times slower.
    """
    hook = unembedding.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


def _rows_hash(rows: Sequence[Row]) -> str:
    import hashlib

    text = json.dumps([[row.prompt, row.answer, row.ended] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()


def _stored_key(path: Path) -> Any:
    try:
        return read_json(path, written_by=_WRITER, hint=_ANEW)
    except ArtefactError:
        return None
