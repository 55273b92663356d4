"""Nothing moves between devices while a model runs: shown on a pretended accelerator.

The tests in tests/generation with the marker ``cuda`` say the same of a real one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import pretend, tiny
from tests.generation.test_laws import PROMPTS, vector_for
from tl_transfer.mappers.base import AffineMap
from tl_transfer.models.bare import KINDS

INTERVENTIONS: dict[str, Callable[[tt.SteeringVector], Any]] = {
    "nothing": lambda vector: (),
    "add": lambda vector: (tt.Add(vector, 2.0),),
    "a strength a row": lambda vector: (tt.Add(vector, torch.tensor([0.0, 3.0, -3.0, 1.0])),),
    "ablate everywhere": lambda vector: (tt.Ablate(vector, layers="all"),),
    "prompt only, and what follows": lambda vector: (
        tt.Add(vector, 2.0, tt.prompt()),
        tt.Ablate(vector, 1.0, tt.generated()),
    ),
    "by token and by gate": lambda vector: (
        tt.Add(vector, 2.0, tt.token_ids(range(20, 200))),
        tt.NormKeepingAdd(vector, 2.0, tt.when(tt.Gate(vector, 0.0))),
    ),
}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def pair(request: pytest.FixtureRequest) -> tuple[tt.HookedModel, tt.HookedModel]:
    """One model on the CPU, and the same one elsewhere."""
    here, there = (tt.load_model(tiny.tiny_bridge(request.param, seed=2)) for _ in range(2))
    assert there.bare() is not None
    pretend.move(there.host)
    assert there.device == pretend.DEVICE and there.bare() is not None
    return here, there


def test_the_accelerator_refuses_what_a_real_one_refuses() -> None:
    there = pretend.Elsewhere(torch.arange(6.0).view(2, 3))
    with pretend.Accelerator() as device:
        assert (there * 2 + torch.tensor(1.0)).device == pretend.DEVICE
        assert float((there @ there.T)[0, 0]) == 5.0 and device.read == 1
        assert (there.cpu() + 1).device.type == "cpu" and len(device.moves) == 1
        with pytest.raises(RuntimeError, match="tensors on"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="tensors on"):
            there[:, torch.tensor([0, 1])]


def test_capture_stays_on_the_device(pair: tuple[tt.HookedModel, tt.HookedModel]) -> None:
    here, model = pair
    tokens = tiny.random_tokens(300, 3, 9)
    points = [model.hook_point(f"{kind}@{layer}") for kind in KINDS for layer in range(4)]
    for side in ("right", "left"):
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[1, -3:] = False
        mask = mask if side == "right" else mask.flip(1)
        expected = here.residuals(tokens, mask, points)
        with pretend.Accelerator() as device:
            inputs = tokens.to(model.device), mask.to(model.device)
            device.moves.clear()
            read = model.residuals(*inputs, points)
            # Is there padding on the left? Asked by us, and by Hugging Face for each kind of mask.
            assert device.moves == [] and device.read <= 3
            assert all(value.device == pretend.DEVICE for value in read.values())
            for name, value in read.items():
                assert torch.allclose(value.cpu()[mask], expected[name][mask], atol=1e-5)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_decoding_moves_nothing_from_step_to_step(
    pair: tuple[tt.HookedModel, tt.HookedModel], name: str
) -> None:
    here, model = pair
    interventions = INTERVENTIONS[name](vector_for(here))

    def run(n_new: int, beams: int) -> tuple[list, list, int]:
        with pretend.Accelerator() as device, tt.attach(model, *interventions) as live:
            tokens = [
                g.tokens
                for g in live.generate(PROMPTS, max_new_tokens=n_new, num_beams=beams, stops=())
            ]
        return tokens, device.moves, device.read

    with tt.attach(here, *interventions) as live:
        for beams in (1, 2):
            expected = [
                g.tokens
                for g in live.generate(PROMPTS, max_new_tokens=6, num_beams=beams, stops=())
            ]
            _, few_moves, few_reads = run(3, beams)
            tokens, moves, reads = run(6, beams)
            assert tokens == expected
            assert len(moves) == len(few_moves)
            # One look a step: whether every row has stopped (and for beams, whether to go on).
            assert reads - few_reads <= 3 * (1 if beams == 1 else 2)
            from_device = [move for move in moves if move[0] == pretend.DEVICE.type]
            assert all(not dtype.is_floating_point for _, _, dtype, _ in from_device)


def test_the_map_of_a_model_beside_is_moved_once(
    pair: tuple[tt.HookedModel, tt.HookedModel],
) -> None:
    """Made on the CPU: its weight, copied at every token, would cost more than the token."""
    here, model = pair
    weight = torch.randn(model.d_model, model.d_model, generator=torch.Generator().manual_seed(3))
    ends = model.at("resid_post@1").space, model.at("resid_post@2").space
    mapper = AffineMap(
        weight / 7, weight[0], source=ends[0], target=ends[1], source_norm=1.0, target_norm=1.0,
        method="drawn",
    )  # fmt: skip

    def run(host: tt.HookedModel, n_new: int) -> tuple[list, list]:
        item = tt.ReplaceFrom(host, mapper, 0.5)
        with pretend.Accelerator() as device, tt.attach(host, item) as live:
            new = live.generate(PROMPTS[:2], max_new_tokens=n_new, stops=())
        return [one.tokens for one in new], device.moves

    expected, none = run(here, 6)
    _, few = run(model, 3)
    tokens, moves = run(model, 6)
    assert tokens == expected and none == []
    assert len([move for move in moves if move[3] == weight.shape]) == 1
    assert len(moves) == len(few)
