"""Which tokens of a text are read, and by what they are known in another model.

A choice is made on the text, not on tokens: what two models read of it then corresponds. Every
chosen token gets a key, the bytes it has read (or, in a chat template, what it does), and two
tokens of two models pair if and only if their keys are equal.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tl_transfer.data.chat import EncodedChat, encode_chat
from tl_transfer.data.encode import EncodedText, encode_many
from tl_transfer.data.texts import Chat, Text, n_bytes
from tl_transfer.errors import InputError

#: Bits of a key for the bytes read within a message; template tokens come after all of them.
_MESSAGE_BITS = 31
_TEMPLATE = 1 << 41
#: Plain texts that are tokenised at once: what a tokenizer says of a text is much larger than it.
_AT_ONCE = 512


@dataclass(frozen=True)
class Tokens:
    """A choice of tokens.

    Attributes:
        keep: ``"all"`` chosen tokens, the ``"last"`` of them in each text, or their ``"mean"`` in
            each text.
        of: ``"content"``: what is said; ``"template"``: the tokens of a chat template that every
            template has (header and end of each message, and the last token before an answer);
            or ``"both"``. Plain texts are all content.
        span: Only tokens that read a byte of this string, wherever it is found.
        regex: The same for matches of a regular expression (Python's ``re``).
        role: Only messages of this role.
    """

    keep: str = "all"
    of: str = "content"
    span: str | None = None
    regex: str | None = None
    role: str | None = None

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("keep", self.keep, ("all", "last", "mean")),
            ("of", self.of, ("content", "template", "both")),
        ):
            if value not in valid:
                raise InputError(
                    f"{name}: unknown choice of tokens",
                    got=repr(value),
                    valid=", ".join(map(repr, valid)),
                    hint=f'leave it out for "{valid[0]}"',
                )
        narrowed = [name for name in ("span", "regex") if getattr(self, name) is not None]
        if len(narrowed) == 2 or (narrowed and self.of != "content") or self.span == "":
            raise InputError(
                "span, regex: one of them, not empty, and of content only",
                got=f"of={self.of!r}, span={self.span!r}, regex={self.regex!r}",
                valid='of="content" with one of span and regex',
                hint="a template says the same in every chat: choose its tokens by of and keep",
            )
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise InputError(
                    "regex: not a regular expression",
                    got=f"{self.regex!r}: {error}",
                    valid="the syntax of Python's re module",
                    hint="span= takes a string as it is",
                ) from error

    @classmethod
    def of_any(cls, choice: "Tokens | str") -> "Tokens":
        """A choice, or its `keep` alone."""
        return choice if isinstance(choice, Tokens) else cls(keep=choice)

    def to_json(self) -> dict[str, str]:
        """The fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Reading:
    """What one model reads of one text.

    Attributes:
        ids: All tokens, in 32 bits, like the positions.
        positions: Positions of the chosen tokens, rising.
        keys: What each of them has read, rising; equal keys correspond.
        content: Positions of all content tokens, chosen or not.
        n_chosen: Tokens asked for, with those whose bytes could not be verified.
        n_dropped: Tokens whose bytes could not be verified.
        n_bytes: Bytes of what is said.
    """

    ids: np.ndarray
    positions: np.ndarray
    keys: np.ndarray
    content: np.ndarray
    n_chosen: int
    n_dropped: int
    n_bytes: int


def read_tokens(texts: Sequence[Text], tokenizer: Any, tokens: Tokens) -> list[Reading]:
    """Tokenise texts and choose.

    Raises:
        InputError: a text that cannot be tokenised, a chat for a model without a template, or
            template tokens of a plain text.
    """
    plain = _encoded([text for text in texts if isinstance(text, str)], tokenizer)
    return [
        _of_chat(_rendered(text, tokenizer, i), text, tokens)
        if isinstance(text, Chat)
        else _of_text(next(plain), text, tokens, i)
        for i, text in enumerate(texts)
    ]


def _encoded(texts: Sequence[str], tokenizer: Any) -> Iterator[EncodedText]:
    for start in range(0, len(texts), _AT_ONCE):
        yield from encode_many(texts[start : start + _AT_ONCE], tokenizer, start=start)


def _rendered(chat: Chat, tokenizer: Any, number: int) -> EncodedChat:
    try:
        return encode_chat(
            chat.to_messages(), tokenizer, add_generation_prompt=chat.add_generation_prompt
        )
    except InputError as error:
        error.add_note(f"in text {number}, a chat")
        raise


def _of_text(encoded: EncodedText, text: str, tokens: Tokens, number: int) -> Reading:
    if tokens.of == "template" or tokens.role is not None:
        raise InputError(
            "tokens: a plain text has no template and no roles",
            got=f"text {number}: {text!r:.60}",
            valid="chats, or the tokens of content",
            hint="pass [{'role': 'user', 'content': text}] if it is what a user says",
        )
    before = (0, *encoded.ends)
    content = [(i, 0, before[i], encoded.ends[i]) for i in encoded.pairable()]
    return _reading(encoded, content, [text], {}, tokens, encoded.n_text_tokens, text)


def _of_chat(encoded: EncodedChat, chat: Chat, tokens: Tokens) -> Reading:
    content = encoded.content_tokens()
    if tokens.role is not None:
        content = [token for token in content if chat.messages[token[1]][0] == tokens.role]
    said = [content for _, content in chat.messages]
    template = _template_keys(encoded.template_tokens)
    n_text = encoded.n_content_tokens()
    return _reading(encoded.encoded, content, said, template, tokens, n_text, chat)


def _reading(
    encoded: EncodedText,
    content: list[tuple[int, int, int, int]],
    said: Sequence[str],
    template: dict[int, int],
    tokens: Tokens,
    n_text: int,
    text: Text,
) -> Reading:
    chosen: dict[int, int] = {}
    if tokens.of != "template":
        spans = _spans(said, tokens)
        chosen = {
            position: (message << _MESSAGE_BITS) | end
            for position, message, start, end in content
            if spans is None or _overlaps(spans[message], start, end)
        }
    if tokens.of != "content":
        chosen |= template
    if tokens.keep == "last":
        chosen = dict([max(chosen.items())]) if chosen else {}
    everything = tokens in (Tokens(), Tokens("mean"))
    positions = np.asarray(sorted(chosen), dtype=np.int32)
    places = np.asarray([token[0] for token in content], dtype=np.int32)
    return Reading(
        np.asarray(encoded.ids, dtype=np.int32),
        positions,
        np.asarray([chosen[position] for position in positions.tolist()], dtype=np.int64),
        positions if np.array_equal(places, positions) else places,
        n_text if everything else len(chosen),
        encoded.n_dropped,
        n_bytes(text),
    )


def _template_keys(names: dict[str, int]) -> dict[int, int]:
    """Position -> key of the template tokens; of two names for one position, the last one."""
    keys = {}
    for name, position in names.items():
        kind, _, number = name.partition(" ")
        code = 0 if kind == "last" else 1 + 2 * int(number) + (kind == "end")
        keys[position] = _TEMPLATE | code
    return keys


def _spans(said: Sequence[str], tokens: Tokens) -> list[list[tuple[int, int]]] | None:
    """Byte spans of every content that are asked for; None for all of it."""
    if tokens.span is None and tokens.regex is None:
        return None
    pattern = re.compile(re.escape(tokens.span) if tokens.span is not None else tokens.regex or "")
    return [
        [
            (len(text[: m.start()].encode()), len(text[: m.end()].encode()))
            for m in pattern.finditer(text)
            if m.end() > m.start()
        ]
        for text in said
    ]


def _overlaps(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    """Whether any of some rising spans has a byte in [start, end)."""
    last = bisect_right(spans, (end - 1, 1 << 62)) - 1
    return last >= 0 and spans[last][1] > start
