"""A small fitted map and a made-up layer grid, to draw."""

from typing import Any

import torch

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts


def fitted(**options: Any) -> tuple[tt.Mapper, dict[str, tt.SteeringVector]]:
    """A ridge map between two tiny models, and directions of its target."""
    source = tt.load_model(tiny.tiny_bridge("llama")).at("resid_post@1")
    target = tt.load_model(tiny.tiny_bridge("qwen2")).at("resid_post@1")
    texts = random_texts(90, seed=4)
    mapper = tt.fit(source, target, texts=texts, progress=False, **options)
    contrast = {"positive": random_texts(12, seed=2), "negative": random_texts(12, seed=3)}
    moved = tt.transfer(tt.mean_difference(source, **contrast), mapper)
    return mapper, {"transferred": moved, "<b>native</b>": tt.mean_difference(target, **contrast)}


def grid(n_source: int = 12, n_target: int = 9) -> tt.LayerGrid:
    """Scores that fall with the distance of the relative depths; one cell unknown."""
    i, j = torch.meshgrid(torch.arange(n_source), torch.arange(n_target), indexing="ij")
    fvu = 0.2 + 0.7 * (i / n_source - j / n_target).abs()
    values: list[list[float | None]] = fvu.tolist()
    values[0][0] = None
    sides = [
        {
            "model": name,
            "n_layers": n,
            "hook_points": [f"blocks.{layer}.hook_resid_post" for layer in range(n)],
            "layers": list(range(n)),
        }
        for name, n in (("<b>here</b>", n_source), ("there", n_target))
    ]
    p = [[0.5 if value is None or value > 0.6 else 0.01 for value in row] for row in values]
    return tt.LayerGrid(
        *sides,
        fvu=values,
        strength=values,
        cka=values,
        direction_r2=None,
        vectors={},
        n_rows={"train": 4000, "validation": 1000},
        n_documents={"train": 80, "validation": 20},
        null={"measures": {"explained": {"p": p}}, "permutations": 199},
    )
