"""Generation, steered and not, against the host's own loop and against bare Hugging Face.

Greedy, the same number of tokens, equal tokens asserted in the same run. Every ratio is of whole
calls: `live.generate` with its tokenising and decoding of text on our side.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import cost, pin, ratio, report, write

import tl_transfer as tt
from tl_transfer.models.batches import pad

MODELS = {"smollm2-135m-instruct": 15, "qwen2.5-coder-0.5b-instruct": 12}
NEW = 20
TEXTS = [
    "The new restaurant was", "Looking back, I would say that the hotel was", "It is",
    "The committee met on Tuesday to", "She opened the door and", "In the early morning light",
    "The price of bread", "Nobody had expected that the small team", "A good teacher is",
    "He walked for an hour through the rain before", "The first chapter of the book", "Water boils",
    "When the train finally arrived", "My grandmother used to say", "The recipe asks for",
    "At last",
]  # fmt: skip


def plain(name: str) -> Any:
    """The checkpoint as Hugging Face loads it."""
    from transformers import AutoModelForCausalLM

    from tl_transfer.models import bundled

    model = AutoModelForCausalLM.from_pretrained(
        bundled.fetch(name), dtype=torch.float32, local_files_only=True
    )
    return model.eval().requires_grad_(False)


def of_hugging_face(hf: Any, model: tt.HookedModel, texts: list[str]) -> Callable[[], list]:
    """Its own ``generate``, on a left-padded batch of the same ids."""
    batch = pad([list(model.tokenizer(text)["input_ids"]) for text in texts], side="left")

    def run() -> list[tuple[int, ...]]:
        with torch.no_grad():
            out = hf.generate(
                batch.tokens, attention_mask=batch.mask.long(), max_new_tokens=NEW,
                do_sample=False, repetition_penalty=1.0, temperature=None, top_p=None, top_k=None,
                pad_token_id=0,
            )  # fmt: skip
        return [tuple(row) for row in out[:, batch.tokens.shape[1] :].tolist()]

    return run


def of_the_host(model: tt.HookedModel, vector: tt.SteeringVector, texts: list[str]) -> Callable:
    """The bridge's own loop with a lambda hook."""
    step = vector.unit * vector.median_norm * 0.3
    hooks = [(vector.space.hook_point, lambda a, hook: a + step)]
    # Ids, not texts: for a text the bridge puts a BOS in front, which this tokenizer does not.
    batch = pad([list(model.tokenizer(text)["input_ids"]) for text in texts], side="left")

    def run() -> torch.Tensor:
        with model.host.hooks(fwd_hooks=hooks):
            return model.host.generate(
                batch.tokens, attention_mask=batch.mask.long(), max_new_tokens=NEW,
                do_sample=False, verbose=False, return_type="tokens", stop_at_eos=False,
            )[:, -NEW:]  # fmt: skip

    return run


def ours(live: Any, texts: list[str]) -> Callable[[], list]:
    """Ids of the new tokens, from the public call."""
    return lambda: [g.tokens for g in live.generate(texts, max_new_tokens=NEW)]


def assert_equal(rows: list, expected: Any) -> None:
    """The same ids, up to the end of a row that stopped."""
    for row, other in zip(rows, expected, strict=True):
        assert tuple(row) == tuple(int(i) for i in other)[: len(row)], (row, other)


def against_others(model: tt.HookedModel, hf: Any, vector: tt.SteeringVector, n: int) -> list[dict]:
    """Our loop against bare Hugging Face, and steered against the bridge's loop."""
    texts, size = TEXTS[:n], f"{model.name}, batch {n}"
    entries = []
    rival = of_hugging_face(hf, model, texts)
    with tt.attach(model) as live:
        run = ours(live, texts)
        assert_equal(run(), rival())
        entries.append(
            report(f"generation, {size}", ratio(run, rival, pairs=11 if n == 1 else 7), goal=0.95,
                   against="bare Hugging Face generate, equal tokens")
        )  # fmt: skip
    host = of_the_host(model, vector, texts)
    with tt.attach(model, tt.Add(vector, 0.3, tt.everywhere(sinks=True))) as live:
        run = ours(live, texts)
        mine = run()
    assert_equal(mine, host())

    def steered() -> None:
        with tt.attach(model, tt.Add(vector, 0.3, tt.everywhere(sinks=True))) as live:
            live.generate(texts, max_new_tokens=NEW)

    entries.append(
        report(f"steered generation, {size}", ratio(steered, host, pairs=5), goal=1.25,
               against="host.generate with a lambda hook, equal tokens")
    )  # fmt: skip
    return entries


def of_steering(model: tt.HookedModel, vector: tt.SteeringVector, n: int) -> list[dict]:
    """What steering costs in the same loop, with the same attachment switched off."""
    texts, size = TEXTS[:n], f"{model.name}, batch {n}"
    strengths = torch.linspace(-0.2, 0.2, n)
    cases = [
        ("add at one layer", tt.Add(vector, 0.05), 1.02),
        ("ablate at every write", tt.Ablate(vector, layers="all"), 1.05),
    ]
    if n > 1:
        cases.append((f"{n} strengths in one batch", tt.Add(vector, strengths), 1.03))
    entries = []
    for name, intervention, goal in cases:
        with tt.attach(model) as unsteered:
            without = ours(unsteered, texts)

            def with_it(item: Any = intervention) -> list:
                with tt.attach(model, item) as live:
                    return ours(live, texts)()

            entries.append(
                report(f"{name}, {size}", cost(with_it, without, pairs=15 if n == 1 else 9),
                       goal=goal, better="lower", against="the same loop unsteered")
            )  # fmt: skip
    if n > 1:
        with tt.attach(model, tt.Add(vector, strengths)) as live:
            together = ours(live, texts)()
        for i in (0, n // 2, n - 1):
            with tt.attach(model, tt.Add(vector, float(strengths[i]))) as live:
                assert live.generate(texts[i], max_new_tokens=NEW).tokens == together[i]
    return entries


def of_baking(model: tt.HookedModel, vector: tt.SteeringVector) -> dict:
    """An addition in the weights against the model without it, in the same loop."""
    with tempfile.TemporaryDirectory() as folder:
        where = tt.everywhere(sinks=True)
        baked = tt.load_model(
            tt.bake(model, tt.Add(vector, 0.05, where), Path(folder) / "baked", check=False),
            check=False,
        )
        with tt.attach(model) as plain, tt.attach(baked) as steered:
            measured = cost(ours(steered, TEXTS[:1]), ours(plain, TEXTS[:1]), pairs=21)
    return report(
        f"baked addition, {model.name}, batch 1", measured, goal=1.0, better="lower",
        against="the same loop on the model without it",
    )  # fmt: skip


def main() -> None:
    pin()
    names = [name for name in MODELS if any(a in name for a in sys.argv[1:])] or list(MODELS)
    for name in names:
        model, hf = tt.load_model(name), plain(name)
        site = model.at(f"resid_post@{MODELS[name]}")
        vector = tt.mean_difference(
            site,
            positive=["a wonderful day at the sea", "the best film of the year"],
            negative=["a terrible day at work", "the worst film of the year"],
        )
        entries = []
        for n in (1, 16):
            entries += against_others(model, hf, vector, n)
            entries += of_steering(model, vector, n)
        entries.append(of_baking(model, vector))
        write(entries)


if __name__ == "__main__":
    main()
