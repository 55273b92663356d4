"""Chosen tokens: which tokens of which texts an extraction or a map reads, before it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_transfer.data.texts import Chat, as_texts
from tl_transfer.data.token_bytes import token_bytes
from tl_transfer.data.tokens import Tokens, read_tokens
from tl_transfer.models.surface import HookedModel
from tl_transfer.views.view import View, spans


@dataclass(frozen=True)
class ChosenTokens:
    """Which tokens of some texts are read.

    Attributes:
        tokens: Of each text, its tokens as text.
        chosen: Of each text, the positions that are read, rising.
    """

    tokens: list[list[str]]
    chosen: list[list[int]]


def chosen_tokens(
    model: HookedModel,
    texts: Sequence[Any],
    positions: Tokens | str = "mean",
    *,
    top: int = 6,
) -> View:
    """Which tokens `mean_difference`, `fit` or `capture` would read.

    Position 0 is an attention sink and is never read, whatever is asked for.
    `tl_transfer.describe` shows which tokens an intervention steers.

    Args:
        model: Whose tokenizer and chat template.
        texts: Texts or chats.
        positions: As for `mean_difference`.
        top: Texts that are drawn; the first ones.

    Returns:
        A view with `ChosenTokens` of all texts as its data.

    Raises:
        InputError: texts that cannot be tokenised, or template tokens of a plain text.
    """
    known = as_texts(texts)
    choice = Tokens.of_any(positions)
    found = read_tokens(known, model.tokenizer, choice)
    spelled = token_bytes(model.tokenizer)
    pieces = [
        [(spelled[i] or b"?").decode(errors="backslashreplace") for i in reading.ids.tolist()]
        for reading in found
    ]
    chosen = [[int(i) for i in reading.positions if i > 0] for reading in found]
    data = ChosenTokens(pieces, chosen)
    rows = "".join(
        f"<h4>{'chat' if isinstance(text, Chat) else 'text'} {number}: {len(read)} of "
        f"{len(words)} tokens</h4>"
        + spans(
            [
                (word, 1.0 if i in read else None, f"position {i}{', read' if i in read else ''}")
                for i, word in enumerate(words)
            ],
            1.5,
        )
        for number, (text, words, read) in enumerate(
            zip(known[:top], pieces[:top], chosen[:top], strict=True)
        )
    )
    asked = ", ".join(f"{name} {value!r}" for name, value in choice.to_json().items())
    total, n = sum(map(len, chosen)), sum(map(len, pieces))
    caption = (
        f"{model.name}, n = {len(known)} texts, {total:,} of {n:,} tokens are read "
        f"({asked}); {min(top, len(known))} texts are shown. Orange: read; pale: not."
    )
    return View("What is read", caption, rows, data)
