"""Real models: a sample of the laws of steering, and the choice of a layer by its effect."""

from itertools import product

import pytest
import torch

import tl_transfer as tt
from tests.conftest import needs_hooked_transformer
from tests.generation.cases import OPERATORS, RandomMap, count_hooks
from tl_transfer.interventions import Operator

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::tl_transfer.positions.where.PositionWarning"),
]
PROMPTS = (
    "We tried the new restaurant last week. It was",
    "Ever since the storm, the old bridge over the river has been",
    "Caf\u00e9 na\u00efve \u2014 20 \u20ac:",
)
RULES = (tt.everywhere(), tt.prompt(), tt.generated(), tt.last_prompt_token())
NEW = 3
#: One operator of each kind; with the other model beside it, nine rows.
SAMPLE = (
    "add, two layers",
    "add, rows",
    "add, norm kept",
    "ablate a subspace",
    "ablate everywhere",
    "clamp",
    "half-space",
    "rotate",
)


def beside(model: tt.HookedModel, where: tt.Where) -> Operator:
    """The stream of the other real model, with its own tokenizer, mapped at random."""
    source = tt.load_model("smollm2-135m-instruct")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(source.d_model, model.d_model, generator=generator) / 24
    ends = source.at("resid_post@1").space, model.at("resid_post@1").space
    return tt.ReplaceFrom(source, RandomMap(*ends, weight), 0.5, where)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        pytest.param("smollm2-135m-instruct", "hooked_transformer", marks=needs_hooked_transformer),
        ("gemma-3-270m", "bridge"),
    ],
)
def test_cache_and_batch_do_not_matter(name: str, host: str) -> None:
    """One batch holds every operator, each in a row of its own, under four rules in turn."""
    model = tt.load_model(name, host=host)
    hooks = count_hooks(model)
    made = [OPERATORS[name] for name in SAMPLE]
    texts = [PROMPTS[row % len(PROMPTS)] for row in range(len(made) + 1)]
    rows = range(len(texts))

    def items(chosen: list[int], width: list[int]) -> list[Operator]:
        rules = [RULES[i % len(RULES)] & tt.rows([row == i for row in width]) for i in chosen]
        return [
            made[i](model, rule, rows=width) if i < len(made) else beside(model, rule)
            for i, rule in zip(chosen, rules, strict=True)
        ]

    def run(chosen: list[int], **options: bool) -> list[tuple[int, ...]]:
        with tt.attach(model, *items(chosen, chosen)) as live:
            found = live.generate([texts[i] for i in chosen], max_new_tokens=NEW, **options)
        return [one.tokens for one in found]

    batched = run(list(rows))
    assert run(list(rows), use_cache=False) == batched
    alone = [row for row in rows if row % 3 == model.n_layers % 3]
    assert [run([row])[0] for row in alone] == [batched[row] for row in alone]
    with tt.attach(model) as live:
        plain = [one.tokens for one in live.generate(texts, max_new_tokens=NEW)]
    changed = sum(a != b for a, b in zip(plain, batched, strict=True))
    assert changed >= len(texts) // 2, "the law would hold for operators that do nothing"
    assert count_hooks(model) == hooks


SUBJECTS = ("film", "meal", "hotel", "concert", "book", "trip", "lecture", "game")
PLUS = ("I loved every minute of the {}. Honestly, the {} was", "What a joy! The {} was")
MINUS = ("I hated every minute of the {}. Honestly, the {} was", "What a mess! The {} was")
WORDS = (" great", " good", " wonderful", " amazing", " fantastic", " perfect", " incredible")


def said_of(frames: tuple[str, ...], subjects: tuple[str, ...]) -> list[str]:
    return [frame.replace("{}", subject) for frame, subject in product(frames, subjects)]


def test_the_chosen_layer_carries_the_behaviour_on_other_prompts() -> None:
    """Arditi et al.'s three scores choose; unseen prompts and random directions judge."""
    model = tt.load_model("smollm2-135m-instruct")
    score = tt.opening_score(model, WORDS)
    chosen = tt.select_direction(
        model,
        positive=said_of(PLUS, SUBJECTS[:4]),
        negative=said_of(MINUS, SUBJECTS[:4]),
        positive_validation=said_of(PLUS, SUBJECTS[4:6]),
        negative_validation=said_of(MINUS, SUBJECTS[4:6]),
        score=score,
        layers=[3, 12, 18],
        positions=[-1],
        kl_limit=1.0,
        induce_limit=-4.0,
        progress=False,
    )
    assert chosen.winner.bypass < chosen.baseline_positive
    assert chosen.winner.induce > chosen.baseline_negative
    unseen = said_of(MINUS, SUBJECTS[6:])
    vector = chosen.vector

    def level(direction: tt.SteeringVector | None) -> float:
        items = [] if direction is None else [tt.Add(direction, direction.natural_strength)]
        with tt.attach(model, *items) as live:
            last = [live.logits(model.to_tokens(text))[:, -1] for text in unseen]
        return float(score(torch.cat(last)).mean())

    random = tt.random_directions(vector, n=3, seed=0)
    rise = level(vector) - level(None)
    chance = [level(direction) - level(None) for direction in random]
    assert rise > 3 * max(map(abs, chance)), (rise, chance)
