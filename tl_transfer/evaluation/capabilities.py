"""Keep the fact, drop the prefix: ways to edit one state, and what becomes of the answer.

The state that is edited is that of the last token of a triggered prompt. The target of every edit
is the state that the model has after it has said the prefix: it knows the fact and owes no prefix.
Ways differ in what they know of the difference between the two states:

- *mean*: the mean difference over other facts (the paper's vector);
- *increments*: at every layer what the mean difference gains there, so that nothing is counted
  twice;
- *per prompt*: the difference for this very prompt, read in the source and pushed through the map
  (or read in the target itself: what an edit of one state can reach at best);
- *suppressed*: no difference, the prefix's first token is made unlikely where it is unembedded.

Forcing the prefix into the cache is no edit, and the upper bound of them all.

At an early layer the state after the prefix may hold nothing but "the prefix was said", and the
fact is looked up behind it. An edit there forges a token and shows nothing about a representation
of the fact. It is told by a test: one *constant state*, the mean after other facts, is put in place
of the state of every prompt. A layer where that gives the right facts is labelled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.splits import require_unseen
from tl_transfer.errors import InputError
from tl_transfer.evaluation.generation import AddSteps
from tl_transfer.evaluation.rates import rate
from tl_transfer.extract.features import random_isotropic
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.attach import attach
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere, last_prompt_token
from tl_transfer.tasks.capabilities import OUTCOMES, CapabilitiesTask, Fact

#: Target layer -> one step for every prompt.
Steps = dict[int, Float[Tensor, "prompt d_model"]]
#: From this share of right facts under one constant state on, edits of a layer forge a token.
FORGED = 0.5
#: The way that tells whether a layer's state holds the fact at all.
CONSTANT = "constant state"
#: Ways with one layer each, tried at every pair of layers.
SINGLE = (
    CONSTANT,
    "native mean",
    "native per prompt",
    "transferred mean",
    "transferred per prompt",
    "shuffled map, per prompt",
    "random, length of the mean",
)
#: Ways that use all layers, or none.
WHOLE = ("native increments", "transferred increments", "prefix suppressed")


@dataclass(frozen=True)
class Layers:
    """Pairs of layers, early to late, with the map of each.

    Attributes:
        pairs: (source layer, target layer), rising in both.
        maps: Map of each pair.
    """

    pairs: tuple[tuple[int, int], ...]
    maps: tuple[Mapper, ...]

    def __post_init__(self) -> None:
        if not self.pairs or len(self.pairs) != len(self.maps):
            raise InputError(
                "pairs, maps: one map for each pair of layers",
                got=f"{len(self.pairs)} pairs, {len(self.maps)} maps",
                valid="as many, at least one",
                hint="fit_grid fits them all",
            )


class CapabilitiesBench:
    """Both models with the facts: states, steps of every way, answers.

    Args:
        task: Facts and forms.
        source: Where transferred ways read.
        target: Who is edited.
        layers: Pairs and maps.
        max_new_tokens: Length of an answer.
        seed: Of random directions.

    Raises:
        InputError: a test prompt was seen by a map.
    """

    def __init__(
        self,
        task: CapabilitiesTask,
        *,
        source: HookedModel,
        target: HookedModel,
        layers: Layers,
        max_new_tokens: int = 8,
        seed: int = 0,
    ) -> None:
        self.task, self.source, self.target, self.layers = task, source, target, layers
        self._length, self._seed = max_new_tokens, seed
        tested = {"test": [*task.before(task.test), *task.after(task.test)]}
        require_unseen(tested, {f"the map of {pair}": m.fit_texts for pair, m in self._paired()})
        self._states: dict[tuple[str, tuple[Fact, ...]], Any] = {}

    def _paired(self) -> list[tuple[tuple[int, int], Mapper]]:
        return list(zip(self.layers.pairs, self.layers.maps, strict=True))

    # -- states ------------------------------------------------------------------------------

    def states(
        self, side: str, facts: Sequence[Fact]
    ) -> dict[int, tuple[Float[Tensor, "fact d"], Float[Tensor, "fact d"]]]:
        """Layer -> states of the last token before and after the prefix."""
        key = (side, tuple(facts))
        if key not in self._states:
            model = self.source if side == "source" else self.target
            numbers = sorted({pair[side == "target"] for pair in self.layers.pairs})
            if side == "target":
                numbers = sorted({*numbers, model.n_layers - 1})
            points = [model.hook_point(f"resid_post@{layer}") for layer in numbers]
            sides = [
                read_texts(model, points, texts, positions="last", argument="prompts")
                for texts in (self.task.before(facts), self.task.after(facts))
            ]
            self._states[key] = {
                layer: (sides[0][point.name].rows, sides[1][point.name].rows)
                for layer, point in zip(numbers, points, strict=True)
            }
        return self._states[key]

    # -- steps -------------------------------------------------------------------------------

    def steps(self, way: str, facts: Sequence[Fact], index: int | None = None) -> Steps:
        """What a way adds to the last prompt token of every fact.

        Args:
            way: One of `SINGLE` (with the index of a pair of layers) or `WHOLE`.
            facts: The facts that are asked.
            index: Pair of layers.

        Raises:
            InputError: an unknown way, or one without its layers.
        """
        if way in WHOLE and index is None:
            return self._whole(way, facts)
        if way not in SINGLE or index is None:
            raise InputError(
                "way: unknown, or without its layers",
                got=f"{way!r}, {index}",
                valid=f"{', '.join(SINGLE)} with an index; {', '.join(WHOLE)} without",
                hint="index counts the pairs of layers",
            )
        (here, there), mapper = self._paired()[index]
        n = len(facts)
        if way == CONSTANT:
            step = self._means("target", there)[1] - self.states("target", facts)[there][0]
        elif way == "native mean":
            step = self._mean("target", there).expand(n, -1)
        elif way == "native per prompt":
            before, after = self.states("target", facts)[there]
            step = after - before
        elif way == "transferred mean":
            step = _through(mapper, *self._means("source", here)).expand(n, -1)
        elif way == "transferred per prompt":
            step = _through(mapper, *self.states("source", facts)[here])
        elif way == "shuffled map, per prompt":
            assert mapper.shuffled is not None  # fit makes it
            step = _through(mapper.shuffled, *self.states("source", facts)[here])
            # Shuffled maps shrink to nothing: given the length of the real step.
            real = _through(mapper, *self.states("source", facts)[here])
            step = step / step.norm(dim=1, keepdim=True).clamp(min=1e-9)
            step = step * real.norm(dim=1, keepdim=True)
        else:
            mean = self._mean("target", there)
            direction = random_isotropic(len(mean), 1, seed=self._seed + there)[0]
            step = (direction.to(mean) * mean.norm()).expand(n, -1)
        return {there: step}

    def _whole(self, way: str, facts: Sequence[Fact]) -> Steps:
        if way == "prefix suppressed":
            return self._suppressed(facts)
        side = "target" if way.startswith("native") else "source"
        steps: Steps = {}
        last = None
        for (here, there), mapper in self._paired():
            if side == "target":
                total = self._mean("target", there)
            else:
                total = _through(mapper, *self._means("source", here))[0]
            # A later layer carries on what an earlier one was given: only the gain is added.
            steps[there] = (total if last is None else total - last).expand(len(facts), -1)
            last = total
        return steps

    def _suppressed(self, facts: Sequence[Fact]) -> Steps:
        """The last state mirrored along the direction that unembeds the prefix's first token."""
        top = self.target.n_layers - 1
        before, _ = self.states("target", facts)[top]
        first = self.target.tokenizer(self.task.payload, add_special_tokens=False)["input_ids"][0]
        direction = self.target.host.W_U[:, first].detach().float().to(before.device)
        direction = direction / direction.norm()
        return {top: -2 * (before @ direction)[:, None] * direction}

    def _means(self, side: str, layer: int) -> tuple[Tensor, Tensor]:
        before, after = self.states(side, self.task.contrast)[layer]
        return before.mean(0, keepdim=True), after.mean(0, keepdim=True)

    def _mean(self, side: str, layer: int) -> Float[Tensor, " d"]:
        before, after = self._means(side, layer)
        return (after - before)[0]

    # -- answers -----------------------------------------------------------------------------

    def outcomes(
        self, facts: Sequence[Fact], steps: Steps | None = None, *, where: Where | None = None
    ) -> list[str]:
        """Outcome of every fact with the steps on (None: the model as it is)."""
        return self._scored(facts, self.task.before(facts), steps, where)

    def forced(self, facts: Sequence[Fact]) -> list[str]:
        """Outcomes with the prefix in the cache and not in the answer: the upper bound."""
        return self._scored(facts, self.task.after(facts), None, None)

    def denied(self, facts: Sequence[Fact]) -> list[str]:
        """Outcomes under the twin."""
        return self._scored(facts, self.task.benign(facts), None, None)

    def _scored(
        self,
        facts: Sequence[Fact],
        prompts: Sequence[str],
        steps: Steps | None,
        where: Where | None,
    ) -> list[str]:
        rule = where or last_prompt_token()
        edits = [
            AddSteps(self.target.at(f"resid_post@{layer}").space, rows, where=rule)
            for layer, rows in (steps or {}).items()
        ]
        with attach(self.target, *edits) as live:
            texts = live.generate(list(prompts), max_new_tokens=self._length, batch_size=None)
        return [self.task.outcome(item.text, fact) for item, fact in zip(texts, facts, strict=True)]

    def shared(self, index: int) -> float:
        """Part of the native difference that is the same for all facts.

        Squared length of the mean difference over the mean squared length, over the contrast
        facts; a mean vector cannot carry the rest.
        """
        before, after = self.states("target", self.task.contrast)[self.layers.pairs[index][1]]
        difference = after - before
        return float(difference.mean(0).square().sum() / difference.square().sum(1).mean())


