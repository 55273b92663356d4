"""Maps compared on planted models: where the truth is curved affine maps lose, else they do not."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from tests.toy_task import toy_task
from tests.words import WORDS
from tl_transfer import tasks
from tl_transfer.errors import InputError
from tl_transfer.evaluation import mappers
from tl_transfer.evaluation.bench import Measured
from tl_transfer.evaluation.matrix import FAILS, NOT_STEERABLE, TRANSFERS, MatrixSettings, to_plain
from tl_transfer.experiments import matrix
from tl_transfer.experiments.matrix_recipe import MatrixRecipe

SIZE = 3.0
RIDGE, CURVED = "ridge", "autoencoder"
#: Words whose embedding holds the concept, its opposite, or neither.
UP, DOWN, NEITHER = WORDS[:20], WORDS[20:40], WORDS[40:]


@torch.no_grad()
def curved(tokenizer: Any) -> dict[str, nn.Module]:
    """One function as two models, cut before and after a block that squares one direction.

    The block writes w wherever the stream along u is far from zero, on either side. So where both
    sides are seen, no affine map carries u to w: its best slope is zero. At a depth
    of 0.25 the model of four blocks is cut before that block, the one of eight after it.
    """
    base = tiny.tiny_hf("llama", seed=5, vocab_size=len(tokenizer), d_model=24, n_layers=4)
    generator = torch.Generator().manual_seed(0)
    u, w = torch.linalg.qr(torch.randn(24, 2, generator=generator)).Q.T
    embedding = base.model.embed_tokens.weight
    embedding -= (embedding @ u)[:, None] * u
    for words, sign in ((UP, 1.0), (DOWN, -1.0)):
        for word in words:
            for spelled in (word, f" {word}"):
                ids = tokenizer(spelled, add_special_tokens=False)["input_ids"]
                embedding[ids] += sign * SIZE * u / len(ids)
    block = base.model.layers[1]
    block.self_attn.o_proj.weight.zero_()
    for weight in (
        block.mlp.gate_proj.weight,
        block.mlp.up_proj.weight,
        block.mlp.down_proj.weight,
    ):
        weight.zero_()
    for unit, sign in enumerate((1.0, -1.0)):
        reader = sign * u / block.post_attention_layernorm.weight
        block.mlp.gate_proj.weight[unit] = block.mlp.up_proj.weight[unit] = 1.5 * reader
        block.mlp.down_proj.weight[:, unit] = 4.0 * w
    gain = base.model.norm.weight
    for i, word in enumerate(spoken(tokenizer)):
        base.lm_head.weight[tokenizer.get_vocab()[word]] += (1.0 if i < 6 else -1.0) * w / gain
    deep = tiny.tiny_hf("llama", seed=5, vocab_size=len(tokenizer), d_model=24, n_layers=8)
    deep.load_state_dict(base.state_dict(), strict=False)
    for layer in deep.model.layers[4:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return {"before": base, "after": deep}


def spoken(tokenizer: Any) -> list[str]:
    """Six words that w promotes, then six that it demotes."""
    return sorted(x for x in tokenizer.get_vocab() if x.startswith("Ġ") and len(x) > 2)[:12]


def texts(n: int, words: list[str], seed: int, length: int = 10) -> tuple[str, ...]:
    draw = random.Random(seed)
    return tuple(" ".join(draw.choices(words, k=length)) for _ in range(n))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MatrixRecipe:
    tokenizer = tiny.tiny_tokenizer("bos")
    for name, model in curved(tokenizer).items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    said = [tokenizer.convert_tokens_to_string([word]) for word in spoken(tokenizer)]
    task = toy_task(
        tokenizer,
        positive=texts(30, UP, 1),
        negative=texts(30, NEITHER, 2),
        fit_texts=texts(160, UP + DOWN + NEITHER, 3, 14),
        fit_documents=tuple(f"d{i // 4}" for i in range(160)),
        neutral_validation=texts(3, NEITHER, 4, 40),
        neutral_test=texts(3, NEITHER, 5, 40),
        validation_prompts=texts(4, NEITHER, 6, 5),
        test_prompts=texts(8, NEITHER, 7, 5),
        generation_prompts=texts(4, NEITHER, 8, 5),
        positive_words=tuple(said[:6]),
        negative_words=tuple(said[6:12]),
    )
    monkeypatch.setitem(tasks.TASKS, "toy", lambda **settings: task)
    return MatrixRecipe(
        models=tuple(str(tmp_path / name) for name in ("before", "after")),
        behaviours=("toy",),
        mappers=(RIDGE, CURVED),
        dtype="float32",
        depths=(0.25,),
        budget=0.01,
        n_random=2,
        n_examples=0,
    )


@pytest.mark.usefixtures("no_network")
def test_a_nonlinear_map_wins_where_the_truth_is_curved(
    recipe: MatrixRecipe, tmp_path: Path
) -> None:
    report = matrix.run(recipe, tmp_path / "run", progress=False)
    cells = {
        (cell["source"], cell["target"], cell["mapper"]): cell
        for cell in report["behaviours"]["toy"]["cells"]
    }
    ridge, other = (cells["before", "after", name] for name in (RIDGE, CURVED))
    assert ridge["efficiency"]["value"] < 0.9
    assert other["efficiency"]["value"] == pytest.approx(1.0, abs=0.03)
    gap = other["against_first"]
    assert gap["value"] == pytest.approx(
        other["efficiency"]["value"] - ridge["efficiency"]["value"], abs=1e-6
    )
    assert (gap["verdict"], gap["matters"]) == (mappers.BETTER, True)
    assert other["map"]["gap_to_ridge"]["ci95"][1] < -0.3
    assert (ridge["map"]["rule"], other["map"]["rule"]) == ("affine", "class_means")
    # Either side of u says the same, so that there is no native effect to share.
    gap = cells["after", "before", CURVED]["against_first"]
    assert cells["after", "before", CURVED]["status"] == NOT_STEERABLE
    assert (gap["value"], gap["verdict"]) == (None, mappers.UNKNOWN)
    counts = report["mappers"]["overall"][CURVED]
    assert {key: counts[key] for key in ("n", "better", "worse", "not_comparable")} == {
        "n": 2, "better": 1, "worse": 0, "not_comparable": 1
    }  # fmt: skip
    page = (tmp_path / "run" / "report.md").read_text()
    assert "better beyond its interval in 1 (1 by at least 0.05" in page
    assert "our autoencoder (nonlinear) against ridge, 1 cells: better beyond" in page


def test_a_difference_is_paired_over_the_prompts() -> None:
    settings = MatrixSettings(0.05, 2, 0)
    hard = torch.linspace(0.2, 3.0, 20)  # prompts differ much more than maps do

    def raw(scale: float) -> Any:
        shift = scale * hard
        strength = {"plus": 0.1, "minus": 0.1}
        row = Measured(strength, {"plus": shift, "minus": -shift}, {"plus": None, "minus": None})
        return to_plain(row)

    home = {
        "native": [raw(1.0)], "random_isotropic": [raw(0.1)], "random_covariance": [raw(0.1)]
    }  # fmt: skip

    plain = raw(0.9)

    def against(this: Any, first: Any = plain) -> Any:
        pair = {
            name: {"transferred": [row], "shuffled_map": [raw(0.0)]}
            for name, row in (("first", first), ("this", this))
        }
        found = mappers.cells_of(home, pair, settings=settings)
        assert "against_first" not in found["first"]
        return found["this"]["against_first"]

    near = against(raw(0.93))
    assert near["value"] == pytest.approx(0.03, abs=1e-6)
    assert near["ci95"] == pytest.approx([0.03, 0.03], abs=1e-6)  # efficiencies alone overlap
    assert (near["verdict"], near["matters"]) == (mappers.BETTER, False)
    assert (against(raw(0.8))["verdict"], against(raw(0.8))["matters"]) == (mappers.WORSE, True)
    assert against(raw(0.9001))["verdict"] == mappers.NEITHER  # within what a search resolves
    assert against(None)["verdict"] == against(raw(0.9), None)["verdict"] == mappers.UNKNOWN


def test_a_map_is_needed_where_it_alone_transfers() -> None:
    def entry(pair: int, mapper: str, status: str, verdict: str = "") -> dict[str, Any]:
        gap = {"value": 0.1, "verdict": verdict, "matters": True}
        key = {"behaviour": "toy", "source": f"m{pair}", "target": "t", "mapper": mapper}
        return key | {"status": status, "against_first": gap, "map": {"affine": mapper == RIDGE}}

    counts = mappers.summary(
        [
            entry(0, RIDGE, TRANSFERS), entry(0, CURVED, FAILS, mappers.WORSE),
            entry(1, RIDGE, FAILS), entry(1, CURVED, TRANSFERS, mappers.BETTER),
            entry(2, RIDGE, FAILS), entry(2, CURVED, FAILS, mappers.BETTER),
        ]
    )  # fmt: skip
    assert list(counts) == [CURVED]
    found = counts[CURVED]
    assert (found["needed"], found["lost"], found["better"], found["worse"]) == (1, 1, 2, 1)
    assert not found["affine"]


@pytest.mark.parametrize("wrong", [("nothing",), (), ("ridge", "ridge"), ("embeddings",)])
def test_mappers_that_cannot_be_compared_are_refused(wrong: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="mappers"):
        MatrixRecipe(mappers=wrong)
