"""The bytes each token of a Hugging Face fast tokenizer stands for, and its own BOS policy.

Vocabularies spell bytes in two ways: byte-level BPE (GPT-2, Llama 3, Qwen) gives every byte a
printable character, SentencePiece (Gemma, Llama 2) writes a space as ``▁`` and odd bytes as
``<0xE2>``. Added tokens are spelt as they are in both.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from tl_transfer.errors import InputError

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


class TokenBytes:
    """What the tokens of one tokenizer stand for; made by `token_bytes`.

    Attributes:
        special: Ids of control tokens (BOS, turn markers, ...). Added tokens that the tokenizer
            does not call special, such as Gemma's line breaks, are text.
        spelling: ``"byte_level"``, ``"sentencepiece"`` or ``"plain"``.
    """

    def __init__(self, tokenizer: Any) -> None:
        # The backend only: `_tables` must not keep the tokenizer alive through its own values.
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        unknown = tokenizer.unk_token_id
        self._added = {index: token.content for index, token in added.items()}
        # The unknown token is no markup: it stands where text could not be spelt.
        self.special = frozenset(
            [index for index, token in added.items() if token.special]
            + list(tokenizer.all_special_ids)
        ) - {unknown}
        self._unknown = unknown
        self.spelling = _spelling(self._backend)
        self._known: dict[int, bytes | None] = {}

    def __getitem__(self, index: int) -> bytes | None:
        """Bytes of a token; None where they cannot be known (the unknown token)."""
        if index not in self._known:
            self._known[index] = self._read(index)
        return self._known[index]

    def join(self, ids: Sequence[int]) -> list[bytes] | None:
        """Bytes of every token, or None if one of them is not known."""
        pieces = [self[index] for index in ids]
        return None if None in pieces else pieces  # type: ignore[return-value]

    def normalise(self, text: str) -> str:
        """`text` as the tokenizer rewrites it before cutting, with plain spaces."""
        normaliser = self._backend.normalizer
        changed = text if normaliser is None else normaliser.normalize_str(text)
        return changed.replace(_SPACE, " ") if self.spelling == "sentencepiece" else changed

    def _read(self, index: int) -> bytes | None:
        if index == self._unknown:
            return None
        if index in self._added:
            return self._added[index].encode()
        piece = self._backend.id_to_token(index)
        if piece is None:
            return None
        if self.spelling == "byte_level":
            table = _byte_of_character()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else None
        if self.spelling == "sentencepiece":
            one_byte = _BYTE_PIECE.fullmatch(piece)
            if one_byte is not None:
                return bytes([int(one_byte[1], 16)])
            piece = piece.replace(_SPACE, " ")
        return str(piece).encode()


_tables: "WeakKeyDictionary[Any, tuple[tuple[int, ...], TokenBytes]]" = WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a tokenizer, kept for the next call and renewed when tokens were added.

    Raises:
        InputError: a slow tokenizer, or something that is no Hugging Face tokenizer.
    """
    require_fast(tokenizer)
    version = (len(tokenizer), *tokenizer.all_special_ids)
    kept = _tables.get(tokenizer)
    if kept is None or kept[0] != version:
        kept = (version, TokenBytes(tokenizer))
        _tables[tokenizer] = kept
    return kept[1]


def require_fast(tokenizer: Any) -> None:
    """Refuse tokenizers whose tokens cannot be traced back to bytes of the text."""
    if getattr(tokenizer, "backend_tokenizer", None) is not None and callable(tokenizer):
        return
    raise InputError(
        "tokenizer: tokens of this tokenizer cannot be traced back to the text",
        got=type(tokenizer).__name__,
        valid="a Hugging Face fast tokenizer (one with a tokenizer.json)",
        hint="load it with AutoTokenizer.from_pretrained(...), or wrap a bare tokenizers.Tokenizer"
        " in transformers.PreTrainedTokenizerFast(tokenizer_object=...)",
    )


def default_prefix(tokenizer: Any) -> tuple[int, ...]:
    """Ids that the tokenizer itself puts in front of a text: BOS for Gemma, nothing for Qwen.

    Observed, not read from settings: ``add_bos_token`` and what is done often disagree.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def prefix(tokenizer: Any, add_bos: bool | None) -> tuple[int, ...]:
    """Ids in front of a text under the caller's wish; None follows the tokenizer's own default."""
    if add_bos is False:
        return ()
    own = default_prefix(tokenizer)
    if own or add_bos is None:
        return own
    if tokenizer.bos_token_id is None:
        raise InputError(
            "add_bos: this tokenizer has no BOS token",
            got="add_bos=True",
            valid="None or False",
            hint="leave it out: the model was trained without one",
        )
    return (int(tokenizer.bos_token_id),)


def _spelling(backend: Any) -> str:
    """How pieces are spelt, by the decoder that would undo it."""
    parts = [part for part in (backend.decoder, backend.pre_tokenizer) if part is not None]
    for part in parts:
        state = part.__getstate__().decode()
        if '"ByteLevel"' in state:
            return "byte_level"
        if '"ByteFallback"' in state or '"Metaspace"' in state or _SPACE in state:
            return "sentencepiece"
    return "plain"


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Printable Latin-1 characters stand for their own byte, the other bytes for U+0100 onwards."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    table = {chr(byte): byte for byte in own}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
