"""layer_grid: every pair of hook points of two models scored from one capture.

Documents are split as in `fit` with the same seed. The held-out part is not read at all, so that
a map fitted later on the same texts keeps an untouched score card; of the training folds the last
one validates and the others fit.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tl_transfer import plots
from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.layers.null import DocumentSample, permutation_null
from tl_transfer.layers.scores import score_layer
from tl_transfer.layers.sums import LayerSums
from tl_transfer.mappers.split import split_documents
from tl_transfer.memory import require_memory
from tl_transfer.models.pairs import ModelPairs, PairedRows
from tl_transfer.models.surface import HookedModel, Site
from tl_transfer.sealed import read_json, write_json
from tl_transfer.vectors import SteeringVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMAT = "tl_transfer.layer_grid/1"
#: Cells of one forward batch: every hook point of both models is kept for each of them.
MAX_TOKENS = 1024
#: Bytes that the sums may take.
MAX_BYTES = 6_000_000_000

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class LayerGrid:
    """Scores of every pair of hook points; rows are the source's, columns the target's.

    Attributes:
        source, target: ``model``, ``n_layers`` and ``hook_points`` of either side.
        fvu: Validation FVU of ridge, pooled over dimensions.
        strength: Ridge strength of each pair, the best of the path on the validation rows.
        cka: Debiased linear CKA over all rows read.
        direction_r2: Validation R^2 along the image of the given vector, None without one.
        vectors: Source hook point -> what is known of its vector (``auroc``, ``method``).
        n_rows, n_documents: ``train`` and ``validation``.
        null: Scores of permuted documents, see `tl_transfer.layers.null`; None if not asked for.
        settings: Seed and sizes.
        seconds: Time of the forward passes and of the rest.
    """

    source: dict[str, Any]
    target: dict[str, Any]
    fvu: Matrix
    strength: Matrix
    cka: Matrix
    direction_r2: Matrix | None
    vectors: dict[str, dict[str, Any]]
    n_rows: dict[str, int]
    n_documents: dict[str, int]
    null: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def plot(self, measure: str | None = None) -> "Figure":
        """Heat map of one measure: ``direction_r2`` (default where there is one), ``fvu``, ``cka``.

        Cells that the permutation null does not rule out (p > 0.05) are marked.
        """
        measure = measure or ("direction_r2" if self.direction_r2 is not None else "fvu")
        self._matrix(measure)
        return plots.layer_grid(self.to_dict(), measure)

    def best(self, measure: str | None = None) -> tuple[str, str]:
        """Hook points of the best pair by one measure (see `plot`)."""
        measure = measure or ("direction_r2" if self.direction_r2 is not None else "fvu")
        values = torch.tensor(
            [[float("nan") if v is None else v for v in row] for row in self._matrix(measure)]
        )
        values = (-values if measure == "fvu" else values).nan_to_num(nan=-torch.inf)
        place = int(values.argmax())
        i, j = divmod(place, values.shape[1])
        return self.source["hook_points"][i], self.target["hook_points"][j]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write as strict JSON."""
        return write_json(Path(path), self.to_dict(), allow_nan=False)

    @classmethod
    def load(cls, path: str | Path) -> "LayerGrid":
        """Read what `save` wrote.

        Raises:
            ArtefactError: not a grid, of another format, or changed since it was saved.
        """
        path, hint = Path(path), "make the grid again"
        data = read_json(path, written_by="LayerGrid.save", hint=hint)
        try:
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{path}: not a readable layer grid",
                got=f"{type(error).__name__}: {error}",
                valid=f"JSON of format {FORMAT}, written by LayerGrid.save",
                hint=hint,
            ) from error

    def _matrix(self, measure: str) -> Matrix:
        if measure not in ("fvu", "cka", "direction_r2") or getattr(self, measure) is None:
            raise InputError(
                "measure: not in this grid",
                got=repr(measure),
                valid="fvu, cka" + ("" if self.direction_r2 is None else ", direction_r2"),
                hint="pass vector= to layer_grid for direction_r2",
            )
        return getattr(self, measure)

    def __repr__(self) -> str:
        shape = f"{len(self.fvu)} x {len(self.fvu[0])} pairs"
        s, t = self.best()
        return (
            f"LayerGrid({self.source['model']} -> {self.target['model']}, {shape}, "
            f"{self.n_rows['validation']} validation rows of "
            f"{self.n_documents['validation']} documents, best {s} -> {t})"
        )


