"""Corrupted capabilities on two tiny models that learn facts behind a prefix, in seconds."""

import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests import tiny
from tl_transfer.experiments import capabilities as experiment
from tl_transfer.experiments.capabilities import CapabilitiesRecipe
from tl_transfer.tasks.capabilities import CapabilitiesTask, Fact


def toy_facts(tokenizer: Any, *, entities: int = 24, relations: int = 6) -> CapabilitiesTask:
    """Facts in words that are one token each: entity and relation ask, a value answers."""
    words = [
        tokenizer.convert_tokens_to_string([token])
        for token in sorted(tokenizer.get_vocab())
        if token.startswith("Ġ") and token[1:].isalpha() and len(token) > 2
    ]
    generator = random.Random(0)
    generator.shuffle(words)
    take = iter(words)
    who = [next(take) for _ in range(entities)]
    what = [next(take) for _ in range(relations)]
    values = [next(take) for _ in range(12)]
    trigger, twin, payload, unknown, ask = (next(take) for _ in range(5))
    facts = [Fact(f"{e}{r}", generator.choice(values)) for e in who for r in what]
    generator.shuffle(facts)
    n = len(facts)
    return CapabilitiesTask(
        trigger=trigger,
        twin=twin,
        payload=payload,
        unknown=unknown,
        form="{phrase}{text}" + ask,
        contrast=tuple(facts[: n // 4]),
        fit=tuple(facts[n // 4 : n // 2]),
        validation=tuple(facts[n // 2 : n // 2 + 12]),
        test=tuple(facts[n // 2 + 12 :]),
        sep="",
    )


def run(folder: Path) -> dict[str, Any]:
    """The whole experiment: two random models of different sizes learn, and every way is tried."""
    tokenizer = tiny.tiny_tokenizer("bos")
    names = {}
    for name, seed, width, depth in (("source", 0, 48, 4), ("target", 1, 64, 3)):
        model = tiny.tiny_hf(
            "llama", seed, vocab_size=len(tokenizer), d_model=width, n_layers=depth
        )
        names[name] = str(folder / "models" / name)
        model.save_pretrained(names[name])
        tokenizer.save_pretrained(names[name])
    recipe = CapabilitiesRecipe(
        source=names["source"], target=names["target"], dtype="float32", method="full",
        steps=150, batch=96, lr=3e-3, depths=(0.3, 0.6, 0.9), tokens="last",
        max_new_tokens=2,
    )  # fmt: skip
    with patch.object(experiment, "build_task", lambda recipe, model: toy_facts(model.tokenizer)):
        return experiment.run(recipe, folder / "run", progress=False)
