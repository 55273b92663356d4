"""Networks with one hidden layer of rectified units: the paper's recipe, and ours.

The paper (Oozeer et al. 2025, table 22): ReLU(x W1 + b1) W2 + b2 with int(sqrt(d_s d_t)) hidden
units on raw activations, mean squared error over the tokens that are not padding, AdamW at 1e-4,
three epochs of batches of 16 texts, gradients of four batches averaged. With raw activations
every weight can move about 1e-4 an update, while massive dimensions have means of hundreds: the
result measures the optimiser (`docs/results/mappers.md`).

Ours: both spaces standardised, f(x) = xW + b + ReLU(..) W2 with W, b the closed form and W2 = 0 at
the start, so that training begins at the best affine map; the number of epochs, zero included, is
chosen on a left-out document fold. What is gained over the affine map is then evidence of
curvature, and nothing else is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.mappers.network import (
    checkpoint_of,
    draw_linear,
    draw_network,
    generator_of,
    identity_of,
)
from tl_transfer.mappers.procrustes import deviations
from tl_transfer.mappers.relu import fit_counts, forward
from tl_transfer.mappers.ridge import ridge
from tl_transfer.mappers.rows import Rows
from tl_transfer.mappers.solution import ReluSolution, Solution
from tl_transfer.mappers.train import Parameters, Schedule, Trainer
from tl_transfer.mappers.training import Training

#: Rows of one of our batches.
BATCH = 512
#: Epochs without an improvement on the left-out fold after which the search for their number ends.
PATIENCE = 3
MAX_EPOCHS = 40
LEARNING_RATE = 1e-3
PAPER = {"batch_texts": 16, "accumulate": 4, "learning_rate": 1e-4, "epochs": 3}


def autoencoder(
    training: Training,
    *,
    recipe: str = "ours",
    hidden: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    updates: int | None = None,
    batch_rows: int | None = None,
    strength: float | None = None,
) -> ReluSolution:
    """Train an autoencoder on the training rows.

    Args:
        training: Its rows, and its sums for the closed form.
        recipe: ``"ours"`` or ``"paper"``.
        hidden: Hidden units; default int(sqrt(d_source d_target)), as in the paper.
        epochs: Passes over the rows; default 3 for the paper, chosen on a document fold for ours.
        learning_rate: Default 1e-4 for the paper, 1e-3 for ours.
        updates: Paper only: number of updates instead of epochs (theirs made about 4,500).
        batch_rows: Rows of a batch instead of the recipe's (16 texts, four batches an update;
            512 rows for ours).
        strength: Ours only: ridge strength of the start; default, chosen on document folds.

    Raises:
        InputError: an unknown recipe, or options of the other one.
    """
    _require_amounts(
        epochs=epochs, learning_rate=learning_rate, updates=updates, batch_rows=batch_rows
    )
    rows = training.require_rows("autoencoder")
    hidden = int((rows.x.shape[1] * rows.y.shape[1]) ** 0.5) if hidden is None else hidden
    if hidden < 1:
        raise InputError(
            "hidden: no units", got=hidden, valid="1 or more", hint="leave it out for the paper's"
        )
    if recipe == "paper":
        if strength is not None:
            raise _not_for("strength", recipe)
        return _paper(training, rows, hidden, epochs, learning_rate, updates, batch_rows)
    if recipe != "ours":
        raise InputError(
            "recipe: unknown", got=repr(recipe), valid='"ours" or "paper"', hint="leave it out"
        )
    if updates is not None:
        raise _not_for("updates", recipe)
    return _ours(training, rows, hidden, epochs, learning_rate, batch_rows, strength)


def gradient_affine(
    training: Training,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    updates: int | None = None,
    batch_rows: int | None = None,
) -> Solution:
    """The paper's affine baseline: a linear layer trained like its autoencoder, on raw rows.

    A control: what it loses to `ols`, which solves the same problem, is the optimiser's.

    Args:
        training: Its rows.
        epochs: As for the paper's recipe of `autoencoder`.
        learning_rate: The same.
        updates: The same.
        batch_rows: The same.
    """
    _require_amounts(
        epochs=epochs, learning_rate=learning_rate, updates=updates, batch_rows=batch_rows
    )
    rows = training.require_rows("gradient_affine")
    d_source, d_target = rows.x.shape[1], rows.y.shape[1]
    start = draw_linear(d_source, d_target, ("weight", "bias"), generator_of(training.seed))
    options = _paper_options(epochs, learning_rate, updates, batch_rows)
    values = _train_paper(
        training, rows, start, lambda p, x: x @ p["weight"] + p["bias"], options, "affine"
    )
    return Solution(values["weight"].double(), values["bias"].double(), options)


def untrained_autoencoder(training: Training, *, hidden: int | None = None) -> ReluSolution:
    """Control: the paper's network as it is drawn, with the intercept that sends mean to mean."""
    m = training.total
    d_source, d_target = m.xy.shape
    hidden = int((d_source * d_target) ** 0.5) if hidden is None else hidden
    start = draw_network(d_source, hidden, d_target, generator_of(training.seed))
    rows = training.require_rows("untrained_autoencoder")
    start["bias"] = torch.zeros(d_target)
    mapped = torch.cat([forward(x.float(), **start) for x in rows.x.split(4096)])
    start["bias"] = (m.mean_y - mapped.double().mean(0)).float()
    return _solution(start, rows, {"hidden": hidden})


