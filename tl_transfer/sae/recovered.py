"""Loss recovered: the model goes on from the reconstruction, and keeps how much of its loss.

`tl_transfer.splice` with one model on both sides and a reconstruction in the place of the map: the
same positions, the same denominators (mean ablation), the same intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.mappers.base import AffineMap, Mapper
from tl_transfer.models.surface import Site
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.measure import Rebuild
from tl_transfer.splicing import Splice, splice


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction(Mapper):
    """A reconstruction as a map of a space into itself: it moves points and nothing else."""

    rebuild: Rebuild

    def map_points(self, x: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row d_target"]:
        """The reconstruction, in the caller's dtype."""
        rows = x.reshape(-1, x.shape[-1]).float()
        return self.rebuild(rows).to(x.dtype).reshape(x.shape)

    def tensors(self) -> dict[str, Tensor]:
        """None that are known."""
        return {}

    def held_out_residual(self) -> Float[Tensor, "d_target d_target"] | None:
        """Not kept."""
        return None

    def map_direction(
        self,
        v: Float[Tensor, "*row d_source"],
        *,
        at: Float[Tensor, "point d_source"] | None = None,
        rule: str | None = None,
    ) -> Float[Tensor, "*row d_target"]:
        """Not defined."""
        raise self._only_points()

    def jacobian(
        self, at: Float[Tensor, "point d_source"] | None = None
    ) -> Float[Tensor, "d_source d_target"]:
        """Not defined."""
        raise self._only_points()

    def _then(self, other: Mapper) -> Mapper:
        raise self._only_points()

    def _behind(self, first: AffineMap) -> Mapper:
        raise self._only_points()

    def _only_points(self) -> InputError:
        return InputError(
            "reconstruction: moves points alone",
            got=self.method,
            valid="map_points",
            hint="a feature's direction is Dictionary.directions",
        )


def loss_recovered(
    dictionary: Dictionary,
    site: Site,
    texts: Sequence[Any],
    *,
    median_norm: float,
    documents: Sequence[str] | None = None,
    others: dict[str, Rebuild] | None = None,
    progress: bool = True,
) -> Splice:
    """Loss of a model that goes on from the reconstructions of an SAE at one hook point.

    Args:
        dictionary: SAE of this site.
        site: Model and hook point (``resid_post``).
        texts: Texts that were not trained on.
        median_norm: Median norm of the rows: position 0 and rows over ten times it stay as they
            are in every arm.
        documents: Document of each text.
        others: More reconstructions, each an arm.
        progress: Show a progress bar.

    Returns:
        Arms ``mapped`` (the SAE), ``mean_ablation``, ``identity`` (recovers all: a check) and those
        of `others`.

    Raises:
        HookError: the hook point is not after a block.
    """
    on_device = dictionary.to(site.model.device)

    def arm(name: str, rebuild: Rebuild) -> Mapper:
        return Reconstruction(
            rebuild,
            source=site.space,
            target=site.space,
            source_norm=median_norm,
            target_norm=median_norm,
            method=name,
        )

    with torch.no_grad():
        return splice(
            arm("sae", on_device.reconstruct),
            site.model,
            site.model,
            texts,
            documents=documents,
            others={name: arm(name, rebuild) for name, rebuild in (others or {}).items()},
            progress=progress,
        )
