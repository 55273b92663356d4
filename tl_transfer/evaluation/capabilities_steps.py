"""Ways to drop the prefix and keep the fact: what each adds to the last token of the prompt.

The target of every edit is the state that the model has after it has said the prefix: it knows the
fact and owes no prefix. Ways differ in what they know of the difference between the two states:

- *mean*: the mean difference over other facts (the paper's vector);
- *clamp*: along that direction, the coordinate is set to its mean after the prefix, so that nothing
  is added where it is there already;
- *increments*: at every layer what the mean difference gains there, so that nothing is counted
  twice;
- *per prompt*: the difference for this very prompt, read in the source and pushed through the map
  (or read in the target itself: what an edit of one state can reach at best);
- *suppressed*: no difference, the prefix's first token is made unlikely where it is unembedded.

Two controls say what an edit carries. At an early layer the state after the prefix may hold nothing
but "the prefix was said", and the fact is looked up behind it: then *one constant state*, the mean
after other facts, put in place of the state of every prompt, gives the right facts as well; the
edit forges a token. At a late layer the state may hold the answer: then *the step of another fact*
makes the model give the answer of that one; the edit writes an answer that the source knew.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.evaluation.capabilities_bench import CapabilitiesBench, Steps
from tl_transfer.extract.features import random_isotropic
from tl_transfer.mappers.base import Mapper
from tl_transfer.tasks.capabilities import Fact

#: What a way adds, from the bench, the number of the pair of layers, and the facts.
Way = Callable[[CapabilitiesBench, int, Sequence[Fact]], Float[Tensor, "fact d"]]
#: The way that tells whether a layer's state holds the fact at all.
CONSTANT = "constant state"
#: The way that tells whose fact a step carries.
OTHER = "transferred, of another fact"


def others(facts: Sequence[Fact]) -> list[Fact]:
    """For every fact the next one of its relation with another answer.

    Without one, the next one with another answer, and without that the fact itself.
    """
    found = []
    for i, fact in enumerate(facts):
        rest = [g for g in (*facts[i + 1 :], *facts[:i]) if g.answer != fact.answer]
        alike = [g for g in rest if g.relation == fact.relation]
        found.append((alike or rest or [fact])[0])
    return found


def _constant(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    layer = bench.layers.pairs[index][1]
    return bench.means("target", layer)[1] - bench.states("target", facts)[layer][0]


def _native_mean(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    before, after = bench.means("target", bench.layers.pairs[index][1])
    return (after - before).expand(len(facts), -1)


def _native_clamp(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    return _clamped(bench, index, facts, *bench.means("target", bench.layers.pairs[index][1]))


def _native_each(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    before, after = bench.states("target", facts)[bench.layers.pairs[index][1]]
    return after - before


def _moved_mean(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    before, after = _moved_means(bench, index)
    return (after - before).expand(len(facts), -1)


def _moved_clamp(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    return _clamped(bench, index, facts, *_moved_means(bench, index))


def _moved_each(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    return _through(bench, bench.layers.maps[index], index, facts)


def _moved_other(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    places = {fact: i for i, fact in enumerate(facts)}
    return _moved_each(bench, index, facts)[[places[fact] for fact in others(facts)]]


def _shuffled_each(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
    """Shuffled maps shrink to nothing: given the length of the real step."""
    wrong = bench.layers.maps[index].shuffled
    assert wrong is not None  # fit makes it
    step = _through(bench, wrong, index, facts)
    length = _moved_each(bench, index, facts).norm(dim=1, keepdim=True)
    return step / step.norm(dim=1, keepdim=True).clamp(min=1e-9) * length


def _random(draw: int) -> Way:
    def steps(bench: CapabilitiesBench, index: int, facts: Sequence[Fact]) -> Tensor:
        before, after = bench.means("target", bench.layers.pairs[index][1])
        mean = after - before
        unit = random_isotropic(mean.shape[1], 1, seed=bench.seed + 1000 * draw + index)
        return (unit.to(mean) * mean.norm()).expand(len(facts), -1)

    return steps


#: Ways with one layer each, tried at every pair of layers.
SINGLE: dict[str, Way] = {
    CONSTANT: _constant,
    "native mean": _native_mean,
    "native clamp": _native_clamp,
    "native per prompt": _native_each,
    "transferred mean": _moved_mean,
    "transferred clamp": _moved_clamp,
    "transferred per prompt": _moved_each,
    OTHER: _moved_other,
    "shuffled map, per prompt": _shuffled_each,
    "random 1, length of the mean": _random(1),
    "random 2, length of the mean": _random(2),
}
#: Ways that use all layers, or none.
WHOLE = ("native increments", "transferred increments", "prefix suppressed")


def single_steps(bench: CapabilitiesBench, way: str, index: int, facts: Sequence[Fact]) -> Steps:
    """What a way adds to the last prompt token of every fact at one pair of layers.

    Args:
        bench: States and maps.
        way: One of `SINGLE`.
        index: Number of the pair of layers.
        facts: The facts that are asked.

    Raises:
        InputError: an unknown way.
    """
    if way not in SINGLE:
        raise InputError("way: unknown", got=repr(way), valid=", ".join(SINGLE))
    return {bench.layers.pairs[index][1]: SINGLE[way](bench, index, facts)}


def whole_steps(bench: CapabilitiesBench, way: str, facts: Sequence[Fact]) -> Steps:
    """The same for a way that needs no layer.

    Args:
        bench: States and maps.
        way: One of `WHOLE`.
        facts: The facts that are asked.

    Raises:
        InputError: an unknown way.
    """
    if way not in WHOLE:
        raise InputError("way: unknown", got=repr(way), valid=", ".join(WHOLE))
    if way == "prefix suppressed":
        return _suppressed(bench, facts)
    mean = _native_mean if way.startswith("native") else _moved_mean
    steps: Steps = {}
    last = None
    for i, (_, there) in enumerate(bench.layers.pairs):
        total = mean(bench, i, facts)
        # A later layer carries on what an earlier one was given: only the gain is added.
        steps[there] = total if last is None else total - last
        last = total
    return steps


def _suppressed(bench: CapabilitiesBench, facts: Sequence[Fact]) -> Steps:
    """The last state mirrored along the direction that unembeds the prefix's first token."""
    top = bench.target.n_layers - 1
    before, _ = bench.states("target", facts)[top]
    first = bench.target.tokenizer(bench.task.payload, add_special_tokens=False)["input_ids"][0]
    direction = bench.target.host.W_U[:, first].detach().float().to(before.device)
    direction = direction / direction.norm()
    return {top: -2 * (before @ direction)[:, None] * direction}


def _clamped(
    bench: CapabilitiesBench, index: int, facts: Sequence[Fact], before: Tensor, after: Tensor
) -> Tensor:
    """To the coordinate of `after`, along the direction from `before` to it."""
    unit = (after - before) / (after - before).norm().clamp(min=1e-9)
    now = bench.states("target", facts)[bench.layers.pairs[index][1]][0]
    return ((after - now) @ unit.T) * unit


def _moved_means(bench: CapabilitiesBench, index: int) -> tuple[Tensor, Tensor]:
    before, after = bench.means("source", bench.layers.pairs[index][0])
    mapper = bench.layers.maps[index]
    return mapper.map_points(before), mapper.map_points(after)


def _through(
    bench: CapabilitiesBench, mapper: Mapper, index: int, facts: Sequence[Fact]
) -> Float[Tensor, "fact d"]:
    """A difference of points through a map: the intercept cancels."""
    before, after = bench.states("source", facts)[bench.layers.pairs[index][0]]
    return mapper.map_points(after) - mapper.map_points(before)
