"""Maps between two versions of one model, by kind and layer, and the weights in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_transfer.data.splits import require_unseen
from tl_transfer.evaluation.switch import PARTS, SwitchBench
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit
from tl_transfer.models.load import load_model
from tl_transfer.models.record import capture
from tl_transfer.models.surface import HookedModel
from tl_transfer.persistence import load, save
from tl_transfer.space import ActivationSpace


@dataclass(frozen=True)
class Kind:
    """A kind of map.

    Attributes:
        family: ``affine`` or ``nonlinear``.
        title: For people.
        method: Of `fit`.
        layer_of: The compared kind at whose chosen layer it is tried; itself: at every layer.
        options: Of the method.
    """

    family: str
    title: str
    method: str
    layer_of: str
    options: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "affine": Kind("affine", "affine, one plus a small change", "ridge_to_identity", "affine"),
    "relu": Kind("nonlinear", "affine plus rectified units", "autoencoder", "relu"),
    "low_rank": Kind("affine", "affine of limited rank", "reduced_rank", "affine"),
    "paper": Kind(
        "nonlinear", "the paper's autoencoder", "autoencoder", "relu",
        {"recipe": "paper", "updates": 1500},
    ),
}  # fmt: skip
#: Kinds that are fitted at every candidate layer and compared by the verdict.
COMPARED = ("affine", "relu")


class SwitchMaps:
    """Fitted maps between the versions, by kind, layer and way; kept as files."""

    def __init__(
        self,
        tuned: HookedModel,
        base: HookedModel,
        texts: Sequence[str],
        layers: Sequence[int],
        folder: Path,
        *,
        seed: int,
        progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self._models = {"tuned": tuned, "base": base}
        self._texts, self._layers, self._folder = texts, layers, folder
        self._seed, self._progress, self._say = seed, progress, say
        self._found: dict[str, Mapper] = {}

    def get(self, kind: str, layer: int, way: str = "to_base") -> Mapper:
        """The map of a kind at a layer, ``"to_base"`` or ``"to_tuned"``."""
        name = f"{way}-{kind}-{layer}"
        if name not in self._found:
            path = self._folder / "maps" / f"{name}.safetensors"
            kept = load(path) if path.is_file() else None
            here, there = ("tuned", "base") if way == "to_base" else ("base", "tuned")
            space = self._models[here].at(f"resid_post@{layer}").space
            if isinstance(kept, Mapper) and kept.source == space:
                self._found[name] = kept
            else:
                self._say(f"fitting {name}")
                self._found[name] = self._fit(kind, layer, here, there)
                save(self._found[name], path)
        return self._found[name]

    def fitted(self) -> dict[str, Mapper]:
        """What has been fitted or loaded so far."""
        return dict(self._found)

    def _fit(self, kind: str, layer: int, here: str, there: str) -> Mapper:
        point = f"resid_post@{layer}"
        return fit(
            self._store(here).at(point), self._store(there).at(point),
            method=KINDS[kind].method, backward=False, seed=self._seed, progress=self._progress,
            **KINDS[kind].options,
        )  # fmt: skip

    def _store(self, name: str) -> Any:
        model = self._models[name]
        return capture(
            [model.at(f"resid_post@{layer}") for layer in self._layers],
            self._texts,
            store=self._folder / "stores" / name,
            progress=self._progress,
        )


def require_untested(bench: SwitchBench, maps: dict[str, Mapper]) -> None:
    """Refuse if a map has read a test prompt, alone or with the base's answer.

    Args:
        bench: Its task's test prompts, and the base that answers them.
        maps: Name -> map.

    Raises:
        InputError: it names the map and the prompt.
    """
    tested = {}
    for part, prompts in bench.task.tested().items():
        if part in PARTS:
            tested[part] = [*prompts, *map(str, bench.of_base(part, prompts))]
    require_unseen(tested, {name: mapper.fit_texts for name, mapper in maps.items()})


@dataclass(frozen=True)
class Same:
    """Activations of one version put into the other as they are."""

    source: ActivationSpace
    target: ActivationSpace

    def map_points(self, x: Tensor) -> Tensor:
        """The same."""
        return x


def between(adapter: Path, fraction: float, dtype: str, tokenizer: Any) -> HookedModel:
    """The model whose weights are a share of the way from the base to the fine-tuned one.

    Args:
        adapter: LoRA folder; its change of the weights is scaled.
        fraction: 0 is the base, 1 the fine-tuned model.
        dtype: Of the result.
        tokenizer: Of the base.
    """
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    plain_model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(plain_model, str(adapter))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(fraction)
    merged = model.merge_and_unload()
    return load_model(merged, tokenizer=tokenizer, name=f"{Path(base).name} {fraction:g}")
