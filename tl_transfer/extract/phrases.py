"""prompt_pair: the difference of two prompts at each token of the phrase in which they differ.

Activation addition (Turner et al. 2023) as Oozeer et al. (2025) use it for backdoors: the positive
prompt holds a trigger, the negative one its harmless twin in the same place, and only the tokens of
the trigger are read and later steered.
"""

from typing import Any, Literal

import torch

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText
from tl_transfer.data.texts import as_texts
from tl_transfer.errors import InputError
from tl_transfer.extract.contrast import hashes, said
from tl_transfer.extract.reading import encode_prompts, read_columns
from tl_transfer.models.surface import Site
from tl_transfer.vectors import PositionVectors

Align = Literal["end", "start", "mean"]


def prompt_pair(
    site: Site,
    *,
    positive: Any,
    negative: Any,
    phrase: str | None = None,
    other_phrase: str | None = None,
    align: Align = "end",
    median_norm: float | None = None,
) -> PositionVectors:
    """Per-token differences of a prompt pair.

    Args:
        site: Model and hook point.
        positive: Prompt with the trigger: a string, or a chat as a list of messages.
        negative: The same prompt with something else in its place.
        phrase: The trigger, as it stands in `positive`; None: the words in which the prompts
            differ. Where it occurs more than once, the first one is read.
        other_phrase: What stands in its place in `negative`; None: the words that differ.
        align: Which token of the other phrase each token is compared with when they are not
            equally many: counted from the ``"end"`` (the last tokens, which have read both phrases
            whole, go together; the other phrase's first token serves for what is left over), from
            the ``"start"``, or the ``"mean"`` over the other phrase.
        median_norm: Unit of strength; None: the median over the tokens of both prompts.

    Returns:
        One vector a token of the phrase, kept by the byte at which it ends.

    Raises:
        InputError: equal prompts, a phrase that is not there, or one that is read at position 0
            alone (an attention sink).
    """
    if align not in ("end", "start", "mean"):
        raise InputError(
            "align: unknown rule",
            got=repr(align),
            valid='"end", "start" or "mean"',
            hint="leave it out for end",
        )
    given = as_texts([positive, negative], "positive, negative")
    found = _differing(*map(said, given))
    phrase, other_phrase = phrase or found[0], other_phrase or found[1]
    texts = [_text_of(prompt) for prompt in encode_prompts(site.model, given)]
    here = phrase_tokens(texts[0], phrase, "positive")
    there = phrase_tokens(texts[1], other_phrase, "negative")
    columns = [list(range(1, len(text.ids))) for text in texts]
    read = read_columns(site.model, [site.point], [text.ids for text in texts], columns)
    plus, minus = read[site.point.name]  # position p is row p - 1
    rows_of = partners(len(here), len(there), align)
    rows = torch.stack([plus[p - 1] for p in here]) - torch.stack(
        [minus[[there[j] - 1 for j in chosen]].mean(0) for chosen in rows_of]
    )
    norm = float(torch.cat([plus, minus]).norm(dim=-1).median())
    start = texts[0].text.encode().find(phrase.encode())
    return PositionVectors(
        rows,
        phrase,
        tuple(texts[0].ends[p] - start for p in here),
        site.space,
        norm if median_norm is None else median_norm,
        "prompt_pair",
        {
            "positive": said(given[0]),
            "negative": said(given[1]),
            "other_phrase": other_phrase,
            "align": align,
            "tokens": _spelled(site, texts[0], here),
            "other_tokens": _spelled(site, texts[1], there),
            "texts": hashes(given),
        },
    )


def _text_of(prompt: EncodedText | EncodedChat) -> EncodedText:
    return prompt if isinstance(prompt, EncodedText) else prompt.encoded


def _differing(positive: str, negative: str) -> tuple[str, str]:
    """The words in which two prompts differ, between their common beginning and end."""
    if positive == negative:
        raise InputError(
            "positive, negative: the prompts are equal",
            got=repr(positive[:80]),
            valid="two prompts that differ in a phrase",
            hint="put something else in place of the trigger",
        )
    a, b = positive.split(" "), negative.split(" ")
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    return " ".join(a[start : len(a) - end]), " ".join(b[start : len(b) - end])


def phrase_tokens(text: EncodedText, phrase: str, argument: str) -> list[int]:
    """Positions of the tokens that read some of the phrase; position 0 is left out."""
    start = text.text.encode().find(phrase.encode()) if phrase else -1
    if start < 0:
        raise InputError(
            f"{argument}: the phrase is not in it",
            got=f"{phrase!r} in {text.text[:80]!r}",
            valid="a phrase of the prompt, not empty",
            hint="pass phrase= and other_phrase= as they are written in the prompts",
        )
    stop = start + len(phrase.encode())
    before = (0, *text.ends)
    found = [p for p in text.pairable() if text.ends[p] > start and before[p] < stop and p > 0]
    if not found:
        raise InputError(
            f"{argument}: the phrase is read at position 0 alone, which is an attention sink",
            got=repr(text.text[:80]),
            valid="a prompt in which something stands before the phrase",
            hint="put a word before it, or make it a chat",
        )
    return found


def partners(n: int, m: int, align: str) -> list[list[int]]:
    """For each of n tokens, which of m others it is compared with."""
    if align == "mean":
        return [list(range(m))] * n
    if align == "start":
        return [[min(i, m - 1)] for i in range(n)]
    return [[max(m - n + i, 0)] for i in range(n)]


def _spelled(site: Site, text: EncodedText, positions: list[int]) -> list[str]:
    return [site.model.tokenizer.decode([text.ids[p]]) for p in positions]
