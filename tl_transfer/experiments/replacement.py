"""The replacement experiment: what putting a mapped stream in place costs, and what steering costs.

Steps: maps of several kinds from prose, one that has read questions, too; a transferred sentiment
direction at two amounts of damage; the target's continuations with its stream replaced; loss on
neutral prose; multiple-choice questions. Finished steps are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_transfer.data.splits import require_unseen
from tl_transfer.evaluation.arms import build
from tl_transfer.evaluation.choices import Choice, choose, choose_alone
from tl_transfer.evaluation.damage import NeutralDamage
from tl_transfer.evaluation.fidelity import Text, fidelity, texts_of, write
from tl_transfer.evaluation.rate_arms import RateArm, additions
from tl_transfer.evaluation.rate_head import head, plain
from tl_transfer.evaluation.replacement import FORMAT, capability
from tl_transfer.experiments.parts import Parts, conclude, parts_of
from tl_transfer.experiments.replacement_maps import KINDS, fit_maps
from tl_transfer.experiments.settings import Settings
from tl_transfer.extract import mean_difference
from tl_transfer.interventions import Intervention, Replace, ReplaceFrom
from tl_transfer.mappers.base import Mapper
from tl_transfer.models.load import load_model
from tl_transfer.models.surface import HookedModel, Site
from tl_transfer.splicing import splice
from tl_transfer.stitched import MEAN, Stitched
from tl_transfer.tasks.replacement import ReplacementTexts, replacement_texts
from tl_transfer.tasks.sentiment import sentiment
from tl_transfer.vectors import SteeringVector

Say = Callable[[str], None]
#: Directions added; the rest of what `build` makes is left out for time.
ADDED = ("native", "transferred", "random_isotropic")
#: Questions answered between two savings.
CHUNK = 64


@dataclass(frozen=True)
class ReplacementRecipe(Settings):
    """One replacement experiment.

    Attributes:
        source: Whose stream is mapped.
        target: Whose stream is replaced.
        task: ``"replacement"``.
        dtype: Of both models.
        source_layer: Read there, after the block.
        target_layer: Replaced there.
        n_fit: Passages of prose the maps are fitted on.
        n_contrast: Sentences of each pole for the steering vector.
        n_neutral: Passages on which loss is measured.
        n_prompts: Openings that are continued; 0: none, and the likeness of texts is left out.
        fit_subjects: Subjects whose questions one of the maps reads.
        n_questions: Questions of the other subjects; 0: all.
        budgets: KL on prose at which steering is measured, in nats a token.
        updates: Of the paper's autoencoder (theirs made about 4,500).
        batch_rows: Rows of each update.
        max_new_tokens: Length of a continuation.
        seed: Of every choice.
    """

    source: str = "qwen2.5-coder-1.5b-instruct"
    target: str = "qwen2.5-coder-0.5b-instruct"
    task: str = "replacement"
    dtype: str = "bfloat16"
    source_layer: int = 14
    target_layer: int = 12
    n_fit: int = 360
    n_contrast: int = 100
    n_neutral: int = 60
    n_prompts: int = 100
    fit_subjects: int = 12
    n_questions: int = 0
    budgets: tuple[float, ...] = (0.05, 0.25)
    updates: int = 4500
    batch_rows: int = 128
    max_new_tokens: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.n_fit, self.n_contrast, self.n_neutral, self.max_new_tokens)
        bad = not self.budgets or min(self.budgets) <= 0 or self.fit_subjects < 1
        bad = bad or self.n_prompts < 0
        if self.task != "replacement" or min(sizes) < 1 or bad:
            raise self.refused(
                f"sizes {sizes}, budgets {self.budgets}, fit_subjects {self.fit_subjects}",
                "sizes of at least 1, budgets above 0",
            )

    def plan(self) -> list[str]:
        """What a run would do."""
        n = self.n_questions or "all"
        return [
            f"load {self.source} and {self.target} in {self.dtype}",
            f"{len(KINDS)} maps on {self.n_fit} passages, one of them trained for {self.updates} "
            "updates",
            f"{self.n_prompts} continuations of {self.max_new_tokens} tokens under "
            f"{len(KINDS) + 2} replacements",
            f"loss on {self.n_neutral} passages and {n} questions under those and "
            f"{len(ADDED) * len(self.budgets)} added directions",
        ]

    def build_texts(self) -> ReplacementTexts:
        """The texts with this recipe's sizes."""
        return replacement_texts(
            n_fit=self.n_fit,
            n_neutral=self.n_neutral,
            n_prompts=self.n_prompts,
            fit_subjects=self.fit_subjects,
            n_questions=self.n_questions,
            seed=self.seed,
        )


