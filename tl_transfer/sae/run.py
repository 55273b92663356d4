"""TrainingRun: sae-lens' trainer, fed with rows of a store, from its start to its last step.

At the start the decoder bias is the mean of the rows (the mean of a residual stream is often longer
than what varies about it), and rows are scaled so that they have the mean norm sqrt(d_model) about
it; both are folded into the weights at the end.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.store import ActivationStore
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.models.surface import Site
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.settings import SaeSettings
from tl_transfer.sae.trainer_state import interrupts_between_steps, load_state, save_state

#: Seconds between states on the disk.
EVERY = 15.0
#: Rows from which mean and scale are taken.
PROBE = 32_768


class TrainingRun:
    """One training: rows in an order that depends on seed and step alone."""

    def __init__(
        self,
        sae_lens: Any,
        store: ActivationStore,
        site: Site,
        settings: SaeSettings,
        start: Dictionary | None,
    ) -> None:
        self.store, self.settings = store, settings
        self.name = store.at(site.point.name).name
        self.per_epoch = store.n_rows // settings.batch_rows
        self.steps = self.per_epoch * settings.epochs
        if self.steps < 1:
            raise InputError(
                "batch_rows: more than all rows",
                got=f"{settings.batch_rows} of {store.n_rows} rows",
                valid=f"1 to {store.n_rows}",
                hint="take more texts or smaller batches",
            )
        self.device = site.model.device
        probe = self.rows(self._order(0)[:PROBE]).double()
        mean = probe.mean(0)
        d_model = len(mean)
        self.scale = d_model**0.5 / float((probe - mean).norm(dim=-1).mean())
        self.trainer = _trainer(sae_lens, d_model, settings, self.steps, self.device)
        centred = ((probe - mean) * self.scale).float()
        _initialise(self.trainer.sae, (mean * self.scale).float(), centred, settings)
        if start is not None:
            _take_over(self.trainer.sae, start, self.scale)
        self.trainer.activation_scaler.scaling_factor = self.scale

    def rows(self, index: Any) -> Tensor:
        """Rows by number, on the device of the model."""
        return self.store.take(index, [self.name]).values[self.name].float().to(self.device)

    def _order(self, epoch: int) -> Any:
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)
        return torch.randperm(self.store.n_rows, generator=generator).numpy()

    def batches(self, first: int) -> Iterator[Tensor]:
        """Batches from a step on."""
        size = self.settings.batch_rows
        for epoch in range(first // self.per_epoch, self.settings.epochs):
            order = self._order(epoch)
            begin = first - epoch * self.per_epoch if first > epoch * self.per_epoch else 0
            for number in range(begin, self.per_epoch):
                yield self.rows(order[number * size : (number + 1) * size])

    def train(
        self, state: Path, identity: str, progress: bool, saved: Callable[[], None]
    ) -> Dictionary:
        """Train to the end and fold the scale; ``saved`` is called when a state was written.

        Raises:
            KeyboardInterrupt: Ctrl-C, once the step is done and its state written.
        """
        trainer = self.trainer
        if state.is_file():
            load_state(trainer, state, identity)
        last = time.monotonic()
        bar = tqdm(
            total=self.steps,
            initial=trainer.n_training_steps,
            unit="step",
            desc="train SAE",
            disable=not progress,
        )
        with bar, interrupts_between_steps() as interrupted:
            for batch in self.batches(trainer.n_training_steps):
                output = trainer.step(batch)
                trainer.n_training_steps += 1
                bar.update(1)
                _require_finite(output.loss, trainer.n_training_steps)
                if trainer.n_training_steps % 20 == 0:
                    bar.set_postfix(_glance(output, batch * self.scale))
                if interrupted.is_set() or time.monotonic() - last > EVERY:
                    save_state(trainer, state, identity)
                    saved()
                    last = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        save_state(trainer, state, identity)
        trainer.sae.fold_activation_norm_scaling_factor(self.scale)
        return Dictionary.of(trainer.sae).to("cpu")


def _trainer(
    sae_lens: Any, d_model: int, settings: SaeSettings, steps: int, device: torch.device
) -> Any:
    """sae-lens' trainer around a new SAE; it is fed step by step, its provider is never asked."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name = {"batchtopk": "BatchTopK", "topk": "TopK"}[settings.architecture]
    make = getattr(sae_lens, f"{name}TrainingSAE"), getattr(sae_lens, f"{name}TrainingSAEConfig")
    options: dict[str, Any] = {"k": settings.k}
    if settings.architecture == "batchtopk":
        # The threshold is a running mean; with few steps it must follow sooner than by default.
        options = {"k": float(settings.k), "topk_threshold_lr": min(1.0, max(0.01, 20 / steps))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # sae-lens draws from the global generator
        cfg = make[1](d_in=d_model, d_sae=settings.d_sae, device=str(device), **options)
        sae = make[0](cfg)
    schedule = SAETrainerConfig(
        total_training_samples=steps * settings.batch_rows,
        train_batch_size_samples=settings.batch_rows,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 4,
        device=str(device),
        dead_feature_window=max(1, settings.dead_after_rows // settings.batch_rows),
    )
    return SAETrainer(schedule, sae, iter(()))


@torch.no_grad()
def _initialise(sae: Any, mean: Tensor, centred: Tensor, settings: SaeSettings) -> None:
    """Decoder bias at the mean; decoder rows along training rows, encoder its transpose."""
    sae.b_dec.copy_(mean.to(sae.b_dec))
    if settings.start == "random":
        return
    norm = sae.W_dec.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = torch.randint(len(centred), (settings.d_sae,), generator=generator)
    rows = torch.nn.functional.normalize(centred[chosen.to(centred.device)].to(sae.W_dec), dim=-1)
    sae.W_dec.copy_(rows * norm)
    sae.W_enc.copy_(sae.W_dec.T)


@torch.no_grad()
def _take_over(sae: Any, start: Dictionary, scale: float) -> None:
    """Begin with another SAE's parameters, in the scaled units of training."""
    coder = start.coder
    if (
        not isinstance(coder, SparseCoder)
        or start.directions.shape != sae.W_dec.shape
        or coder.activation not in ("relu", "jumprelu", "topk")
        or coder.row_norm != "none"
    ):
        raise InputError(
            "start: cannot be trained on",
            got=repr(start),
            valid=f"a relu, jumprelu or topk SAE with {tuple(sae.W_dec.shape)} directions",
            hint="set d_sae to the number of its features",
        )
    # Written with b_dec at the input, whatever it was: (x - offset) W + b, moved to (x - b_dec) W.
    shift = (coder.b_dec.double() - coder.offset.double()) @ coder.W_enc.double()
    sae.W_enc.copy_(coder.W_enc / scale)
    sae.W_dec.copy_(coder.W_dec * scale)
    sae.b_dec.copy_(coder.b_dec * scale)
    sae.b_enc.copy_(coder.b_enc + shift.float())
    if coder.threshold is not None and hasattr(sae, "topk_threshold"):
        # One threshold for all, on what a feature adds: its code times the length of its row.
        least = coder.threshold * coder.W_dec.norm(dim=-1)
        sae.topk_threshold.copy_(least.mean() * scale)


def _glance(output: Any, scaled: Tensor) -> dict[str, str]:
    """FVU and L0 of the last batch, for the bar."""
    error = (output.sae_out - scaled).detach().square().sum()
    variance = (scaled - scaled.mean(0)).square().sum()
    l0 = (output.feature_acts != 0).float().sum(-1).mean()
    return {"fvu": f"{float(error / variance):.3f}", "l0": f"{float(l0):.1f}"}


def _require_finite(loss: Tensor, step: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise ArtefactError(
            "training: the loss is not finite any more",
            got=f"{float(loss)} at step {step}",
            valid="a finite loss",
            hint="lower learning_rate",
        )
