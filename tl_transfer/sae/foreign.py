"""ForeignCoder: somebody else's SAE object, asked instead of read, after its decoder was tried out.

Whatever has ``encode``, ``decode`` and ``W_dec`` will do if its decoder is affine in the codes. The
directions are then measured, decode(one unit of i) - decode(0): so scales and normalisations that
its decoder applies are in them.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError

#: Features decoded together while directions are measured.
_CHUNK = 512
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class ForeignCoder:
    """An object with encode and decode, and what its decoder does.

    Attributes:
        sae: The object.
        directions: What one unit of each feature adds.
        bias: What is decoded from zeros.
        row_norm: ``"none"``: an object that needs more than the codes to decode is refused.
    """

    sae: Any
    directions: Float[Tensor, "d_sae d_model"]
    bias: Float[Tensor, " d_model"]
    row_norm: str = "none"

    @classmethod
    @torch.no_grad()
    def of(cls, sae: Any) -> "ForeignCoder":
        """Try out an object.

        Raises:
            InputError: it has no encode, decode and W_dec, or its decoder is not affine.
        """
        w_dec = getattr(sae, "W_dec", None)
        callables = all(callable(getattr(sae, name, None)) for name in ("encode", "decode"))
        if not callables or not isinstance(w_dec, Tensor) or w_dec.ndim != 2:
            raise InputError(
                "sae: not an SAE with one plain decoder",
                got=type(sae).__name__,
                valid="a folder, a (release, id), an SAE of sae-lens, or an object with encode, "
                "decode and W_dec of shape [d_sae, d_model]",
                hint="a SparseCoder holds the five tensors of a plain SAE",
            )
        d_sae = w_dec.shape[0]
        like: dict[str, Any] = {"dtype": w_dec.dtype, "device": w_dec.device}
        try:
            bias = sae.decode(torch.zeros(1, d_sae, **like))[0].float()
            parts = []
            for first in range(0, d_sae, _CHUNK):
                size = min(_CHUNK, d_sae - first)
                units = torch.zeros(size, d_sae, **like)
                units[torch.arange(size), torch.arange(first, first + size)] = 1.0
                parts.append(sae.decode(units).float() - bias)
            directions = torch.cat(parts)
            generator = torch.Generator().manual_seed(0)
            codes = torch.rand(4, d_sae, generator=generator).to(**like)
            decoded = sae.decode(codes).float()
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                "sae: its decoder does not take codes alone",
                got=f"{type(sae).__name__}: {type(error).__name__}: {error}"[:200],
                valid="decode([row, d_sae]) -> [row, d_model]",
                hint="an SAE that normalises each row by its own statistics can be passed as an "
                "SAE of sae-lens of a plain kind",
            ) from error
        expected = codes.float() @ directions + bias
        off = float((decoded - expected).norm() / expected.norm().clamp(min=1e-12))
        if directions.shape != w_dec.shape or off > _TOLERANCE:
            raise InputError(
                "sae: its decoder is not affine in the codes, so its features have no directions",
                got=f"{type(sae).__name__}: {tuple(directions.shape)}, relative error {off:.2g}",
                valid=f"{tuple(w_dec.shape)}, relative error at most {_TOLERANCE}",
                hint="use an SAE with a linear decoder",
            )
        return cls(sae, directions, bias)

    @classmethod
    def of_sae_lens(
        cls, sae: Any, cfg: Mapping[str, Any], *, input_scale: float | None
    ) -> "ForeignCoder":
        """An SAE of sae-lens whose encoder is not plain (matching pursuit), on raw activations.

        Raises:
            InputError: it normalises in a way that its decoder cannot undo from codes alone.
        """
        kind = cfg.get("normalize_activations") or "none"
        if kind == "expected_average_only_in" and input_scale is not None:
            sae = copy.deepcopy(sae)
            sae.fold_activation_norm_scaling_factor(input_scale)
            kind = "none"
        if kind != "none":
            raise InputError(
                f"normalize_activations: not for an SAE of the kind {cfg['architecture']}",
                got=repr(kind),
                valid="none, or expected_average_only_in with input_scale=",
                hint="fold it with sae-lens before saving",
            )
        return cls.of(sae)

    @property
    def identity(self) -> str:
        """SHA-256 over directions, bias, and codes of a few fixed rows: the encoder is not read."""
        digest = hashlib.sha256(type(self.sae).__name__.encode())
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(8, self.directions.shape[1], generator=generator)
        scale = self.directions.norm(dim=-1).mean().cpu()
        for tensor in (self.directions, self.bias, self.encode(rows * scale)):
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_sae"]:
        """Ask the object, in its own dtype and on its own device."""
        w_dec = self.sae.W_dec
        codes = self.sae.encode(x.to(w_dec.device, w_dec.dtype))
        return codes.to_dense().float().to(x.device)

    def decode(
        self, codes: Float[Tensor, "row d_sae"], at: Float[Tensor, "row d_model"] | None = None
    ) -> Float[Tensor, "row d_model"]:
        """From the measured directions."""
        return codes.float() @ self.directions.to(codes.device) + self.bias.to(codes.device)

    def to(self, device: torch.device | str) -> "ForeignCoder":
        """The directions on a device; the object stays where it is."""
        return replace(self, directions=self.directions.to(device), bias=self.bias.to(device))