def run(
    recipe: ReplacementRecipe,
    folder: str | Path,
    *,
    say: Say | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a replacement experiment into a folder; an interrupted run goes on where it stopped.

    Args:
        recipe: What to run.
        folder: Gets ``report.json``, the maps, and what was finished.
        say: Told what is happening.
        progress: Show bars.

    Returns:
        The report.

    Raises:
        InputError: a text of the test was read by a map or for the vector.
    """
    say = say or (lambda line: None)
    folder = Path(folder)
    say(f"loading {recipe.source} and {recipe.target}")
    source = load_model(recipe.source, dtype=recipe.dtype)
    target = load_model(recipe.target, dtype=recipe.dtype)
    here = source.at(f"resid_post@{recipe.source_layer}")
    there = target.at(f"resid_post@{recipe.target_layer}")
    texts = recipe.build_texts()
    parts = parts_of(folder, recipe, (source, target), texts)
    maps = fit_maps(
        here, there, texts, folder, parts,
        updates=recipe.updates, batch_rows=recipe.batch_rows, seed=recipe.seed, say=say,
        progress=progress,
    )  # fmt: skip
    say("steering vector, and strengths by damage to prose")
    steered = _steered(recipe, here, there, maps["ridge"], texts)
    steps = {key: _step(arm) for key, arm in steered.items() if arm.usable}
    bench = _Bench(recipe, texts, maps, source, target, parts, say, progress)
    choices = {kind: bench.choices(kind, steps) for kind in ("questions", "facts")}
    own, fidelity_rows = bench.fidelity()
    losses = bench.losses(own, steps)
    report = head(
        "replacement", maps["ridge"], source, target, protocol="L1",
        protocol_note="of the target, only activations on general prose are used to fit the maps "
        "(one map has also read questions of other subjects, without answers); native directions "
        "use labels in the target (L3) and are there for comparison",
        seed=recipe.seed,
    )  # fmt: skip
    report |= {
        "format": FORMAT,
        "maps": {
            name: {"title": KINDS[name].title, "fvu": one.scorecard["held_out"]["fvu"]}
            for name, one in maps.items()
        },
        "strengths": {key: arm.strength for key, arm in steered.items()},
        "fidelity": fidelity_rows,
        "losses": losses,
        **{
            part: capability(choices[kind], bench.source_choices(kind), seed=recipe.seed)
            for part, kind in (("capability", "questions"), ("knowledge", "facts"))
        },
        "data": {
            "n_fit": len(texts.fit),
            "fit_questions": len(texts.fit_questions),
            "n_questions": len(texts.questions),
            "n_subjects": len({question.subject for question in texts.questions}),
            "n_countries": len({question.subject for question in texts.facts}),
        },
        "examples": _examples(texts, own, bench.written),
        "limits": LIMITS,
    }
    return conclude(plain(report), recipe.to_dict(), parts, folder)


LIMITS = [
    "One pair of models, one pair of layers, one seed; intervals are over prompts, passages and "
    "questions and do not cover the choice of texts, layers or models.",
    "Questions are the worked examples of MMLU, not its test split: any model may have read them, "
    "and the accuracy is not to be compared with published ones; differences are.",
    "Zero-shot, in the plain form of the questions, without a chat template.",
    "Capitals: options are told apart by their first tokens, and the maps were fitted on prose of "
    "which a part is the World Factbook's, without these sentences.",
    "In the passes that score losses and questions a token is replaced where both models' tokens "
    "end at the same character, and the rest keep the target's own activation, which helps every "
    "replacement; while the target writes, every token but the first is replaced.",
    "Likeness is by words and static embeddings: another wording of the same thing counts as "
    "unlike. No judge was run.",
]


def _steered(
    recipe: ReplacementRecipe, here: Site, there: Site, mapper: Mapper, texts: ReplacementTexts
) -> dict[str, RateArm]:
    """Arm and budget -> a sentiment direction with the strength that does this much damage."""
    task = sentiment(n_contrast=recipe.n_contrast, n_fit=2, n_neutral=1, seed=recipe.seed)
    vector, native = (
        mean_difference(site, positive=task.positive, negative=task.negative)
        for site in (here, there)
    )
    require_unseen(
        {**texts.tests, "contrast": [*task.positive, *task.negative]},
        {"the fit of the map": mapper.fit_texts},
    )
    require_unseen(texts.tests, {"the steering vector": vector.provenance.get("texts", ())})
    arms = [
        arm
        for arm in build(vector, native, mapper, n_random=1, seed=recipe.seed)
        if arm.name in ADDED
    ]
    unit = SteeringVector(native.direction, mapper.target, mapper.target_norm, "unit of strength")
    damage = NeutralDamage(there, texts.validation)
    return {
        f"{arm.name}@{budget:g}": arm
        for budget in recipe.budgets
        for arm in additions(arms, unit, damage, budget)
        if arm.matched == "damage"
    }


def _step(arm: RateArm) -> Tensor:
    assert arm.vector is not None and arm.strength is not None
    return arm.vector.unit * (arm.strength * arm.vector.median_norm)


class _Bench:
    """The three measurements, each kept when it is done."""

    def __init__(
        self,
        recipe: ReplacementRecipe,
        texts: ReplacementTexts,
        maps: dict[str, Mapper],
        source: HookedModel,
        target: HookedModel,
        parts: Parts,
        say: Say,
        progress: bool,
    ) -> None:
        self.recipe, self.texts, self.maps = recipe, texts, maps
        self.source, self.target, self.parts = source, target, parts
        self.say, self.progress = say, progress
        self.written: dict[str, list[Text]] = {}
        require_unseen(
            texts.tests, {f"the fit of {name}": one.fit_texts for name, one in maps.items()}
        )

    def fidelity(self) -> tuple[list[Text], dict[str, Any]]:
        """The target's own texts, and the scores of every replacement's."""
        if not self.texts.prompts:
            return [], {}
        own = self._texts("own", self.target, [])
        theirs = self._texts("source", self.source, [], judge=self.target)
        edits: dict[str, Intervention] = {
            name: ReplaceFrom(self.source, one) for name, one in self._replacing().items()
        }
        held_out = self.maps["ridge"].held_out
        assert held_out is not None
        edits[MEAN] = Replace(held_out.mean_y.float(), self.maps["ridge"].target)
        for name, edit in edits.items():
            self.written[name] = self._texts(name, self.target, [edit])
        return own, fidelity(
            self.target, own, theirs, self.written, ablated=MEAN, seed=self.recipe.seed
        )

    def losses(self, own: Sequence[Text], steps: dict[str, Tensor]) -> dict[str, Any]:
        """Loss and KL on the target's own texts and on neutral prose."""
        said = [f"{p}{t.text}" for p, t in zip(self.texts.prompts, own, strict=True)]
        found = {}
        for part, texts in (("own_text", said), ("neutral", self.texts.neutral)):
            if not texts:
                continue
            found[part] = self.parts.recall(f"loss-{part}")
            if found[part] is None:
                self.say(f"loss: {part}")
                others = self._replacing()
                first = others.pop("ridge")
                scores = splice(
                    replace(first, shuffled=None), self.source, self.target, texts, others=others,
                    added=steps, progress=self.progress,
                ).to_dict()  # fmt: skip
                scores["arms"]["ridge"] = scores["arms"].pop("mapped")
                self.parts.keep(f"loss-{part}", scores)
                found[part] = scores
        return found

    def source_choices(self, kind: str) -> list[Choice]:
        """What the source answers by itself to ``questions`` or ``facts``."""
        stored = self.parts.recall(f"{kind}-source")
        if stored is None:
            self.say(f"{kind}: the source by itself")
            made = choose_alone(self.source, getattr(self.texts, kind))
            stored = [one.to_dict() for one in made]
            self.parts.keep(f"{kind}-source", stored)
        return [Choice(**item) for item in stored]

    def choices(self, kind: str, steps: dict[str, Tensor]) -> dict[str, list[Choice]]:
        """Answers of every arm to ``questions`` or ``facts``."""
        asked = getattr(self.texts, kind)
        found: dict[str, list[Choice]] = {}
        for first in range(0, len(asked), CHUNK):
            part = asked[first : first + CHUNK]
            name = f"{kind}-{first}-{len(part)}"
            stored = self.parts.recall(name)
            if stored is None:
                self.say(f"{kind} {first + 1} to {first + len(part)} of {len(asked)}")
                prompts = [question.prompt for question in part]
                stitched = Stitched(self._replacing(), self.source, self.target, prompts)
                made = choose(stitched, part, steps)
                stored = {name: [one.to_dict() for one in some] for name, some in made.items()}
                self.parts.keep(name, stored)
            for name, some in stored.items():
                found.setdefault(name, []).extend(Choice(**item) for item in some)
        return found

    def _replacing(self) -> dict[str, Mapper]:
        """Every map, and the control of ridge."""
        wrong = self.maps["ridge"].shuffled
        assert wrong is not None
        return {**self.maps, "shuffled": wrong}

    def _texts(
        self,
        name: str,
        model: HookedModel,
        edits: Sequence[Intervention],
        judge: HookedModel | None = None,
    ) -> list[Text]:
        def make() -> list[Text]:
            self.say(f"continuations: {name}")
            return write(
                model, self.texts.prompts, edits, max_new_tokens=self.recipe.max_new_tokens,
                judge=judge,
            )  # fmt: skip

        return texts_of(f"texts-{name}", make, self.parts.recall, self.parts.keep)


def _examples(
    texts: ReplacementTexts, own: Sequence[Text], written: dict[str, list[Text]], n: int = 3
) -> list[dict[str, Any]]:
    """A few continuations, evenly spaced, not picked."""
    if not own:
        return []
    places = [round(j * (len(own) - 1) / max(n - 1, 1)) for j in range(n)]
    return [
        {
            "prompt": texts.prompts[i],
            "texts": {
                name: " ".join(some[i].text.split())[:90]
                for name, some in {"own": list(own), **written}.items()
            },
        }
        for i in places
    ]
