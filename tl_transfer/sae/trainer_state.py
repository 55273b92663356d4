"""The state of sae-lens' trainer as safetensors: written whole, read without pickle.

sae-lens keeps its own with ``torch.save``. What a step depends on is the same here: parameters and
buffers of the SAE, moments of Adam, the counts by which features are called dead. The schedule of
the learning rate is a function of the number of steps and is stepped up to it again.
"""

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tl_transfer.errors import ArtefactError
from tl_transfer.sealed import read_tensors, require_sound, write_tensors

_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
_TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def save_state(trainer: Any, path: Path, identity: str) -> None:
    """Write the state between two steps."""
    tensors = {
        f"sae.{name}": value.contiguous() for name, value in trainer.sae.state_dict().items()
    }
    tensors |= {name: getattr(trainer, name) for name in _TENSORS}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{key}": value for key, value in state.items()}
    counts = {name: int(getattr(trainer, name)) for name in _COUNTS}
    write_tensors(path, {"identity": identity, "counts": counts}, tensors)


def load_state(trainer: Any, path: Path, identity: str) -> None:
    """Take up a state; the trainer must be new and of the same settings.

    Raises:
        ArtefactError: a damaged state, or one of other settings.
    """
    hint = "remove the file: training begins again from the stored rows"
    header, tensors = read_tensors(path, written_by="train_sae", hint=hint)
    require_sound(path, header, tensors, hint=hint)
    if header["identity"] != identity:
        raise ArtefactError(
            f"{path}: the state of another training",
            got=header["identity"],
            valid=identity,
            hint="remove the file, or train into another folder",
        )
    sae = {name.removeprefix("sae."): t for name, t in tensors.items() if name.startswith("sae.")}
    trainer.sae.load_state_dict(sae)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name in _TENSORS:
        getattr(trainer, name).copy_(tensors[name])
    for name, value in header["counts"].items():
        setattr(trainer, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects an optimiser step before each of these
        for _ in range(trainer.n_training_steps):
            trainer.lr_scheduler.step()


@contextmanager
def interrupts_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking into a step; a second one breaks in.

    Only the main thread can catch signals; elsewhere the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