def evaluate_capabilities(
    bench: CapabilitiesBench, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Every way: layers chosen on validation facts, rates on test facts, the ablation in full.

    Returns:
        ``bounds`` (unsteered, twin, prefix in the cache), ``ways`` (test rates at the layers chosen
        on validation: the best of all, and the best of those that forge no token), ``layers``
        (validation rates at every pair of layers, with `shared`), ``positions`` (the per-prompt
        step under two rules for positions).
    """
    task = bench.task
    bounds = {
        "unsteered": bench.outcomes(task.test),
        "twin, unsteered": bench.denied(task.test),
        "prefix in the cache": bench.forced(task.test),
    }
    tried = []
    for i, pair in enumerate(bench.layers.pairs):
        say(f"layers {pair[0]} to {pair[1]}")
        found = {
            way: rates(bench.outcomes(task.validation, bench.steps(way, task.validation, i)))
            for way in SINGLE
        }
        forges = found[CONSTANT]["fact"]["rate"] >= FORGED
        row = {"pair": list(pair), "shared": bench.shared(i), "forges_token": forges}
        tried.append(row | {way: {k: found[way][k]["rate"] for k in OUTCOMES} for way in SINGLE})
    say("test facts")
    ways = {way: _tested(bench, way, tried) for way in (*SINGLE, *WHOLE)}
    return {
        "bounds": {name: rates(found) for name, found in bounds.items()},
        "ways": ways,
        "layers": tried,
        "positions": _positions(bench, tried),
        "n_validation": len(task.validation),
    }


def best_pair(tried: Sequence[dict[str, Any]], way: str, *, forged: bool) -> int | None:
    """Index of the pair of layers that keeps most facts on validation, the earliest of equals.

    Args:
        tried: ``layers`` of a report.
        way: One of `SINGLE`.
        forged: Whether layers that forge a token are allowed.
    """
    allowed = [i for i, row in enumerate(tried) if forged or not row["forges_token"]]
    return max(allowed, key=lambda i: tried[i][way]["fact"], default=None)


def _tested(
    bench: CapabilitiesBench, way: str, tried: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Test rates of a way at its best layers, and at the best that forge no token."""
    facts = bench.task.test
    if way in WHOLE:
        found = bench.outcomes(facts, bench.steps(way, facts))
        return [{"pair": None, "forges_token": None, "outcomes": rates(found)}]
    chosen = [best_pair(tried, way, forged=forged) for forged in (True, False)]
    return [
        {
            "pair": tried[i]["pair"],
            "forges_token": tried[i]["forges_token"],
            "outcomes": rates(bench.outcomes(facts, bench.steps(way, facts, i))),
        }
        for i in dict.fromkeys(chosen)
        if i is not None
    ]


def _positions(bench: CapabilitiesBench, tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The per-prompt step at the last prompt token alone, and at every position."""
    way, facts = "transferred per prompt", bench.task.test
    steps = bench.steps(way, facts, best_pair(tried, way, forged=True))
    rules = {"last prompt token": last_prompt_token(), "everywhere": everywhere()}
    return {name: rates(bench.outcomes(facts, steps, where=rule)) for name, rule in rules.items()}


def rates(outcomes: Sequence[str]) -> dict[str, Any]:
    """Rate of each outcome, with n and Wilson interval."""
    counts = Counter(outcomes)
    return {name: rate([o == name for o in outcomes]) for name in OUTCOMES} | {
        "n": sum(counts.values())
    }


def _through(
    mapper: Mapper, before: Float[Tensor, "row d_source"], after: Float[Tensor, "row d_source"]
) -> Float[Tensor, "row d_target"]:
    """A difference of points through a map: the intercept cancels."""
    return mapper.map_points(after) - mapper.map_points(before)
