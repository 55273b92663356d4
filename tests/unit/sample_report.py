"""A realistic report dictionary, invented numbers, with texts that try to break out of a page."""

import copy
import math
from typing import Any

HOSTILE_TAG = "<script>alert(1)</script>"
HOSTILE_CLOSE = "</script><img src=x onerror=alert(2)>"
HOSTILE_QUOTES = "\"quoted\" 'single' `tick` & &amp; \\u003c"
HOSTILE_RTL = "\u202eright to left\u202c שלום العربية"
HOSTILE_EMOJI = "😀 e\u0301 \x1b[31mred\x07 \ud800"
STRENGTHS = (0.05, 0.1, 0.2, 0.4)
GAIN = {"native": 8.0, "transferred": 7.2, "shuffled_map": 0.5}


def sample_report() -> dict[str, Any]:
    """A transfer that worked, every optional key present."""
    return {
        "format": "tl_transfer.report/1",
        "created": "2026-11-23T20:10:00+00:00",
        "task": "sentiment",
        "pair": {
            "source": _side("smollm2-135m-instruct", 15, 30, 576),
            "target": _side("gemma-3-270m-it", 9, 18, 640),
        },
        "spaces": {"source": {"d_model": 576}, "target": {"d_model": 640}},
        "protocol": "L2",
        "protocol_note": "Paired general text and a strength scan on the target; no labels there.",
        "data": {
            "fit": {"n_documents": 800, "n_tokens": 15000, "sha256": "ab" * 32},
            "contrast": {"n_positive": 200, "n_negative": 200, "sha256": "cd" * 32},
            "validation_prompts": {"n": 60, "sha256": "ef" * 32},
            "test_prompts": {"n": 100, "sha256": "01" * 32},
            "neutral": {"n_documents": 40, "n_tokens": 2000, "sha256": "23" * 32},
        },
        "mapper": _mapper(),
        "vector": {
            "method": "mean_difference",
            "n_positive": 200,
            "n_negative": 200,
            "auroc": 0.83,
            "cosine_to_native": 0.71,
            "cosine_to_native_shuffled": 0.12,
            "norm_ratio": 0.88,
        },
        "strength_unit": "median residual norm of the target layer",
        "effect_unit": "shift of log-odds of positive against negative next words, in nats",
        "words": {"positive": ["good", "great"], "negative": ["bad", "awful"]},
        "n_neutral_tokens": 2000,
        "median_norm": 123.4,
        "arms": _arms(),
        "matched": {budget: _matched(float(budget)) for budget in ("0.02", "0.05", "0.1")},
        "transfer_efficiency": {
            "matched_damage": {
                "0.02": {"value": 0.9, "ci95": [0.84, 0.96]},
                "0.05": {"value": 0.92, "ci95": [0.88, 0.97]},
                "0.1": {"value": 0.86, "ci95": [0.79, 0.94]},
            },
            "matched_norm": {"0.100": {"value": 1.1, "ci95": [0.98, 1.23]}},
        },
        "generation": _generation(),
        "selection": _selection(),
        "verdict": {
            "transfers": True,
            "sentence": "The sentiment direction transfers: 92 % of the native effect.",
            "checks": [
                _check("transfer efficiency >= 0.8", True, "0.92 [0.88, 0.97]", ">= 0.8"),
                _check("beats every random direction", True, "1.47 against 0.21", "> range"),
                _check("map beats shuffled pairs", True, "0.41 against 0.99", "lower"),
                _check("generated text follows", None, None, "interval above 0"),
            ],
        },
        "limits": ["One task and one pair of models.", "Says nothing about longer texts."],
        "versions": {"tl_transfer": "0.1.0", "torch": "2.13.0", "transformer_lens": "3.9.0"},
        "seeds": {"controls": 0, "bootstrap": 1},
        "timings": {"fit": 40.1, "evaluate": 310.5},
        "recipe": {
            "task": "sentiment",
            "mapper": {"method": "ridge"},
            "budgets": [0.02, 0.05, 0.1],
        },
    }


def undefined_report() -> dict[str, Any]:
    """A target that its own direction does not steer: nothing to compare the transfer with."""
    report = sample_report()
    reason = "native not steerable"
    report["verdict"] = {
        "transfers": False,
        "sentence": f"No verdict on sentiment: {reason} at KL 0.05.",
        "checks": [_check("transfer efficiency at KL 0.05", False, reason, ">= 0.8")],
    }
    report["transfer_efficiency"] = {
        "matched_damage": {"0.05": {"value": None, "ci95": None, "reason": reason}},
        "matched_norm": {},
    }
    report["matched"]["0.05"]["native"]["odd"] = {"effect": 0.02, "ci95": [-0.1, 0.14]}
    report["matched"]["0.1"]["native"] = {"reached": False, "n": 0}
    return report


