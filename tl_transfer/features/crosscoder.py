"""Crosscoder: one dictionary of two models, with shared and exclusive latents told apart.

A latent is encoded from the paired activations of both models and decoded into each. Which model it
belongs to is read off the lengths of its two decoder rows (Lindsey et al. 2024). Three things make
that reading wrong, and are dealt with here: an L1 penalty shrinks the smaller row to nothing
(BatchTopK has no penalty; Minder et al. 2025); the model with the larger activations gets the
longer rows (both sides are centred and scaled to unit mean square); and a concept may sit in two
latents, one a model, that both look exclusive (so every exclusive latent is checked on held-out
rows: if its activation explains the other model as well, it is no exclusive one).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import SteeringVector

#: Share of the target's decoder row in the sum of both lengths: above, below: exclusive.
EXCLUSIVE = 0.1
#: Explained in the other model, against what the latent explains in its own: more is not exclusive.
PRESENT = 0.1
#: Steps without firing after which a latent is dead, and how many dead ones help at a time.
DEAD_AFTER, N_AUX = 200, 32

KINDS = ("shared", "source", "target", "mixed", "false exclusive", "silent")


@dataclass(frozen=True)
class Scaling:
    """Origin and scale of one side: x -> (x - mean) / scale.

    At the start of a training the mean of the rows, and a mean square length of 1; afterwards the
    origin is where no latent is on.
    """

    mean: Float[Tensor, " d"]
    scale: float

    @classmethod
    def of(cls, x: Float[Tensor, "row d"]) -> "Scaling":
        """From training rows."""
        mean = x.double().mean(0)
        return cls(mean.float(), float(((x.double() - mean) ** 2).sum(1).mean().sqrt()))

    def __call__(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Rows in scaled units."""
        return (x - self.mean) / self.scale

    def back(self, x: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
        """Inverse."""
        return x * self.scale + self.mean


@dataclass(frozen=True, eq=False, repr=False)
class Crosscoder:
    """A trained crosscoder.

    Attributes:
        encoder: Of the scaled activations of source and target, stacked.
        bias: Before the threshold.
        source: Decoder rows of the source, in scaled units.
        target: Decoder rows of the target, in scaled units.
        scalings: Of source and target.
        threshold: A latent is on when its activation times the length of its two rows together
            exceeds it: what BatchTopK kept in training, so that the codes of a row do not depend
            on its batch.
        card: Held-out scores, counts, settings (JSON).
    """

    encoder: Float[Tensor, "both latent"]
    bias: Float[Tensor, " latent"]
    source: Float[Tensor, "latent d_source"]
    target: Float[Tensor, "latent d_target"]
    scalings: tuple[Scaling, Scaling]
    threshold: float
    card: dict[str, Any]

    @property
    def length(self) -> Float[Tensor, " latent"]:
        """Length of the rows of both models together."""
        return torch.cat([self.source, self.target], dim=1).norm(dim=1)

    @property
    def target_share(self) -> Float[Tensor, " latent"]:
        """Length of the target's row over the sum: 0.5 is shared, 0 and 1 exclusive."""
        here, there = self.source.norm(dim=1), self.target.norm(dim=1)
        return there / (here + there).clamp(min=1e-12)

    def encode(
        self, x: Float[Tensor, "row d_source"], y: Float[Tensor, "row d_target"]
    ) -> Float[Tensor, "row latent"]:
        """Codes of paired activations."""
        both = torch.cat([self.scalings[0](x.float()), self.scalings[1](y.float())], dim=1)
        codes = (both @ self.encoder + self.bias).relu()
        return codes * (codes * self.length > self.threshold)

    def decode(
        self, codes: Float[Tensor, "row latent"]
    ) -> tuple[Float[Tensor, "row d_source"], Float[Tensor, "row d_target"]]:
        """Activations of both models."""
        here, there = self.scalings
        return here.back(codes @ self.source), there.back(codes @ self.target)

    def kinds(
        self, x: Float[Tensor, "row d_source"], y: Float[Tensor, "row d_target"]
    ) -> list[str]:
        """What each latent is, checked on rows that it was not trained on; one of `KINDS`.

        ``"false exclusive"`` is a latent whose decoder rows say that one model alone has it, while
        its activation explains the other model, too.
        """
        share, codes = self.target_share, self.encode(x, y).double()
        wrong = codes.roll(len(codes) // 2, 0)  # what chance explains of few rows
        present = []
        for scaling, rows in zip(self.scalings, (x, y), strict=True):
            scaled = scaling(rows.float()).double()
            present.append(_explained(codes, scaled) - _explained(wrong, scaled))
        found = []
        for i in range(len(share)):
            here, there = float(present[0][i]), float(present[1][i])
            if not bool((codes[:, i] > 0).any()):
                found.append("silent")
            elif EXCLUSIVE < share[i] < 1 - EXCLUSIVE:
                found.append("shared" if 0.3 <= share[i] <= 0.7 else "mixed")
            else:
                own, other = (here, there) if share[i] < 0.5 else (there, here)
                name = "source" if share[i] < 0.5 else "target"
                found.append("false exclusive" if other > PRESENT * own else name)
        return found

    def vector(
        self, latent: int, space: ActivationSpace, *, median_norm: float, side: str = "target"
    ) -> SteeringVector:
        """The direction of a latent in one of the models: a shared latent is a transfer by itself.

        Args:
            latent: Which.
            space: Of that model.
            median_norm: Its unit of strength.
            side: ``"source"`` or ``"target"``.
        """
        number = ("source", "target").index(side)
        row = (self.source, self.target)[number][latent] * self.scalings[number].scale
        record = {"latent": latent, "side": side, "target_share": float(self.target_share[latent])}
        return SteeringVector(row.float(), space, median_norm, "crosscoder", record)

    def __repr__(self) -> str:
        c = self.card
        return (
            f"Crosscoder({len(self.bias)} latents, {c['l0']:.1f} on a row; held-out FVU "
            f"{c['fvu']['source']:.3f} of the source, {c['fvu']['target']:.3f} of the target)"
        )


def train_crosscoder(
    x: Float[Tensor, "row d_source"],
    y: Float[Tensor, "row d_target"],
    held_out: tuple[Float[Tensor, "other d_source"], Float[Tensor, "other d_target"]],
    *,
    n_latents: int,
    k: int,
    steps: int = 2000,
    batch_rows: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Crosscoder:
    """Train a BatchTopK crosscoder on paired rows in memory.

    Args:
        x: Rows of the source.
        y: Rows of the target, paired.
        held_out: Paired rows of other documents, to score on.
        n_latents: Size of the dictionary.
        k: Latents on in a row, on average over a batch.
        steps: Updates.
        batch_rows: Rows of each.
        learning_rate: Of Adam, falling to zero over the last fifth.
        seed: Of the start and the batches.
        progress: Show a progress bar.

    Raises:
        InputError: rows that are not paired, or k beyond the number of latents.
    """
    if len(x) != len(y) or len(x) < batch_rows or not 0 < k <= n_latents:
        raise InputError(
            "x, y, k: cannot be trained on",
            got=f"{len(x)} and {len(y)} rows, k {k} of {n_latents}",
            valid=f"as many rows of both, {batch_rows} or more, and k from 1 to n_latents",
            hint="FeatureRoutes and Estimate.read give paired rows",
        )
    scalings = (Scaling.of(x), Scaling.of(y))
    both = torch.cat([scalings[0](x.float()), scalings[1](y.float())], dim=1)
    generator = torch.Generator().manual_seed(seed)
    model = _Training(both.shape[1], n_latents, generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.999))
    for step in tqdm(range(steps), desc="crosscoder", disable=not progress):
        left = (steps - step) / max(steps // 5, 1)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1.0, left)
        index = torch.randint(len(both), (batch_rows,), generator=generator)
        loss = model.loss(both[index], k)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    settings = {"n_latents": n_latents, "k": k, "steps": steps, "batch_rows": batch_rows,
                "learning_rate": learning_rate, "seed": seed}  # fmt: skip
    found = model.finished(scalings, x.shape[1], {"settings": settings})
    found.card.update(_scores(found, *held_out))
    return found


class _Training:
    """Parameters, and what BatchTopK and dead latents need to remember."""

    def __init__(self, width: int, n_latents: int, generator: torch.Generator) -> None:
        rows = torch.randn(n_latents, width, generator=generator)
        self.decoder = torch.nn.functional.normalize(rows, dim=1).requires_grad_()
        self.encoder = self.decoder.detach().T.clone().requires_grad_()
        self.bias = torch.zeros(n_latents, requires_grad=True)
        # What is there when no latent is on: not the mean, which holds what latents add on average.
        self.offset = torch.zeros(width, requires_grad=True)
        self.silent = torch.zeros(n_latents, dtype=torch.long)
        self.threshold = 0.0

    def parameters(self) -> list[Tensor]:
        return [self.decoder, self.encoder, self.bias, self.offset]

    def loss(self, both: Float[Tensor, "row both"], k: int) -> Tensor:
        """Squared error of the k best, plus what dead latents could explain of it."""
        both = both - self.offset
        codes = (both @ self.encoder + self.bias).relu()
        strength = (codes * self.decoder.norm(dim=1)).detach()
        least = strength.flatten().topk(k * len(both)).values[-1]
        kept = codes * (strength >= least.clamp(min=1e-12))
        rest = both - kept @ self.decoder
        error = (rest**2).sum(1).mean()
        self._remember(kept.detach(), float(least))
        dead = (self.silent > DEAD_AFTER).nonzero()[:, 0]
        if not len(dead):
            return error
        weak = codes[:, dead]
        top = weak.topk(min(N_AUX, len(dead)), dim=1)
        helped = torch.zeros_like(weak).scatter(1, top.indices, top.values) @ self.decoder[dead]
        return error + ((rest.detach() - helped) ** 2).sum(1).mean() / 32

    def _remember(self, kept: Tensor, least: float) -> None:
        on = (kept > 0).any(0)
        self.silent = torch.where(on, 0, self.silent + 1)
        self.threshold = 0.98 * self.threshold + 0.02 * least if self.threshold else least

    def finished(
        self, scalings: tuple[Scaling, Scaling], d_source: int, card: dict[str, Any]
    ) -> Crosscoder:
        decoder, offset = self.decoder.detach(), self.offset.detach()
        here, there = scalings
        return Crosscoder(
            self.encoder.detach(),
            self.bias.detach(),
            decoder[:, :d_source],
            decoder[:, d_source:],
            (
                Scaling(here.back(offset[:d_source]), here.scale),
                Scaling(there.back(offset[d_source:]), there.scale),
            ),
            self.threshold,
            card,
        )


@torch.no_grad()
def _scores(model: Crosscoder, x: Tensor, y: Tensor) -> dict[str, Any]:
    codes = model.encode(x, y)
    back = model.decode(codes)
    fvu = {
        name: float(((rows - found) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum())
        for name, rows, found in zip(
            ("source", "target"), (x.float(), y.float()), back, strict=True
        )
    }
    return {
        "fvu": fvu,
        "l0": float((codes > 0).sum(1).double().mean()),
        "silent": int((codes.sum(0) == 0).sum()),
        "n_rows": len(x),
    }


def _explained(
    codes: Float[Tensor, "row latent"], rows: Float[Tensor, "row d"]
) -> Float[Tensor, " latent"]:
    """Share of the variance of rows that each latent's activation explains alone."""
    centred = codes - codes.mean(0)
    rows = rows - rows.mean(0)
    square = (centred**2).sum(0).clamp(min=1e-300)
    return ((centred.T @ rows) ** 2).sum(1) / square / (rows**2).sum()
