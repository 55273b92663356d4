"""encode: a text as tokens that know at which byte of the text they end.

A residual vector at a token has read the text up to the token's end, so the end is what makes
tokens of two tokenizers comparable. Ends are exact and untrimmed: ``;`` and ``;`` plus a line
break have read different text, though a reader would call both the same token. Hugging Face
offsets are not used where the tokens' own bytes spell the text: offsets drop leading spaces for
some tokenizers, repeat for split characters, and are wrong by one after Unicode composition.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tl_transfer.data.token_bytes import TokenBytes, prefix, token_bytes
from tl_transfer.errors import InputError


@dataclass(frozen=True)
class EncodedText:
    """Tokens of one text and the byte of it where each one ends.

    Attributes:
        text: The text.
        ids: Token ids, BOS included where the model wants one.
        ends: UTF-8 bytes of the text that have been read after each token; never decreasing. A
            token that reads nothing (BOS, a lone prefix space) or whose bytes could not be
            verified has the end of the token before it, and pairs with nothing.
        special: True on BOS and other control tokens.
        n_bytes: Length of the text in UTF-8 bytes.
        n_dropped: Tokens of text whose end could not be verified.
    """

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    special: tuple[bool, ...]
    n_bytes: int
    n_dropped: int = 0

    @property
    def n_text_tokens(self) -> int:
        """Tokens that are not special."""
        return len(self.special) - sum(self.special)

    def pairable(self) -> list[int]:
        """Positions of the tokens that read at least one verified byte of text."""
        before = (0, *self.ends)
        return [
            i
            for i, (end, special) in enumerate(zip(self.ends, self.special, strict=True))
            if end > before[i] and not special
        ]

    def pieces(self) -> list[str]:
        """What each token adds to the text; control tokens by a sign."""
        raw = self.text.encode()
        before = (0, *self.ends)
        return [
            "⟨control⟩" if special else raw[before[i] : end].decode(errors="replace")
            for i, (end, special) in enumerate(zip(self.ends, self.special, strict=True))
        ]


def encode(
    text: str, tokenizer: Any, *, add_bos: bool | None = None, parse_special: bool = False
) -> EncodedText:
    """Tokenise one text.

    Args:
        text: Any text UTF-8 can hold, also empty.
        tokenizer: A Hugging Face fast tokenizer.
        add_bos: None: BOS exactly once if the tokenizer itself adds one; True or False: ask for
            it or for none.
        parse_special: False: ``<bos>`` written in the text is five characters like any others,
            so that no user text becomes markup. True: it is the control token; for text that a
            chat template rendered (`tl_transfer.data.chat.encode_chat` does this).

    Returns:
        The tokens with their byte ends.

    Raises:
        InputError: a slow tokenizer, text UTF-8 cannot hold (lone surrogates), or a tokenizer
            that makes a control token of plain text and cannot be kept from it.
    """
    return encode_many([text], tokenizer, add_bos=add_bos, parse_special=parse_special)[0]


def encode_many(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    add_bos: bool | None = None,
    parse_special: bool = False,
    start: int = 0,
) -> list[EncodedText]:
    """Like `encode` for many texts, tokenised in one batch; errors count texts from `start`."""
    table = token_bytes(tokenizer)
    raws = [utf8(text, index) for index, text in enumerate(texts, start)]
    if not raws:
        return []
    first = prefix(tokenizer, add_bos)
    rows = _call(tokenizer, list(texts), split=not parse_special)["input_ids"]
    return [
        _encoded(text, raw, tuple(ids), tokenizer, table, first, parse_special)
        for text, raw, ids in zip(texts, raws, rows, strict=True)
    ]


def utf8(text: Any, index: int) -> bytes:
    """Bytes of a text, or an `InputError` that says which text has none and where."""
    if not isinstance(text, str):
        raise InputError(
            f"texts: text {index} is no string",
            got=type(text).__name__,
            valid="str",
            hint="pass one text to encode, a list of texts to pair_many",
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"texts: text {index} has no UTF-8 form (half of a surrogate pair)",
            got=f"{text[error.start]!r} at character {error.start}",
            valid="text without lone surrogates",
            hint="read the file again with the right encoding, or clean it with "
            "text.encode('utf-8', 'replace').decode()",
        ) from error


def _call(tokenizer: Any, texts: Any, *, split: bool, offsets: bool = False) -> Any:
    """Tokenise without adding anything; leaves the tokenizer's splitting switch as it was."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    try:
        return tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split,
            return_attention_mask=False,
            return_offsets_mapping=offsets,
            padding=False,
            truncation=False,
            verbose=False,
        )
    finally:
        backend.encode_special_tokens = before


