"""A whole task for tiny random models: nothing to learn, every code path to run."""

from typing import Any

from tests.words import random_texts
from tl_transfer.tasks import Task


def toy_task(tokenizer: Any, **changes: Any) -> Task:
    """Disjoint random texts; words that are single tokens of `tokenizer`."""
    single = [
        tokenizer.convert_tokens_to_string([token])
        for token in sorted(tokenizer.get_vocab())
        if token.startswith("Ġ") and len(token) > 1
    ]
    settings: dict[str, Any] = {
        "name": "toy",
        "title": "a toy",
        "positive": tuple(random_texts(10, seed=11)),
        "negative": tuple(random_texts(10, seed=12)),
        "fit_texts": tuple(random_texts(150, seed=13)),
        "fit_documents": tuple(f"d{i // 3}" for i in range(150)),
        "neutral_validation": tuple(random_texts(3, n_words=40, seed=14)),
        "neutral_test": tuple(random_texts(3, n_words=40, seed=15)),
        "validation_prompts": tuple(random_texts(4, n_words=5, seed=16)),
        "test_prompts": tuple(random_texts(6, n_words=5, seed=17)),
        "generation_prompts": tuple(random_texts(4, n_words=4, seed=18)),
        "positive_words": tuple(single[:6]),
        "negative_words": tuple(single[6:12]),
        "scorer": lambda text: float(len(text) % 7),
        "scorer_name": "length modulo 7",
        "protocol": "L1",
        "protocol_note": "random texts",
    }
    return Task(**(settings | changes))
