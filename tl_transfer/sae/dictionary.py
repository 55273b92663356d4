"""Dictionary: an SAE as this package uses it: rows to codes, codes to rows, and its directions.

Frozen, in float32 and in the units of the raw activation, whatever the SAE does to its input. Where
it came from and what it hashes to stay with it; its space is None until `tl_transfer.check_sae`
has seen that it belongs to the activations of a site.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError, SpaceError
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.convert import ARCHITECTURES, Described, coder_of, describe
from tl_transfer.sae.foreign import ForeignCoder
from tl_transfer.space import ActivationSpace


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A sparse autoencoder of one activation space.

    Attributes:
        coder: What encodes and decodes.
        directions: Row i is what one unit of feature i adds to the activation (for an SAE that
            normalises each row, in units of the row's own scale).
        bias: What is decoded when no feature is on.
        architecture: ``standard``, ``topk``, ``jumprelu``, ``gated``, ...
        identity: SHA-256 of parameters and settings.
        hook_point: Where it says it was trained; None: it does not say.
        origin: Where it came from, and what it says of itself (JSON).
        space: Activation space it was checked against; None: not checked.
        heads: It was trained on [..., head, d_head] (``hook_z``); flattened here.
    """

    coder: SparseCoder | ForeignCoder
    directions: Float[Tensor, "d_sae d_model"]
    bias: Float[Tensor, " d_model"]
    architecture: str
    identity: str
    hook_point: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    space: ActivationSpace | None = None
    heads: bool = False

    @classmethod
    def of(
        cls,
        sae: Any,
        *,
        input_scale: float | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> "Dictionary":
        """Wrap an SAE: of sae-lens, a `SparseCoder`, or anything with encode, decode and W_dec.

        Args:
            sae: The SAE. Its parameters are copied where the kind is known, so that training it
                on changes nothing here; an object of an unknown kind is kept and asked.
            input_scale: See `tl_transfer.sae.convert.coder_of`.
            origin: Where it came from.

        Raises:
            InputError: not an SAE, or one without a plain decoder (transcoders, crosscoders).
        """
        if isinstance(sae, Dictionary):
            return sae
        origin = dict(origin or {"object": type(sae).__name__})
        if isinstance(sae, SparseCoder):
            return cls._of_coder(sae, Described(_name(sae), None, False, {}), origin)
        cfg = _config(sae)
        if cfg is None:
            return cls._of_foreign(ForeignCoder.of(sae), "foreign", origin)
        described = describe(cfg)
        if described.architecture in ARCHITECTURES:
            coder = coder_of(cfg, _state(sae), input_scale=input_scale)
            return cls._of_coder(coder, described, origin)
        foreign = ForeignCoder.of_sae_lens(sae, cfg, input_scale=input_scale)
        found = cls._of_foreign(foreign, described.architecture, origin)
        return replace(
            found,
            hook_point=described.hook_point,
            heads=described.heads,
            origin={**origin, "metadata": described.metadata},
        )

    @classmethod
    def from_config(
        cls,
        cfg: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        input_scale: float | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> "Dictionary":
        """A plain SAE from its configuration and weights in the form of sae-lens.

        Args:
            cfg: Fields of its ``cfg.json``.
            tensors: ``W_enc``, ``W_dec`` and the others by name.
            input_scale: Factor its inputs were multiplied by in training, if it is not in `cfg`.
            origin: Where it came from (JSON).
        """
        coder = coder_of(cfg, tensors, input_scale=input_scale)
        return cls._of_coder(coder, describe(cfg), dict(origin or {}))

    @classmethod
    def _of_coder(
        cls, coder: SparseCoder, described: Described, origin: dict[str, Any]
    ) -> "Dictionary":
        if described.metadata:
            origin = {**origin, "metadata": described.metadata}
        return cls(
            coder,
            coder.W_dec,
            coder.b_dec,
            described.architecture,
            coder.identity,
            described.hook_point,
            origin,
            heads=described.heads,
        )

    @classmethod
    def _of_foreign(
        cls, coder: ForeignCoder, architecture: str, origin: dict[str, Any]
    ) -> "Dictionary":
        return cls(coder, coder.directions, coder.bias, architecture, coder.identity, origin=origin)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.directions.shape[0])

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return int(self.directions.shape[1])

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_model"]:
        """The directions, under the name that other tools ask for."""
        return self.directions

    @property
    def row_norm(self) -> str:
        """How each row is normalised by its own statistics; ``"none"`` for most SAEs."""
        return self.coder.row_norm

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... d_sae"]:
        """Activation of every feature, in float32, on the device of the rows.

        Args:
            x: Activations [..., d_model]; for an SAE of ``hook_z`` [..., head, d_head] as well.

        Raises:
            InputError: another width.
        """
        x = self._rows(x)
        codes = self.coder.encode(x.reshape(-1, self.d_model))
        return codes.reshape(*x.shape[:-1], self.d_sae)

    @torch.no_grad()
    def strongest(
        self, x: Float[Tensor, "row d_model"]
    ) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]] | None:
        """The k features that each row keeps, in rising order, and their activations.

        Where only these are wanted, no matrix [row, d_sae] of zeros has to be filled and searched.

        Args:
            x: Activations.

        Returns:
            None for an SAE whose rows keep any number of features: ask `encode`.

        Raises:
            InputError: another width.
        """
        x = self._rows(x)
        return self.coder.strongest(x) if isinstance(self.coder, SparseCoder) else None

    @torch.no_grad()
    def decode(
        self,
        codes: Float[Tensor, "*row d_sae"],
        *,
        at: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*row d_model"]:
        """Activations from codes, in float32.

        Args:
            codes: Activations of features.
            at: The rows the codes were read from: needed by SAEs that normalise each row
                (`row_norm`), ignored by the others.

        Raises:
            InputError: another number of features, or `at` is needed.
        """
        if codes.shape[-1] != self.d_sae:
            raise InputError(
                "codes: wrong number of features for this SAE",
                got=tuple(codes.shape),
                valid=f"[..., {self.d_sae}]",
                hint="codes of one SAE mean nothing to another one",
            )
        rows = None if at is None else self._rows(at).reshape(-1, self.d_model)
        found = self.coder.decode(codes.reshape(-1, self.d_sae), rows)
        return found.reshape(*codes.shape[:-1], self.d_model)

    def reconstruct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        """decode(encode(x)), in float32."""
        return self.decode(self.encode(x), at=x)

    def to(self, device: torch.device | str) -> "Dictionary":
        """The same with its parameters on a device: do this once before a loop."""
        return replace(
            self,
            coder=self.coder.to(device),
            directions=self.directions.to(device),
            bias=self.bias.to(device),
        )

    def require_space(self, space: ActivationSpace, what: str = "SAE and activations") -> None:
        """Refuse activations of another space; an SAE that was not checked too.

        Args:
            space: Of the activations.
            what: Who meets whom, for the error.

        Raises:
            SpaceError: another space, or none known.
        """
        if self.space is None:
            raise SpaceError(
                f"{what}: it is not known which activations this SAE belongs to",
                got=repr(self),
                valid=str(space),
                hint="tl_transfer.check_sae(sae, site, texts).sae is the SAE with its space",
            )
        self.space.require(space, what)

    def _rows(self, x: Tensor) -> Tensor:
        if self.heads and x.ndim > 2 and x.shape[-1] * x.shape[-2] == self.d_model:
            return x.flatten(-2)
        if x.ndim == 0 or x.shape[-1] != self.d_model:
            raise InputError(
                "x: wrong width for this SAE",
                got=tuple(x.shape),
                valid=f"[..., {self.d_model}]",
                hint="load the SAE of this model and hook point",
            )
        return x

    def __repr__(self) -> str:
        where = self.space or self.hook_point or "hook point unknown"
        return (
            f"Dictionary({self.architecture}, {self.d_sae} features of {self.d_model}, "
            f"{self.identity[:12]}, {where}{'' if self.space else ', not checked'})"
        )


def _name(coder: SparseCoder) -> str:
    return next(name for name, act in ARCHITECTURES.items() if act == coder.activation)


def _config(sae: Any) -> dict[str, Any] | None:
    """Configuration of an SAE of sae-lens as it would be saved for inference; None: no such SAE."""
    cfg = getattr(sae, "cfg", None)
    if not callable(getattr(cfg, "architecture", None)) or not hasattr(sae, "state_dict"):
        return None
    assert cfg is not None
    # One in training (batchtopk, matryoshka) is written as what it becomes.
    make = getattr(cfg, "get_inference_sae_cfg_dict", None) or cfg.to_dict
    found = dict(make())
    metadata = found.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        found["metadata"] = metadata.to_dict()
    return found


def _state(sae: Any) -> dict[str, Tensor]:
    """Weights of an SAE of sae-lens as it would save them for inference; its own stay as they are.

    sae-lens folds decoder norms by assigning to ``.data`` of the tensors it is given, which are
    those of the SAE itself: hence the copies.
    """
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    process = getattr(sae, "process_state_dict_for_saving_inference", None)
    if process is None:
        process = sae.process_state_dict_for_saving
    with torch.no_grad():
        process(state)
    return state