# -- the paper's recipe ----------------------------------------------------------------------------


def _paper(
    training: Training,
    rows: Rows,
    hidden: int,
    epochs: int | None,
    learning_rate: float | None,
    updates: int | None,
    batch_rows: int | None,
) -> ReluSolution:
    start = draw_network(rows.x.shape[1], hidden, rows.y.shape[1], generator_of(training.seed))
    options = _paper_options(epochs, learning_rate, updates, batch_rows)
    values = _train_paper(training, rows, start, lambda p, x: forward(x, **p), options, "paper")
    return _solution(values, rows, {"recipe": "paper", "hidden": hidden, **options})


def _paper_options(
    epochs: int | None, learning_rate: float | None, updates: int | None, batch_rows: int | None
) -> dict[str, Any]:
    if epochs is not None and updates is not None:
        raise InputError(
            "epochs, updates: two ways to say how long",
            got=f"epochs={epochs}, updates={updates}",
            valid="one of them",
            hint="leave one out",
        )
    options: dict[str, Any] = {
        "learning_rate": PAPER["learning_rate"] if learning_rate is None else learning_rate
    }
    if updates is None:
        options["epochs"] = PAPER["epochs"] if epochs is None else epochs
    else:
        options["updates"] = updates
    if batch_rows is not None:
        options["batch_rows"] = batch_rows
    return options


def _train_paper(
    training: Training,
    rows: Rows,
    start: Parameters,
    predict: Callable[[Parameters, Tensor], Tensor],
    options: dict[str, Any],
    phase: str,
) -> Parameters:
    size = options.get("batch_rows")

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = generator_of(training.seed, epoch)
        if size is None:
            return rows.by_texts(int(PAPER["batch_texts"]), generator)
        return rows.by_rows(size, generator)

    trainer = Trainer(
        start,
        predict,
        batches,
        Schedule(
            options.get("epochs", 10**9),
            options["learning_rate"],
            int(PAPER["accumulate"]) if size is None else 1,
            options.get("updates"),
        ),
        checkpoint=checkpoint_of(training, phase),
        identity=identity_of(phase, options, rows, training.seed),
        progress=training.progress,
    )
    trainer.run()
    return trainer.values()


# -- ours ------------------------------------------------------------------------------------------


def _ours(
    training: Training,
    rows: Rows,
    hidden: int,
    epochs: int | None,
    learning_rate: float | None,
    batch_rows: int | None,
    strength: float | None,
) -> ReluSolution:
    options: dict[str, Any] = {
        "recipe": "ours",
        "hidden": hidden,
        "learning_rate": LEARNING_RATE if learning_rate is None else learning_rate,
        "batch_rows": BATCH if batch_rows is None else batch_rows,
    }
    start = ridge(training, strength=strength)
    options["strength"] = start.options["strength"]
    path: list[dict[str, float]] = []
    if epochs is None:
        epochs, path = _choose_epochs(training, rows, options)
    network = _Standardised(training, start, options, rows, "final")
    network.trainer(epochs).run()
    return _solution(network.values(), rows, {**options, "epochs": epochs}, path)


def _choose_epochs(
    training: Training, rows: Rows, options: dict[str, Any]
) -> tuple[int, list[dict[str, float]]]:
    """Train on all folds but the last one; the epoch with the lowest error there, 0 included."""
    number, rest, _ = training.rests[-1]
    seen, unseen = rows.select(rows.fold != number), rows.select(rows.fold == number)
    if not len(unseen) or not len(seen):
        raise InputError(
            "rows: the left-out document fold has none, so the number of epochs cannot be chosen",
            got=f"{len(seen)} rows in the other folds, {len(unseen)} in fold {number}",
            valid="rows in every fold",
            hint="pass more texts, or epochs=",
        )
    inner = replace(training, folds=(rest,), bases={}, back_bases={})
    start = ridge(inner, strength=options["strength"])
    network = _Standardised(inner, start, options, seen, "choose")
    trainer = network.trainer(MAX_EPOCHS)
    variance = float((unseen.y.double() - unseen.y.double().mean(0)).square().sum())

    def score(parameters: Parameters) -> dict[str, float]:
        values = network.unstandardised(parameters)
        rest = (forward(unseen.x.float(), **values) - unseen.y.float()).double()
        return {
            "epochs": float(trainer.epoch),
            "fvu_validation": float(rest.square().sum()) / variance,
        }

    if not trainer.history:
        trainer.history.append(score(trainer.values()))
    trainer.run(score, lambda history: len(history) - 1 - _best(history) >= PATIENCE)
    return _best(trainer.history), list(trainer.history)