def failed_report() -> dict[str, Any]:
    """A transfer that failed: the shuffled map does as well as the true one."""
    report = sample_report()
    name = "transfer efficiency at KL 0.05"
    report["transfer_efficiency"]["matched_damage"]["0.05"] = {"value": 0.1, "ci95": [-0.1, 0.3]}
    report["matched"]["0.05"]["transferred"] = report["matched"]["0.05"]["shuffled_map"]
    report["verdict"] = {
        "transfers": False,
        "sentence": f"The sentiment direction does not pass as transferred; failed: {name}.",
        "checks": [_check(name, False, "0.10 [-0.10, 0.30]", ">= 0.8")],
    }
    return report


def hostile_report() -> dict[str, Any]:
    """Texts that would run, close a tag, reorder or colour the output if they were not escaped."""
    report = sample_report()
    report["pair"]["source"]["model"] = HOSTILE_TAG
    report["pair"]["target"]["model"] = HOSTILE_QUOTES
    report["pair"]["target"]["note"] = HOSTILE_CLOSE
    report["task"] = f"task{HOSTILE_TAG}"
    report["strength_unit"] = f"unit{HOSTILE_CLOSE}"
    report["verdict"]["sentence"] += HOSTILE_TAG
    report["verdict"]["checks"][0]["name"] = HOSTILE_CLOSE
    report["limits"].append(HOSTILE_TAG)
    report["mapper"]["scorecard"]["warnings"] = [HOSTILE_CLOSE]
    report["selection"]["candidates"][0]["source"] = HOSTILE_CLOSE
    report["recipe"][HOSTILE_CLOSE] = HOSTILE_TAG
    report["generation"]["scorer"] = HOSTILE_TAG
    report["generation"]["examples"][0] = {
        "prompt": HOSTILE_TAG + HOSTILE_RTL,
        "continuations": {
            "unsteered": HOSTILE_CLOSE,
            "native +": HOSTILE_QUOTES,
            "transferred +": HOSTILE_RTL,
            "transferred -": HOSTILE_EMOJI,
            f"{HOSTILE_TAG} +": "an arm nobody knows",
        },
    }
    report["arms"][HOSTILE_CLOSE] = copy.deepcopy(report["arms"]["native"])
    return report


def minimal_report() -> dict[str, Any]:
    """Only what identifies a report; everything else is missing."""
    return {"format": "tl_transfer.report/1", "verdict": {"transfers": False, "sentence": "No."}}


