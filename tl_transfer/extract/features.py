"""Directions that are not made from contrasts: a feature of a sparse autoencoder, and chance."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.surface import Site
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.vectors import SteeringVector


def sae_feature(
    site: Site,
    sae: Any,
    feature: int,
    *,
    median_norm: float | None = None,
    texts: list[str] | None = None,
) -> SteeringVector:
    """Decoder row of a feature of a sparse autoencoder.

    Args:
        site: Model and hook point the autoencoder was trained on.
        sae: A `Dictionary`, an SAE of sae-lens, or anything with ``W_dec`` of shape
            [feature, d_model]. Where it can encode and decode, the direction is in the units of
            the raw activation, whatever the SAE does to its input.
        feature: Index of the feature.
        median_norm: Unit of strength at the site, if it is known.
        texts: Otherwise, texts over which it is measured.

    Returns:
        The row as it is: adding it once raises the activation of the feature by about one.

    Raises:
        InputError: no such feature, another width or hook point, or not exactly one of
            `median_norm` and `texts`.
        SpaceError: the SAE is known to be of other activations.
    """
    if all(callable(getattr(sae, name, None)) for name in ("encode", "decode")):
        sae = Dictionary.of(sae)
    decoder = _decoder_at(site, sae)
    if not 0 <= feature < len(decoder):
        raise InputError(
            "feature: out of range",
            got=feature,
            valid=f"0 to {len(decoder) - 1}",
            hint="features are counted from 0",
        )
    if (median_norm is None) == (texts is None):
        raise InputError(
            "median_norm, texts: exactly one is needed for the unit of strength",
            got="both" if texts is not None else "neither",
            valid="median_norm=..., or texts=[...] to measure it on",
            hint="mapper.source_norm has it where a map was fitted",
        )
    if texts is not None:
        median_norm = read_texts(site.model, [site.point], texts)[site.point.name].median_norm
    assert median_norm is not None
    return SteeringVector(
        decoder[feature].detach().float().cpu(),
        site.space,
        median_norm,
        "sae_feature",
        {
            "feature": feature,
            "sae": getattr(sae, "identity", type(sae).__name__),
            "n_features": len(decoder),
        },
    )


def _decoder_at(site: Site, sae: Any) -> Float[Tensor, "feature d_model"]:
    """The directions of an SAE, unless it is known to belong elsewhere."""
    if isinstance(sae, Dictionary) and sae.space is not None:
        sae.space.require(site.space, "SAE and site")
    decoder = getattr(sae, "W_dec", None)
    if not isinstance(decoder, Tensor) or decoder.ndim != 2:
        raise InputError(
            "sae: has no decoder",
            got=type(sae).__name__,
            valid="an object with W_dec of shape [feature, d_model]",
            hint="pass the autoencoder itself",
        )
    if decoder.shape[1] != site.model.d_model:
        raise InputError(
            "sae: wrong width for this model",
            got=f"W_dec {tuple(decoder.shape)}",
            valid=f"[feature, {site.model.d_model}]",
            hint="load the autoencoder that was trained on this model and hook point",
        )
    trained_on = _hook_of(sae)
    if trained_on is not None and site.model.hook_point(trained_on) != site.point:
        raise InputError(
            "sae: was trained on another hook point",
            got=trained_on,
            valid=site.point.name,
            hint=f"use model.at({trained_on!r})",
        )
    return decoder


def _hook_of(sae: Any) -> str | None:
    """Hook point an SAELens autoencoder says it was trained on, if it is one we know."""
    cfg = getattr(sae, "cfg", None)
    said = getattr(sae, "hook_point", None)
    name = (
        said
        or getattr(getattr(cfg, "metadata", None), "hook_name", None)
        or getattr(cfg, "hook_name", None)
    )
    return name if isinstance(name, str) and name.startswith("blocks.") else None


def random_directions(
    like: SteeringVector,
    n: int,
    *,
    seed: int = 0,
    covariance: Float[Tensor, "d_model d_model"] | None = None,
) -> list[SteeringVector]:
    """Random vectors of the same length in the same space: the control of every steering result.

    Args:
        like: The vector they are to be compared with.
        n: How many; twenty and more, since random directions differ.
        seed: Of a private generator.
        covariance: Of activations at that place: draw from N(0, covariance) and rescale. In an
            anisotropic stream these are the fair control: they lie where activations lie.
            None: uniform on the sphere.

    Returns:
        Vectors with the direction drawn and the rest taken from `like`, but for its texts.
    """
    d_model = like.space.d_model
    if covariance is None:
        units, kind = random_isotropic(d_model, n, seed=seed), "random_isotropic"
    else:
        units, kind = random_covariance(covariance, n, seed=seed), "random_covariance"
    return [
        SteeringVector(
            unit * like.norm, like.space, like.median_norm, kind, {"seed": seed, "index": index}
        )
        for index, unit in enumerate(units)
    ]


def random_isotropic(d_model: int, n: int, *, seed: int) -> Float[Tensor, "arm d_model"]:
    """Unit rows, uniform on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=-1)


def random_covariance(
    covariance: Float[Tensor, "d_model d_model"], n: int, *, seed: int
) -> Float[Tensor, "arm d_model"]:
    """Drawn from N(0, covariance), then normalised."""
    generator = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt()
    draws = torch.randn(n, len(covariance), generator=generator, dtype=torch.float64) @ root.T
    return torch.nn.functional.normalize(draws, dim=-1).float()
