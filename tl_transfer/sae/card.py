"""The card of a trained SAE: what it keeps of unseen documents, beside what learned nothing."""

from typing import Any

from tl_transfer.data.store import ActivationStore
from tl_transfer.models.surface import Site
from tl_transfer.sae.corpus import Corpus
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.measure import (
    Rebuild,
    fidelity,
    fvu_of,
    principal_components,
    random_dictionary,
)
from tl_transfer.sae.recovered import loss_recovered
from tl_transfer.sae.rows import stored_rows

#: Training rows over which dead features are counted and PCA is made, and of those for the gain of
#: the random dictionary: one number.
_SAMPLE = 50_000
_GAIN = 8192
#: Held-out texts on which the loss is read.
_LOSS_TEXTS = 40


def training_card(
    dictionary: Dictionary,
    site: Site,
    stores: dict[str, ActivationStore],
    corpus: Corpus,
    k: int,
    loss: bool,
    progress: bool,
) -> dict[str, Any]:
    """Scores on held-out rows and controls of equal L0; dead features over training rows too."""
    name = site.point.name
    seen = stored_rows(stores["train"], name, max_rows=_SAMPLE)
    unseen = stored_rows(stores["held_out"], name)
    scores = fidelity(dictionary, unseen.x, unseen.document)
    at_home = fidelity(dictionary, seen.x, seen.document)
    chance = random_dictionary(seen.x, dictionary.d_sae, k, gain_rows=_GAIN)
    pca = principal_components(seen.x, k)
    controls: dict[str, Rebuild] = {"random_dictionary": chance.reconstruct, "pca": pca}
    card: dict[str, Any] = {
        "held_out": scores.to_dict(),
        "train": at_home.to_dict(),
        "dead_share": float((~(scores.fired | at_home.fired)).double().mean()),
        "dead_over_rows": scores.n_rows + at_home.n_rows,
        "controls": {name: {"fvu": fvu_of(r, unseen.x), "k": k} for name, r in controls.items()},
        "median_norm": unseen.median_norm,
        "rows": {side: store.n_rows for side, store in stores.items()},
        "left_out": {side: store.counts for side, store in stores.items()},
    }
    if loss and site.point.kind == "resid_post":
        on_device = chance.to(site.model.device)
        found = loss_recovered(
            dictionary,
            site,
            corpus.held_out[:_LOSS_TEXTS],
            documents=corpus.held_out_documents[:_LOSS_TEXTS],
            median_norm=unseen.median_norm,
            others={"random_dictionary": on_device.reconstruct, "pca": pca},
            progress=progress,
        )
        card["loss"] = found.to_dict()
    return card
