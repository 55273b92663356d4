"""Every operator and every rule, ready to be put on a tiny model."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

import tl_transfer as tt
from tests import tiny
from tl_transfer.data.token_bytes import default_prefix
from tl_transfer.features.edit import Reconstruction
from tl_transfer.interventions import Operator
from tl_transfer.interventions.gate import states
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import PositionVectors, Subspace

#: Different lengths, so that a batch is padded; the last is one word.
PROMPTS = [*tiny.prompts()[:3], "a"]
NEW = 6

Make = Callable[..., Operator]


def vector_for(model: tt.HookedModel, layer: int = 1, seed: int = 0) -> tt.SteeringVector:
    """A random vector with the layer's own norm as its unit, and an origin."""
    key = (id(model.host), layer, seed)
    if key not in _vectors:
        space = model.at(f"resid_post@{layer}").space
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(model.d_model, generator=generator)
        origin = torch.randn(model.d_model, generator=generator)
        norm = norm_of(model, layer)
        _vectors[key] = tt.SteeringVector(direction, space, norm, "random", origin=origin)
    return _vectors[key]


_vectors: dict[tuple[int, int, int], tt.SteeringVector] = {}
_norms: dict[tuple[int, int], float] = {}


def norm_of(model: tt.HookedModel, layer: int) -> float:
    """Median norm of the stream of a shared model, measured once."""
    key = (id(model.host), layer)
    if key not in _norms:
        tokens = tiny.random_tokens(300, 2, 12)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        point = model.hook_point(f"resid_post@{layer}")
        _norms[key] = float(
            model.residuals(tokens, mask, [point])[point.name].norm(dim=-1).median()
        )
    return _norms[key]


@dataclass(frozen=True)
class RandomMap:
    """A fixed linear map of points."""

    source: ActivationSpace
    target: ActivationSpace
    weight: torch.Tensor

    def map_points(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@functools.cache
def other_model(tokenizer: str) -> tt.HookedModel:
    """A model of another width, with the tokenizer asked for."""
    size = len(tiny.tiny_tokenizer(tokenizer))
    return tt.load_model(
        tiny.tiny_bridge("llama", 9, d_model=32, n_layers=3, tokenizer=tokenizer, vocab_size=size)
    )


def map_into(model: tt.HookedModel, tokenizer: str) -> tuple[tt.HookedModel, RandomMap]:
    source = other_model(tokenizer)
    weight = torch.randn(32, model.d_model, generator=torch.Generator().manual_seed(4)) / 3
    return source, RandomMap(
        source.at("resid_post@1").space, model.at("resid_post@1").space, weight
    )


def _own(model: tt.HookedModel) -> str:
    # TransformerLens gives every tokenizer a bos_token; what counts is whether it is put in front.
    return "bos" if default_prefix(model.tokenizer) else "nobos"


def _other(model: tt.HookedModel) -> str:
    return "nobos" if _own(model) == "bos" else "bos"


def _replace_from(model: tt.HookedModel, where: Any, strength: Any, tokenizer: str) -> Operator:
    return tt.ReplaceFrom(*map_into(model, tokenizer), strength, where)


def _dictionary(model: tt.HookedModel, **kind: Any) -> tt.Dictionary:
    """An SAE drawn at random, at the layer that vectors are for."""
    key = (id(model.host), str(kind))
    if key not in _dictionaries:
        g = torch.Generator().manual_seed(8)
        rows = torch.nn.functional.normalize(torch.randn(40, model.d_model, generator=g), dim=-1)
        offset = torch.randn(model.d_model, generator=g) / 10
        zeros = torch.zeros(40)
        coder = tt.SparseCoder(rows.T, zeros, rows, offset, offset, "topk", 6, **kind)
        space = model.at("resid_post@1").space
        _dictionaries[key] = replace(tt.Dictionary.of(coder), space=space)
    return _dictionaries[key]


_dictionaries: dict[tuple[int, str], tt.Dictionary] = {}


def _feature_from(model: tt.HookedModel, where: Any, strength: Any, tokenizer: str) -> Operator:
    source, mapper = map_into(model, tokenizer)
    value = 3 * norm_of(source, 1)
    return tt.FeatureFrom(source, _dictionary(source), 3, value, mapper, strength, where)


def _rebuilt_from(model: tt.HookedModel, where: Any, strength: Any, tokenizer: str) -> Operator:
    source, mapper = map_into(model, tokenizer)
    return tt.ReplaceFrom(source, Reconstruction(_dictionary(source), mapper), strength, where)


def _phrase(model: tt.HookedModel, where: Any, strength: Any) -> Operator:
    space = model.at("resid_post@1").space
    rows = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(6))
    norm = norm_of(model, 1)
    rows = rows / rows.norm(dim=-1, keepdim=True) * norm * 3
    vectors = PositionVectors(rows, "er", (1, 2), space, norm, "random")
    return tt.AddAtPhrase(vectors, strength, where)


def _span(model: tt.HookedModel) -> Subspace:
    return Subspace.spanned_by([vector_for(model, seed=s) for s in (0, 1, 2)])


