"""Damage, effect and calibration of any intervention, against passes of the whole model."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests import tiny
from tests.conftest import HAS_HOOKED_TRANSFORMER
from tests.toy_task import toy_task
from tl_transfer.data.encode import encode_many
from tl_transfer.edited import scaled
from tl_transfer.errors import InputError
from tl_transfer.interventions import Intervention
from tl_transfer.strength import passages
from tl_transfer.strength.passages import Passages

TASK = toy_task(tiny.tiny_tokenizer("bos"))
NEUTRAL = list(TASK.neutral_validation)


@pytest.fixture(autouse=True)
def short_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "PASSAGE_TOKENS", 20)


def models() -> list[Any]:
    return ["bridge", "hooked"] if HAS_HOOKED_TRANSFORMER else ["bridge"]


@pytest.fixture(scope="module", params=models())
def model(request: pytest.FixtureRequest) -> tt.HookedModel:
    make = tiny.tiny_bridge if request.param == "bridge" else tiny.tiny_hooked
    return tt.load_model(make("llama"))


def vector(model: tt.HookedModel, layer: int, seed: int = 0) -> tt.SteeringVector:
    direction = torch.randn(48, generator=torch.Generator().manual_seed(seed))
    return tt.SteeringVector(direction, model.at(f"resid_post@{layer}").space, 5.0, "random")


def interventions(model: tt.HookedModel) -> dict[str, tuple[Intervention, ...]]:
    v, w = vector(model, 2), vector(model, 0, seed=1)
    out = tt.SteeringVector(v.direction, model.at("attn_out@1").space, 5.0, "random")
    return {
        "add": (tt.Add(v, 0.4),),
        "add at an attention output": (tt.Add(out, 0.4),),
        "add after the prompt": (tt.Add(v, 0.4, where=tt.generated()),),
        "ablate everywhere": (tt.Ablate(v, layers="all"),),
        "two layers": (tt.Add(w, 0.2), tt.Ablate(v, 0.5)),
        "last layer": (tt.Add(vector(model, 3), 0.4),),
        "schedule": (tt.Add(v, tt.schedules.linear(0.4, over=4)),),
        "clamp": (tt.Clamp(v, 3.0),),
        # The gate reads the first tokens of a passage, which stand for the prompt.
        "gated": (tt.Add(v, 0.4, where=tt.when(tt.Gate(vector(model, 1, seed=5), 0.0))),),
    }


@pytest.mark.parametrize("name", [
    "add", "add at an attention output", "add after the prompt", "ablate everywhere", "two layers",
    "last layer", "schedule", "clamp", "gated",
])  # fmt: skip
def test_damage_is_that_of_a_whole_pass_with_hooks(model: tt.HookedModel, name: str) -> None:
    """Every passage alone, from its first token, through the plain hooks."""
    items = interventions(model)[name]
    measured = Passages(model, NEUTRAL).measure(items)
    texts = [t for t in encode_many(NEUTRAL, model.tokenizer) if len(t.ids) > 20]
    assert len(texts) >= 3
    keep = torch.arange(7, 20, 4)
    for i, text in enumerate(texts):
        tokens = torch.tensor([text.ids[:21]])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        plain = model.logits(tokens, mask, keep=keep)[0].log_softmax(-1)
        hooks = [hook for item in items for hook in item.fwd_hooks(model, prompt_lengths=8)]
        with model.hooked(hooks):
            steered = model.logits(tokens, mask, keep=keep)[0].log_softmax(-1)
        kl = (plain.exp() * (plain - steered)).sum(-1).mean()
        loss = -steered.gather(-1, tokens[0, keep + 1][:, None]).mean()
        assert float(measured.kl[i]) == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
        assert float(measured.loss[i]) == pytest.approx(float(loss), rel=1e-4)
    assert measured.mean_kl > 1e-3


def test_the_effect_is_that_of_each_prompt_alone(model: tt.HookedModel) -> None:
    prompts = [*TASK.validation_prompts[:5], "A b", "A longer prompt than all the others by far."]
    effect = tt.NextTokenEffect(model, prompts, score=lambda logits: logits[:, 30] - logits[:, 31])
    items = (tt.Add(vector(model, 1), 0.5), tt.Ablate(vector(model, 2, seed=3)))
    found = effect.measure(items)
    with tt.attach(model, *items) as live:
        for i, text in enumerate(encode_many(prompts, model.tokenizer)):
            logits = live.logits(torch.tensor([text.ids]), keep=1)[0, -1]
            expected = float(logits[30] - logits[31]) - float(effect.baseline[i])
            assert float(found[i]) == pytest.approx(expected, abs=1e-4)


def test_nothing_is_measured_at_strength_zero_and_no_hook_stays(model: tt.HookedModel) -> None:
    bench = tt.StrengthBench(model, neutral=NEUTRAL)
    (point,) = bench.sweep(tt.Add(vector(model, 1)), [0.0]).points
    assert point.kl < 1e-6 and abs(point.loss) < 1e-6 and point.effect is None
    assert not any(h.fwd_hooks for h in model.host.hook_dict.values())


def test_a_sweep_says_what_it_rests_on(model: tt.HookedModel) -> None:
    effect = tt.NextTokenEffect(
        model,
        TASK.validation_prompts,
        positive_words=TASK.positive_words,
        negative_words=TASK.negative_words,
    )
    curve = tt.strength_sweep(
        model, tt.Add(vector(model, 1)), (0.4, 0.1, 0.2), neutral=NEUTRAL, effect=effect
    )
    assert [point.strength for point in curve.points] == [0.1, 0.2, 0.4]
    kl = [point.kl for point in curve.points]
    assert kl == sorted(kl)
    for point in curve.points:
        assert point.kl_ci95[0] <= point.kl <= point.kl_ci95[1]
        assert point.effect_ci95 is not None and point.effect is not None
        assert point.effect_ci95[0] <= point.effect <= point.effect_ci95[1]
    assert curve.n_prompts == len(TASK.validation_prompts) and curve.n_passages >= 3
    assert "3 strengths" in repr(curve) and len(repr(curve).splitlines()) == 5
    figure = curve.plot()
    assert [trace.name for trace in figure.data] == ["effect", "KL"]
    assert f"{curve.n_prompts} prompts" in figure.layout.meta["caption"]


@pytest.mark.parametrize("budget", [0.02, 0.2])
def test_calibration_spends_the_budget_and_reports_what_was_measured(
    model: tt.HookedModel, budget: float
) -> None:
    found = tt.calibrate(model, tt.Add(vector(model, 1)), neutral=NEUTRAL, budget=budget)
    assert found.reached and found.strength is not None and found.point is not None
    assert found.point.kl == pytest.approx(budget, rel=0.1)
    again = Passages(model, NEUTRAL).measure([found.intervention])
    assert again.mean_kl == pytest.approx(found.point.kl, rel=1e-4)
    assert "reached" in repr(found) and f"{found.curve.n_passages} passages" in repr(found)
    # Arms at equal damage: another direction needs another strength for the same KL.
    other = tt.calibrate(model, tt.Add(vector(model, 1, seed=7)), neutral=NEUTRAL, budget=budget)
    assert other.point is not None and other.point.kl == pytest.approx(found.point.kl, rel=0.2)


def test_loss_can_be_the_budget(model: tt.HookedModel) -> None:
    found = tt.calibrate(
        model, tt.Add(vector(model, 1)), neutral=NEUTRAL, budget=0.3, measure="loss"
    )
    if found.reached:
        assert found.point is not None and found.point.loss == pytest.approx(0.3, rel=0.1)
    else:  # a random direction may also lower the loss of a random model
        assert "loss" in found.reason


def test_an_ablation_stops_at_all_of_it_and_says_when_that_is_not_enough(
    model: tt.HookedModel,
) -> None:
    ablation = tt.Ablate(vector(model, 1))
    found = tt.calibrate(model, ablation, neutral=NEUTRAL, budget=50.0)
    assert not found.reached and found.strength is None and found.interventions == ()
    assert "at strength 1, the largest tried" in found.reason and "NOT REACHED" in repr(found)
    assert max(point.strength for point in found.curve.points) == 1.0


class Ramp:
    """An effect that is known: strength times a slope, and back to nothing past a peak."""

    def __init__(self, slope: float, peak: float = math.inf) -> None:
        self.slope, self.peak = slope, peak

    def measure(self, interventions: Sequence[Intervention]) -> Tensor:
        (item,) = interventions
        strength = float(item.strength)  # type: ignore[arg-type]
        value = self.slope * strength if strength <= self.peak else 0.0
        return torch.full((4,), value)


def test_the_least_strength_for_a_target_within_the_budget(model: tt.HookedModel) -> None:
    add = tt.Add(vector(model, 1))
    bench = tt.StrengthBench(model, neutral=NEUTRAL, effect=Ramp(10.0))
    limit = bench.calibrate(add, budget=0.2).strength
    assert limit is not None
    found = bench.calibrate(add, budget=0.2, target=10.0 * limit / 3)
    assert found.reached and found.strength == pytest.approx(limit / 3, rel=0.06)
    assert found.point is not None and found.point.kl < 0.2
    beyond = bench.calibrate(add, budget=0.2, target=10.0 * limit * 3)
    assert not beyond.reached and "short of" in beyond.reason
    assert beyond.strength == pytest.approx(limit, rel=1e-6)
    free = bench.calibrate(add, budget=None, target=10.0)
    assert free.reached and free.strength == pytest.approx(1.0, rel=0.06)
    # Far below the largest strength the text is broken, and the effect is gone.
    peaked = tt.StrengthBench(model, neutral=NEUTRAL, effect=Ramp(10.0, peak=2.0))
    free = peaked.calibrate(add, budget=None, target=10.0)
    assert free.reached and free.strength == pytest.approx(1.0, rel=0.06)
    turning = tt.StrengthBench(model, neutral=NEUTRAL, effect=Ramp(10.0, peak=0.6 * limit))
    back = turning.calibrate(add, budget=0.2, target=10.0 * limit / 3)
    assert back.reached and back.strength == pytest.approx(limit / 3, rel=0.06)


def test_strengths_multiply(model: tt.HookedModel) -> None:
    v = vector(model, 1)
    items = scaled([tt.Add(v, 0.5), tt.Ablate(v), tt.Add(v, tt.schedules.linear(2.0, over=3))], 0.1)
    assert [items[0].strength, items[1].strength] == pytest.approx([0.05, 0.1])
    assert float(items[2].strength.strength) == pytest.approx(0.2)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="differs by row"):
        scaled([tt.Add(v, torch.tensor([1.0, 2.0]))], 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, v: tt.calibrate(m, tt.Add(v), neutral=["short"]), "neutral: no text is long"),
        (lambda m, v: tt.calibrate(m, v, neutral=NEUTRAL), "interventions"),
        (lambda m, v: tt.calibrate(m, tt.Add(v), neutral=NEUTRAL, budget=0.0), "budget"),
        (lambda m, v: tt.calibrate(m, tt.Add(v), neutral=NEUTRAL, target=1.0), "target"),
        (lambda m, v: tt.strength_sweep(m, tt.Add(v), [], neutral=NEUTRAL), "strengths"),
        (lambda m, v: tt.NextTokenEffect(m, ["a b"]), "words of both poles, or a score"),
        (
            lambda m, v: tt.NextTokenEffect(m, ["a b"], positive_words=["x"], negative_words=["y"]),
            "too few are single tokens",
        ),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    model = tt.load_model(tiny.tiny_bridge("llama"))
    with pytest.raises((InputError, TypeError), match=message):
        call(model, vector(model, 1))
