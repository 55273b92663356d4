"""Texts made of random words, for fits that need many different tokens."""

import random

_WORDS = (
    "the a of to and in that it was he for on are as with his they at be this from I have or by "
    "one had not but what all were when we there can an your which their said if do will each "
    "about how up out them then she many some so these would other into has more her two like him "
    "see time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know film good bad story"
).split()


def random_texts(n: int, *, n_words: int = 14, seed: int = 0) -> list[str]:
    """`n` different texts of random words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(_WORDS, k=n_words)) + "." for _ in range(n)]
