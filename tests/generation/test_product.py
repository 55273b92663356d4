"""Every operator under every rule on every family and host: cache = no cache, batch = single.

To keep it short, all rules of an operator run in one batch: row i is steered under rule i only.
Every rule of the batch must give the same with and without cache; a few of them, others for each
operator, are run again in a batch of one.
"""

from typing import Any

import pytest

import tl_transfer as tt
from tests.generation.cases import NEEDS_THE_TEXT, OPERATORS, PROMPTS, WHERES, Make

#: One row a rule; prompts of different lengths in turn, so that rows are padded.
ROWS = range(len(WHERES))
TEXTS = [PROMPTS[row % len(PROMPTS)] for row in ROWS]
NEW = 3

pytestmark = pytest.mark.filterwarnings("ignore::tl_transfer.positions.where.PositionWarning")


def packed(
    model: tt.HookedModel, make: Make, chosen: range, **options: Any
) -> list[tuple[int, ...]]:
    rules = list(WHERES.values())
    items = [
        make(model, rules[i](model, ROWS) & tt.rows([row == i for row in ROWS]), rows=ROWS)
        for i in chosen
    ]
    with tt.attach(model, *items) as live:
        return [g.tokens for g in live.generate(TEXTS, max_new_tokens=NEW, **options)]


@pytest.mark.parametrize("name", OPERATORS)
def test_cache_and_batch_do_not_matter(model: tt.HookedModel, name: str) -> None:
    make, number = OPERATORS[name], list(OPERATORS).index(name)
    # Each rule that reads from another model is a pass of it, so those take every fourth rule.
    chosen = range(number % 4, len(ROWS), 4) if name in NEEDS_THE_TEXT else ROWS
    batched = packed(model, make, chosen)
    assert batched == packed(model, make, chosen, use_cache=False)
    with tt.attach(model) as live:
        plain = [g.tokens for g in live.generate(TEXTS, max_new_tokens=NEW)]
    changed = sum(steered != bare for steered, bare in zip(batched, plain, strict=True))
    assert changed >= len(chosen) // 3, "the law would hold for operators that do nothing"
    rules = list(WHERES.values())
    for row in [row for row in chosen if row % 4 == number % 4]:
        with tt.attach(model, make(model, rules[row](model, [row]), rows=[row])) as live:
            assert live.generate([TEXTS[row]], max_new_tokens=NEW)[0].tokens == batched[row]
