"""Measure what a map does to each kind of vector on a real pair; draw docs/images/transfer.svg.

Run: ``python tools/transfer_figure.py`` (about three minutes on two cores; the models are bundled).
Numbers go to docs/results/transfer_semantics.json; the page docs/concepts/transfer.md shows both.
``--draw`` draws the stored numbers again.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ROOT / "docs" / "results" / "transfer_semantics.json"
FIGURE = ROOT / "docs" / "images" / "transfer.svg"
SOURCE, TARGET = ("smollm2-135m-instruct", "resid_post@15"), ("gemma-3-270m", "resid_post@9")
N_CONTRAST, N_TEST = 120, 120
PAIR = {
    "positive": "The critics said the ending was absolutely wonderful.",
    "negative": "The critics said the ending was completely dreadful.",
}


def measure() -> dict[str, Any]:
    """All numbers of the page; contrast, map and test texts have nothing in common."""
    import tl_transfer as tt

    task = tt.tasks.sentiment(n_fit=600, n_contrast=N_CONTRAST + N_TEST)
    here, there = (tt.load_model(name).at(point) for name, point in (SOURCE, TARGET))
    texts: dict[str, Any] = {"texts": task.fit_texts, "documents": task.fit_documents}
    mapper = tt.fit(here, there, **texts, progress=False)
    curved = tt.fit(
        here, there, **texts, method="autoencoder", epochs=4, backward=False, progress=False
    )
    fitted = {"positive": task.positive[:N_CONTRAST], "negative": task.negative[:N_CONTRAST]}
    test = {"positive": task.positive[N_CONTRAST:], "negative": task.negative[N_CONTRAST:]}
    contrast, native = (tt.read_contrast(site, **fitted) for site in (here, there))
    unseen = tt.read_contrast(there, **test)
    vector, own = tt.mean_difference(contrast), tt.mean_difference(native)
    return {
        "pair": [" ".join(SOURCE), " ".join(TARGET)],
        "n": {"fit_texts": len(task.fit_texts), "contrast": N_CONTRAST, "test": len(unseen.plus)},
        "fvu": {
            name: one.scorecard["held_out"]["fvu"]
            for name, one in {"ridge": mapper, "autoencoder": curved}.items()
        },
        "offset": offset(vector, mapper, own),
        "length": lengths(vector, mapper, own),
        "sign": sign(vector, mapper, unseen),
        "read": reading(contrast, native, unseen, mapper),
        "clamp": clamp(vector, mapper, unseen),
        "subspace": spans(contrast, mapper, own),
        "rules": rules(vector, curved, own),
        "tokens": tokens(here, there, mapper),
    }


def offset(vector: Any, mapper: Any, own: Any) -> dict[str, Any]:
    """A direction without and with the intercept: length and cosine to the target's own vector."""
    mapped = mapper.map_direction(vector.direction)
    return {
        name: {"length": float(v.norm()) / mapper.target_norm, "cosine": cosine(v, own.direction)}
        for name, v in (("vW", mapped), ("vW + b", mapped + mapper.bias))
    }


def lengths(vector: Any, mapper: Any, own: Any) -> dict[str, float]:
    """Length of the transferred vector under each rule, in median norms of the target."""
    import tl_transfer as tt

    found = {"in the source": float(vector.norm) / mapper.source_norm}
    for rule in ("relative", "effect", "r2", "raw"):
        found[rule] = float(tt.transfer(vector, mapper, norm=rule).norm) / mapper.target_norm
    return found | {"target's own": float(own.norm) / mapper.target_norm}


def sign(vector: Any, mapper: Any, unseen: Any) -> dict[str, Any]:
    """T(-v) = -T(v), and which side of the target's texts the direction points at."""
    import tl_transfer as tt

    moved, turned = (tt.transfer(v, mapper).direction for v in (vector, -vector))
    return {
        "odd error": float((moved + turned).norm() / moved.norm()),
        "moved": area(unseen, moved),
        "turned": area(unseen, turned),
    }


def reading(contrast: Any, native: Any, unseen: Any, mapper: Any) -> dict[str, Any]:
    """Held-out AUROC in the target of the source probe, pulled back and pushed forward."""
    import tl_transfer as tt

    probe = tt.lda_probe(contrast)
    moved = tt.transfer(probe, mapper)
    return {
        "target's own probe": area(unseen, tt.lda_probe(native).read),
        "read, pulled back": area(unseen, moved.read),
        "read, pushed forward": area(unseen, mapper.map_direction(probe.read)),
        "write, pushed forward": area(unseen, moved.write),
        # The control has no way back, so only its write direction can be shown.
        "write, shuffled map": area(unseen, mapper.shuffled.map_direction(probe.write)),
    }


