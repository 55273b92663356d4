"""What a fit reads from: sites of loaded models with texts, or two stores."""

from collections.abc import Sequence
from typing import Any

from tl_transfer.data.store import ActivationStore, StoreSite
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.models.pairs import ModelPairs, Pairs
from tl_transfer.models.stored import StorePairs
from tl_transfer.models.surface import Site

Place = Site | StoreSite


def one_place(given: Any, argument: str) -> Place:
    """One hook point; a store stands for its only one.

    Raises:
        InputError: the store has several, or it is something else.
    """
    if not isinstance(given, ActivationStore):
        return _require_place(given, argument)
    if len(given.spaces) > 1:
        raise InputError(
            f"{argument}: the store has several hook points",
            got=", ".join(given.spaces),
            valid="one of them",
            hint='pass store.at("resid_post@9"), or all of them to fit_grid',
        )
    return given.sites()[0]


def _require_place(given: Any, argument: str) -> Place:
    if isinstance(given, Site | StoreSite):
        return given
    raise InputError(
        f"{argument}: needs a hook point",
        got=f"{type(given).__name__}: {given!r:.80}",
        valid='model.at("resid_post@9"), or a store that tl_transfer.capture wrote',
        hint="load a model with load_model, a store with ActivationStore(folder)",
    )


def all_places(given: Any, argument: str) -> list[Place]:
    """Hook points of one model; a store stands for all of its own.

    Raises:
        InputError: there are none, or they are of several models or stores.
    """
    if isinstance(given, ActivationStore):
        given = given.sites()
    elif not isinstance(given, Sequence) or isinstance(given, str):
        given = [_require_place(given, argument)]
    places: list[Place] = [_require_place(place, argument) for place in given]
    owners = {id(p.store if isinstance(p, StoreSite) else p.model) for p in places}
    if len(owners) != 1:
        raise InputError(
            f"{argument}: all sites must be of one model",
            got=str(places),
            valid="hook points of one loaded model, or of one store",
            hint="call fit once for each model pair",
        )
    return places


def pairs_of(
    source: Sequence[Place],
    target: Sequence[Place],
    texts: Sequence[Any] | None,
    *,
    documents: Sequence[str] | None = None,
    tokens: Tokens | None = None,
) -> Pairs:
    """Paired rows of two models.

    Args:
        source: From `all_places`.
        target: From `all_places`.
        texts: What models read; stores have read theirs.
        documents: Document of each text.
        tokens: Which tokens models read; None: all of the content.

    Raises:
        InputError: a model beside a store, stores with texts, or models without.
    """
    stored = [isinstance(places[0], StoreSite) for places in (source, target)]
    if any(stored) != all(stored):
        raise InputError(
            "source, target: one is a store and the other a model",
            got=f"{source[0]} and {target[0]}",
            valid="two stores, or two sites with texts",
            hint="capture the texts of the store with the other model too",
        )
    if not all(stored):
        here = [place for place in source if isinstance(place, Site)]
        there = [place for place in target if isinstance(place, Site)]
        given = [] if texts is None else texts
        return ModelPairs(here, there, given, documents=documents, tokens=tokens)
    if texts is not None or documents is not None or tokens is not None:
        raise InputError(
            "texts, documents, tokens: stores have read theirs",
            got="two stores, and texts or a choice of tokens",
            valid="two stores alone",
            hint="leave them out, or pass sites of loaded models",
        )
    return StorePairs(
        [place for place in source if isinstance(place, StoreSite)],
        [place for place in target if isinstance(place, StoreSite)],
    )