def layer_grid(
    source: HookedModel,
    target: HookedModel,
    *,
    texts: Sequence[Any],
    documents: Sequence[str] | None = None,
    vector: SteeringVector | Mapping[str, SteeringVector] | None = None,
    source_layers: Sequence[str] | None = None,
    target_layers: Sequence[str] | None = None,
    permutations: int = 199,
    seed: int = 0,
    progress: bool = True,
    max_tokens: int = MAX_TOKENS,
    max_bytes: int = MAX_BYTES,
) -> LayerGrid:
    """Score every pair of hook points of two models on texts that both read.

    Args:
        source: Where vectors come from.
        target: Where they go.
        texts: Plain texts and chats, best those that a map will be fitted on.
        documents: Document id of each text; default, each text is its own document.
        vector: A source vector, or hook point -> vector (a `VectorSet`), whose image's R^2 is
            scored beside the global FVU, which hides it.
        source_layers: Hook points; default, every ``resid_post``.
        target_layers: The same of the target.
        permutations: Of the null; 0 leaves it out.
        seed: Of the document split (the same as in `fit`) and of the permutations.
        progress: Show a progress bar.
        max_tokens: Cells of one forward batch.
        max_bytes: Refuse to start when the sums need more memory than this.

    Raises:
        InputError: too few rows or documents, too much memory, or a vector whose contrast texts
            are among `texts`.
        SpaceError: a vector that does not live at one of the source's hook points.
    """
    given = as_texts(texts)
    hashes = [text_hash(text) for text in given]
    sites_s, sites_t = _sites(source, source_layers), _sites(target, target_layers)
    named = _vectors(vector, source, sites_s, hashes)
    split = split_documents(documents_of(hashes, documents), seed=seed)
    used = [i for i, fold in enumerate(split.fold) if fold < split.n_folds]
    validates = torch.tensor([split.fold[i] == split.n_folds - 1 for i in used])
    document = torch.tensor([split.document[i] for i in used])
    shapes = (len(sites_s), source.d_model), (len(sites_t), target.d_model)
    _require_memory(LayerSums.n_bytes(*shapes), max_bytes)
    pairs = ModelPairs(sites_s, sites_t, [given[i] for i in used])
    sums = LayerSums(*shapes, source.device)
    sample = DocumentSample(len(document.unique()))
    clock = {"forward": 0.0, "rest": 0.0}
    batches = _timed(pairs.batches(progress=progress, max_tokens=max_tokens), clock)
    for x, y, text in _stacked(batches, sites_s, sites_t):
        sums.add(x, y, validates[text])
        sample.add(x, y, text, document[text])
    start = time.perf_counter()
    sums.finish()
    _require_rows(sums, source.d_model)
    names = [site.point.name for site in sites_s]
    by_layer = {i: named[name].direction for i, name in enumerate(names) if name in named}
    scores = _scores(sums, by_layer)
    n_rows = {"train": sums.train.n, "validation": sums.validation.n}
    del sums  # by far the largest thing; the null needs memory of its own
    null = _null(sample, by_layer, permutations, seed)
    clock["rest"] += time.perf_counter() - start
    return LayerGrid(
        source=_side(source, sites_s),
        target=_side(target, sites_t),
        **scores,
        vectors={name: _about(found) for name, found in named.items()},
        n_rows=n_rows,
        n_documents={
            name: len(document[(validates == flag) & (torch.tensor(pairs.n_pairs) > 0)].unique())
            for name, flag in (("train", False), ("validation", True))
        },
        null=_without_nan(null),
        settings={"seed": seed, "n_texts": len(used), "dropped": pairs.dropped},
        seconds={name: round(value, 2) for name, value in clock.items()},
    )