def clamp(vector: Any, mapper: Any, unseen: Any) -> dict[str, float]:
    """Where the positive class lies along the moved direction, by three ways of saying it."""
    import tl_transfer as tt

    moved = tt.transfer(vector, mapper)
    head = vector.origin + vector.direction
    found = {
        "source's number": float(head @ vector.unit) / mapper.source_norm * mapper.target_norm,
        "estimated again": tt.transfer_level(moved, mapper, head[None]),
        "positive texts": float(unseen.plus.mean(0) @ moved.unit),
        "negative texts": float(unseen.minus.mean(0) @ moved.unit),
    }
    return {name: value / mapper.target_norm for name, value in found.items()}


def spans(contrast: Any, mapper: Any, own: Any) -> dict[str, Any]:
    """Share of the target's own vector that lies in the moved span: what an ablation removes."""
    import tl_transfer as tt

    found: dict[str, Any] = {}
    for k in (1, 3, 8):
        basis = tt.contrast_subspace(contrast, k=k)
        moved = tt.transfer(basis, mapper)
        wrong = tt.transfer(basis, mapper.shuffled)
        found[f"k = {k}"] = {
            "share": share(own.direction, moved.basis),
            "shuffled": share(own.direction, wrong.basis),
            "chance": k / len(own.direction),
            "independence": moved.provenance["independence"],
        }
    return found


def rules(vector: Any, curved: Any, own: Any) -> dict[str, Any]:
    """A map that is not affine: length, cosine and oddness of what each rule gives."""
    import tl_transfer as tt

    found = {}
    for rule in ("class_means", "local_mean", "jacobian", "through_zero"):
        moved = tt.transfer(vector, curved, rule=rule, norm="raw").direction
        # A turned vector starts at the other pole; the map's own rule is asked at one place.
        at = vector.origin[None] if rule == "class_means" else None
        back = curved.map_direction(-vector.direction, at=at, rule=rule)
        found[rule] = {
            "length": float(moved.norm()) / curved.target_norm,
            "cosine": cosine(moved, own.direction),
            "odd error": float((moved + back).norm() / moved.norm()),
        }
    return found


def tokens(here: Any, there: Any, mapper: Any) -> dict[str, Any]:
    """A vector for each token of a phrase: which target token takes which row."""
    import tl_transfer as tt

    moved = tt.transfer(tt.prompt_pair(here, **PAIR), mapper)
    own = tt.prompt_pair(there, **PAIR)
    text = tt.encode(PAIR["positive"], there.model.tokenizer)
    positions, rows = moved.places(text)
    return {
        "phrase": moved.phrase,
        "source_ends": list(moved.ends),
        "target_ends": list(own.ends),
        "rows": rows.tolist(),
        "positions": positions.tolist(),
        "cosines": [
            cosine(moved.directions[row], direction)
            for row, direction in zip(rows.tolist(), own.directions, strict=True)
        ],
    }


def area(unseen: Any, direction: Tensor) -> dict[str, Any]:
    """AUROC of a read direction on unseen texts, with DeLong's interval."""
    from tl_transfer.extract.steerability import delong

    scores = (rows.double() @ direction.double() for rows in (unseen.plus, unseen.minus))
    value, variance = delong(*scores)
    half = 1.96 * variance**0.5
    return {"auroc": value, "ci95": [max(value - half, 0.0), min(value + half, 1.0)]}


def share(direction: Tensor, basis: Tensor) -> float:
    """Squared length of a unit vector inside a span."""
    unit = torch.nn.functional.normalize(direction.double(), dim=0)
    return float((basis.double() @ unit).square().sum())


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


# -- the figure ------------------------------------------------------------------------------

GOOD, BAD, PLAIN = "#1b7f79", "#b3541e", "#8a9099"


@dataclass(frozen=True)
class Bar:
    """One bar: what the package does (GOOD), what it does not (BAD), or for comparison (PLAIN)."""

    name: str
    value: float
    colour: str = PLAIN
    ci95: tuple[float, float] | None = None
    note: str = ""


