"""Bare: the plain Hugging Face modules under a TransformerBridge, on the very same weights.

A bridge wraps every submodule, so that any of its hook points can be hooked; that costs 1.3 to 1.4
times the time of a token. `Bare` is a second tree of the same module classes without the wrappers.
It owns no number: its modules share the dictionaries of parameters and buffers with those under
the bridge, so a change of weights, dtype or device is seen by both.

It may run only while nobody could tell the difference. At the first use its logits and hook points
are compared with the bridge's; before every use it is asked again whether a hook of anybody else,
a replaced module or forward, or processed weights have appeared. Otherwise the bridge runs.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

#: A hook function of TransformerLens: called with the activation and ``hook=``.
HookFunction = Callable[..., Tensor | None]

#: The places that are looked up, in every block.
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_HOOK_FIELDS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_called")))
_HOOK_FIELDS += tuple(name for name in vars(nn.Module()) if name.endswith("_with_kwargs"))
#: A forward that somebody put on a module itself.
_FORWARD = methodcaller("get", "forward")
_WATCHED_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Where the hooks are defined that a bridge or a Hugging Face model puts on itself; the hooks of
#: users come through ``transformer_lens.hook_points`` or from torch.
_INTERNAL = ("transformer_lens.model_bridge", "transformers.")
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


@dataclass(frozen=True)
class _Place:
    """What a hook point is in the bare tree: the input or the first output of a module."""

    module: nn.Module
    is_input: bool


class Bare:
    """The unwrapped modules of a bridge.

    Attributes:
        tree: The causal language model: call it as Hugging Face does.
        layers: Its decoder layers.
        points: Every hook point of the host by every name.
    """

    def __init__(self, host: Any) -> None:
        self.host = host
        original = host.original_model
        if any(hasattr(module, "_hf_hook") for module in original.modules()):
            raise NotPlainError("modules are moved between devices by accelerate")
        self._copies: dict[int, nn.Module] = {}
        self.tree = self._plain(original)
        own = {id(parameter) for parameter in self.tree.parameters()}
        if not own >= {id(parameter) for parameter in host.parameters()}:
            raise NotPlainError("the bridge computes with weights of its own")
        self.layers = [self._copies[id(_original(block))] for block in host.blocks]
        self._body, self._container = self._find_body()
        self._norm = next(name for name in _NORMS if name in self._body._modules)
        self._bodies: dict[int, nn.Module] = {}
        self.points = hook_points(host)
        self.places = self._find_places()
        self._watch = _Watch(host)

    def _plain(self, module: nn.Module) -> nn.Module:
        """Copy of a module tree without bridge components, and without copying any tensor."""
        module = _original(module)
        if id(module) in self._copies:
            return self._copies[id(module)]
        plain = module.__class__.__new__(module.__class__)
        fields = dict(module.__dict__)
        # TransformerLens patches forwards of instances; the class's own is wanted.
        fields.pop("forward", None)
        for name in _HOOK_FIELDS:
            fields[name] = OrderedDict()
        plain.__dict__.update(fields)
        self._copies[id(module)] = plain
        plain.__dict__["_modules"] = {
            name: None if child is None else self._plain(child)
            for name, child in module._modules.items()
        }
        return plain

    def _find_body(self) -> tuple[nn.Module, str]:
        """The module that loops over the layers, and the name of the list in it."""
        for body in self.tree.modules():
            for name, child in body._modules.items():
                if isinstance(child, nn.ModuleList) and list(child) == self.layers:
                    return body, name
        raise NotPlainError("no list of decoder layers")

    def _find_places(self) -> dict[str, _Place]:
        owners: dict[int, tuple[nn.Module, bool]] = {}
        for component in self.host.modules():
            plain = self._copies.get(id(_original(component)))
            if plain is None or _original(component) is component:
                continue
            for name, is_input in (("hook_in", True), ("hook_out", False)):
                point = component._modules.get(name)
                if point is not None:
                    owners[id(point)] = (plain, is_input)
        found = {}
        for layer in range(len(self.layers)):
            for name in (f"blocks.{layer}.hook_{kind}" for kind in KINDS):
                owner = owners.get(id(self.points.get(name)))
                if owner is not None:
                    found[name] = _Place(*owner)
        return found

    # -- may it run? --------------------------------------------------------------------------

    @torch.no_grad()
    def verify(self) -> None:
        """Compare logits and every hook point with the bridge's, on a padded batch.

        A point that differs (the bridge may show it in another shape) is left to the bridge.

        Raises:
            NotPlainError: the logits or a whole block differ.
        """
        batch = _check_batch(self.tree)
        seen: list[dict[str, Tensor]] = []
        logits = []
        for run, is_bare in ((self.host.original_model, False), (self.tree, True)):
            read: dict[str, Tensor] = {}
            with ExitStack() as stack:
                for name in self.places:
                    keep = _reader(read, name)
                    stack.callback(
                        self.add_hook(name, keep)
                        if is_bare
                        else add_hook(self.points[name], keep)[1]
                    )
                logits.append(run(**batch, use_cache=False).logits)
            seen.append(read)
        if not _close(*logits):
            raise NotPlainError("its logits differ from the bridge's")
        for name in list(self.places):
            if (
                name not in seen[0]
                or name not in seen[1]
                or not _close(seen[0][name], seen[1][name])
            ):
                del self.places[name]
        if f"blocks.{len(self.layers) - 1}.hook_resid_post" not in self.places:
            raise NotPlainError("its residual stream differs from the bridge's")

    def may_run(self, names: Iterable[str], own_hooks: set[int]) -> bool:
        """Whether the tree stands for the host now, for hooks at `names`.

        Args:
            names: Canonical names of the hook points that will be read or edited.
            own_hooks: Ids of the torch hooks on the host that will be mounted here as well.
        """
        return all(name in self.places for name in names) and self._watch.unchanged(own_hooks)

    def knows_the_host(self) -> bool:
        """Whether the modules of the host, and so its hook points, are those it was made from."""
        return self._watch.same_modules()

    # -- run ----------------------------------------------------------------------------------

    def add_hook(self, name: str, function: HookFunction) -> Callable[[], None]:
        """Put a TransformerLens hook function on the bare module of a hook point.

        Returns:
            What removes it again.
        """
        return self._mount(self.places[name], function, self.points[name]).remove

    @staticmethod
    def _mount(place: _Place, function: HookFunction, point: Any) -> Any:
        def edit_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            name = None if args else "hidden_states"
            edited = function(args[0] if name is None else kwargs[name], hook=point)
            if edited is None:
                return None
            return (
                ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})
            )

        def edit_output(module: nn.Module, args: tuple, output: Any) -> Any:
            if not isinstance(output, tuple):
                return function(output, hook=point)
            edited = function(output[0], hook=point)
            return None if edited is None else (edited, *output[1:])

        if place.is_input:
            return place.module.register_forward_pre_hook(edit_input, with_kwargs=True)
        return place.module.register_forward_hook(edit_output)

    def run_layers(self, tokens: Tensor, n_layers: int, **options: Any) -> None:
        """The first `n_layers` decoder layers; no final norm, no unembedding."""
        body = self._bodies.get(n_layers)
        if body is None:
            body = copy.copy(self._body)
            body.__dict__["_modules"] = {
                **self._body._modules,
                self._container: nn.ModuleList(self.layers[:n_layers]),
                self._norm: nn.Identity(),
            }
            self._bodies[n_layers] = body
        body(input_ids=tokens, use_cache=False, **options)


class NotPlainError(Exception):
    """The modules under this bridge cannot be run on their own; the text says why."""


def unwrap(host: Any) -> tuple[Bare | None, str]:
    """The bare tree of a bridge, checked against it; or None and the reason."""
    try:
        bare = Bare(host)
        bare.verify()
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, NotPlainError) as error:
        return None, str(error) or type(error).__name__
    return bare, ""


def add_hook(point: Any, function: HookFunction) -> tuple[int, Callable[[], None]]:
    """Put a hook on a TransformerLens hook point: the id of the torch hook, and its removal.

    ``host.hooks`` would look up every name of the model anew, which takes milliseconds a hook.
    """
    point.add_hook(function)
    lens = point.fwd_hooks[-1]

    def remove() -> None:
        lens.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not lens]

    return lens.hook.id, remove


def _reader(read: dict[str, Tensor], name: str) -> HookFunction:
    def keep(activation: Tensor, hook: Any) -> None:
        read[name] = activation.detach()

    return keep


def _check_batch(tree: Any) -> dict[str, Tensor]:
    """Two rows of ids from all over the vocabulary; the second is padded on the left."""
    embedding = tree.get_input_embeddings().weight
    n = 12
    ids = torch.arange(2 * n, device=embedding.device) * (len(embedding) // (2 * n))
    mask = torch.ones(2, n, dtype=torch.long, device=embedding.device)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids.view(2, n), "attention_mask": mask, "position_ids": positions}


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    tolerance = 1e-4 if first.dtype == torch.float32 else 3e-2
    first, second = first.float(), second.float()
    # The padded cells hold whatever a fully masked row gives.
    first, second = first[:, 3:], second[:, 3:]
    return bool((first - second).norm() <= tolerance * first.norm())


def hook_points(host: Any) -> dict[str, Any]:
    """Every hook point of a host by every name it has.

    A subclass may list fewer names than the class it comes from (SAELens's bridge drops the classic
    ones). Where an SAE has taken the place of a hook point, its output is the activation that goes
    on, and stands for it.
    """
    if "hook_dict" in vars(host):
        return host.hook_dict
    found: dict[str, Any] = {}
    for kind in reversed(type(host).__mro__):
        listed = vars(kind).get("hook_dict")
        if listed is not None:
            found.update(listed.__get__(host))
    return {
        name: point if hasattr(point, "add_hook") else point.hook_sae_output
        for name, point in found.items()
    }


def _original(module: nn.Module) -> nn.Module:
    """The Hugging Face module in a bridge component; any other module as it is."""
    while "_original_component" in module._modules:
        inner = module._modules["_original_component"]
        if inner is None:
            break
        module = inner
    return module


class _Watch:
    """Notices hooks, replaced modules or forwards, and processed weights on a host.

    It looks before every run at a few thousand fields, so the walks are left to C: in a loop of
    Python they were two percent of reading one short text.
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        modules = list(_all_modules(host))
        self._hook_fields = _hook_fields(modules)
        self._children = [module._modules for module in modules if module._modules]
        self._fields = [vars(module) for module in modules]
        self._known_children, self._known_forwards = self._modules_now(), self._forwards_now()

    def _modules_now(self) -> tuple[list[int], list[nn.Module | None]]:
        children = chain.from_iterable(map(dict.values, self._children))
        return list(map(len, self._children)), list(children)

    def _forwards_now(self) -> list[Any]:
        return list(map(_FORWARD, self._fields))

    def same_modules(self) -> bool:
        return self._modules_now() == self._known_children

    def unchanged(self, own_hooks: set[int]) -> bool:
        return (
            not getattr(self._host, "compatibility_mode", False)
            and _foreign(self._hook_fields) == own_hooks
            and self.same_modules()
            and self._forwards_now() == self._known_forwards
        )


def is_hooked(host: Any) -> bool:
    """Whether anybody has a hook on a bridge, of TransformerLens or of torch."""
    return bool(_foreign(_hook_fields(_all_modules(host))))


def _all_modules(host: Any) -> Iterable[nn.Module]:
    modules = (*host.modules(), *host.original_model.modules())
    return {id(module): module for module in modules}.values()


def _hook_fields(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    return [getattr(module, name) for module in modules for name in _WATCHED_HOOKS]


def _foreign(hook_fields: list[dict[int, Any]]) -> set[int]:
    """Ids of torch hooks, without those that a bridge or Hugging Face wires for itself."""
    return {
        number
        for hooks in filter(None, hook_fields)
        for number, function in hooks.items()
        if not str(getattr(function, "__module__", "")).startswith(_INTERNAL)
    }
