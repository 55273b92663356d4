"""fold_sae: a whole SAE carried into another model's space through two affine maps.

With rows y of the target, g(y) = yD + d the backward map (target to source) and f(x) = xA + a the
forward one, the folded SAE encodes S(g(y)) and decodes f(x') (Chen et al. 2025, 2506.06609):
W_enc' = D W_enc, W_dec' = W_dec A, b_dec' = b_dec A + a, and every encoder bias takes what the
offsets leave. That chain is folded exactly, always. It is the source's SAE in the target when f
and g are each other's inverse and the target's activations are f of the source's; fitted maps are
neither, so how far the round trip is from the identity is said, and FVU is to be measured.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.mappers.base import AffineMap, Mapper
from tl_transfer.models.surface import Site
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.measure import fidelity
from tl_transfer.sae.rows import read_rows

#: Relative error of the round trips below which the two maps count as inverse.
EXACT = 1e-4


def fold_sae(
    sae: Dictionary,
    mapper: Mapper,
    *,
    backward: AffineMap | None = None,
    site: Site | None = None,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
) -> Dictionary:
    """The SAE in the target space of a map.

    Args:
        sae: A plain SAE of the map's source space.
        mapper: An affine map from source to target.
        backward: The map from target to source; default, the one that was fitted with `mapper`.
        site: Target model and hook point, with `texts`: measure FVU and L0 there.
        texts: Texts that neither the maps nor the SAE have seen.
        documents: Document of each.

    Returns:
        The folded SAE; ``origin["folded"]`` says whether it is ``exact``, the ``round_trip`` of the
        maps in each space (relative error of going there and back, on directions), and what was
        measured. Its decoder rows do not have unit length.

    Raises:
        SpaceError: the SAE is not of the source space, or the two maps do not fit together.
        InputError: an SAE or a map that cannot be folded, by name.
    """
    sae.require_space(mapper.source, "SAE and map")
    if not isinstance(mapper, AffineMap):
        raise InputError(
            f"mapper: a {type(mapper).__name__} ({mapper.method}) cannot be folded into weights",
            got=type(mapper).__name__,
            valid="an affine map",
            hint='fit(..., method="ridge"); a direction goes through any map: transfer',
        )
    back = mapper.backward if backward is None else backward
    if back is None:
        raise InputError(
            "backward: the encoder needs a map from target to source",
            got=f"a {mapper.method} map without one",
            valid="a map fitted with backward=True, or backward=",
            hint="fit it again with backward=True (the sums are the same, so it is quick)",
        )
    mapper.target.require(back.source, "forward map, then backward map")
    mapper.source.require(back.target, "backward map, then forward map")
    coder = _folded(_require_foldable(sae), mapper, back)
    trips = round_trips(mapper, back)
    folded: dict[str, Any] = {
        "from": sae.identity,
        "source": mapper.source.to_json(),
        "maps": [mapper.method, back.method],
        "round_trip": trips,
        "exact": max(trips.values()) <= EXACT,
        "measured": None,
    }
    found = replace(
        Dictionary.of(coder, origin={"folded": folded}),
        architecture=sae.architecture,
        hook_point=mapper.target.hook_point,
        space=mapper.target,
    )
    if site is not None and texts is not None:
        site.space.require(mapper.target, "site and map")
        rows = read_rows(site, texts, documents=documents)
        folded["measured"] = fidelity(found, rows.x, rows.document).to_dict()
    return found


def round_trips(forward: AffineMap, backward: AffineMap) -> dict[str, float]:
    """Relative error |AD - 1| / |1| of going there and back, in the source and in the target."""
    a, d = forward.weight.double(), backward.weight.double()
    return {"source": _off(a @ d), "target": _off(d @ a)}


def _off(product: Tensor) -> float:
    one = torch.eye(len(product), dtype=product.dtype, device=product.device)
    return float((product - one).norm() / one.norm())


def _folded(coder: SparseCoder, forward: AffineMap, backward: AffineMap) -> SparseCoder:
    """In float64, with the new decoder bias at the input: it is near the mean of the target."""
    a, d = forward.weight.double().cpu(), backward.weight.double().cpu()
    w_enc = coder.W_enc.double().cpu()
    b_dec = coder.b_dec.double().cpu() @ a + forward.bias.double().cpu()
    left = b_dec @ d + backward.bias.double().cpu() - coder.offset.double().cpu()
    shift = left @ w_enc
    bias, gate = coder.b_enc.double().cpu() + shift, None
    if coder.activation == "gated":
        assert coder.b_gate is not None and coder.r_mag is not None
        bias = coder.b_enc.double().cpu() + shift * coder.r_mag.double().cpu().exp()
        gate = (coder.b_gate.double().cpu() + shift).float()
    return replace(
        coder,
        W_enc=(d @ w_enc).float(),
        b_enc=bias.float(),
        W_dec=(coder.W_dec.double().cpu() @ a).float(),
        b_dec=b_dec.float(),
        offset=b_dec.float(),
        b_gate=gate,
    )


def _require_foldable(sae: Dictionary) -> SparseCoder:
    coder = sae.coder
    if not isinstance(coder, SparseCoder):
        raise InputError(
            f"sae: an encoder of the kind {sae.architecture} is not affine before its activation",
            got=repr(sae),
            valid="standard, topk, abstopk, jumprelu (batchtopk, matryoshka), gated",
            hint="move single directions: transfer(sae_feature(...), mapper)",
        )
    if coder.row_norm != "none":
        raise InputError(
            f"sae: normalises every row ({coder.row_norm}), which no affine map commutes with",
            got=repr(sae),
            valid="an SAE of raw activations, or of activations scaled by a constant",
            hint="move single directions: transfer(sae_feature(...), mapper)",
        )
    return coder