def _best(history: list[dict[str, float]]) -> int:
    """Number of epochs, from 0, with the lowest error."""
    return min(range(len(history)), key=lambda i: history[i]["fvu_validation"])


class _Standardised:
    """The residual network on standardised rows, and its parameters in raw units."""

    def __init__(
        self, training: Training, start: Solution, options: dict[str, Any], rows: Rows, phase: str
    ) -> None:
        m = training.total
        self._training, self._options, self._rows, self._phase = training, options, rows, phase
        self._mean_x, self._mean_y = m.mean_x, m.mean_y
        # A dimension that does not vary has nothing to say: its deviation is set to one.
        self._sx, self._sy = (_floor(deviations(s, m.n)) for s in (m.xx, m.yy))
        network = draw_network(
            m.xy.shape[0], options["hidden"], m.xy.shape[1], generator_of(training.seed)
        )
        weight = start.weight * self._sx[:, None] / self._sy
        self._start = {
            **network,
            "w_out": torch.zeros_like(network["w_out"]),
            "bias": torch.zeros_like(network["bias"]),
            "weight": weight.float(),
        }
        self._trainer: Trainer | None = None

    def trainer(self, epochs: int) -> Trainer:
        """Ready to run, at its checkpoint if there is one."""
        seed, size = self._training.seed, self._options["batch_rows"]
        mean_x, mean_y = self._mean_x.float(), self._mean_y.float()
        sx, sy = self._sx.float(), self._sy.float()

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in self._rows.by_rows(size, generator_of(seed, epoch)):
                yield (x - mean_x) / sx, (y - mean_y) / sy

        def predict(p: Parameters, x: Tensor) -> Tensor:
            return forward(x, **p)

        identity = identity_of(self._phase, {**self._options, "epochs": epochs}, self._rows, seed)
        self._trainer = Trainer(
            self._start,
            predict,
            batches,
            Schedule(epochs, self._options["learning_rate"]),
            checkpoint=checkpoint_of(self._training, self._phase),
            identity=identity,
            progress=self._training.progress,
        )
        return self._trainer

    def values(self) -> Parameters:
        """Parameters for raw activations."""
        assert self._trainer is not None
        return self.unstandardised(self._trainer.values())

    def unstandardised(self, p: Parameters) -> Parameters:
        """Fold the standardisation into the weights: f takes and gives raw activations."""
        q = {name: value.double() for name, value in p.items()}
        w_in = q["w_in"] / self._sx[:, None]
        weight = q["weight"] / self._sx[:, None] * self._sy
        return {
            "w_in": w_in.float(),
            "b_in": (q["b_in"] - self._mean_x @ w_in).float(),
            "w_out": (q["w_out"] * self._sy).float(),
            "bias": (q["bias"] * self._sy + self._mean_y - self._mean_x @ weight).float(),
            "weight": weight.float(),
        }


# -- shared ----------------------------------------------------------------------------------------


def _solution(
    values: Parameters,
    rows: Rows,
    options: dict[str, Any],
    path: list[dict[str, float]] | None = None,
) -> ReluSolution:
    active, points = fit_counts(values["w_in"], values["b_in"], rows.x)
    return ReluSolution({**values, "active": active, "points": points}, options, path or [])


def _floor(deviation: Tensor) -> Tensor:
    return torch.where(deviation > deviation.max() * 1e-9, deviation, 1.0)


def _require_amounts(**options: Any) -> None:
    """No epoch is the start itself; of the rest there must be something."""
    for name, value in options.items():
        least = 0 if name in ("epochs", "updates") else None
        if value is not None and (value < 0 or (least is None and not 0 < value < float("inf"))):
            raise InputError(
                f"{name}: not an amount",
                got=value,
                valid="0 or more" if least == 0 else "a finite number above 0",
                hint="leave it out for the recipe's",
            )


def _not_for(option: str, recipe: str) -> InputError:
    return InputError(
        f"{option}: not an option of this recipe",
        got=f"recipe={recipe!r}",
        valid="the other recipe",
        hint="leave it out",
    )
