"""Maps that a target's stream is replaced with: fitted once from stores, kept as files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tl_transfer.data.store import ActivationStore
from tl_transfer.experiments.kinds import Kind
from tl_transfer.experiments.parts import Parts
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import collect, fit, fit_sums
from tl_transfer.models.record import capture
from tl_transfer.models.surface import Site
from tl_transfer.persistence import load, save
from tl_transfer.tasks.replacement import ReplacementTexts

#: Arm -> map; the map that has read questions is ridge on other sums.
KINDS = {
    "ridge": Kind("ridge", "ridge"),
    "procrustes": Kind("Procrustes", "procrustes"),
    "paper": Kind("the paper's autoencoder", "autoencoder", {"recipe": "paper"}),
    "ours": Kind("our autoencoder", "autoencoder"),
    "with_questions": Kind("ridge, has read questions", "ridge"),
    "copied": Kind("coordinates copied", "identity"),
    "untrained": Kind("untrained autoencoder", "untrained_autoencoder"),
}


def fit_maps(
    here: Site,
    there: Site,
    texts: ReplacementTexts,
    folder: Path,
    parts: Parts,
    *,
    updates: int,
    batch_rows: int,
    seed: int,
    say: Callable[[str], None],
    progress: bool,
) -> dict[str, Mapper]:
    """Every map of `KINDS`, from an earlier run or fitted now.

    Args:
        here: Source.
        there: Target.
        texts: Prose, and the questions for the one that reads them.
        folder: Of the run.
        parts: Says which maps are of this recipe.
        updates: Of the paper's autoencoder (theirs made about 4,500).
        batch_rows: Rows of each.
        seed: Of splits and trainings.
        say: Told what is happening.
        progress: Show bars.
    """
    read: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "prose": (texts.fit, texts.fit_documents),
        "questions": (
            [question.prompt for question in texts.fit_questions],
            [question.subject for question in texts.fit_questions],
        ),
    }

    def store(site: Site, part: str) -> ActivationStore:
        side = "source" if site is here else "target"
        return capture(
            site, read[part][0], documents=read[part][1], progress=progress,
            store=folder / "stores" / f"{side}-{part}",
        )  # fmt: skip

    def made(name: str, kind: Kind) -> Mapper:
        say(f"fitting {kind.title}")
        options = dict(kind.options)
        if name == "with_questions":
            prose, asked = (
                collect(store(here, part), store(there, part), seed=seed, progress=progress)
                for part in ("prose", "questions")
            )
            # Both kinds of text count alike, however many rows there are of each.
            return fit_sums(
                prose + asked.weighted(prose.n_rows / asked.n_rows), method=kind.method,
                backward=False,
            )  # fmt: skip
        if name == "paper":
            options |= {"updates": updates, "batch_rows": batch_rows}
        return fit(
            store(here, "prose"), store(there, "prose"), method=kind.method, backward=False,
            seed=seed, progress=progress, checkpoint=folder / "training" / name, **options,
        )  # fmt: skip

    found = {}
    for name, kind in KINDS.items():
        path = folder / "maps" / f"{name}.safetensors"
        kept = load(path) if parts.recall(f"map-{name}") and path.is_file() else None
        if isinstance(kept, Mapper) and (kept.source, kept.target) == (here.space, there.space):
            found[name] = kept
            continue
        found[name] = made(name, kind)
        save(found[name], path)
        parts.keep(f"map-{name}", True)
    return found
