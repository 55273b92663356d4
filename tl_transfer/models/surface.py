"""HookedModel: the few things we need of a hooked language model, whatever class hosts it.

Works on anything with ``cfg``, ``tokenizer``, ``hook_dict``, ``hooks(...)``, a forward and blocks:
`HookedTransformer` (TransformerLens 3.x) and `TransformerBridge` (3.9 and 4.x). No class name is
tested; the one real difference (how to stop early and where to unembed) is asked of the host.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_transfer.errors import HookError, InputError, ModelError
from tl_transfer.models.bare import Bare, HookFunction, add_hook, hook_points, is_hooked, unwrap
from tl_transfer.models.calling import attention, call
from tl_transfer.models.fingerprints import chat_template_fingerprint, tokenizer_fingerprint
from tl_transfer.models.point import HookPoint, parse, unknown
from tl_transfer.models.reader import Reader
from tl_transfer.space import ActivationSpace


class HookedModel:
    """A loaded model: its host, identity, hook points, and exact forward passes.

    Attributes:
        host: The TransformerLens object; every TransformerLens call works on it.
        tokenizer: Its fast tokenizer.
        name: Name it was loaded under.
        weights: Fingerprint of the weights.
        processing: ``"raw"`` or what was done to the weights.
        note: A remark that belongs beside every result (e.g. quantised weights).
        stops: Stop ids of the checkpoint's generation settings, on every host the same.
    """

    def __init__(
        self,
        host: Any,
        tokenizer: Any,
        *,
        name: str,
        weights: str,
        processing: str = "raw",
        note: str = "",
        stops: tuple[int, ...] = (),
    ) -> None:
        self.host = host
        self.tokenizer = tokenizer
        self.name = name
        self.weights = weights
        self.processing = processing
        self.note = note
        self.stops = stops
        self.n_layers = int(host.cfg.n_layers)
        self.d_model = int(host.cfg.d_model)
        self._hf = _hf_causal_lm(host)
        self._hooks: dict[int, str] = {}  # ours: id of the torch hook on the host -> hook point
        self._unwrapped: tuple[Bare | None, str] | None = None

    # -- identity ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where tokens go; layers may be on others (`devices`)."""
        return next(self.host.parameters()).device

    @property
    def devices(self) -> list[str]:
        """All devices of the parameters, in order of their names."""
        return sorted({str(parameter.device) for parameter in self.host.parameters()})

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters (never ``cfg.dtype``, which may report the default)."""
        return next(self.host.parameters()).dtype

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """See `tokenizer_fingerprint`; kept, for a 262k vocabulary takes 0.3 s to hash."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def host_class(self) -> str:
        """Class name of the host, for reports."""
        return type(self.host).__name__

    def __repr__(self) -> str:
        return (
            f"HookedModel({self.name!r}, {self.host_class}, {self.n_layers} layers, "
            f"d_model {self.d_model}, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def hook_point(self, name: str) -> HookPoint:
        """Resolve any spelling of a residual hook point.

        ``blocks.9.hook_resid_post``, ``resid_post@9`` and the bridge's ``blocks.9.hook_out`` are
        one point; ``resid_pre`` of layer 9 is ``resid_post`` of layer 8.

        Raises:
            InputError: unknown name or layer, with the nearest valid names.
        """
        point = parse(name)
        if point is None or point.layer >= self.n_layers:
            raise self._unknown_hook_point(name)
        self._host_point(point.name)
        return point

    def _host_point(self, name: str) -> Any:
        """The host's object for a canonical name."""
        bare = self._unwrapped[0] if self._unwrapped else None
        # A bridge takes milliseconds to list them: use the list that was made once while it holds.
        known = bare is not None and bare.knows_the_host()
        points = bare.points if bare is not None and known else hook_points(self.host)
        # With an SAE in its place, a HookedTransformer lists only the hook points inside the SAE.
        point = points.get(name) or points.get(f"{name}.hook_sae_output")
        if point is None:
            raise self._unknown_hook_point(name)
        return point

    def listed_name(self, name: str) -> str:
        """A name of a hook point that the host's own `hooks` finds.

        Where an SAE has taken the place of a hook point, only the output of the SAE is listed.

        Args:
            name: Canonical name.

        Raises:
            HookError: the host would take a hook of this name and never call it.
        """
        listed = self.host.hook_dict
        if hasattr(listed.get(name), "add_hook"):
            return name
        if self._hf is not None:  # SAELens's bridge lists other names, and skips what it is told
            raise HookError(
                f"fwd_hooks: {type(self.host).__name__} does not call hooks given by name",
                got=name,
                valid="HookedTransformer, HookedSAETransformer or TransformerBridge",
                hint="use attach, which works on this host",
            )
        point = self._host_point(name)
        return next((other for other, one in listed.items() if one is point), name)

    def _unknown_hook_point(self, name: str) -> InputError:
        return unknown(name, self.name, self.n_layers)

    def at(self, hook_point: str) -> "Site":
        """This model at a hook point: what `fit`, `mean_difference` and friends take."""
        point = self.hook_point(hook_point)
        return Site(self, point)

    # -- TransformerLens, passed through -----------------------------------------------------

    def hooks(self, *args: Any, **kwargs: Any) -> Any:
        """``host.hooks``: plain TransformerLens hooks as a context manager."""
        return self.host.hooks(*args, **kwargs)

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """``host.run_with_hooks``."""
        return self.host.run_with_hooks(*args, **kwargs)

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """``host.run_with_cache``."""
        return self.host.run_with_cache(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``host.generate``; `attach(model).generate` is exact with padding and positions."""
        return self.host.generate(*args, **kwargs)

    def to_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """``host.to_tokens``."""
        return self.host.to_tokens(*args, **kwargs)

    @property
    def revision(self) -> str | None:
        """Commit on the hub that the model came from, where transformers says one."""
        return getattr(getattr(self._hf, "config", None), "_commit_hash", None)

    @property
    def n_context(self) -> int:
        """Longest text in tokens, ``cfg.n_ctx``; 0 where the host does not say."""
        return int(getattr(self.host.cfg, "n_ctx", 0) or 0)

    def require_fits(self, n_tokens: int, argument: str) -> None:
        """Refuse a text longer than the context, rather than cut it or fail later.

        Args:
            n_tokens: Its length.
            argument: Name of the text in the error.

        Raises:
            InputError: it is longer than ``cfg.n_ctx``.
        """
        limit = self.n_context
        if limit and n_tokens > limit:
            raise InputError(
                f"{argument}: too long for the context of {self.name}",
                got=f"{n_tokens} tokens",
                valid=f"at most {limit}",
                hint="shorten it yourself: cutting would lose its first or last words",
            )

    # -- exact forward passes ---------------------------------------------------------------

    @contextmanager
    def hooked(self, fwd_hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
        """Attach hooks by canonical name; all or none, and gone afterwards.

        Raises:
            InputError: a name the host does not have (TransformerLens 3.9 would ignore it).
        """
        points = [self._host_point(name) for name, _ in fwd_hooks]
        bare = self._unwrap()
        with ExitStack() as stack:
            for (name, function), point in zip(fwd_hooks, points, strict=True):
                number, remove = add_hook(point, function)
                stack.callback(remove)
                self._hooks[number] = name
                stack.callback(self._hooks.pop, number)
                if bare is not None and name in bare.places:
                    stack.callback(bare.add_hook(name, function))
            yield

    def bare(self, *names: str) -> Bare | None:
        """The plain modules under a bridge, if they may run instead of it; see `models.bare`.

        The hooks of `hooked` are on them as well.

        Args:
            *names: Hook points that will be read, besides those with hooks from `hooked`.
        """
        bare = self._unwrap()
        own = self._hooks
        may = bare is not None and bare.may_run({*names, *own.values()}, set(own))
        return bare if may else None

    def _unwrap(self) -> Bare | None:
        """Take the bridge apart once, when nobody's hook is on it: they are compared then."""
        if self._unwrapped is None and self._hf is not None:
            if self._hooks or is_hooked(self.host):
                return None
            self._unwrapped = unwrap(self.host)
        return self._unwrapped[0] if self._unwrapped else None

    @property
    def hugging_face(self) -> Any:
        """The Hugging Face model to call; None under a `HookedTransformer`.

        The bare one where that is allowed, else the one inside the bridge.
        """
        bare = self.bare()
        return self._hf if bare is None else bare.tree

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers that `hugging_face` runs."""
        bare = self.bare()
        return self.host.blocks if bare is None else bare.layers

    def require_eval(self) -> None:
        """Refuse a model in training mode: dropout would make every number random.

        Raises:
            ModelError: it is in training mode.
        """
        if self.host.training:
            raise ModelError(
                f"model: {self.name} is in training mode",
                got="training=True",
                valid="a model in evaluation mode",
                hint="call model.host.eval() first",
            )

    @torch.no_grad()
    def residuals(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        points: Sequence[HookPoint],
    ) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """Activations at several hook points; no layer past the last of them is run.

        Args:
            tokens: Token ids, padded on either side.
            mask: True on real tokens.
            points: Hook points to read.

        Returns:
            Canonical name -> activation, on the device of its layer, in its dtype.

        Raises:
            HookError: a hook did not fire exactly once.
        """
        self.require_eval()
        reader = Reader(point.name for point in points)
        n_blocks = max(point.n_blocks for point in points)
        bare = self.bare(*reader.fired)
        if bare is not None:
            with ExitStack() as stack:
                for name, function in reader.hooks():
                    stack.callback(bare.add_hook(name, function))
                bare.run_layers(tokens, n_blocks, **attention(mask))
        else:
            with self.hooked(reader.hooks()):
                self._run_blocks(tokens, mask, n_blocks)
        return reader.once()

    def _run_blocks(self, tokens: Tensor, mask: Tensor, n_blocks: int) -> None:
        """Run the first `n_blocks` blocks and no more."""
        attention_mask = mask.to(torch.long)
        if self._hf is None or n_blocks < self.n_layers:
            self.host(tokens, attention_mask=attention_mask, stop_at_layer=n_blocks)
        else:
            # The bridge returns logits for stop_at_layer == n_layers: unembed one position only.
            call(self._hf, tokens, mask, keep=1)

    @torch.no_grad()
    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        *,
        keep: int | Int[Tensor, " kept"] = 0,
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits, unembedding only the positions asked for.

        Args:
            tokens: Token ids, padded on the left if at all.
            mask: True on real tokens.
            keep: 0 for all positions, n for the last n, or column indices shared by all rows.
        """
        if self._hf is not None:
            return call(self.hugging_face, tokens, mask, keep=keep).logits
        residual = self.host(
            tokens, attention_mask=mask.to(torch.long), stop_at_layer=self.n_layers
        )
        return self.unembed(residual, keep=keep)

    def unembed(
        self, residual: Float[Tensor, "batch pos d_model"], *, keep: int | Int[Tensor, " kept"] = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Final norm and unembedding of a `HookedTransformer` at some positions.

        Args:
            residual: The stream after the last block.
            keep: As for `logits`.
        """
        kept = residual[:, keep] if isinstance(keep, Tensor) else residual[:, -keep:]
        return self.capped(self.host.unembed(self.host.ln_final(kept)))

    def capped(self, logits: Float[Tensor, "*token d_vocab"]) -> Float[Tensor, "*token d_vocab"]:
        """Final logit soft cap, where the architecture has one (Gemma 2)."""
        if self._hf is not None:
            cap = getattr(self._hf.config, "final_logit_softcapping", None) or 0.0
        else:
            cap = getattr(self.host.cfg, "output_logits_soft_cap", 0.0) or 0.0
        return cap * torch.tanh(logits / cap) if cap > 0 else logits


@dataclass(frozen=True)
class Site:
    """A model at one hook point."""

    model: HookedModel
    point: HookPoint

    @property
    def space(self) -> ActivationSpace:
        """Identity of the activations read here."""
        model = self.model
        return ActivationSpace(
            model=model.name,
            weights=model.weights,
            hook_point=self.point.name,
            d_model=model.d_model,
            processing=model.processing,
            tokenizer=model.tokenizer_fingerprint,
            chat_template=chat_template_fingerprint(model.tokenizer),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    def __repr__(self) -> str:
        return f"Site({self.model.name!r} @ {self.point.name})"


def _hf_causal_lm(host: Any) -> Any:
    """The live Hugging Face model under a bridge, or None (`HookedTransformer`)."""
    try:
        hf = host.original_model
    except AttributeError:
        return None
    return hf if callable(hf) and hasattr(hf, "config") else None
