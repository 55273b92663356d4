"""SparseCoder: the encoder and decoder of the plain kinds of SAE, as tensors and nothing else.

One form for what sae-lens saves as standard, jumprelu (batchtopk and matryoshka end as this), topk,
abstopk and gated: z = act((n(x) - offset) W_enc + b_enc), x' = n'(z W_dec + b_dec), in float32.
n is a normalisation of each row by its own statistics, and n' undoes it; for most SAEs neither is
there. Whatever can be folded into the weights (a constant scale, decoder norms) is folded before.
"""

import copy
import hashlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError

#: What happens to the pre-activations.
ACTIVATIONS = ("relu", "jumprelu", "topk", "abstopk", "gated")
#: How a row is normalised by its own statistics before it is encoded.
ROW_NORMS = ("none", "layer_norm", "constant_norm_rescale")
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """Parameters of an SAE.

    Attributes:
        W_enc: Encoder.
        b_enc: Its bias; for ``"gated"``, that of the magnitudes.
        W_dec: Decoder.
        b_dec: Its bias.
        offset: Subtracted from the input: b_dec, or zeros.
        activation: One of `ACTIVATIONS`.
        k: Features kept in each row, for ``"topk"`` and ``"abstopk"`` (by size, sign kept).
        threshold: For ``"jumprelu"``: a feature is on when its pre-activation is above it.
        b_gate: For ``"gated"``: a feature is on when x W_enc + b_gate > 0.
        r_mag: For ``"gated"``: logarithm of the scale of its magnitude.
        row_norm: One of `ROW_NORMS`.
    """

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    offset: Float[Tensor, " d_model"]
    activation: str
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None
    b_gate: Float[Tensor, " d_sae"] | None = None
    r_mag: Float[Tensor, " d_sae"] | None = None
    row_norm: str = "none"

    def __post_init__(self) -> None:
        d_sae, d_model = self.W_dec.shape
        shapes = {
            "W_enc": (d_model, d_sae),
            "b_enc": (d_sae,),
            "b_dec": (d_model,),
            "offset": (d_model,),
            "threshold": (d_sae,),
            "b_gate": (d_sae,),
            "r_mag": (d_sae,),
        }
        for name, tensor in self.tensors().items():
            expected = shapes.get(name, (d_sae, d_model))
            if tuple(tensor.shape) != expected:
                raise InputError(
                    f"{name}: does not fit the decoder",
                    got=tuple(tensor.shape),
                    valid=f"{expected}, for W_dec {(d_sae, d_model)}",
                    hint="rows are activations: encoders are [d_model, d_sae]",
                )
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"{name}: has values that are not finite",
                    got=f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()}",
                    valid="finite numbers",
                    hint="the file is damaged, or training diverged",
                )
            object.__setattr__(self, name, tensor.detach().float().contiguous())
        self._require_complete()

    def _require_complete(self) -> None:
        needs: dict[str, dict[str, Any]] = {
            "jumprelu": {"threshold": self.threshold},
            "topk": {"k": self.k},
            "abstopk": {"k": self.k},
            "gated": {"b_gate": self.b_gate, "r_mag": self.r_mag},
        }
        if self.activation not in ACTIVATIONS or self.row_norm not in ROW_NORMS:
            raise InputError(
                "activation, row_norm: unknown",
                got=f"{self.activation!r}, {self.row_norm!r}",
                valid=f"{', '.join(ACTIVATIONS)}; {', '.join(ROW_NORMS)}",
                hint="pass an object with encode, decode and W_dec instead",
            )
        missing = [name for name, value in needs.get(self.activation, {}).items() if value is None]
        d_sae = self.W_dec.shape[0]
        if missing or (self.k is not None and not 1 <= self.k <= d_sae):
            raise InputError(
                f"{', '.join(missing) or 'k'}: needed by activation {self.activation!r}",
                got="nothing" if missing else self.k,
                valid=f"k from 1 to {d_sae}" if not missing else "a tensor [d_sae]; for k a count",
                hint="the configuration and the weights belong to different kinds of SAE",
            )

    def tensors(self) -> dict[str, Tensor]:
        """All parameters that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> "SparseCoder":
        """The same with its parameters on a device."""
        moved = copy.copy(self)  # not made anew: checking every value again would wait for them
        for name, tensor in self.tensors().items():
            object.__setattr__(moved, name, tensor.to(device))
        return moved

    @property
    def identity(self) -> str:
        """SHA-256 over parameters and settings."""
        digest = hashlib.sha256(f"{self.activation} {self.k} {self.row_norm}".encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def pre_activations(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_sae"]:
        """(n(x) - offset) W_enc, without the bias."""
        centred = _normalise(x.float(), self.row_norm)[0] - self.offset.to(x.device)
        return centred @ self.W_enc.to(x.device)

    def encode(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_sae"]:
        """Activation of every feature in every row."""
        strongest = self.strongest(x)
        if strongest is not None:
            feature, value = strongest
            dense = value.new_zeros(len(value), self.W_dec.shape[0])
            return dense.scatter_(-1, feature, value)
        pre, bias = self.pre_activations(x), self.b_enc.to(x.device)
        if self.activation == "gated":
            assert self.b_gate is not None and self.r_mag is not None
            on = pre + self.b_gate.to(x.device) > 0
            return torch.relu(pre * self.r_mag.to(x.device).exp() + bias) * on
        pre.add_(bias)
        if self.activation == "relu":
            return pre.relu_()
        assert self.threshold is not None
        return torch.relu(pre) * (pre > self.threshold.to(x.device))

    def strongest(
        self, x: Float[Tensor, "row d_model"]
    ) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]] | None:
        """The k features that each row keeps, in rising order, and their activations.

        An activation can be 0: that feature is not on. None for kinds that keep any number.
        """
        if self.activation not in ("topk", "abstopk"):
            return None
        assert self.k is not None
        # In place: at 16k features a copy costs as much as a tenth of the product.
        pre = self.pre_activations(x).add_(self.b_enc.to(x.device))
        order = pre.abs() if self.activation == "abstopk" else pre
        feature = order.topk(self.k, dim=-1, sorted=False).indices.sort(dim=-1).values
        value = pre.gather(-1, feature)
        return feature, value.relu_() if self.activation == "topk" else value

    def decode(
        self, codes: Float[Tensor, "row d_sae"], at: Float[Tensor, "row d_model"] | None = None
    ) -> Float[Tensor, "row d_model"]:
        """Rows from codes; `at` are the rows they were read from, where `row_norm` needs them.

        Raises:
            InputError: `at` is needed.
        """
        found = codes.float() @ self.W_dec.to(codes.device) + self.b_dec.to(codes.device)
        if self.row_norm == "none":
            return found
        if at is None:
            raise InputError(
                f"at: this SAE normalises every row ({self.row_norm}) and cannot decode without it",
                got="codes alone",
                valid="decode(codes, at=x), x the rows the codes were read from",
                hint="or compare decode(edited, at=x) with decode(codes, at=x): a delta",
            )
        _, scale, shift = _normalise(at.float(), self.row_norm)
        return found * scale + shift


def _normalise(x: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised rows, and the scale and shift that undo it (as sae-lens 6.54 defines them)."""
    shift, scale = x.new_zeros(1), x.new_ones(1)
    if kind == "layer_norm":
        shift = x.mean(-1, keepdim=True)
        scale = x.std(-1, keepdim=True)
        return (x - shift) / (scale + _LAYER_NORM_EPS), scale, shift
    if kind == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / scale, scale, shift
    return x, scale, shift
