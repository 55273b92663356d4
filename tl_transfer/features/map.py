"""FeatureMap: which feature of one dictionary is which of another, and how well that holds."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder, space_of
from tl_transfer.space import ActivationSpace

#: Held-out correlation from which two features are said to be one (methods of the field use 0.5).
SAME = 0.5


@dataclass(frozen=True)
class Match:
    """Two features and how they go together; correlations are held out unless it is said.

    Attributes:
        source: Feature of the source's dictionary.
        target: Feature of the target's.
        r: Correlation on held-out documents; None for a candidate that is no match.
        ci95: Its interval over documents; None with fewer than two.
        r_train: Correlation on the documents it was chosen on.
        shuffled: Largest correlation of the same pair on wrongly paired rows (five turns).
        random: Largest correlation of the source feature with a random target feature that fires
            about as often (five draws).
        n_active: Held-out rows in which the source feature is active.
        above_floor: Whether the lower end of the interval is above both floors, and above 95 % of
            what matching on wrong pairs gives.
    """

    source: int
    target: int
    r: float | None
    ci95: tuple[float, float] | None
    r_train: float
    shuffled: float | None = None
    random: float | None = None
    n_active: int | None = None
    above_floor: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class FeatureMap:
    """Features of two dictionaries that are active on the same words.

    Attributes:
        source_space: Where the source's dictionary reads.
        target_space: Where the target's does.
        source_sae: Fingerprint of the source's dictionary.
        target_sae: Fingerprint of the target's.
        method: ``"mutual"`` or ``"assignment"``.
        source: Matched source features, rising.
        target: Their partners.
        r_train: Correlations on the training documents.
        r: Correlations on the held-out documents.
        ci95: Their intervals over documents.
        shuffled: The same pairs on wrongly paired held-out rows, five times.
        random: The source features with random partners on the held-out rows, five times.
        n_active: Held-out rows in which each source feature is active.
        candidates: For every source feature its most correlated target features.
        candidate_r: Their training correlations; -inf for silent features.
        live_source: Features active often enough to be matched.
        live_target: The same of the target.
        mass: Share of each source feature in the sum of squared activations.
        n_rows: Training rows, and held-out rows.
        n_documents: Held-out documents.
        procedure: Held-out correlations of what the same procedure matches on wrong pairs.
    """

    source_space: ActivationSpace
    target_space: ActivationSpace
    source_sae: str
    target_sae: str
    method: str
    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    r_train: Float[Tensor, " pair"]
    r: Float[Tensor, " pair"]
    ci95: Float[Tensor, "pair 2"]
    shuffled: Float[Tensor, "pair draw"]
    random: Float[Tensor, "pair draw"]
    n_active: Int[Tensor, " pair"]
    candidates: Int[Tensor, "d_source candidate"]
    candidate_r: Float[Tensor, "d_source candidate"]
    live_source: Bool[Tensor, " d_source"]
    live_target: Bool[Tensor, " d_target"]
    mass: Float[Tensor, " d_source"]
    n_rows: tuple[int, int]
    n_documents: int
    procedure: Float[Tensor, " wrong"]

    def __len__(self) -> int:
        return len(self.source)

    def map(self, feature: int) -> tuple[Match, ...]:
        """What corresponds to a source feature: its match first, then candidates that are none.

        Candidates are no matches because they are better correlated with another feature; only
        their training correlation is known. A silent feature has neither.

        Raises:
            InputError: no such feature.
        """
        if not 0 <= feature < len(self.candidates):
            raise InputError(
                "feature: out of range",
                got=feature,
                valid=f"0 to {len(self.candidates) - 1}",
                hint="features are counted from 0",
            )
        place = (self.source == feature).nonzero()[:, 0]
        matched = [self[int(i)] for i in place]
        taken = {match.target for match in matched}
        others = [
            Match(feature, target, None, None, r)
            for target, r in zip(
                self.candidates[feature].tolist(), self.candidate_r[feature].tolist(), strict=True
            )
            if target not in taken and r > 0
        ]
        return (*matched, *others)

    def __getitem__(self, place: int) -> Match:
        """The match at a place of the list (not that of a feature: see `map`)."""
        low, high = self.ci95[place].tolist()
        return Match(
            source=int(self.source[place]),
            target=int(self.target[place]),
            r=float(self.r[place]),
            ci95=None if low != low else (low, high),
            r_train=float(self.r_train[place]),
            shuffled=float(self.shuffled[place].max()),
            random=float(self.random[place].max()),
            n_active=int(self.n_active[place]),
            above_floor=bool(self.above_floor[place]),
        )

    @property
    def best(self) -> tuple[Match, ...]:
        """All matches above their floors, by falling lower end of the interval."""
        order = self.ci95[:, 0].nan_to_num(-1.0).argsort(descending=True)
        return tuple(self[i] for i in order.tolist() if bool(self.above_floor[i]))

    @property
    def floor(self) -> float:
        """What 95 % of the matches made on wrong pairs do not exceed."""
        return _quantile(self.procedure, 0.95)

    @property
    def above_floor(self) -> Bool[Tensor, " pair"]:
        """Whether the interval of each match is above all its floors."""
        own = torch.cat([self.shuffled, self.random], dim=1).amax(1)
        floor = own.clamp(min=max(self.floor, 0.0))
        return self.ci95[:, 0].nan_to_num(-1.0) > floor

    @property
    def summary(self) -> dict[str, Any]:
        """Coverage and floors in numbers (JSON).

        ``coverage`` is the share of live source features that have a match above its floors of
        held-out correlation 0.5 and more; ``mass`` is their share in the sum of squared
        activations, which counts a feature by how much it is used.
        """
        good = self.above_floor & (self.r >= SAME)
        live = int(self.live_source.sum())
        return {
            "method": self.method,
            "rows": {"train": self.n_rows[0], "held_out": self.n_rows[1]},
            "held_out_documents": self.n_documents,
            "features": {"source": len(self.live_source), "target": len(self.live_target)},
            "live": {"source": live, "target": int(self.live_target.sum())},
            "matches": len(self),
            "above_floor": int(self.above_floor.sum()),
            "coverage": float(good.sum()) / max(live, 1),
            "mass": float(self.mass[self.source[good]].sum()),
            "at_least": {
                f"{r:g}": int((self.above_floor & (self.r >= r)).sum()) for r in (0.3, 0.5, 0.7)
            },
            "r": _spread(self.r),
            "r_train": _spread(self.r_train),
            "floors": {
                "shuffled": _spread(self.shuffled.flatten()),
                "random": _spread(self.random.flatten()),
                "procedure": {**_spread(self.procedure), "matches": len(self.procedure)},
            },
        }

    def require(self, source: Coder, target: Coder) -> None:
        """Refuse dictionaries that this map was not made with.

        Args:
            source: The source's dictionary.
            target: The target's.

        Raises:
            SpaceError: another model or hook point.
            InputError: another dictionary there.
        """
        for side, space, identity, coder in (
            ("source", self.source_space, self.source_sae, source),
            ("target", self.target_space, self.target_sae, target),
        ):
            space.require(space_of(coder), f"{side} dictionary of this feature map")
            if coder.identity != identity:
                raise InputError(
                    f"{side} dictionary: is not the one this feature map was made with",
                    got=coder.identity[:16],
                    valid=identity[:16],
                    hint="load that dictionary, or match anew",
                )

    def __repr__(self) -> str:
        s = self.summary
        r, floors = s["r"], s["floors"]
        return "\n".join(
            [
                f"FeatureMap({self.method}: {self.source_space.model} "
                f"{self.source_space.hook_point} -> {self.target_space.model} "
                f"{self.target_space.hook_point})",
                f"  {len(self)} matches of {s['live']['source']} live source features "
                f"({s['features']['source']} in all) and {s['live']['target']} of the target",
                f"  held-out r: median {r['median']:.2f}, 95 % below {r['q95']:.2f}; "
                f"floors (95 % below): shuffled rows {floors['shuffled']['q95']:.2f}, random "
                f"partner {floors['random']['q95']:.2f}, matched on wrong pairs "
                f"{floors['procedure']['q95']:.2f}",
                f"  coverage at r >= {SAME}: {s['coverage']:.1%} of live features, "
                f"{s['mass']:.1%} of squared activation",
                f"  {s['rows']['train']} training rows, {s['rows']['held_out']} held-out rows of "
                f"{s['held_out_documents']} documents",
            ]
        )


def _quantile(values: Tensor, q: float) -> float:
    return float(values.double().quantile(q)) if len(values) else 0.0


def _spread(values: Tensor) -> dict[str, float]:
    return {
        name: _quantile(values, q) for name, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95))
    }


_TENSORS = (
    "source", "target", "r_train", "r", "ci95", "shuffled", "random", "n_active", "candidates",
    "candidate_r", "live_source", "live_target", "mass", "procedure",
)  # fmt: skip
_FIELDS = ("source_sae", "target_sae", "method", "n_documents")


def pack_features(features: FeatureMap) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors; `persistence` writes the file."""
    header = {
        "kind": "feature_map",
        "source_space": features.source_space.to_json(),
        "target_space": features.target_space.to_json(),
        "n_rows": list(features.n_rows),
        **{name: getattr(features, name) for name in _FIELDS},
    }
    return header, {name: getattr(features, name) for name in _TENSORS}


def unpack_features(header: dict[str, Any], tensors: dict[str, Tensor]) -> FeatureMap:
    """Inverse of `pack_features`; a missing part raises KeyError or TypeError."""
    train, held_out = header["n_rows"]
    parts: dict[str, Any] = {name: header[name] for name in _FIELDS}
    return FeatureMap(
        source_space=ActivationSpace.from_json(header["source_space"]),
        target_space=ActivationSpace.from_json(header["target_space"]),
        n_rows=(train, held_out),
        **parts | {name: tensors[name] for name in _TENSORS},
    )
