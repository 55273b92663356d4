"""train: gradient descent that loses nothing when it is interrupted, and repeats bit for bit.

The state (parameters, moments of the optimiser, place in the data) is written atomically to a
checkpoint every few seconds, at the end, and on Ctrl-C; training goes on from there. The order of
the rows is a function of seed and epoch alone, so an interrupted run ends with the same bits.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.sealed import read_tensors, require_sound, write_tensors

#: Seconds between checkpoints.
EVERY = 20.0

Batch = tuple[Tensor, Tensor]
Parameters = dict[str, Tensor]
Predict = Callable[[Parameters, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        epochs: Passes over the rows.
        learning_rate: Of AdamW; its other settings are PyTorch's defaults.
        accumulate: Batches whose gradients are averaged for one update.
        updates: Stop after so many updates, wherever that is.
    """

    epochs: int
    learning_rate: float
    accumulate: int = 1
    updates: int | None = None


class Trainer:
    """Parameters, optimiser and place in the data.

    Args:
        parameters: Start values; copied.
        predict: (parameters, x) -> prediction.
        batches: Epoch -> its batches; must give the same ones whenever it is asked.
        schedule: How to train.
        checkpoint: File of the state; None: none is kept.
        identity: What the state depends on (recipe, rows, seed): another one starts anew.
        progress: Show a bar.
    """

    def __init__(
        self,
        parameters: Parameters,
        predict: Predict,
        batches: Callable[[int], Iterator[Batch]],
        schedule: Schedule,
        *,
        checkpoint: Path | None = None,
        identity: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        self.parameters = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()), lr=schedule.learning_rate
        )
        self.predict, self.batches, self.schedule = predict, batches, schedule
        self.epoch = self.batch = self.update = 0
        self.history: list[dict[str, float]] = []
        self._checkpoint, self._progress = checkpoint, progress
        self._identity = hashlib.sha256(
            json.dumps(identity or {}, sort_keys=True).encode()
        ).hexdigest()
        self._saved = time.monotonic()
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)

    @property
    def done(self) -> bool:
        """Nothing is left of the schedule."""
        limit = self.schedule.updates
        return self.epoch >= self.schedule.epochs or (limit is not None and self.update >= limit)

    def run(
        self,
        score: Callable[[Parameters], dict[str, float]] | None = None,
        stop: Callable[[list[dict[str, float]]], bool] | None = None,
    ) -> None:
        """Train to the end of the schedule, or until `stop` says so.

        What `score` says after each epoch is appended to `history`, which `stop` looks at. On any
        interruption the state is kept first.
        """
        bar = tqdm(
            total=self.schedule.epochs if self.schedule.updates is None else None,
            initial=self.epoch,
            unit="epoch",
            desc="train",
            disable=not self._progress,
        )
        try:
            with bar:
                while not self.done and not (stop is not None and stop(self.history)):
                    self._one_epoch()
                    bar.update(1)
                    if score is not None:
                        self.history.append(score(self.values()))
                        bar.set_postfix(
                            {name: f"{value:.4g}" for name, value in self.history[-1].items()}
                        )
        finally:
            self.save()

    def values(self) -> Parameters:
        """The parameters as they are now, detached."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _one_epoch(self) -> None:
        n_loaded = 0
        for x, y in self._remaining():
            loss = (self.predict(self.parameters, x) - y).square().mean()
            (loss / self.schedule.accumulate).backward()
            n_loaded += 1
            self.batch += 1
            if n_loaded == self.schedule.accumulate:
                n_loaded = 0
                self._step()
                if self.done:
                    return
        if n_loaded:
            self._step()
        self.epoch, self.batch = self.epoch + 1, 0

    def _remaining(self) -> Iterator[Batch]:
        """Batches of this epoch that are still to come."""
        for number, batch in enumerate(self.batches(self.epoch)):
            if number >= self.batch:
                yield batch

    def _step(self) -> None:
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.update += 1
        if time.monotonic() - self._saved > EVERY:
            self.save()

    def save(self) -> None:
        """Write the checkpoint; half-loaded gradients are dropped, their batches come again."""
        if self._checkpoint is None:
            return
        tensors = {f"parameter.{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimiser.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value)
        header = {
            "identity": self._identity,
            "epoch": self.epoch,
            "batch": self.batch - self.batch % self.schedule.accumulate,
            "update": self.update,
            "history": self.history,
        }
        write_tensors(self._checkpoint, header, tensors)
        self._saved = time.monotonic()

    def _resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same identity; one of another is left to be replaced."""
        hint = "delete it to start the training anew"
        header, tensors = read_tensors(path, written_by="a training", hint=hint)
        require_sound(path, header, tensors, hint=hint)
        if header["identity"] != self._identity:
            return
        for name, p in self.parameters.items():
            with torch.no_grad():
                p.copy_(tensors[f"parameter.{name}"])
            if header["update"]:
                self.optimiser.state[p] = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.epoch, self.batch = header["epoch"], header["batch"]
        self.update, self.history = header["update"], header["history"]
