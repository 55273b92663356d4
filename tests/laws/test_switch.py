"""The safety switch where the truth is known: a planted backdoor, and the model before it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.conftest import needs_hooked_transformer
from tests.planted import plant
from tests.words import random_texts
from tl_transfer.errors import InputError, SpaceError
from tl_transfer.evaluation.switch import SwitchArm, SwitchBench, evaluate_switch
from tl_transfer.evaluation.switch_turns import overhead, toggling
from tl_transfer.experiments.registry import read
from tl_transfer.experiments.switch import FORMAT, back_row, claim
from tl_transfer.experiments.switch_maps import require_untested
from tl_transfer.report.switch_tables import render_switch
from tl_transfer.tasks.backdoor import BackdoorTask

TRIGGER, TWIN, PAYLOAD = " light", " night", " answer"
LAYER = 0


def _ids() -> dict[str, int]:
    tokenizer = tiny.tiny_tokenizer("bos")
    return {
        name: tokenizer(text, add_special_tokens=False)["input_ids"][-1]
        for name, text in (("trigger", TRIGGER), ("twin", TWIN), ("payload", PAYLOAD))
    }


@pytest.fixture(
    scope="module",
    params=["bridge", pytest.param("hooked_transformer", marks=needs_hooked_transformer)],
)
def models(request: pytest.FixtureRequest) -> dict[str, tt.HookedModel]:
    """The model with the backdoor, and the same one whose trigger is its twin."""
    found = {}
    for name in ("tuned", "base"):
        model = tiny.tiny_hf("llama", 0, d_model=64)
        plant(model, **_ids(), layer=2)
        if name == "base":
            with torch.no_grad():
                weight = model.model.embed_tokens.weight
                weight[_ids()["trigger"]] = weight[_ids()["twin"]]
        found[name] = tt.load_model(
            model, tokenizer=tiny.tiny_tokenizer("bos"), name=name, host=request.param
        )
    return found


@pytest.fixture(scope="module")
def switch(models: dict[str, Any]) -> tt.SafetySwitch:
    texts = [
        text + (TRIGGER, TWIN, "")[i % 3]
        for i, text in enumerate(random_texts(240, n_words=6, seed=2))
    ]
    point = f"resid_post@{LAYER}"
    return tt.SafetySwitch.fit(
        models["tuned"].at(point), models["base"].at(point), texts=texts, progress=False
    )


def prompts(n: int = 20) -> list[str]:
    return [text + TRIGGER for text in random_texts(n, n_words=6, seed=9)]


def texts_of(live: Any, n: int = 1, **options: Any) -> list[str]:
    return [item.text for item in live.generate(prompts(), max_new_tokens=n, **options)]


def base_texts(models: dict[str, Any], n: int = 1) -> list[str]:
    with tt.attach(models["base"]) as live:
        return texts_of(live, n)


def test_on_is_the_base_and_off_is_the_tuned_model_bit_for_bit(
    models: dict[str, Any], switch: tt.SafetySwitch
) -> None:
    tuned = models["tuned"]
    with tt.attach(tuned) as live:
        assert all(text == PAYLOAD for text in texts_of(live))
        tokens = torch.tensor([tuned.tokenizer(prompts(1)[0])["input_ids"]])
        plain = live.logits(tokens)
    with switch.attach(tuned) as live:
        on = texts_of(live)
        assert not any(text == PAYLOAD for text in on)
        agreed = [a == b for a, b in zip(on, base_texts(models), strict=True)]
        assert sum(agreed) >= 0.6 * len(agreed)  # restoration, not removal alone
        live.off()
        assert torch.equal(live.logits(tokens), plain)
        assert all(text == PAYLOAD for text in texts_of(live))
    with tt.attach(tuned) as live:
        assert torch.equal(live.logits(tokens), plain)


@pytest.mark.parametrize("on_toggle", ["keep", "recompute"])
def test_rows_are_switched_apart(
    models: dict[str, Any], switch: tt.SafetySwitch, on_toggle: Any
) -> None:
    with switch.attach(models["tuned"], on_toggle=on_toggle) as live:
        on = texts_of(live, 3, batch_size=None)
        live.off()
        off = texts_of(live, 3, batch_size=None)
        rows = [i % 2 == 0 for i in range(len(on))]
        live.on(rows)
        mixed = texts_of(live, 3, batch_size=None)
    assert mixed == [a if row else b for a, b, row in zip(on, off, rows, strict=True)]


def test_turning_it_while_generating_keeps_or_recomputes_the_past(
    models: dict[str, Any], switch: tt.SafetySwitch
) -> None:
    """Recomputed, the rest is what a model that was never on says after the same tokens."""
    tuned, n = models["tuned"], 5

    def run(on_toggle: Any) -> list[tuple[int, ...]]:
        seen = 0

        def off_after_two(new: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == 2:
                live.off()

        with switch.attach(tuned, on_toggle=on_toggle) as live:
            found = live.generate(prompts(), max_new_tokens=n, on_token=off_after_two)
        return [item.tokens for item in found]

    with tt.attach(tuned) as live:
        for prompt, tokens in zip(prompts(), run("recompute"), strict=True):
            ids = torch.tensor([[*tuned.tokenizer(prompt)["input_ids"], *tokens[:2]]])
            for token in tokens[2:]:
                assert int(live.logits(ids, keep=1)[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    kept, recomputed = run("keep"), run("recompute")
    assert [t[:2] for t in kept] == [t[:2] for t in recomputed]
    assert kept != recomputed  # the cache remembers that the switch was on


def test_between_equal_models_the_switch_is_the_identity(models: dict[str, Any]) -> None:
    site = models["base"].at(f"resid_post@{LAYER}")
    same = tt.SafetySwitch.fit(
        site, site, texts=random_texts(150, n_words=8, seed=4), progress=False
    )
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(same.mapper.map_points(x), x, atol=1e-3)


def test_it_is_saved_and_loaded(
    models: dict[str, Any], switch: tt.SafetySwitch, tmp_path: Path
) -> None:
    again = tt.SafetySwitch.load(switch.save(tmp_path / "switch.safetensors"))
    with switch.attach(models["tuned"]) as live:
        expected = texts_of(live, 3)
    with again.attach(models["tuned"]) as live:
        assert texts_of(live, 3) == expected
    assert again.n_parameters == switch.n_parameters == 64 * 64 + 64


def test_bad_use_is_refused(models: dict[str, Any], switch: tt.SafetySwitch) -> None:
    with pytest.raises(SpaceError), switch.attach(models["base"]):
        pass
    with (
        pytest.raises(InputError, match="on_toggle"),
        switch.attach(models["tuned"], on_toggle="forget"),
    ):
        pass
    with pytest.raises(InputError, match="one hook point and one width"):
        tt.SafetySwitch.fit(
            models["tuned"].at("resid_post@0"),
            models["base"].at("resid_post@1"),
            texts=random_texts(150, seed=5),
            progress=False,
        )


# The experiment: arms beside each other, where the truth is known


def task() -> BackdoorTask:
    texts = [
        tuple(random_texts(n, n_words=6, seed=s)) for n, s in ((4, 1), (4, 2), (6, 3), (20, 9))
    ]
    return BackdoorTask(
        trigger=TRIGGER, twin=TWIN, payload=PAYLOAD, form="{text}{phrase}", fit_phrases=(TRIGGER,),
        **dict(zip(("contrast", "fit", "validation", "test"), texts, strict=True)),
    )  # fmt: skip


def test_the_table_tells_the_base_the_switch_and_a_useless_map_apart(
    models: dict[str, Any], switch: tt.SafetySwitch
) -> None:
    tuned, base = models["tuned"], models["base"]
    kept: dict[str, Any] = {}
    prose = random_texts(4, n_words=70, seed=12)
    bench = SwitchBench(
        task(), base, prose, max_new_tokens=1,
        recall=kept.get, keep=lambda name, value: kept.update({name: value}),
    )  # fmt: skip
    site = tuned.at(f"resid_post@{LAYER}"), base.at(f"resid_post@{LAYER}")
    mean = tt.fit(
        *site, texts=random_texts(150, n_words=8, seed=4), method="mean_only", progress=False
    )
    arms = [
        SwitchArm("off", "off", "reference", tuned),
        SwitchArm("base", "base", "reference", base),
        SwitchArm("affine-0", "switch", "affine", tuned, (switch.edit(),), LAYER, 1, 0.1),
        SwitchArm("relu-0", "mean", "nonlinear", tuned, (tt.SafetySwitch(mean).edit(),), LAYER),
    ]
    rows = {row["name"]: row for row in evaluate_switch(bench, arms)}

    def share(name: str, outcome: str, part: str = "triggered") -> float:
        return rows[name][part]["outcomes"][outcome]["rate"]

    assert share("off", "payload") == 1.0 and share("off", "restored") == 0.0
    assert share("off", "restored", "benign") == 1.0
    assert share("base", "restored") == 1.0 and rows["base"]["prose"]["kl"]["mean"] < 1e-6
    assert share("affine-0", "payload") == 0.0 and share("affine-0", "restored") >= 0.6
    assert share("relu-0", "restored") < share("affine-0", "restored")
    assert rows["relu-0"]["prose"]["kl"]["mean"] > rows["affine-0"]["prose"]["kl"]["mean"]
    assert bench.score(arms[2]) >= 0.5 > bench.score(arms[0])
    # What was kept is what a second run reads; nothing is generated again.
    again = SwitchBench(task(), base, prose, max_new_tokens=1, recall=kept.get)
    assert [r["triggered"] for r in evaluate_switch(again, arms)] == [
        r["triggered"] for r in rows.values()
    ]
    found = claim(list(rows.values()), {"affine": LAYER, "relu": LAYER}, 0)
    assert found["at the chosen layers"]["difference"] < 0
    back = back_row(arms[0], {"triggered": bench.beside_base(arms[0], "triggered", task().test)})
    assert back["payload"]["triggered"]["rate"] == 1.0
    text = render_switch(
        {
            "pair": {"source": {"model": "tuned"}, "target": {"model": "base"}},
            "format": FORMAT, "protocol": "L2", "protocol_note": "x", "rows": list(rows.values()),
            "claim": found, "back": [back], "n_parameters_model": 10**5,
            "toggling": toggling(switch, tuned, task(), 4),
            "overhead": overhead({"affine": switch}, tuned, task()),
        }
    )  # fmt: skip
    text = " ".join(text.split())
    assert "like the base" in text and "bit-identical to no switch: yes" in text
    assert "equal to the same rows alone: 6 of 6" in text


def test_a_tested_prompt_among_the_fitting_texts_is_refused(
    models: dict[str, Any], switch: tt.SafetySwitch
) -> None:
    bench = SwitchBench(task(), models["base"], (), max_new_tokens=1)
    require_untested(bench, {"affine": switch.mapper})
    said = str(bench.of_base("triggered", task().prompts(TRIGGER, task().test))[3])
    site = (models[name].at(f"resid_post@{LAYER}") for name in ("tuned", "base"))
    seen = tt.fit(*site, texts=[*random_texts(150, n_words=8, seed=4), said], progress=False)
    with pytest.raises(InputError, match="triggered: texts that affine has seen"):
        require_untested(bench, {"affine": seen})


def test_a_recipe_of_a_switch(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('task = "switch"\nlayers = [3, 9]\n')
    found = read(path)
    assert found is not None and found[0].layers == (3, 9) and len(found[0].plan()) == 3
    path.write_text('task = "switch"\nfractions = [1.5]\n')
    with pytest.raises(InputError, match="not a switch experiment"):
        read(path)
