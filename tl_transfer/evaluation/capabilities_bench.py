"""Both models of a corrupted-capabilities experiment: their states and the target's answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.splits import require_unseen
from tl_transfer.data.texts import text_hash
from tl_transfer.errors import InputError
from tl_transfer.evaluation.generation import AddSteps
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.attach import attach
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, last_prompt_token
from tl_transfer.tasks.capabilities import CapabilitiesTask, Fact

#: Target layer -> one step for every prompt.
Steps = dict[int, Float[Tensor, "prompt d_model"]]
#: Answers that an earlier run left, by name; None when there are none.
Recall = Callable[[str], Any]
Keep = Callable[[str, Any], None]


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
    """Both models with the facts.

    Args:
        task: Facts and forms.
        source: Where transferred ways read.
        target: Who is edited.
        layers: Pairs and maps.
        max_new_tokens: Length of an answer.
        seed: Of random directions.
        recall: Gives back what an interrupted run kept.
        keep: Stores finished answers.

    Raises:
        InputError: a test prompt was seen by a map or by the mean vectors.
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
        recall: Recall = lambda name: None,
        keep: Keep = lambda name, value: None,
    ) -> None:
        self.task, self.source, self.target, self.layers = task, source, target, layers
        self.seed = seed
        self._length, self._recall, self._keep = max_new_tokens, recall, keep
        read = [*task.before(task.contrast), *task.after(task.contrast)]
        seen = {
            f"the map of {pair}": mapper.fit_texts
            for pair, mapper in zip(layers.pairs, layers.maps, strict=True)
        }
        require_unseen(
            {"test": [*task.before(task.test), *task.after(task.test)]},
            seen | {"the mean vectors": frozenset(map(text_hash, read))},
        )
        self._states: dict[tuple[str, tuple[Fact, ...]], Any] = {}
        self._said: dict[str, list[str]] = {}

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

    def means(self, side: str, layer: int) -> tuple[Float[Tensor, "1 d"], Float[Tensor, "1 d"]]:
        """Mean states before and after the prefix, over the contrast facts."""
        before, after = self.states(side, self.task.contrast)[layer]
        return before.mean(0, keepdim=True), after.mean(0, keepdim=True)

    def shared(self, index: int) -> float:
        """Part of the native difference that is the same for all facts.

        Squared length of the mean difference over the mean squared length, over the contrast
        facts; a mean vector cannot carry the rest.
        """
        before, after = self.states("target", self.task.contrast)[self.layers.pairs[index][1]]
        difference = after - before
        return float(difference.mean(0).square().sum() / difference.square().sum(1).mean())

    def answers(
        self,
        name: str,
        facts: Sequence[Fact],
        steps: Steps | None = None,
        *,
        prompts: Sequence[str] | None = None,
        where: Where | None = None,
    ) -> list[str]:
        """What the target says, if it was not asked before.

        Args:
            name: That the answers are kept under.
            facts: What is asked.
            steps: What is added; None: the model as it is.
            prompts: Instead of those with the trigger.
            where: Instead of the last prompt token.
        """
        if name not in self._said:
            found = self._recall(name)
            if found is None:
                found = self._generated(facts, steps, prompts, where)
                self._keep(name, found)
            self._said[name] = found
        return self._said[name]

    def _generated(
        self,
        facts: Sequence[Fact],
        steps: Steps | None,
        prompts: Sequence[str] | None,
        where: Where | None,
    ) -> list[str]:
        rule = where or last_prompt_token()
        edits = [
            AddSteps(self.target.at(f"resid_post@{layer}").space, rows, where=rule)
            for layer, rows in (steps or {}).items()
        ]
        asked = list(prompts or self.task.before(facts))
        with attach(self.target, *edits) as live:
            said = live.generate(asked, max_new_tokens=self._length, batch_size=None)
        return [item.text for item in said]
