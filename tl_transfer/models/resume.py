"""Run the rest of a model from an edited residual: the first layers are computed once, not per arm.

An evaluation tries hundreds of edits of one layer on the same tokens. Everything up to that layer
is the same for all of them. `HookedTransformer` can start at a layer; for a bridge the arguments
that Hugging Face passed to each later block are recorded once and used again, so nothing about an
architecture is assumed. The first resumed pass is compared with the full one and refused if it
differs.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import HookError, ModelError
from tl_transfer.models.calling import call
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel

#: Edits computed together: a matrix product of four batches costs little more than half of four.
TOGETHER = 4


def edited_copies(
    residual: Float[Tensor, "batch pos d_model"],
    chosen: Bool[Tensor, "batch pos"],
    steps: Float[Tensor, "arm d_model"],
) -> Float[Tensor, "rows pos d_model"]:
    """The batch once for each step, with the step added at the chosen positions."""
    added = steps.to(residual.device, residual.dtype)[:, None, None]
    # torch.where, not a product with the mask: a position that is not chosen stays bit for bit.
    return torch.where(chosen[..., None], residual + added, residual).flatten(0, 1)


class Resumed:
    """One batch of tokens, computed up to a residual hook point, ready to go on from there.

    Attributes:
        point: Hook point from which it goes on.
        residual: The unedited residual at the hook point, [batch, pos, d_model].
        mask: True on real tokens.
        positions: Absolute positions, -1 on padding.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedModel,
        point: HookPoint,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
    ) -> None:
        if point.kind != "resid_post":
            raise HookError(
                "hook_point: an evaluation resumes after a block",
                got=point.name,
                valid="blocks.L.hook_resid_post",
                hint="use resid_post of the block before",
            )
        self._model = model
        self.point = point
        self._layer = point.layer
        self._blocks: list[tuple[Any, tuple, dict[str, Any]]] = []
        self.mask = mask.to(model.device)
        self.positions = torch.where(self.mask, self.mask.long().cumsum(-1) - 1, -1)
        tokens = tokens.to(model.device)
        if model._hf is None:
            self.residual = model.residuals(tokens, self.mask, [point])[point.name]
        else:
            self.residual = self._record(tokens, point)
            self._verify(tokens)

    def _record(self, tokens: Tensor, point: HookPoint) -> Tensor:
        """One full pass that keeps what each later block was called with."""
        later = list(self._model.layers)[self._layer + 1 :]

        def recorder(block: Any) -> Callable[..., None]:
            def record(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                self._blocks.append((block, args[1:], {**kwargs, "past_key_values": None}))

            return record

        handles = [
            block.register_forward_pre_hook(recorder(block), with_kwargs=True) for block in later
        ]
        read: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            read["residual"] = activation.detach()

        try:
            with self._model.hooked([(point.name, keep)]):
                call(self._model.hugging_face, tokens, self.mask, keep=1)
        finally:
            for handle in handles:
                handle.remove()
        for _, _, kwargs in self._blocks:
            kwargs.pop("hidden_states", None)
        return read["residual"]

    def _verify(self, tokens: Tensor) -> None:
        full = self._model.logits(tokens, self.mask, keep=1)[:, -1].float()
        resumed = self.logits(self.residual, keep=torch.tensor([tokens.shape[1] - 1]))[:, -1]
        error = (full - resumed.float()).norm() / full.norm()
        tolerance = 1e-4 if self._model.dtype == torch.float32 else 3e-2
        if not bool(error <= tolerance):
            raise ModelError(
                f"resume: {self._model.name} gives other logits when resumed at layer "
                f"{self._layer}",
                got=f"relative difference {float(error):.1e}",
                valid=f"at most {tolerance:.0e}",
                hint="this architecture cannot be evaluated on the bridge; try "
                'host="hooked_transformer"',
            )

    @torch.no_grad()
    def final(
        self, residual: Float[Tensor, "rows pos d_model"], *, keep: Int[Tensor, " kept"]
    ) -> Float[Tensor, "rows kept d_model"]:
        """State after the final norm at some columns, from a residual at the hook point.

        Args:
            residual: The batch, or several copies of it one below the other (several edits at
                once: wide matrix products are faster than many narrow ones).
            keep: Columns, shared by all rows.
        """
        host = self._model.host
        copies = len(residual) // len(self.mask)
        if self._model._hf is None:
            if self._layer + 1 < self._model.n_layers:
                residual = host(
                    residual,
                    attention_mask=self.mask.to(torch.long).repeat(copies, 1),
                    start_at_layer=self._layer + 1,
                    stop_at_layer=self._model.n_layers,
                )
        else:
            for block, args, kwargs in self._blocks:
                args, kwargs = _repeated((args, kwargs), len(self.mask), copies)
                output = block(residual, *args, **kwargs)
                residual = output[0] if isinstance(output, tuple) else output
        return host.ln_final(residual[:, keep.to(residual.device)])

    @torch.no_grad()
    def logits(
        self, residual: Float[Tensor, "rows pos d_model"], *, keep: Int[Tensor, " kept"]
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """Logits at some columns, from a residual at the hook point; see `final`."""
        return self._model.capped(self._model.host.unembed(self.final(residual, keep=keep)))


def _repeated(value: Any, batch: int, copies: int) -> Any:
    """What a block was called with, for a batch that stands `copies` times below itself."""
    if copies == 1:
        return value
    if isinstance(value, Tensor):
        # Batched arguments (masks, rotary tables, positions) have two axes or more.
        by_row = value.ndim > 1 and len(value) == batch > 1
        return value.repeat(copies, *[1] * (value.ndim - 1)) if by_row else value
    if isinstance(value, dict):
        return {key: _repeated(item, batch, copies) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_repeated(item, batch, copies) for item in value)
    return value
