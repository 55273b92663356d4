"""Networks that are trained: first weights, random draws, and the identity of a training."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_transfer.mappers.rows import Rows
from tl_transfer.mappers.train import Parameters
from tl_transfer.mappers.training import Training


def draw_network(
    d_source: int, hidden: int, d_target: int, generator: torch.Generator
) -> Parameters:
    """Two linear layers as `torch.nn.Linear` draws them."""
    return draw_linear(d_source, hidden, ("w_in", "b_in"), generator) | draw_linear(
        hidden, d_target, ("w_out", "bias"), generator
    )


def draw_linear(
    d_in: int, d_out: int, names: tuple[str, str], generator: torch.Generator
) -> Parameters:
    """One linear layer under two names."""
    bound = d_in**-0.5

    def draw(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) * bound

    return {names[0]: draw(d_in, d_out), names[1]: draw(d_out)}


def generator_of(seed: int, epoch: int = -1) -> torch.Generator:
    """The generator of an epoch; without one, that of the first weights."""
    return torch.Generator().manual_seed(seed * 100_003 + epoch + 1)


def checkpoint_of(training: Training, phase: str) -> Path | None:
    """Where the training state of a phase is kept, if anywhere."""
    return None if training.checkpoint is None else training.checkpoint / f"{phase}.safetensors"


def identity_of(phase: str, options: dict[str, Any], rows: Rows, seed: int) -> dict[str, Any]:
    """What a training state depends on; the rows by their shape and a hash of a few of them."""
    digest = hashlib.sha256()
    for tensor in (rows.x, rows.y):
        few = tensor[:: max(1, len(tensor) // 64)].float().contiguous()
        digest.update(str(tuple(tensor.shape)).encode() + few.numpy().tobytes())
    return {"phase": phase, "options": options, "rows": digest.hexdigest(), "seed": seed}
