"""From sums to a map with its control, its way back and its score card."""

from dataclasses import replace
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.mappers.base import AffineMap, Mapper
from tl_transfer.mappers.compare import fvu_gap
from tl_transfer.mappers.cycle import cycle_fvu
from tl_transfer.mappers.registry import Method, solve
from tl_transfer.mappers.scorecard import HeldOut, score_card
from tl_transfer.mappers.sums import Sums
from tl_transfer.mappers.training import Training
from tl_transfer.statistics import PairedMoments


def scored_map(
    method: Method,
    sums: Sums,
    training: Training,
    *,
    backward: bool,
    options: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> Mapper:
    """Solve, solve again on wrong pairs and backwards, and score.

    Args:
        method: How to solve.
        sums: All that was read, with the held-out part.
        training: Its training part.
        backward: Also fit the map from target to source.
        options: Hyperparameters of the method; those left out are chosen.
        more: For the settings of the map.

    Raises:
        InputError: too few rows, or a map that is not finite.
    """
    solution = solve(method.name, training, **options)
    if backward:
        _require_rows_back(training.total)
    held_out = sums.held_out
    _require_held_out(held_out.moments)
    common: dict[str, Any] = {
        "source": sums.source,
        "target": sums.target,
        "source_norm": sums.norms[0].median(),
        "target_norm": sums.norms[1].median(),
        "fit_texts": sums.hashes,
        "settings": {
            "options": solution.options,
            "seed": training.seed,
            "n_folds": len(sums.folds),
            "tokens": sums.tokens,
            **(more or {}),
        },
        "held_out": held_out.moments,
        "held_out_rows": held_out,
    }
    # The control has the same hyperparameters: left to choose, it would shrink to nothing.
    wrong = solve(method.name, training.shuffled(), **solution.options)
    mapper = solution.build(held_out, **common, method=method.name)
    _require_finite(mapper)
    control = wrong.build(held_out, **common, method=f"{method.name} on shuffled pairs")
    card = score_card(
        mapper.map_points,
        control.map_points,
        training.total,
        held_out,
        affine=solution.affine,
        affine_control=wrong.affine,
        in_sample_fvu=solution.in_sample_fvu(training),
        pairing=sums.report,
        dropped=sums.dropped,
        n_documents={"train": len(sums.documents[0]), "test": len(sums.documents[1])},
        path=solution.path,
        spectra=training.spectra,
    )
    if method.name != "ridge":
        ridge = solve("ridge", training).build(**common, method="ridge")
        card["gap_to_ridge"] = fvu_gap(mapper, ridge)
    mapper = replace(
        mapper,
        shuffled=replace(control, scorecard={"held_out": card["shuffled"]}),
        backward=_backward(method, training, held_out, common, options) if backward else None,
    )
    if backward:
        card["cycle"] = {"fvu": cycle_fvu(mapper, None if solution.affine else held_out.x)}
    return replace(mapper, scorecard=card)


def _backward(
    method: Method,
    training: Training,
    held_out: HeldOut,
    common: dict[str, Any],
    options: dict[str, Any],
) -> AffineMap:
    """The same method from target to source, with its own choice of hyperparameters.

    Read directions need an affine way back: ridge, where the method itself is not affine.
    """
    name = method.back or method.name
    solution = solve(name, training.reversed(), **({} if method.back else options))
    test = held_out.moments.reversed()
    turned = {
        "source": common["target"],
        "target": common["source"],
        "source_norm": common["target_norm"],
        "target_norm": common["source_norm"],
        "settings": {**common["settings"], "options": solution.options},
        "held_out": test,
        "held_out_rows": None,
        "method": name,
    }
    back = solution.build(**{**common, **turned})
    assert isinstance(back, AffineMap) and solution.affine is not None
    return replace(back, scorecard={"held_out": {"fvu": test.fvu(*solution.affine)}})


def _require_finite(mapper: Mapper) -> None:
    bad = [name for name, tensor in mapper.tensors().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise InputError(
            f"method: {mapper.method} gave a map that is not finite",
            got=f"{', '.join(bad)} with options {mapper.settings['options']}",
            valid="options with which the fit converges",
            hint="a smaller learning_rate, or method='ridge', which has nothing to train",
        )


def _require_rows_back(train: PairedMoments) -> None:
    d_target = len(train.mean_y)
    if train.n <= d_target:
        raise InputError(
            "backward: too few training rows for the map from target to source",
            got=f"{train.n:g} aligned token pairs in the training documents, d_target {d_target}",
            valid=f"more than {d_target}, and better {20 * d_target}",
            hint="pass more or longer texts, or backward=False (no probe can be moved then)",
        )


def _require_held_out(test: PairedMoments) -> None:
    if test.n < 4:
        raise InputError(
            "texts: too few held-out rows to score the map",
            got=f"{test.n} rows",
            valid="at least 4, and better 1000",
            hint="pass more documents",
        )