def _encoded(
    text: str,
    raw: bytes,
    ids: tuple[int, ...],
    tokenizer: Any,
    table: TokenBytes,
    first: tuple[int, ...],
    parse_special: bool,
) -> EncodedText:
    special = [index in table.special for index in ids]
    if any(special) and not parse_special:
        _refuse_markup(ids[special.index(True)], tokenizer)
    pieces = table.join(ids)
    ends = None if pieces is None else _ends_by_bytes(text, raw, pieces, table)
    if ends is None:
        ends = _ends_by_offsets(text, ids, tokenizer, table, split=not parse_special)
    known, n_dropped = _fill(ends, special)
    if ids[: len(first)] == first:  # a rendered chat may bring its own BOS
        first = ()
    return EncodedText(
        text,
        first + ids,
        (0,) * len(first) + known,
        (True,) * len(first) + tuple(special),
        len(raw),
        n_dropped,
    )


def _refuse_markup(index: int, tokenizer: Any) -> None:
    token = tokenizer.convert_ids_to_tokens(index)
    raise InputError(
        "text: the tokenizer makes a control token of plain text, and cannot be kept from it",
        got=f"{token!r} in the text",
        valid=f"text without {token!r}",
        hint="drop that text, or pass parse_special=True if the control token is meant",
    )


def _fill(ends: list[int | None], special: list[bool]) -> tuple[tuple[int, ...], int]:
    """Ends with the gaps closed by the end before, and the number of gaps in text tokens."""
    known = tuple(accumulate((end or 0 for end in ends), max))
    return known, sum(end is None and not s for end, s in zip(ends, special, strict=True))


def _ends_by_bytes(
    text: str, raw: bytes, pieces: list[bytes], table: TokenBytes
) -> list[int | None] | None:
    """Ends counted in the tokens' own bytes; None if these do not spell the text."""
    joined = b"".join(pieces)
    read = list(accumulate(map(len, pieces)))
    if joined == raw:
        return list(read)
    # A prefix space that the tokenizer put in front (Llama 2, add_prefix_space).
    if joined == b" " + raw:
        return [end - 1 for end in read]
    places = _normalised_places(text, table)
    for shift, form in ((0, places[0]), (1, b" " + places[0])):
        if joined == form:
            return [0 if end == shift else places[1].get(end - shift) for end in read]
    return None


def _normalised_places(text: str, table: TokenBytes) -> tuple[bytes, dict[int, int]]:
    """The text as the tokenizer rewrites it (NFC, ...), and bytes of it -> bytes of the text.

    Rewritten in the smallest parts that do not depend on each other; inside a changed part nothing
    corresponds.
    """
    form = bytearray()
    places: dict[int, int] = {}
    read = 0
    for part in _parts(text, table):
        old, new = part.encode(), table.normalise(part).encode()
        if new == old:
            places |= {len(form) + k: read + k for k in range(1, len(old) + 1)}
        elif new:
            places[len(form) + len(new)] = read + len(old)
        form += new
        read += len(old)
    return bytes(form), places


def _parts(text: str, table: TokenBytes) -> list[str]:
    """Characters where each is rewritten alone, with their marks where they compose."""
    parts: list[str] = []
    for cluster in _clusters(text):
        alone = "".join(table.normalise(character) for character in cluster)
        parts += cluster if alone == table.normalise(cluster) else [cluster]
    return parts


def _clusters(text: str) -> list[str]:
    """Characters with the marks and Hangul vowels that can compose with them."""
    clusters: list[str] = []
    for character in text:
        joins = unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"
        if joins and clusters:
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _ends_by_offsets(
    text: str, ids: tuple[int, ...], tokenizer: Any, table: TokenBytes, *, split: bool
) -> list[int | None]:
    """Ends from Hugging Face's character offsets, each one checked against the text.

    Tokens with one and the same span (a character split over tokens) are checked together, and
    the last of them ends there.
    """
    spans = _call(tokenizer, text, split=split, offsets=True)["offset_mapping"]
    if len(spans) != len(ids):
        return [None] * len(ids)
    to_byte = [0, *accumulate(len(character.encode()) for character in text)]
    ends: list[int | None] = [None] * len(ids)
    first = 0
    for last, span in enumerate(spans):
        if last + 1 < len(spans) and spans[last + 1] == span:
            continue
        pieces = table.join(ids[first : last + 1])
        first = last + 1
        if pieces is not None:
            end = _checked_end(text, span, b"".join(pieces), table)
            ends[last] = None if end is None else to_byte[end]
    return ends


def _checked_end(text: str, span: tuple[int, int], piece: bytes, table: TokenBytes) -> int | None:
    """Character where a token ends, if the span holds the token but for whitespace around it."""
    start, end = span
    try:
        token = piece.decode()
    except UnicodeDecodeError:
        return None
    found = text[start:end]
    if start == end or token.strip() not in (found.strip(), table.normalise(found).strip()):
        return None
    # Some offsets leave out whitespace at the end that the token has read.
    tail = token[len(token.rstrip()) :]
    if not token.strip() or found.endswith(tail):
        return end
    return end + len(tail) if text.startswith(tail, end) else None
