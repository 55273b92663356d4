"""train_sae: a small SAE for one site, with sae-lens' own trainer on rows of our store.

What differs from a run of sae-lens is where rows come from and what survives a kill. Rows are those
of `tl_transfer.capture`: no position 0 (BOS, an attention sink), no massive norms, shuffled over
the whole store. The state is written every few seconds and training ends with the same weights
whether or not it was interrupted.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tl_transfer.data.cache import cache_dir
from tl_transfer.errors import InputError
from tl_transfer.models.record import capture
from tl_transfer.models.surface import Site
from tl_transfer.sae.card import training_card
from tl_transfer.sae.clock import Clock
from tl_transfer.sae.corpus import Corpus, general_corpus
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.folder import write_folder
from tl_transfer.sae.load import load_sae
from tl_transfer.sae.run import TrainingRun
from tl_transfer.sae.settings import SaeSettings
from tl_transfer.sae.workplace import (
    CARD,
    CLOCK,
    ROWS,
    STATE,
    claim,
    clear,
    digest,
    finished,
    read_json,
    write_json,
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
    if finished(folder, spec):
        clear(folder, keep_rows)
        card = read_json(folder / CARD)
        return TrainedSae(folder, load_sae(folder, site=site), card)
    claim(folder, spec)
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
        run = TrainingRun(sae_lens, stores["train"], site, settings, start)
        dictionary = run.train(folder / STATE, digest(spec), progress, clock.write)
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
    write_json(folder / CARD, card)
    clear(folder, keep_rows)
    return TrainedSae(folder, load_sae(folder, site=site), card)


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
        "texts": digest(texts),
        "n_texts": {"train": len(corpus.train), "held_out": len(corpus.held_out)},
        "sae_lens": version,
    }
