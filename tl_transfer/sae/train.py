"""train_sae: a small SAE for one site, with sae-lens' own trainer on rows of our store.

What differs from a run of sae-lens is where rows come from and what survives a kill. Rows are those
of `tl_transfer.capture`: no position 0 (BOS, an attention sink), no massive norms, shuffled over
the whole store. The state is written every few seconds and training ends with the same weights
whether or not it was interrupted. At the start the decoder bias is the mean of the rows (the mean
of a residual stream is often longer than what varies about it), and rows are scaled so that they
have the mean norm sqrt(d_model) about it; both are folded into the weights at the end.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.cache import cache_dir
from tl_transfer.data.store import ActivationStore
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.files import write_atomic
from tl_transfer.models.record import capture
from tl_transfer.models.surface import Site
from tl_transfer.sae.card import training_card
from tl_transfer.sae.clock import Clock
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.corpus import Corpus, general_corpus
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.folder import write_folder
from tl_transfer.sae.load import load_sae
from tl_transfer.sae.trainer_state import interrupts_between_steps, load_state, save_state

ARCHITECTURES = ("batchtopk", "topk")
#: Seconds between states on the disk.
EVERY = 15.0
CARD, SETTINGS, STATE, ROWS = "card.json", "training.json", "training.safetensors", "rows"
CLOCK = "seconds.json"
#: Rows from which mean and scale are taken.
_PROBE = 32_768


@dataclass(frozen=True)
class SaeSettings:
    """How an SAE is trained.

    Attributes:
        d_sae: Features.
        k: Features on in a row: exactly (``topk``) or on average (``batchtopk``).
        architecture: ``batchtopk`` (saved as jumprelu with one threshold) or ``topk``.
        epochs: Passes over the rows.
        batch_rows: Rows of a step.
        learning_rate: Of Adam; warmed up over the first twentieth, to zero over the last quarter.
        dead_after_rows: A feature that was not on in so many rows gets the auxiliary loss.
        start: ``"rows"``: decoder rows begin as differences of training rows from their mean;
            ``"random"``: as sae-lens draws them.
        seed: Of the start and the order of rows.
    """

    d_sae: int = 4096
    k: int = 32
    architecture: str = "batchtopk"
    epochs: int = 2
    batch_rows: int = 512
    learning_rate: float = 2e-3
    dead_after_rows: int = 50_000
    start: str = "rows"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, valid in (
            ("architecture", self.architecture in ARCHITECTURES, ", ".join(ARCHITECTURES)),
            ("start", self.start in ("rows", "random"), '"rows" or "random"'),
            ("d_sae", self.d_sae >= 1, "1 or more"),
            ("k", 1 <= self.k <= self.d_sae, f"1 to d_sae = {self.d_sae}"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_rows", self.batch_rows >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("dead_after_rows", self.dead_after_rows >= 1, "1 or more"),
        ):
            if not ok:
                raise InputError(
                    f"{name}: cannot be trained with",
                    got=repr(getattr(self, name)),
                    valid=valid,
                    hint="leave it out for the default",
                )


@dataclass(frozen=True)
class TrainedSae:
    """An SAE that was trained here.

    Attributes:
        folder: sae-lens reads it with ``SAE.load_from_disk``, we with `tl_transfer.load_sae`.
        sae: The SAE, with its space.
        card: How it was trained and what it keeps of unseen documents, beside controls (JSON).
    """

    folder: Path
    sae: Dictionary
    card: dict[str, Any]


def default_folder(site: Site) -> Path:
    """Where an SAE of a site is kept if nothing else is said: in the cache of the package."""
    model = site.model.name.replace("/", "--")
    return cache_dir() / "saes" / f"{model}-{site.point.name}"


def train_sae(
    site: Site,
    *,
    folder: str | Path | None = None,
    corpus: Corpus | None = None,
    settings: SaeSettings | None = None,
    start: Dictionary | None = None,
    keep_rows: bool = False,
    loss: bool = True,
    progress: bool = True,
) -> TrainedSae:
    """Train an SAE on the activations of a site; run it again to go on after any interruption.

    Args:
        site: Model and hook point.
        folder: Where it goes; default, `default_folder`. A finished one of the same settings is
            read and nothing is run.
        corpus: Texts; default, 150,000 tokens of `tl_transfer.sae.corpus.general_corpus`.
        settings: How to train.
        start: Begin with the parameters of this SAE (a folded one), of the same width and kind;
            ``settings.start`` is then not used.
        keep_rows: Keep the captured rows in the folder; default, they go when all is done.
        loss: Measure the loss recovered, too (for hook points after a block).
        progress: Show progress bars.

    Raises:
        InputError: settings that cannot be trained with, or a folder of another SAE.
        ArtefactError: a damaged state.
    """
    settings = settings or SaeSettings()
    sae_lens = _require_sae_lens()
    corpus = corpus or general_corpus()
    folder = default_folder(site) if folder is None else Path(folder)
    spec = _spec(site, corpus, settings, start, sae_lens.__version__)
    if _finished(folder, spec):
        _clear(folder, keep_rows)
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return TrainedSae(folder, load_sae(folder, site=site), card)
    _claim(folder, spec)
    clock = Clock(folder / CLOCK)
    with clock.part("capture"):
        stores = {
            side: capture(
                site,
                texts,
                store=folder / ROWS / side,
                documents=documents,
                progress=progress,
            )
            for side, texts, documents in (
                ("held_out", corpus.held_out, corpus.held_out_documents),
                ("train", corpus.train, corpus.train_documents),
            )
        }
    with clock.part("train"):
        run = _Run(sae_lens, stores["train"], site, settings, start)
        dictionary = run.train(folder / STATE, _digest(spec), progress, clock.write)
    dictionary = replace(
        dictionary, space=site.space, hook_point=site.point.name, origin={"folder": str(folder)}
    )
    with clock.part("card"):
        card = training_card(dictionary, site, stores, corpus, settings.k, loss, progress)
    times = {"seconds": clock.wall, "processor_seconds": clock.processor}
    card = {**spec, **card, "steps": run.steps, **times, "threads": torch.get_num_threads()}
    kept = ("d_sae", "k", "architecture")
    write_folder(
        dictionary,
        folder,
        metadata={
            "sae_lens_version": sae_lens.__version__,
            "training_architecture": settings.architecture,
            "prepend_bos": False,
            "training": {name: spec["settings"][name] for name in kept},
        },
    )
    _write_json(folder / CARD, card)
    _clear(folder, keep_rows)
    return TrainedSae(folder, load_sae(folder, site=site), card)


class _Run:
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
        probe = self.rows(self._order(0)[:_PROBE]).double()
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


def _require_sae_lens() -> Any:
    try:
        import sae_lens
    except ImportError as error:
        raise InputError(
            "train_sae: needs sae-lens, whose trainer is used",
            got=f"{type(error).__name__}: {error}",
            valid="tl_transfer[sae] with TransformerLens 3.x",
            hint="train there: the folder is read on TransformerLens 4 without sae-lens",
        ) from error
    return sae_lens


def _spec(
    site: Site, corpus: Corpus, settings: SaeSettings, start: Dictionary | None, version: str
) -> dict[str, Any]:
    """All that decides about the weights."""
    texts = [corpus.train, corpus.train_documents, corpus.held_out, corpus.held_out_documents]
    return {
        "format": "tl_transfer.sae/1",
        "space": site.space.to_json(),
        "settings": asdict(settings),
        "start": None if start is None else start.identity,
        "texts": _digest(texts),
        "n_texts": {"train": len(corpus.train), "held_out": len(corpus.held_out)},
        "sae_lens": version,
    }


def _claim(folder: Path, spec: dict[str, Any]) -> None:
    """Write down what is trained here; refuse a folder that holds something else."""
    there = folder / SETTINGS
    if there.is_file():
        _require_same(folder, json.loads(there.read_text(encoding="utf-8")), spec)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            "folder: something is there already",
            got=str(folder),
            valid="a new folder, or one of this very training",
            hint="choose another name; nothing is overwritten",
        )
    _write_json(there, spec)


def _finished(folder: Path, spec: dict[str, Any]) -> bool:
    there = folder / SETTINGS
    if not (folder / CARD).is_file() or not there.is_file():
        return False
    _require_same(folder, json.loads(there.read_text(encoding="utf-8")), spec)
    return True


def _clear(folder: Path, keep_rows: bool) -> None:
    """Remove what only an unfinished training needs; the card is there already."""
    for name in (STATE, CLOCK):
        (folder / name).unlink(missing_ok=True)
    if not keep_rows:
        shutil.rmtree(folder / ROWS, ignore_errors=True)


def _require_same(folder: Path, found: dict[str, Any], spec: dict[str, Any]) -> None:
    # A finished SAE stays one when sae-lens is upgraded; a state does not (see `_digest`).
    keys = [key for key in spec if key != "sae_lens" and found.get(key) != spec[key]]
    if keys:
        flat = {key: (found.get(key), spec[key]) for key in keys}
        raise InputError(
            f"folder: holds another SAE, which differs in {', '.join(keys)}",
            got=f"{folder}: { {key: pair[0] for key, pair in flat.items()} }"[:600],
            valid=f"{ {key: pair[1] for key, pair in flat.items()} }"[:600],
            hint="choose another folder, or remove this one",
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_atomic(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))
