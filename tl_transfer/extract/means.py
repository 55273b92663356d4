"""Mean difference: the plainest steering vector, and the one that is hardest to beat."""

from collections.abc import Sequence
from typing import Any

from tl_transfer.extract.contrast import Contrast, Positions, read_contrast, read_contrasts
from tl_transfer.extract.steerability import steerability
from tl_transfer.models.surface import Site
from tl_transfer.vectors import SteeringVector, VectorSet


def mean_difference(
    source: Site | Contrast,
    *,
    positive: Sequence[Any] | None = None,
    negative: Sequence[Any] | None = None,
    positions: Positions = "mean",
) -> SteeringVector:
    """Mean activation of positive texts minus that of negative ones (Rimsky et al. 2024).

    Args:
        source: Model and hook point, ``model.at("blocks.9.hook_resid_post")``, or a contrast.
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
        positions: Token of each text that is read; see `read_contrasts`.

    Returns:
        A vector from the negative to the positive mean. Its provenance holds counts, text hashes,
        the check of the texts, and statistics on texts that were left out (`steerability`).

    Raises:
        InputError: empty lists, a text on both sides, or texts too short to read.
    """
    contrast = read_contrast(source, positive=positive, negative=negative, positions=positions)
    statistics = steerability(contrast.plus, contrast.minus, lambda a, b: a.mean(0) - b.mean(0))
    return SteeringVector(
        contrast.difference,
        contrast.space,
        contrast.median_norm,
        "mean_difference",
        {**contrast.provenance, **statistics},
        contrast.origin,
    )


def mean_differences(
    sites: Sequence[Site],
    *,
    positive: Sequence[Any],
    negative: Sequence[Any],
    positions: Positions = "mean",
) -> VectorSet:
    """`mean_difference` at several hook points of one model, from one pass over the texts.

    Args:
        sites: Model and hook points.
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
        positions: Token of each text that is read; see `read_contrasts`.
    """
    contrasts = read_contrasts(sites, positive=positive, negative=negative, positions=positions)
    return VectorSet.of(*(mean_difference(contrast) for contrast in contrasts.values()))