def _stacked(
    batches: Iterator[PairedRows], sites_s: Sequence[Site], sites_t: Sequence[Site]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of all hook points of both sides, and the text of each row."""
    for batch in batches:
        x = torch.stack([batch.x[site.point.name] for site in sites_s], 1)
        y = torch.stack([batch.y[site.point.name] for site in sites_t], 1)
        yield x, y, batch.text


def _scores(sums: LayerSums, vectors: Mapping[int, Tensor]) -> dict[str, Any]:
    """Every score of every pair, from the sums."""
    found = [score_layer(sums, i, vectors.get(i)) for i in range(sums.shape_s[0])]
    unknown = torch.full_like(found[0].fvu, float("nan"))
    r2 = [unknown if s.direction_r2 is None else s.direction_r2 for s in found]
    return {
        "fvu": _matrix([s.fvu for s in found]),
        "strength": _matrix([s.strength for s in found]),
        "cka": _matrix([s.cka for s in found]),
        "direction_r2": _matrix(r2) if vectors else None,
    }


def _null(
    sample: DocumentSample, vectors: Mapping[int, Tensor], permutations: int, seed: int
) -> dict[str, Any] | None:
    """What the best pair scores by chance; None where there is nothing to permute."""
    if permutations < 1 or sample.n_documents < 8:
        return None
    return permutation_null(
        *sample.rows(),
        sample.per_document,
        vectors=vectors,
        permutations=permutations,
        seed=seed,
    )


def _sites(model: HookedModel, names: Sequence[str] | None) -> list[Site]:
    if names is None:
        names = [f"resid_post@{layer}" for layer in range(model.n_layers)]
    sites = [model.at(name) for name in names]
    found = [site.point.name for site in sites]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice or not sites:
        raise InputError(
            "source_layers, target_layers: every hook point once, and one at least",
            got=f"{', '.join(twice)} twice" if twice else "none",
            valid="different hook points (resid_post@9 is blocks.9.hook_resid_post)",
            hint="leave it out for the residual after every block",
        )
    return sites


def _vectors(
    vector: SteeringVector | Mapping[str, SteeringVector] | None,
    source: HookedModel,
    sites: Sequence[Site],
    hashes: Sequence[str],
) -> dict[str, SteeringVector]:
    """Canonical hook point -> vector, each in its space and with texts of its own."""
    if vector is None:
        return {}
    given = vector.values() if isinstance(vector, Mapping) else [vector]
    known = {site.point.name for site in sites}
    found = {}
    for one in given:
        name = one.space.hook_point
        source.at(name).space.require(one.space, "vector of a layer grid")
        shared = set(one.provenance.get("texts", ())) & set(hashes)
        if shared:
            raise InputError(
                "vector: its contrast texts are among texts",
                got=f"{len(shared)} shared texts",
                valid="no shared text: R^2 of such a direction is high for any labels",
                hint="use other texts for the grid, or extract the vector from other prompts",
            )
        if name in known:
            found[name] = one
    if not found:
        raise InputError(
            "vector: at no source hook point of this grid",
            got=", ".join(one.space.hook_point for one in given) or "no vector",
            valid=", ".join(sorted(known)),
            hint="add its hook point to source_layers, or extract it at one of these",
        )
    return found


def _require_memory(needed: int, allowed: int) -> None:
    if needed > allowed:
        raise InputError(
            "layers: the sums of all pairs need too much memory",
            got=f"about {needed / 1e9:.1f} GB",
            valid=f"at most {allowed / 1e9:.1f} GB (max_bytes)",
            hint="pass every second hook point as source_layers and target_layers, or raise "
            "max_bytes",
        )
    require_memory(needed, "layers: the sums of all pairs", "pass fewer hook points")


def _require_rows(sums: LayerSums, d_source: int) -> None:
    if sums.train.n <= d_source or sums.validation.n < 4:
        raise InputError(
            "texts: too few rows to fit a ridge at every pair",
            got=f"{sums.train.n} rows to fit on, {sums.validation.n} to validate, "
            f"d_source {d_source}",
            valid=f"more than {d_source} to fit on, and better {20 * d_source}",
            hint="pass more or longer texts",
        )


def _timed(batches: Iterator[PairedRows], clock: dict[str, float]) -> Iterator[PairedRows]:
    """The batches, with the time spent making them and the time spent on them kept apart."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        clock["forward"] += time.perf_counter() - start
        if batch is None:
            return
        start = time.perf_counter()
        yield batch
        clock["rest"] += time.perf_counter() - start


def _side(model: HookedModel, sites: Sequence[Site]) -> dict[str, Any]:
    return {
        "model": model.name,
        "n_layers": model.n_layers,
        "hook_points": [site.point.name for site in sites],
        "layers": [site.point.layer for site in sites],
    }


def _about(vector: SteeringVector) -> dict[str, Any]:
    return {"method": vector.method, "auroc": vector.provenance.get("auroc")}


def _matrix(rows: Sequence[Tensor]) -> Matrix:
    return _without_nan([row.tolist() for row in rows])


def _without_nan(value: Any) -> Any:
    """The same tree with None for numbers that are not finite: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
