"""prompt_pairs: the mean over many prompt pairs of the differences at each token of a phrase.

One pair also holds what is peculiar to its prompt: the words around the phrase. The mean over
pairs that share nothing but the phrase keeps what the phrase itself does.
"""

from collections.abc import Sequence

import torch

from tl_transfer.data.encode import EncodedText
from tl_transfer.errors import InputError
from tl_transfer.extract.contrast import hashes
from tl_transfer.extract.phrases import Align, partners, phrase_tokens
from tl_transfer.extract.reading import encode_prompts, read_columns
from tl_transfer.models.surface import Site
from tl_transfer.vectors import PositionVectors


def prompt_pairs(
    sites: Sequence[Site],
    *,
    positive: Sequence[str],
    negative: Sequence[str],
    phrase: str,
    other_phrase: str,
    align: Align = "end",
) -> dict[str, PositionVectors]:
    """Mean per-token differences of many prompt pairs, at several hook points in one pass.

    Args:
        sites: Hook points of one model.
        positive: Prompts that hold the phrase.
        negative: The same prompts with the other phrase in its place.
        phrase: What is steered later.
        other_phrase: What it is compared with.
        align: As in `prompt_pair`.

    Returns:
        Hook point -> positive minus negative, one row a token of the phrase.

    Raises:
        InputError: not as many negative as positive prompts, a prompt without its phrase, or a
            phrase that is cut into other tokens from one prompt to the next.
    """
    if not sites or len(positive) != len(negative) or not positive:
        raise InputError(
            "positive, negative: not pairs",
            got=f"{len(positive)} and {len(negative)} prompts, {len(sites)} sites",
            valid="at least one site, and one negative prompt for every positive one",
            hint="put the other phrase into the same prompts",
        )
    model = sites[0].model
    plus, here = _read(sites, positive, phrase, "positive")
    minus, there = _read(sites, negative, other_phrase, "negative")
    rows = partners(len(here), len(there), align)
    found = {}
    for site in sites:
        a, b = plus[site.point.name], minus[site.point.name]
        other = torch.stack([b[:, chosen].mean(1) for chosen in rows], dim=1)
        norm = float(torch.cat([a.flatten(0, 1), b.flatten(0, 1)]).norm(dim=-1).median())
        found[site.point.name] = PositionVectors(
            (a - other).double().mean(0).float(),
            phrase,
            here,
            site.space,
            norm,
            "prompt_pairs",
            {
                "other_phrase": other_phrase,
                "align": align,
                "n_pairs": len(positive),
                "model": model.name,
                "texts": hashes([*positive, *negative]),
            },
        )
    return found


def _read(
    sites: Sequence[Site], prompts: Sequence[str], phrase: str, argument: str
) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """Hook point -> (prompt, token of the phrase, width), and where those tokens end in it."""
    model = sites[0].model
    texts = [t for t in encode_prompts(model, prompts, argument) if isinstance(t, EncodedText)]
    columns = [phrase_tokens(text, phrase, argument) for text in texts]
    ends = phrase_ends(texts, phrase, argument)
    read = read_columns(model, [site.point for site in sites], [t.ids for t in texts], columns)
    return {name: torch.stack(rows) for name, rows in read.items()}, ends


def phrase_ends(texts: Sequence[EncodedText], phrase: str, argument: str) -> tuple[int, ...]:
    """Where the tokens of a phrase end in it, in bytes: in every prompt the same.

    Raises:
        InputError: a prompt without the phrase, or one that cuts it into other tokens.
    """
    ends = {
        tuple(
            text.ends[p] - text.text.encode().find(phrase.encode())
            for p in phrase_tokens(text, phrase, argument)
        )
        for text in texts
    }
    if len(ends) != 1:
        raise InputError(
            f"{argument}: the phrase is cut into other tokens from prompt to prompt",
            got=f"token ends {sorted(ends)}",
            valid="the same tokens in every prompt",
            hint="put the same characters before and after it everywhere",
        )
    return ends.pop()
