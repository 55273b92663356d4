"""Nothing is left behind by a thousand cycles: no hook, no object, no memory."""

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tl_transfer as tt
from tests import tiny
from tests.generation.cases import count_hooks

Cycle = Callable[[tt.HookedModel, int], None]
#: ``make soak`` asks for ten times as many.
CYCLES = int(os.environ.get("TL_TRANSFER_CYCLES", "1000"))


@pytest.fixture
def model() -> tt.HookedModel:
    return tt.load_model(tiny.tiny_bridge("llama", seed=21, n_layers=2))


def a_vector(model: tt.HookedModel) -> tt.SteeringVector:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return tt.SteeringVector(direction, model.at("resid_post@1").space, 5.0, "random")


def torch_hooks(model: tt.HookedModel) -> int:
    """Hooks of torch on every module of the host and of the plain modules under it."""
    bare = model.bare()
    trees = [model.host, model.host.original_model, *([] if bare is None else [bare.tree])]
    modules = {id(m): m for tree in trees for m in tree.modules()}.values()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def live_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def attach_and_detach(model: tt.HookedModel, n: int) -> None:
    edit = tt.Add(a_vector(model), 0.5)
    for _ in range(n):
        with tt.attach(model, edit):
            pass


def generate(model: tt.HookedModel, n: int) -> None:
    with tt.attach(model, tt.Add(a_vector(model), 0.5)) as live:
        for _ in range(n):
            live.generate("a b", max_new_tokens=1)


def resident() -> int:
    """Bytes of memory in use, those outside Python included; 0 where it cannot be asked."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.is_file() else 0


@pytest.mark.parametrize("cycle", [attach_and_detach, generate])
def test_a_thousand_cycles_leave_nothing(model: tt.HookedModel, cycle: Cycle) -> None:
    cycle(model, 20)  # whatever is made once is made now
    hooks, on_modules, objects = count_hooks(model), torch_hooks(model), live_objects()
    memory = resident()
    cycle(model, CYCLES)
    assert (count_hooks(model), torch_hooks(model)) == (hooks, on_modules)
    grown = live_objects() - objects
    assert grown < 250, f"{grown} objects more after {CYCLES} cycles"
    assert resident() - memory < 30e6, "memory outside Python grows"


def test_what_was_attached_is_freed(model: tt.HookedModel) -> None:
    edit = tt.Add(a_vector(model), 0.5)
    gone = weakref.ref(edit)
    with tt.attach(model, edit) as live:
        live.generate("a b", max_new_tokens=1)
        session = weakref.ref(live)
    del edit, live
    gc.collect()
    assert gone() is None, "the model keeps an intervention that was taken off"
    assert session() is None, "the model keeps a session that has ended"


def test_a_model_is_freed_when_its_last_name_goes() -> None:
    model = tt.load_model(tiny.tiny_bridge("llama", seed=22, n_layers=2))
    with tt.attach(model, tt.Add(a_vector(model), 0.5)) as live:
        live.generate("a b", max_new_tokens=1)
    gone = weakref.ref(model)
    del model, live
    gc.collect()
    assert gone() is None, "something keeps a model that nobody uses: two would fill the memory"