def nulled(value: Any) -> Any:
    """The same tree with every number replaced by null."""
    if isinstance(value, dict):
        return {key: nulled(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nulled(entry) for entry in value]
    return value if isinstance(value, str | bool) else None


def _side(model: str, layer: int, n_layers: int, d_model: int) -> dict[str, Any]:
    return {
        "model": model,
        "host": "TransformerBridge",
        "hook_point": f"blocks.{layer}.hook_resid_post",
        "layer": layer,
        "n_layers": n_layers,
        "d_model": d_model,
        "note": "weights dequantised from Q4_1",
    }


def _check(name: str, passed: bool | None, value: str | None, threshold: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value, "threshold": threshold}


def _mapper() -> dict[str, Any]:
    grid = [10.0**power for power in range(-6, 3)]
    return {
        "method": "ridge",
        "strength": 1e-3,
        "scorecard": {
            "held_out": {
                "fvu": 0.41,
                "fvu_ci95": [0.39, 0.44],
                "fvu_mean_dimension": 0.55,
                "cosine": 0.8,
                "retrieval_top1": 0.52,
                "retrieval_top5": 0.81,
                "cka": 0.6,
            },
            "shuffled": {
                "fvu": 1.01,
                "fvu_mean_dimension": 1.02,
                "cosine": 0.05,
                "retrieval_top1": 0.004,
                "retrieval_top5": 0.02,
                "cka": 0.01,
            },
            "in_sample": {"fvu": 0.35},
            "coverage": {"source": 0.95, "target": 0.9},
            "n_tokens": {"train": 12000, "test": 3000},
            "n_documents": {"train": 640, "test": 160},
            "direction_r2": 0.7,
            "effective_rank": {"source": 30.0, "target": 25.0},
            "path": [
                {"strength": s, "fvu_validation": 0.41 + 0.012 * (math.log10(s) + 3) ** 2}
                for s in grid
            ],
            "warnings": ["20 rows per dimension: fewer than 30 make the held-out score noisy."],
        },
    }


def _arms() -> dict[str, Any]:
    arms: dict[str, Any] = {"unsteered": {"0": {"strength": 0.0, "effect": 0.0, "n": 100}}}
    for arm, gain in GAIN.items():
        arms[arm] = {}
        for sign, mark in ((1, "+"), (-1, "-")):
            for size in STRENGTHS:
                effect = sign * gain * size * (1 - 0.8 * size)
                arms[arm][f"{mark}{size:.3f}"] = {
                    "strength": size,
                    "effect": effect,
                    "ci95": [effect - 0.15, effect + 0.15],
                    "n": 100,
                    "damage": _damage(size),
                    "wrong_way": 0.02 if gain > 1 else 0.41,
                }
    for arm in ("random_isotropic", "random_covariance"):
        arms[arm] = {}
        for sign, mark in ((1, "+"), (-1, "-")):
            for size in STRENGTHS:
                arms[arm][f"{mark}{size:.3f}"] = {
                    "strength": size,
                    "effect": 0.05 * sign,
                    "ci95": [-0.1, 0.2],
                    "n": 100,
                    "n_directions": 20,
                    "effect_sd": size,
                    "effect_range": [-1.9 * size, 2.1 * size],
                    "damage": _damage(size * (1.0 if arm == "random_covariance" else 0.4)),
                }
    return arms


def _damage(size: float) -> dict[str, Any]:
    kl = 1.2 * size**2
    return {"kl": kl, "kl_ci95": [0.9 * kl, 1.1 * kl], "loss": 3.1 + kl, "n": 200}


def _matched(budget: float) -> dict[str, Any]:
    size = math.sqrt(budget / 1.2)
    row: dict[str, Any] = {}
    for arm, gain in GAIN.items():
        effect = gain * size * (1 - 0.8 * size)
        row[arm] = {
            "plus": _matched_side(size, effect, budget),
            "minus": _matched_side(size, 0.1 - effect, budget),
            "odd": {"effect": effect - 0.05, "ci95": [effect - 0.15, effect + 0.05]},
            "n": 100,
            "wrong_way": 0.01 if gain > 1 else 0.4,
        }
    for arm in ("random_isotropic", "random_covariance"):
        spread = {"effect": 0.05, "range": [-1.9 * size, 2.1 * size], "sd": size, "damage": budget}
        row[arm] = {
            "n_directions": 20,
            "plus": spread,
            "minus": spread,
            "odd": {"effect": 0.02, "sd": size, "range": [-1.2 * size, 1.1 * size]},
            "n": 100,
        }
    return row


def _matched_side(size: float, effect: float, budget: float) -> dict[str, Any]:
    bounds = [effect - 0.15, effect + 0.15]
    return {"strength": size, "effect": effect, "ci95": bounds, "damage": budget}


def _generation() -> dict[str, Any]:
    def pair(plus: float, minus: float) -> dict[str, Any]:
        return {
            side: {"score": score, "ci95": [score - 0.1, score + 0.1], "distinct_tokens": 0.93}
            for side, score in (("plus", plus), ("minus", minus))
        }

    wide = {"range": [-0.12, 0.3], "mean": 0.1}
    return {
        "budget": 0.05,
        "n": 40,
        "max_new_tokens": 20,
        "scorer": "VADER compound",
        "arms": {
            "unsteered": {"zero": {"score": 0.1, "ci95": [0.0, 0.2]}},
            "native": pair(0.61, -0.42),
            "transferred": pair(0.55, -0.4),
            "shuffled_map": pair(0.13, 0.08),
            "random_isotropic": {"n_directions": 20, "plus": wide, "minus": wide},
            "random_covariance": {"n_directions": 20, "plus": wide, "minus": wide},
        },
        "examples": [_example(prompt) for prompt in _PROMPTS],
    }


_PROMPTS = (
    "The film was",
    "My stay at the hotel",
    "After the concert we",
    "The new manager",
    "Last night's dinner",
)


def _example(prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "continuations": {
            "unsteered": " shown on a Tuesday in the old hall, and some people came to see it.",
            "native +": " a wonderful surprise, warm from the first minute to the last.",
            "native -": " a dull, tedious mess that wasted everyone's time and patience.",
            "transferred +": " lovely, with a bright and touching story that everybody enjoyed.",
            "transferred -": " awful, a painful evening that I would not wish on anyone.",
            "shuffled_map +": " made in 1987 and was shown at several festivals in the region.",
            "random_isotropic +": " about a man who goes to the city and finds a job there.",
        },
    }


def _selection() -> dict[str, Any]:
    names = [(10, 6), (15, 6), (15, 9), (20, 9), (20, 12), (25, 15)]
    candidates = [
        {
            "source": f"blocks.{source}.hook_resid_post",
            "target": f"blocks.{target}.hook_resid_post",
            "held_out_fvu": 0.38 + 0.01 * index,
            "validation_effect": {"native": 1.1 + 0.2 * index, "transferred": 1.5 - 0.2 * index},
            "score": 1.5 - 0.2 * index,
        }
        for index, (source, target) in enumerate(names)
    ]
    return {
        "criterion": "largest transferred effect at KL 0.05",
        "chosen": {
            "source": "blocks.15.hook_resid_post",
            "target": "blocks.9.hook_resid_post",
        },
        "candidates": candidates,
        "split": "validation",
    }
