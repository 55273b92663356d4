"""Capture, steered generation and evaluation against what a user would write with TransformerLens.

Equal results are asserted in the same run. On the bundled SmolLM2, on whatever machine this is.
"""

import torch
from timing import ratio, report, write

import tl_transfer as tt
from tl_transfer.models.resume import Resumed

LAYER = 15
PROMPTS = ["The new restaurant was", "Looking back, I would say that the hotel was", "It is"]


def capture(model: tt.HookedModel) -> list[dict]:
    """One residual of a batch: our pass against run_with_cache, with and without its filters."""
    tokens = torch.randint(5, 10_000, (16, 48), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    point = model.hook_point(f"resid_post@{LAYER}")

    def ours() -> torch.Tensor:
        return model.residuals(tokens, mask, [point])[point.name]

    def filtered() -> torch.Tensor:
        with torch.no_grad():
            cache = model.host.run_with_cache(
                tokens, names_filter=point.name, stop_at_layer=LAYER + 1
            )[1]
        return cache[point.name]

    def everything() -> torch.Tensor:
        with torch.no_grad():
            return model.host.run_with_cache(tokens)[1][point.name]

    assert torch.allclose(ours(), filtered(), atol=1e-3)
    return [
        report("capture of one residual, filtered", ratio(ours, filtered), goal=1.3,
               against="run_with_cache(names_filter, stop_at_layer)"),
        report("capture of one residual, all names", ratio(ours, everything, pairs=3), goal=3.0,
               against="run_with_cache"),
    ]  # fmt: skip


def generation(model: tt.HookedModel, vector: tt.SteeringVector) -> list[dict]:
    """Steered greedy generation against the host's own loop with a lambda hook."""
    step = vector.unit * vector.median_norm * 0.3
    add = tt.Add(vector, 0.3, tt.everywhere(sinks=True))

    def ours(prompts: list[str]) -> list[tuple[int, ...]]:
        with tt.attach(model, add) as live:
            return [g.tokens for g in live.generate(prompts, max_new_tokens=24)]

    def theirs(prompts: list[str]) -> torch.Tensor:
        hooks = [(vector.space.hook_point, lambda a, hook: a + step)]
        with model.host.hooks(fwd_hooks=hooks):
            return model.host.generate(
                prompts,
                max_new_tokens=24,
                do_sample=False,
                verbose=False,
                return_type="tokens",
                stop_at_eos=False,
            )

    entries = []
    for name, prompts in (("1 row", PROMPTS[:1]), ("3 rows", PROMPTS)):
        tokens = ours(prompts)
        width = theirs(prompts).shape[1] - 24
        for row, expected in zip(theirs(prompts)[:, width:].tolist(), tokens, strict=True):
            assert tuple(row[: len(expected)]) == expected
        measured = ratio(lambda p=prompts: ours(p), lambda p=prompts: theirs(p), pairs=5)
        entries.append(
            report(f"steered generation, {name}", measured, goal=1.25,
                   against="host.generate with a lambda hook, equal tokens")
        )  # fmt: skip
    return entries


def evaluation(model: tt.HookedModel, vector: tt.SteeringVector) -> list[dict]:
    """One edit of one layer on a batch: resumed against a full hooked pass."""
    tokens = torch.randint(5, 10_000, (16, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    point = model.hook_point(f"resid_post@{LAYER}")
    resumed = Resumed(model, point, tokens, mask)
    keep = torch.tensor([23])

    def ours() -> torch.Tensor:
        return resumed.logits(resumed.residual + vector.unit, keep=keep)

    def theirs() -> torch.Tensor:
        with torch.no_grad(), model.hooked([(point.name, lambda a, hook: a + vector.unit)]):
            return model.host(tokens)[:, -1:]

    assert torch.allclose(ours(), theirs(), atol=1e-3)
    return [
        report("one edit of an evaluation", ratio(ours, theirs), goal=2.0,
               against="run_with_hooks over the whole model")
    ]  # fmt: skip


def main() -> None:
    model = tt.load_model("smollm2-135m-instruct")
    site = model.at(f"resid_post@{LAYER}")
    vector = tt.mean_difference(
        site,
        positive=["a wonderful day at the sea", "the best film of the year"],
        negative=["a terrible day at work", "the worst film of the year"],
    )
    write([*capture(model), *generation(model, vector), *evaluation(model, vector)])


if __name__ == "__main__":
    main()
