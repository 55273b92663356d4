"""What steering costs in repeng, steering-vectors and nnsight, against their own bare generation.

They need other versions of everything, so they run in an environment of their own
(``tools/foreign_tools.py`` makes it). The ratio is taken inside it; ours is in `generation.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MODEL, LAYER, NEW = "smollm2-135m-instruct", 15, 20
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "temperature": None,
          "top_p": None, "pad_token_id": 0}  # fmt: skip


def main() -> None:
    """Start the other side, and keep what it measured."""
    from timing import write

    from tl_transfer.data.cache import cache_dir
    from tl_transfer.models import bundled

    python = cache_dir() / "foreign-tools" / "bin" / "python"
    if not python.is_file():
        print("left out: the other tools are not installed (tools/foreign_tools.py)")
        return
    done = subprocess.run(
        [str(python), __file__, str(bundled.fetch(MODEL))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    *lines, entries = done.stdout.strip().splitlines()
    print("\n".join(lines))
    write(json.loads(entries))


def other_side(folder: str) -> None:
    """Runs where the other tools are: one layer steered, against the same model bare."""
    from importlib.metadata import version

    import torch
    from timing import cost, pin, report
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    pin()
    tokens = torch.randint(5, 10_000, (1, 12), generator=torch.Generator().manual_seed(0))
    step = torch.randn(576, generator=torch.Generator().manual_seed(1))
    step *= 100.0 / step.norm()

    def fresh() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def generate(model: torch.nn.Module) -> list[int]:
        out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **GREEDY)
        return out[0].tolist()

    def with_steering_vectors(model: torch.nn.Module) -> object:
        from steering_vectors import SteeringVector

        vector = SteeringVector({LAYER: step}, "decoder_block")
        with vector.apply(model):
            return generate(model)

    def with_repeng() -> tuple[object, object]:
        from repeng import ControlModel, ControlVector

        model = ControlModel(fresh(), [LAYER])
        vector = ControlVector(model_type="llama", directions={LAYER: step.numpy()})
        model.set_control(vector, 1.0)
        return model, lambda: generate(model)

    def with_nnsight() -> Callable[[], object]:
        from nnsight import LanguageModel

        tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
        model = LanguageModel(fresh(), tokenizer=tokenizer)
        prompt = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

        def traced() -> list[int]:
            with torch.no_grad(), model.generate(prompt, **GREEDY) as tracer:
                for _ in tracer.iter[:NEW]:
                    model.model.layers[LAYER].output[:] += step
                out = tracer.result.save()
            return out[0].tolist()

        return traced

    bare = fresh()
    _, steered = with_repeng()
    steered_ids = steered()
    assert steered_ids != generate(bare), "the vector changes nothing"
    assert with_steering_vectors(bare) == steered_ids, "two tools do different things"
    traced = with_nnsight()
    assert traced() == steered_ids, "nnsight does something else"
    entries = [
        report(
            f"{name} {version(name)}: add at one layer, {MODEL}, batch 1",
            cost(work, lambda: generate(bare), pairs=15), goal=None, better="lower",
            against=f"bare generate of transformers {version('transformers')}",
        )
        for name, work in (
            ("steering-vectors", lambda: with_steering_vectors(bare)),
            ("repeng", steered),
            ("nnsight", traced),
        )
    ]  # fmt: skip
    print(json.dumps(entries))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        other_side(sys.argv[1])
    else:
        main()
