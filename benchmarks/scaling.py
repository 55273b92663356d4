"""How work grows: texts, width, layers, batch and new tokens, each 1x to 8x or 16x, as exponents.

``python benchmarks/scaling.py [CURVE ...]`` measures all of them, or those whose names begin so.

Tiny random models of growing size; every round times all sizes in another order, and its exponent
is the slope of log time over log size. The number is the median over the rounds with its bootstrap
interval. A fixed cost makes an exponent smaller, so the smallest size is taken well above it. An
exponent is of the largest sizes here: 1 is proportional.
"""

import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import median, pin, report, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tl_transfer as tt
from tests import tiny
from tests.words import random_texts
from tl_transfer.models.surface import Site

ROUNDS = 7
Work = Callable[[], object]


def exponent(works: Sequence[tuple[int, Work]], *, rounds: int = ROUNDS) -> list[float]:
    """One slope a round."""
    draw, slopes = random.Random(0), []
    for _, work in works:
        work()
    for _ in range(rounds):
        order, seconds = list(works), {}
        draw.shuffle(order)
        for size, work in order:
            start = time.perf_counter()
            work()
            seconds[size] = time.perf_counter() - start
        slopes.append(slope([(math.log(n), math.log(t)) for n, t in seconds.items()]))
    return slopes


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares."""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def model(family: str = "llama", **sizes: int) -> tt.HookedModel:
    """A tiny model of other sizes."""
    kind = {"llama": "bos", "qwen2": "nobos"}[family]
    return tt.load_model(
        tiny.tiny_hf(family, **sizes), tokenizer=tiny.tiny_tokenizer(kind), name=family
    )


def reading(here: Site, there: Site, n_texts: int) -> Work:
    """Both passes, pairing and sums: all of a fit that grows with the texts."""
    texts = random_texts(n_texts, n_words=40, seed=1)
    return lambda: tt.collect(here, there, texts=texts, progress=False)


def of_texts() -> list[tuple[int, Work]]:
    here, there = model(d_model=128), model("qwen2", d_model=128)
    sites = here.at("resid_post@2"), there.at("resid_post@2")
    return [(n, reading(*sites, n)) for n in (64, 128, 256, 512, 1024)]


def of_width() -> list[tuple[int, Work]]:
    works = []
    for width in (128, 256, 512, 1024):
        sizes = {"d_model": width, "d_mlp": 2 * width, "d_head": width // 4, "n_layers": 2}
        here, there = model(**sizes), model("qwen2", **sizes)
        works.append((width, reading(here.at("resid_post@0"), there.at("resid_post@0"), 64)))
    return works


def of_layers() -> list[tuple[int, Work]]:
    works = []
    for n in (4, 8, 16, 32):
        site = model(d_model=128, n_layers=n).at(f"resid_post@{n - 1}")
        works.append((n, reading(site, site, 64)))
    return works


def generation(loaded: tt.HookedModel, batch: int, new: int) -> Work:
    """Steered generation."""
    site = loaded.at("resid_post@1")
    draw = torch.randn(loaded.d_model, generator=torch.Generator().manual_seed(0))
    edit = tt.Add(tt.SteeringVector(draw, site.space, 5.0, "random"), 0.2)
    prompts = random_texts(batch, n_words=8, seed=2)

    def run() -> object:
        with tt.attach(loaded, edit) as live:
            return live.generate(prompts, max_new_tokens=new, min_new_tokens=new)

    return run


def of_batch() -> list[tuple[int, Work]]:
    loaded = model(d_model=512, d_mlp=2048, n_layers=4)
    return [(n, generation(loaded, n, 12)) for n in (1, 2, 4, 8, 16)]


def of_new_tokens() -> list[tuple[int, Work]]:
    loaded = model(d_model=128)
    return [(n, generation(loaded, 2, n)) for n in (16, 32, 64, 128)]


#: Name, sizes, largest exponent that is right, and what is compared.
CURVES = (
    ("texts, 64 to 1,024", of_texts, 1.05, "reading two models, pairing and sums: proportional"),
    ("width, 128 to 1,024", of_width, 2.05, "reading and sums of 64 texts: products of the width"),
    ("layers, 4 to 32", of_layers, 1.05, "reading the last layer of 64 texts: proportional"),
    ("batch, 1 to 16", of_batch, 1.0, "steered generation of 12 tokens: at most proportional"),
    ("new tokens, 16 to 128", of_new_tokens, 1.1, "steered generation with a cache: proportional"),
)


def main() -> None:
    pin()
    wanted = tuple(sys.argv[1:])
    entries = [
        report(f"growth with {name}", median(exponent(make())), goal=goal, better="lower",
               unit="(exponent)", against=against)
        for name, make, goal, against in CURVES
        if not wanted or name.startswith(wanted)
    ]  # fmt: skip
    write(entries)


if __name__ == "__main__":
    main()