#: name -> make(model, where, strength, rows). Strengths are such that greedy text changes; `rows`
#: are the numbers of the prompts in play, for operators that differ by row.
OPERATORS: dict[str, Make] = {
    "add": lambda m, w, s=0.5, rows=(): tt.Add(vector_for(m), s, w),
    "add, two layers": lambda m, w, s=0.5, rows=(): tt.Add(
        {1: vector_for(m), 2: vector_for(m, 2, seed=1)}, s, w
    ),
    "add, norm kept": lambda m, w, s=0.8, rows=(): tt.NormKeepingAdd(vector_for(m), s, w),
    "add, rows": lambda m, w, s=0.5, rows=(0,): tt.AddRows(
        [vector_for(m, seed=i) for i in rows], s, w
    ),
    "add at phrase": lambda m, w, s=1.0, rows=(): _phrase(m, w, s),
    "ablate": lambda m, w, s=1.0, rows=(): tt.Ablate(vector_for(m), s, w),
    "ablate a subspace": lambda m, w, s=1.0, rows=(): tt.Ablate(_span(m), s, w),
    "ablate everywhere": lambda m, w, s=1.0, rows=(): tt.Ablate(vector_for(m), s, w, layers="all"),
    "clamp": lambda m, w, s=1.0, rows=(): tt.Clamp(vector_for(m), 0.5 * norm_of(m, 1), s, w),
    "affine edit": lambda m, w, s=1.0, rows=(): tt.AffineEdit(vector_for(m), 1.0, s, w),
    "half-space": lambda m, w, s=1.0, rows=(): tt.HalfSpace(
        vector_for(m), -0.3 * norm_of(m, 1), s, w
    ),
    "rotate": lambda m, w, s=1.0, rows=(): tt.Rotate(
        vector_for(m), vector_for(m, seed=1), 70.0, s, w
    ),
    "rotate, adaptive": lambda m, w, s=1.0, rows=(): tt.Rotate(
        vector_for(m, seed=2), vector_for(m, seed=1), 170.0, s, w, adaptive=True
    ),
    "replace": lambda m, w, s=0.4, rows=(): tt.Replace(
        vector_for(m).unit * norm_of(m, 1), m.at("resid_post@1").space, s, w
    ),
    "set a feature": lambda m, w, s=1.0, rows=(): tt.SetFeature(
        _dictionary(m), 3, norm_of(m, 1), s, w
    ),
    "set a feature of normalised rows": lambda m, w, s=1.0, rows=(): tt.SetFeature(
        _dictionary(m, row_norm="layer_norm"), 3, 8.0, s, w
    ),
    "replace from, one tokenizer": lambda m, w, s=1.0, rows=(): _replace_from(m, w, s, _own(m)),
    "replace from, two tokenizers": lambda m, w, s=1.0, rows=(): _replace_from(m, w, s, _other(m)),
    "feature from, two tokenizers": lambda m, w, s=1.0, rows=(): _feature_from(m, w, s, _other(m)),
    "rebuilt from, one tokenizer": lambda m, w, s=0.5, rows=(): _rebuilt_from(m, w, s, _own(m)),
}

#: Operators that plain hooks must refuse: they need the text while it is generated.
NEEDS_THE_TEXT = tuple(name for name in OPERATORS if "tokenizer" in name)


def gate_for(model: tt.HookedModel) -> tt.Gate:
    """Opens for half of the prompts: the threshold lies between the middle two cosines."""
    key = id(model.host)
    if key not in _gates:
        gate = tt.Gate(vector_for(model, 0, seed=5), 0.0)
        cosines = gate.score(states(model.at("resid_post@0"), PROMPTS, "mean")).sort().values
        _gates[key] = tt.Gate(gate.vector, float(cosines[1:3].mean()))
    return _gates[key]


_gates: dict[int, tt.Gate] = {}

#: name -> make(model, rows). All kinds of rules, and some combinations.
WHERES: dict[str, Callable[[tt.HookedModel, Sequence[int]], tt.Where]] = {
    "everywhere": lambda m, rows: tt.everywhere(),
    "everywhere with sinks": lambda m, rows: tt.everywhere(sinks=True),
    "prompt": lambda m, rows: tt.prompt(),
    "generated": lambda m, rows: tt.generated(),
    "last prompt token": lambda m, rows: tt.last_prompt_token(),
    "window": lambda m, rows: tt.window(2, 8),
    "window from the end": lambda m, rows: tt.window(-3, -1),
    "from position": lambda m, rows: tt.from_position(3),
    "first generated": lambda m, rows: tt.first_generated(2),
    "token ids": lambda m, rows: tt.token_ids(range(20, 200)),
    "span": lambda m, rows: tt.span("er") | tt.span("ee", sinks=True),
    "regex": lambda m, rows: tt.regex(r"[A-Z]\w+|ca", flags=re.ASCII) & tt.prompt(),
    "rows": lambda m, rows: tt.rows([row % 3 != 0 for row in rows]),
    "token mask": lambda m, rows: tt.token_mask([[k % 2 == 0 for k in range(9 + r)] for r in rows]),
    "gate": lambda m, rows: tt.when(gate_for(m)),
    "not the gate, generated": lambda m, rows: ~tt.when(gate_for(m)) & tt.generated(),
    "prompt but its last": lambda m, rows: tt.prompt() & ~tt.last_prompt_token(),
}


def texts(model: tt.HookedModel, *interventions: Any, **options: Any) -> list[tuple[int, ...]]:
    """Greedy continuations of all prompts."""
    new = options.pop("new", NEW)
    with tt.attach(model, *interventions) as live:
        return [g.tokens for g in live.generate(PROMPTS, max_new_tokens=new, **options)]


def count_hooks(model: tt.HookedModel) -> int:
    return sum(len(point.fwd_hooks) for point in set(model.host.hook_dict.values()))


@contextmanager
def recording(model: tt.HookedModel, point: str) -> Iterator[list[torch.Tensor]]:
    """What passes a hook point, hooks attached before included."""
    seen: list[torch.Tensor] = []
    with model.hooks(fwd_hooks=[(point, lambda a, hook: seen.append(a.clone()))]):
        yield seen