def panels(found: dict[str, Any]) -> list[tuple[str, str, list[Bar]]]:
    """Title, unit and bars of the six panels."""
    n = found["n"]["test"]
    good = {"relative", "read, pulled back", "estimated again", "class_means", "vW"}
    bad = {"read, pushed forward", "source's number", "through_zero", "vW + b"}

    def colour(name: str) -> str:
        return GOOD if name in good else BAD if name in bad else PLAIN

    return [
        (
            "Direction: no intercept",
            "length in median norms (cosine to the target's own vector)",
            [
                Bar(name, cell["length"], colour(name), note=f"({cell['cosine']:.2f})")
                for name, cell in found["offset"].items()
            ],
        ),
        (
            "Direction: length by rule",
            "length in median norms of its model",
            [Bar(name, value, colour(name)) for name, value in found["length"].items()],
        ),
        (
            "Probe: read back, write forward",
            f"AUROC in the target, {n} + {n} unseen texts, 95 %",
            [
                Bar(name, cell["auroc"], colour(name), tuple(cell["ci95"]))
                for name, cell in found["read"].items()
            ],
        ),
        (
            "Clamp value: estimated again",
            "coordinate along the moved direction, median norms",
            [Bar(name, value, colour(name)) for name, value in found["clamp"].items()],
        ),
        (
            "Subspace: span of the moved basis",
            "share of the target's own vector inside it (shuffled map)",
            [
                Bar(name, cell["share"], GOOD, note=f"({cell['shuffled']:.2f})")
                for name, cell in found["subspace"].items()
            ],
        ),
        (
            "Curved map: the caller's rule",
            "length in median norms (cosine to the target's own vector)",
            [
                Bar(name, cell["length"], colour(name), note=f"({cell['cosine']:.2f})")
                for name, cell in found["rules"].items()
            ],
        ),
    ]


def draw(found: dict[str, Any]) -> str:
    """Six panels of bars as an SVG; reads on a phone and in print."""
    width, high, gap = 860, 202, 430
    shown = panels(found)
    height = 66 + high * ((len(shown) + 1) // 2)
    title = f"{' to '.join(found['pair'])}, sentiment"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f"<title>What a map does to each kind of vector: {title}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="14" y="24" font-size="13">{title}</text>',
        f'<text x="14" y="43"><tspan fill="{GOOD}">Green</tspan>: what transfer does. '
        f'<tspan fill="{BAD}">Brown</tspan>: what it does not. Grey: to compare.</text>',
    ]
    for number, (name, unit, bars) in enumerate(shown):
        left, top = 14 + (number % 2) * gap, 66 + (number // 2) * high
        parts += panel(left, top, name, unit, bars)
    return "\n".join([*parts, "</svg>\n"])


def panel(left: float, top: float, title: str, unit: str, bars: list[Bar]) -> list[str]:
    """One panel; bars run from zero, to the left where negative."""
    label, length = 142.0, 170.0
    ends = [0.0, *(bar.value for bar in bars), *(bar.ci95[1] for bar in bars if bar.ci95)]
    low, high = min(ends), max(ends)
    scale = length / (high - low)
    zero = left + label - low * scale
    parts = [
        f'<text x="{left}" y="{top + 14}" font-weight="600" font-size="13">{title}</text>',
        f'<text x="{left}" y="{top + 31}" fill="#555">{unit}</text>',
    ]
    for row, bar in enumerate(bars):
        y = top + 42 + 25 * row
        start, size = min(zero, zero + bar.value * scale), abs(bar.value) * scale
        end = left + label + length + 8
        parts += [
            f'<text x="{left + label - 8}" y="{y + 13}" text-anchor="end">{bar.name}</text>',
            f'<rect x="{start:.1f}" y="{y}" width="{size:.1f}" height="17" fill="{bar.colour}"/>',
            f'<text x="{end}" y="{y + 13}">{bar.value:.2g} {bar.note}</text>',
        ]
        if bar.ci95:
            a, b = (zero + value * scale for value in bar.ci95)
            parts.append(
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y + 8.5}" y2="{y + 8.5}" stroke="#222" '
                'stroke-width="1.5"/>'
            )
    bottom = top + 42 + 25 * len(bars)
    return [
        *parts,
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top + 38}" y2="{bottom}" stroke="#222"/>',
    ]


if __name__ == "__main__":
    if "--draw" not in sys.argv:
        NUMBERS.write_text(json.dumps(measure(), indent=1) + "\n")
    FIGURE.write_text(draw(json.loads(NUMBERS.read_text())))
