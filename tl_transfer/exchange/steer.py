"""Steer a language model with the edits of ``recipe.json``: needs torch and safetensors alone.

::

    from steer import Steering

    steering = Steering()  # the recipe beside this file
    with steering.on(hf_model):  # a plain Hugging Face model
        hf_model.generate(**inputs)
    model.run_with_hooks(tokens, fwd_hooks=steering.fwd_hooks())  # TransformerLens

Edits: ``add`` is x <- x + step, ``ablate`` is x <- x - strength (x Q) Q^T. A pass of more than one
token starts a sequence and is its prompt; a pass of one token is the next step of cached decoding.
Padded batches need ``attention_mask=``. Generation without a cache is not told apart from new
prompts, so rules that depend on the prompt's end need the cache.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class Place:
    """Which positions of the passes that one hook sees are to be edited."""

    def __init__(self, rule: dict[str, Any], attention_mask: Tensor | None) -> None:
        self.rule = rule
        self.mask = attention_mask
        self.lengths: Tensor | None = None
        self.done = 0

    def chosen(self, x: Tensor) -> Tensor:
        """[batch, pos], True where the edit acts."""
        batch, width = x.shape[:2]
        if width == 1 and self.lengths is not None:
            positions = (self.lengths + self.done)[:, None]
            self.done += 1
        else:
            if self.mask is None and batch > 1 and self.rule != {"sinks": True}:
                raise ValueError("a batch needs attention_mask= (ones if nothing is padded)")
            mask = torch.ones(batch, width) if self.mask is None else self.mask
            if mask.shape != (batch, width):
                raise ValueError(f"attention_mask {tuple(mask.shape)} for {(batch, width)} tokens")
            mask = mask.to(x.device).long()
            positions = torch.where(mask > 0, mask.cumsum(-1) - 1, -1)
            self.lengths, self.done = mask.sum(-1), 0
        assert self.lengths is not None
        found = positions >= (0 if self.rule["sinks"] else 1)
        # Distance 0 is the last token of the prompt, where the first new one is predicted.
        distance = positions - (self.lengths - 1)[:, None]
        for values, name in ((positions, "position"), (distance, "distance")):
            first, last = self.rule.get(name, (None, None))
            if first is not None:
                found = found & (values >= first)
            if last is not None:
                found = found & (values <= last)
        return found


class Steering:
    """The edits of a recipe.

    Args:
        folder: Where ``recipe.json`` and its tensors are; default the folder of this file.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        folder = Path(__file__).parent if folder is None else Path(folder)
        self.recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        self._require_sound("sha256", json.dumps(self._said(), sort_keys=True).encode())
        path = folder / Path(self.recipe["tensors"]).name  # beside the recipe, nowhere else
        self._require_sound("tensors_sha256", path.read_bytes())
        self.tensors = load_file(path)

    def _said(self) -> dict[str, Any]:
        """The recipe without its checksum."""
        return {key: value for key, value in self.recipe.items() if key != "sha256"}

    def _require_sound(self, name: str, content: bytes) -> None:
        """Refuse a recipe or tensors that are not as they were written."""
        if hashlib.sha256(content).hexdigest() != self.recipe.get(name):
            raise ValueError(f"{name}: the recipe or its tensors changed since they were written")

    def fwd_hooks(self, attention_mask: Tensor | None = None) -> list[tuple[str, Callable]]:
        """(hook point, function) for TransformerLens; make new ones for every sequence."""
        return [
            (edit["hook_point"], self._function(edit, attention_mask))
            for edit in self.recipe["edits"]
        ]

    @contextmanager
    def on(self, model: Any, attention_mask: Tensor | None = None) -> Iterator[None]:
        """Forward hooks on a plain Hugging Face model, gone after the block."""
        handles = []
        try:
            for edit in self.recipe["edits"]:
                if edit.get("module") is None:
                    raise ValueError(f"no module of a plain model is known for {edit}")
                module = model.get_submodule(edit["module"])
                edited = self._function(edit, attention_mask)
                if edit["side"] == "input":
                    handles.append(module.register_forward_pre_hook(_on_input(edited)))
                else:
                    handles.append(module.register_forward_hook(_on_output(edited)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _function(self, edit: dict[str, Any], attention_mask: Tensor | None) -> Callable:
        tensor = self.tensors[edit["tensor"]]
        place = Place(edit["where"], attention_mask)

        def hook(x: Tensor, hook: Any = None) -> Tensor:
            there = tensor.to(x.device, torch.float32)
            if edit["operator"] == "add":
                edited = x + there.to(x.dtype)
            else:
                x32 = x.float()
                edited = (x32 - edit["strength"] * (x32 @ there.T) @ there).to(x.dtype)
            return torch.where(place.chosen(x)[..., None], edited, x)

        return hook


def _on_output(edited: Callable) -> Callable:
    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edited(output[0]), *output[1:])
        return edited(output)

    return hook


def _on_input(edited: Callable) -> Callable:
    def hook(module: Any, args: tuple) -> tuple:
        return (edited(args[0]), *args[1:])

    return hook
