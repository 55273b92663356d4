"""fit: from two sites and texts to a scored map, in one pass over the texts.

Documents, not texts or tokens, are split: a fifth is held out for the score card, the rest are
folds that choose the hyperparameters. Nothing but sums and a bounded sample of rows is kept, so
memory grows by the tokens of the texts alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.store import ActivationStore
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.mappers.affine import Eigenbasis
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.cells import Cells
from tl_transfer.mappers.gather import gather, sample_texts
from tl_transfer.mappers.registry import Method, find
from tl_transfer.mappers.rows import RowKeeper
from tl_transfer.mappers.scored import scored_map
from tl_transfer.mappers.split import Split, split_documents, spread_documents
from tl_transfer.mappers.sums import Sums
from tl_transfer.mappers.training import Training
from tl_transfer.mappers.vocabulary import shared_embeddings
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.pairs import PairedRows, Pairs
from tl_transfer.models.sources import Place, all_places, one_place, pairs_of
from tl_transfer.models.stored import StorePairs
from tl_transfer.models.surface import Site

#: Bytes of training rows kept in memory, for methods that need rows.
ROW_BYTES = 2**30


def fit(
    source: Place | ActivationStore,
    target: Place | ActivationStore,
    *,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    tokens: Tokens | str | None = None,
    method: str = "ridge",
    backward: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    max_tokens: int = MAX_TOKENS,
    **options: Any,
) -> Mapper:
    """Fit a map from one hook point to another on texts both models read.

    Args:
        source: ``model.at(hook_point)`` where vectors come from, or what it has read before: a
            store (`tl_transfer.capture`), or ``store.at(hook_point)``.
        target: The same where they go; two models, or two stores.
        texts: Plain texts, and chats as lists of messages, which each model reads in its own
            template; what they cover is what the map learns. Stores have read theirs.
        documents: Document id of each text; default, each text is its own document.
        weights: Weight of each text's rows, e.g. 10 for texts of the task and 1 for general ones;
            the held-out score is unweighted. For stores see `Sums.weighted`.
        tokens: Which tokens are rows: ``"all"`` of the content (the default), the ``"last"`` or
            the ``"mean"`` of each text, or `Tokens`.
        method: Name in the registry, see `tl_transfer.mapping_methods`.
        backward: Also fit the map from target to source on the same sums, for `pull_back`.
        seed: Of the document split, of the shuffled control and of whatever the method draws.
        checkpoint: Folder in which a method that trains leaves its state: after Ctrl-C or a crash
            the same call goes on from there and ends with the same map.
        progress: Show a progress bar.
        max_tokens: Cells of one forward batch.
        **options: Hyperparameters of the method (``strength``, ``rank``, ...); those left out are
            chosen on document folds, never on the held-out part.

    Returns:
        The map, with `scorecard`: held-out scores beside the shuffled-pair control.

    Raises:
        InputError: no texts, too few documents or rows, activations that are not finite, an
            unknown method or option.
    """
    source, target = one_place(source, "source"), one_place(target, "target")
    return fit_grid(
        [source],
        [target],
        texts=texts,
        documents=documents,
        weights=weights,
        tokens=tokens,
        method=method,
        backward=backward,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        max_tokens=max_tokens,
        **options,
    )[source.point.name, target.point.name]


def fit_grid(
    sources: Sequence[Place] | ActivationStore,
    targets: Sequence[Place] | ActivationStore,
    *,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    tokens: Tokens | str | None = None,
    method: str = "ridge",
    backward: bool = False,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    max_tokens: int = MAX_TOKENS,
    **options: Any,
) -> dict[tuple[str, str], Mapper]:
    """Like `fit` for every pair of several hook points of two models, from one capture.

    Args:
        sources: Hook points of one model, or a store that holds them.
        targets: Hook points of the other one.
        texts: As for `fit`, like all that follow.
        documents: Document id of each text.
        weights: Weight of each text's rows.
        tokens: Which tokens are rows.
        method: Name in the registry.
        backward: Also fit the maps from target to source.
        seed: Of the document split, of the control and of whatever the method draws.
        checkpoint: Folder for the state of methods that train, one folder a pair.
        progress: Show a progress bar.
        max_tokens: Cells of one forward batch.
        **options: Hyperparameters of the method.

    Returns:
        (source hook point, target hook point) -> map.
    """
    chosen = find(method, options)
    sources, targets = all_places(sources, "source"), all_places(targets, "target")
    choice = None if tokens is None else Tokens.of_any(tokens)
    pairs = pairs_of(sources, targets, texts, documents=documents, tokens=choice)
    _check_weights(weights, pairs, chosen)
    split = split_documents(pairs.documents, seed=seed)
    keepers = _keepers(sources, targets, pairs, split, chosen)
    read = _read(
        sources, targets, pairs, split, seed, progress, max_tokens, weights, list(keepers.values())
    )
    x_bases: dict[str, dict[int, Eigenbasis]] = {s.point.name: {} for s in sources}
    y_bases: dict[str, dict[int, Eigenbasis]] = {t.point.name: {} for t in targets}
    maps: dict[tuple[str, str], Mapper] = {}
    for key, sums in read.items():
        training = Training(
            sums.counted(),
            seed,
            x_bases[key[0]],
            y_bases[key[1]],
            rows=keepers[key].rows() if keepers else None,
            embeddings=partial(_embeddings, sources[0], targets[0]),
            checkpoint=None if checkpoint is None else Path(checkpoint) / "--".join(key),
            progress=progress,
        )
        maps[key] = scored_map(
            chosen, sums, training, backward=backward, options=options, more=_counted(weights)
        )
    return maps


def collect(
    source: Place | ActivationStore,
    target: Place | ActivationStore,
    *,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
    tokens: Tokens | str | None = None,
    seed: int = 0,
    progress: bool = True,
    max_tokens: int = MAX_TOKENS,
) -> Sums:
    """The sums of some texts, to be saved, added to those of other texts, and fitted later.

    The split by document follows from the ids alone, so that machines which read different texts
    agree on it; no text may be read twice. Arguments as for `fit`.
    """
    here, there = one_place(source, "source"), one_place(target, "target")
    choice = None if tokens is None else Tokens.of_any(tokens)
    pairs = pairs_of([here], [there], texts, documents=documents, tokens=choice)
    split = spread_documents(pairs.documents, seed=seed)
    read = _read([here], [there], pairs, split, seed, progress, max_tokens)
    return read[here.point.name, there.point.name]


def fit_sums(sums: Sums, *, method: str = "ridge", backward: bool = True, **options: Any) -> Mapper:
    """Fit a map from sums, however many machines made them; no model is needed.

    Args:
        sums: From `collect`; of several machines ``a + b``.
        method: A method that reads sums only.
        backward: As for `fit`.
        **options: As for `fit`.

    Raises:
        InputError: too few documents or rows, or a method that needs rows or embeddings.
    """
    chosen = find(method, options)
    training = Training(sums.counted(), sums.seed)
    return scored_map(chosen, sums, training, backward=backward, options=options)


def _read(
    sources: Sequence[Place],
    targets: Sequence[Place],
    pairs: Pairs,
    split: Split,
    seed: int,
    progress: bool,
    max_tokens: int,
    weights: Sequence[float] | None = None,
    keepers: Sequence[RowKeeper] = (),
) -> dict[tuple[str, str], Sums]:
    """One pass over the pairs: the sums of every pair of hook points."""
    cells = Cells.of(split, weights)

    def each(batch: PairedRows) -> None:
        for keep in keepers:
            keep(batch)

    gathered = gather(sources, targets, pairs, cells.split, seed, progress, max_tokens, each)
    read = {}
    for s in sources:
        for t in targets:
            key = (s.point.name, t.point.name)
            folds = cells.merge(gathered.folds(*key))
            read[key] = gathered.sums(s, t, folds, pairs, split)
    return read


def _embeddings(source: Place, target: Place) -> tuple[Tensor, Tensor]:
    if isinstance(source, Site) and isinstance(target, Site):
        return shared_embeddings(source.model, target.model)
    raise InputError(
        "method: this one maps the models' embeddings, which a store does not hold",
        got="two stores",
        valid="sites of two loaded models",
        hint="pass model.at(hook_point) for both",
    )


def _keepers(
    sources: Sequence[Place],
    targets: Sequence[Place],
    pairs: Pairs,
    split: Split,
    method: Method,
) -> dict[tuple[str, str], RowKeeper]:
    """Collectors of training rows, for methods that read rows, within `ROW_BYTES` in all."""
    if method.reads != "rows":
        return {}
    fold = torch.tensor(split.fold)
    width = sources[0].space.d_model + targets[0].space.d_model
    kept = sample_texts(
        pairs.n_pairs,
        pairs.hashes,
        fold < split.n_folds,
        ROW_BYTES // (4 * width * len(sources) * len(targets)),
    )
    return {
        (s.point.name, t.point.name): RowKeeper(s.point.name, t.point.name, kept, fold)
        for s in sources
        for t in targets
    }


def _counted(weights: Sequence[float] | None) -> dict[str, Any]:
    """How many texts had each weight, for the settings of the map."""
    if weights is None:
        return {}
    return {"weights": {f"{w:g}": n for w, n in sorted(Counter(map(float, weights)).items())}}


def _check_weights(weights: Any, pairs: Pairs, method: Method) -> None:
    if weights is None:
        return
    if isinstance(pairs, StorePairs):
        raise InputError(
            "weights: stores keep their texts in an order of their own",
            got="two stores, and weights",
            valid="two stores alone",
            hint="capture the task's texts apart: fit_sums(collect(a, b) + "
            "collect(task_a, task_b).weighted(10))",
        )
    n_texts = len(pairs.hashes)
    given = list(weights) if isinstance(weights, Iterable) else [weights]
    if len(given) != n_texts or not all(
        isinstance(w, Real) and 0 < float(w) < float("inf") for w in given
    ):
        raise InputError(
            "weights: one positive number for each text",
            got=f"{len(given)} for {n_texts} texts: {str(given)[:60]}",
            valid=f"{n_texts} finite numbers above 0",
            hint="leave a text out instead of giving it weight 0",
        )
    if method.reads != "sums":
        raise InputError(
            "weights: only methods that read sums can weigh texts",
            got=f"method {method.name!r}, which reads {method.reads}",
            valid="a method such as ridge",
            hint="leave weights out, or repeat the texts that count more",
        )
