"""What a fit on a corpus costs, from the shapes of the models: FLOP, bytes, and time per stage.

Counts follow from shapes and are exact to a few per cent; rates are the caller's, and ours are
assumptions about a GPU. `docs/concepts/billion_tokens.md` works through an example.
"""

import math
from dataclasses import dataclass
from typing import Any

#: Folds of a fit, the held-out one among them.
N_FOLDS = 6
#: Time of the streaming sums over that of the bare products X^T X, X^T Y and Y^T Y: measured, see
#: "streaming sums" in benchmarks/results/latest.json. Control and centring are in it.
SUMS_OVERHEAD = 1.3
#: Bytes of English text a token.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Body:
    """The part of a decoder that runs: everything before the hook point.

    Attributes:
        d_model: Width of the residual stream.
        d_mlp: Width of the MLP.
        n_layers: Blocks that run (the layer of the hook point plus one).
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        d_head: Width of a head.
        mlp_matrices: 3 for a gated MLP, 2 for a plain one.
    """

    d_model: int
    d_mlp: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    mlp_matrices: int = 3

    @classmethod
    def of_config(cls, config: Any, n_layers: int) -> "Body":
        """From a Hugging Face configuration, cut after some layers."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        heads = int(text.num_attention_heads)
        return cls(
            d_model=int(text.hidden_size),
            d_mlp=int(text.intermediate_size),
            n_layers=n_layers,
            n_heads=heads,
            n_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            d_head=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        )

    @property
    def n_parameters(self) -> int:
        """Weights that every token is multiplied with."""
        attention = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + self.mlp_matrices * self.d_model * self.d_mlp)

    def flop_per_token(self, context: float | int) -> float:
        """FLOP of one token in a text of `context` tokens: weights, and attention to its past."""
        attention = 4 * self.n_heads * self.d_head * context / 2
        return 2 * self.n_parameters + self.n_layers * attention


@dataclass(frozen=True)
class Machines:
    """Workers and the network between them; every rate is one that is reached, not a peak.

    Attributes:
        workers: GPUs, one worker each.
        forward_flops: FLOP a second of a forward pass on one of them.
        sums_flops: FLOP a second of float32 products on one of them.
        tokens_per_second: What one worker's CPU tokenises and pairs, for both models.
        read_bytes: Bytes a second that all workers together read from storage.
        driver_bytes: Bytes a second into the machine that merges.
        merge_bytes: Bytes a second of sums that it adds up.
        solve_flops: FLOP a second of float64 on its CPU.
    """

    workers: int = 64
    forward_flops: float = 300e12
    sums_flops: float = 40e12
    tokens_per_second: float = 100e3
    read_bytes: float = 1e9
    driver_bytes: float = 1.2e9
    merge_bytes: float = 2e9
    solve_flops: float = 500e9


@dataclass(frozen=True)
class CostPlan:
    """What a fit costs.

    Attributes:
        tokens: Tokens of text.
        n_units: Units of work.
        flop_per_token: Forward passes of both bodies, and the sums.
        sums_bytes: One set of sums: what a worker holds, and sends for each unit.
        sent_bytes: Over the network, in all.
        rows_bytes: What the same rows would take on a disk in bfloat16, for comparison.
        driver_bytes: Memory of the machine that merges.
        lost_seconds: Work that is repeated when a worker dies, on average.
        seconds: Stage -> time, if it had the machines to itself.
    """

    tokens: float
    n_units: int
    flop_per_token: dict[str, float]
    sums_bytes: float
    sent_bytes: float
    rows_bytes: float
    driver_bytes: float
    lost_seconds: float
    seconds: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The stage that decides: those of the main pass run at the same time."""
        return max(_TOGETHER, key=self.seconds.__getitem__)

    @property
    def total_seconds(self) -> float:
        """Wall time: the survey, the slowest stage of the main pass, and the solution."""
        seconds = self.seconds
        return seconds["survey"] + seconds[self.bottleneck] + seconds["solve"]

    def __str__(self) -> str:
        lines = [
            f"{self.tokens:.3g} tokens in {self.n_units} units: "
            f"{_time(self.total_seconds)}, of which the {self.bottleneck} decides",
            "  FLOP a token: "
            + ", ".join(f"{name} {flop:.3g}" for name, flop in self.flop_per_token.items()),
            f"  sums of one unit: {_bytes(self.sums_bytes)}; sent in all: "
            f"{_bytes(self.sent_bytes)}; memory where they are merged: "
            f"{_bytes(self.driver_bytes)}",
            f"  the rows themselves would take {_bytes(self.rows_bytes)}",
            f"  repeated when a worker dies: {_time(self.lost_seconds)} of its work",
        ]
        return "\n".join(
            [*lines, *(f"  {name:<9} {_time(value)}" for name, value in self.seconds.items())]
        )


#: Stages of the main pass, which overlap: the slowest decides.
_TOGETHER = ("tokenise", "forward", "sums", "send", "merge")


def plan_corpus(
    source: Body,
    target: Body,
    *,
    tokens: float | int,
    context: float | int = 512,
    unit_bytes: float | int = 16 << 20,
    machines: Machines | None = None,
) -> CostPlan:
    """What it costs to fit a map on so many tokens.

    Args:
        source: The source's body up to the hook point.
        target: The target's.
        tokens: Tokens of the corpus, about the same for both models.
        context: Length of a text in tokens.
        unit_bytes: As for `fit_corpus`.
        machines: Workers and rates.
    """
    machines = machines or Machines()
    d_source, d_target = source.d_model, target.d_model
    flop = {
        "source": source.flop_per_token(context),
        "target": target.flop_per_token(context),
        "sums": 2.0 * (d_source**2 + d_source * d_target + d_target**2) * SUMS_OVERHEAD,
    }
    n_units = max(1, math.ceil(tokens * BYTES_PER_TOKEN / unit_bytes))
    sums_bytes = 8.0 * N_FOLDS * (d_source**2 + d_target**2 + 2 * d_source * d_target)
    sent = n_units * sums_bytes
    workers = min(machines.workers, n_units)
    on_workers = {
        "tokenise": tokens / (workers * machines.tokens_per_second),
        "forward": tokens * (flop["source"] + flop["target"]) / (workers * machines.forward_flops),
        "sums": tokens * flop["sums"] / (workers * machines.sums_flops),
    }
    seconds = {
        "survey": tokens * BYTES_PER_TOKEN / machines.read_bytes,
        **on_workers,
        "send": sent / machines.driver_bytes,
        "merge": sent / machines.merge_bytes,
        # An eigenbasis a fold and a few products of the larger width.
        "solve": N_FOLDS * 30.0 * max(d_source, d_target) ** 3 / machines.solve_flops,
    }
    return CostPlan(
        tokens=tokens,
        n_units=n_units,
        flop_per_token=flop,
        sums_bytes=sums_bytes,
        sent_bytes=sent,
        rows_bytes=2.0 * tokens * (d_source + d_target),
        driver_bytes=4 * sums_bytes,
        lost_seconds=max(on_workers.values()) * workers / n_units / 2,
        seconds=seconds,
    )


def _time(seconds: float | int) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _bytes(n_bytes: float | int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
