"""Pieces: the text of a generation as it grows, for streaming."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """What one step added to one row.

    Attributes:
        text: New text; empty while a character is incomplete, and after the end of the row.
        token: Id of the new token; None after the end of the row.
    """

    text: str
    token: int | None

    def __str__(self) -> str:
        return self.text


class Pieces:
    """The growing text of one row; all pieces joined are the text of the whole."""

    def __init__(self, tokenizer: Any, stops: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = frozenset(stops)
        self._ids: list[int] = []
        self._said = ""
        self.stopped = False

    def add(self, token: int) -> Piece:
        """The next token of the row."""
        self.stopped = self.stopped or token in self._stops
        if self.stopped:
            return Piece("", None)
        self._ids.append(token)
        text = self._text()
        # A character may take several tokens; until the last of them it decodes to U+FFFD.
        if text.endswith("\ufffd") or not text.startswith(self._said):
            return Piece("", token)
        new, self._said = text[len(self._said) :], text
        return Piece(new, token)

    def rest(self) -> Piece:
        """What an incomplete character has held back when the row ends."""
        return Piece(self._text()[len(self._said) :], None)

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)


#: What makes the pieces.
PieceSteps = Generator[Piece | list[Piece], None, None]


class Stream:
    """Pieces, one step after the other, for as long as they may go on."""

    def __init__(self, pieces: PieceSteps, require_open: Callable[[], None]) -> None:
        self._pieces = pieces
        self._require_open = require_open

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece | list[Piece]:
        """The next step; raises what `require_open` raises."""
        self._require_open()
        return next(self._pieces)

    def close(self) -> None:
        """End the generation early."""
        self._pieces.close()
