"""FeatureRoutes: four ways to move a feature of a dictionary into another model, one interface.

=========== ====================================================================================
route       what the target gets
=========== ====================================================================================
live        the source reads beside the target; the feature is set there, decoded, mapped, and the
            difference is added (Oozeer et al. 2025, with the error term left alone)
direction   the decoder direction through the map, without intercept
match       the direction of the target's own feature that is active on the same words
fold        the direction of the same feature of a dictionary folded through the maps
=========== ====================================================================================

How strong a feature is in the target cannot be read off the source. It is estimated there, on texts
both models read: for a direction, by how much the target's coordinate rises for each unit of the
source feature's activation; for a feature of a dictionary of the target, by that feature's own
quantiles. Everything is fitted on some documents and scored on others.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder, SparseCodes
from tl_transfer.features.edit import require_feature
from tl_transfer.features.estimate import Estimate, correlation, slope
from tl_transfer.features.map import FeatureMap
from tl_transfer.features.moved import QUANTILES, MovedFeature
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.transfer import transfer
from tl_transfer.models.surface import Site
from tl_transfer.vectors import SteeringVector

ROUTES = ("live", "direction", "match", "fold")
#: Random features that are moved by the same route, as a floor.
N_RANDOM = 10


class FeatureRoutes:
    """Ways for the features of one dictionary into another model.

    Args:
        source: Site of the dictionary.
        target: Site the features go to.
        sae: The dictionary.
        texts: Texts both models read to estimate strengths and to score; or an `Estimate`.
        documents: Document of each text.
        mapper: Map from source to target; for the routes live and direction.
        target_sae: Dictionary of the target, with
        matches: what `match_features` found; for the route match.
        folded: The dictionary folded through the maps (`tl_transfer.fold_sae`); for the route fold.
        seed: Of the split and the random floors.
        progress: Show a progress bar.

    Attributes:
        routes: Those that can be taken with what was given.
    """

    def __init__(
        self,
        source: Site,
        target: Site,
        sae: Coder,
        *,
        texts: Sequence[Any] | Estimate,
        documents: Sequence[str] | None = None,
        mapper: Mapper | None = None,
        target_sae: Coder | None = None,
        matches: FeatureMap | None = None,
        folded: Coder | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        sae.require_space(source.space, "dictionary at the source site")
        for thing, name in ((target_sae, "target dictionary"), (folded, "folded dictionary")):
            if thing is not None:
                thing.require_space(target.space, f"{name} at the target site")
        if mapper is not None:
            mapper.source.require(source.space, "source site of this map")
            mapper.target.require(target.space, "target site of this map")
        if (target_sae is None) != (matches is None):
            raise InputError(
                "target_sae, matches: both or neither",
                got="one of them",
                valid="the target's dictionary and its FeatureMap",
                hint="match_features(correlate_features(...))",
            )
        if matches is not None and target_sae is not None:
            matches.require(sae, target_sae)
        self.source, self.target, self.sae = source, target, sae
        self.mapper, self.target_sae, self.matches, self.folded = (
            mapper,
            target_sae,
            matches,
            folded,
        )
        self._seed = seed
        self._rows = (
            texts
            if isinstance(texts, Estimate)
            else Estimate.read(
                source, target, texts, documents=documents, seed=seed, progress=progress
            )
        )
        given = {
            "live": mapper is not None,
            "direction": mapper is not None,
            "match": matches is not None,
            "fold": folded is not None,
        }
        self.routes = tuple(route for route in ROUTES if given[route])

    @cached_property
    def _codes(self) -> SparseCodes:
        return SparseCodes.encoded(self.sae, self._rows.x).cpu()

    @cached_property
    def _target_codes(self) -> dict[str, SparseCodes]:
        coders = {"match": self.target_sae, "fold": self.folded}
        return {
            route: SparseCodes.encoded(coder, self._rows.y).cpu()
            for route, coder in coders.items()
            if coder is not None
        }

    @cached_property
    def median_norm(self) -> float:
        """The target's unit of strength."""
        if self.mapper is not None:
            return self.mapper.target_norm
        return float(self._rows.y.norm(dim=-1).median())

    @cached_property
    def live_features(self) -> Int[Tensor, " feature"]:
        """Features active in ten training rows and more."""
        train = self._codes.rows((~self._rows.held_out).nonzero()[:, 0])
        counts = torch.bincount(train.feature.long(), minlength=self.sae.d_sae)
        return (counts >= 10).nonzero()[:, 0]

    def move(self, feature: int, route: str = "direction") -> MovedFeature:
        """Move one feature.

        Args:
            feature: Of the source's dictionary.
            route: One of `routes`.

        Raises:
            InputError: a route for which something was not given, a feature that is silent on the
                texts, or that has no match.
        """
        require_feature(self.sae, feature)
        self._require_route(route)
        z = self._codes.dense(torch.tensor([feature]))[:, 0]
        train = ~self._rows.held_out
        active = z[train][z[train] > 0]
        if len(active) < 10:
            raise InputError(
                "feature: hardly active on the texts, so its strength cannot be estimated",
                got=f"feature {feature} in {len(active)} of {int(train.sum())} training rows",
                valid="at least 10 rows",
                hint="pass texts in which it occurs, or take one of routes.live_features",
            )
        unit, reading, step, record = self._found(feature, route, z)
        base = self._rows.y[train & (z == 0)].double() @ unit.double()
        card = {
            "route": route,
            "feature": feature,
            "source": self.source.space.to_json(),
            "target": self.target.space.to_json(),
            "sae": self.sae.identity,
            "n_rows": len(z),
            "n_active": int((z > 0).sum()),
            "n_documents": len(self._rows.document.unique()),
            **record,
            "reading": self._rows.score(z, reading, seed=self._seed)
            | {"random": self._random(feature, route, z)},
        }
        vector = SteeringVector(
            unit.float() * step[0.9],
            self.target.space,
            self.median_norm,
            f"sae_feature by {route}",
            {name: card[name] for name in ("route", "feature", "sae", "source")},
        )
        coder, number = {
            "live": (self.sae, feature),
            "direction": (None, None),
            "match": (self.target_sae, record.get("target_feature")),
            "fold": (self.folded, feature),
        }[route]
        beside = (self.source.model, self.mapper) if route == "live" and self.mapper else None
        return MovedFeature(
            route,
            feature,
            vector,
            _quantiles(active),
            step,
            float(base.mean()) if len(base) else 0.0,
            card,
            coder,
            number,
            beside,
        )

    def shuffled(self, moved: MovedFeature) -> SteeringVector:
        """The same feature through the map fitted on shuffled pairs, as long as the moved one.

        Raises:
            InputError: there is no map, or it kept no control.
        """
        control = None if self.mapper is None else self.mapper.shuffled
        if control is None:
            raise InputError(
                "mapper: has no control on shuffled pairs",
                got=repr(self.mapper),
                valid="a map made by fit",
                hint="composed and loaded third-party maps have none",
            )
        direction = control.map_direction(self._direction(moved.feature).direction)
        return SteeringVector(
            direction / direction.norm() * moved.vector.norm,
            moved.vector.space,
            moved.vector.median_norm,
            "sae_feature by shuffled map",
            {"feature": moved.feature, "route": moved.route},
        )

    def _require_route(self, route: str) -> None:
        if route not in self.routes:
            needed = {
                "live": "mapper", "direction": "mapper",
                "match": "target_sae and matches", "fold": "folded",
            }  # fmt: skip
            raise InputError(
                "route: cannot be taken",
                got=repr(route),
                valid=", ".join(map(repr, self.routes)),
                hint=f"it needs {needed[route]}" if route in needed else "see FeatureRoutes",
            )

    def _direction(self, feature: int) -> SteeringVector:
        """The decoder row in the source; its unit of strength is not used."""
        direction = self.sae.directions[feature].detach().float().cpu()
        return SteeringVector(direction, self.source.space, 1.0, "sae_feature")

    def _unit(self, feature: int, route: str) -> tuple[Tensor, dict[str, Any]]:
        """Unit direction in the target, and what is to be said of it."""
        if route in ("live", "direction"):
            assert self.mapper is not None
            moved = transfer(self._direction(feature), self.mapper, norm="raw")
            kept = ("rule", "direction_r2", "direction_r2_ci95")
            record = {name: moved.provenance[name] for name in kept}
            return moved.unit, record | {"mapper": self.mapper.method}
        if route == "fold":
            assert self.folded is not None
            return _normal(self.folded.directions[feature]), {"folded": self.folded.identity}
        assert self.matches is not None and self.target_sae is not None
        match = next(iter(self.matches.map(feature)), None)
        if match is None or match.r is None:
            raise InputError(
                "feature: has no match in the target's dictionary",
                got=f"feature {feature}",
                valid="one of feature_map.source",
                hint="move it by direction, which every feature has",
            )
        record = {
            "target_feature": match.target,
            "match_r": match.r,
            "match_ci95": match.ci95 and list(match.ci95),
            "match_floor": max(match.shuffled or 0.0, match.random or 0.0, self.matches.floor),
            "target_sae": self.target_sae.identity,
        }
        return _normal(self.target_sae.directions[match.target]), record

    def _found(
        self, feature: int, route: str, z: Tensor
    ) -> tuple[Tensor, Tensor, dict[float, float], dict[str, Any]]:
        """Direction, what the target shows of the feature, its steps, and the record."""
        unit, record = self._unit(feature, route)
        train = ~self._rows.held_out
        if route in ("live", "direction"):
            reading = self._rows.y.double() @ unit.double()
            rise = slope(z[train], reading[train])
            record["slope"] = rise
            # Where the coordinate does not rise with the feature there is nothing to estimate:
            # then the mapped length has to do, and the card says so.
            mapped = self._mapped_length(feature)
            record["re_estimated"] = rise > 0
            each = rise if rise > 0 else mapped
            active = z[train & (z > 0)]
            return unit, reading, {q: a * each for q, a in _quantiles(active).items()}, record
        coder = self.target_sae if route == "match" else self.folded
        assert coder is not None
        number = record.get("target_feature", feature)
        reading = self._target_codes[route].dense(torch.tensor([number]))[:, 0]
        active = reading[train & (reading > 0)]
        record["n_active_target"] = int((reading > 0).sum())
        record["re_estimated"] = len(active) >= 10
        if len(active) < 10:  # silent there: as strong as in the source
            active = z[train & (z > 0)]
        length = float(coder.directions[number].float().norm())
        return unit, reading, {q: a * length for q, a in _quantiles(active).items()}, record

    def _mapped_length(self, feature: int) -> float:
        assert self.mapper is not None
        return float(self.mapper.map_direction(self._direction(feature).direction).norm())

    def _random(self, feature: int, route: str, z: Tensor) -> float:
        """Largest correlation of the feature with other features moved by the same route."""
        held = self._rows.held_out
        found = [-1.0]
        for other in self._others(feature, route):
            unit, record = self._unit(other, route)
            if route in ("live", "direction"):
                reading = self._rows.y[held].double() @ unit.double()
            else:
                number = record.get("target_feature", other)
                reading = self._target_codes[route].dense(torch.tensor([number]))[held, 0]
            found.append(correlation(z[held], reading))
        return max(found)

    def _others(self, feature: int, route: str) -> list[int]:
        pool = self.live_features
        if route == "match" and self.matches is not None:
            pool = pool[torch.isin(pool, self.matches.source)]
        pool = pool[pool != feature]
        generator = torch.Generator().manual_seed(self._seed + feature)
        order = torch.randperm(len(pool), generator=generator)[:N_RANDOM]
        return [int(i) for i in pool[order]]


def _normal(direction: Tensor) -> Tensor:
    return torch.nn.functional.normalize(direction.detach().float().cpu(), dim=0)


def _quantiles(active: Tensor) -> dict[float, float]:
    values = active.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return dict(zip(QUANTILES, values.tolist(), strict=True))
