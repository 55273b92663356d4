"""align: which tokens of two tokenizations have read the same text.

Two tokens pair if and only if they end at the same byte. Where they start does not matter, and
neither does the spelling of spaces. Nothing is paired by position or by decoded string.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tl_transfer.data.encode import EncodedText, encode, encode_many, utf8
from tl_transfer.data.token_bytes import require_fast
from tl_transfer.errors import InputError

__all__ = [
    "AlignmentReport",
    "EncodedText",
    "PairedTexts",
    "TokenAlignment",
    "align",
    "encode",
    "encode_many",
    "pair_many",
]


@dataclass(frozen=True)
class TokenAlignment:
    """Pairs of positions that have read the same text; both rise strictly.

    Attributes:
        source_positions: Positions in the source's ids.
        target_positions: Positions in the target's ids, same length.
        coverage_source: Share of the source's text tokens that were paired; 0 without any.
        coverage_target: The same of the target's.
        n_dropped: Tokens of both sides left out because their bytes could not be verified.
    """

    source_positions: Int[Tensor, " pair"]
    target_positions: Int[Tensor, " pair"]
    coverage_source: float
    coverage_target: float
    n_dropped: int

    def __len__(self) -> int:
        return len(self.source_positions)


@dataclass(frozen=True)
class AlignmentReport:
    """How much of many texts was paired.

    Attributes:
        n_texts: Texts given.
        n_failed: Texts that could not be tokenised and were skipped.
        n_unpaired: Texts that were tokenised but share no token end.
        n_pairs: Pairs of tokens.
        n_source: Text tokens of the source.
        n_target: Text tokens of the target.
        n_dropped: Tokens of both sides whose bytes could not be verified.
    """

    n_texts: int
    n_failed: int
    n_unpaired: int
    n_pairs: int
    n_source: int
    n_target: int
    n_dropped: int

    @property
    def coverage_source(self) -> float:
        """Share of the source's text tokens that were paired."""
        return self.n_pairs / max(self.n_source, 1)

    @property
    def coverage_target(self) -> float:
        """Share of the target's text tokens that were paired."""
        return self.n_pairs / max(self.n_target, 1)

    def __add__(self, other: "AlignmentReport") -> "AlignmentReport":
        names = [field.name for field in fields(self)]
        return AlignmentReport(**{n: getattr(self, n) + getattr(other, n) for n in names})

    def __str__(self) -> str:
        return (
            f"{self.n_pairs} token pairs in {self.n_texts} texts: "
            f"{self.coverage_source:.1%} of {self.n_source} source tokens, "
            f"{self.coverage_target:.1%} of {self.n_target} target tokens; "
            f"{self.n_dropped} tokens not verified, {self.n_failed} texts failed, "
            f"{self.n_unpaired} texts without a pair"
        )


@dataclass(frozen=True)
class PairedTexts:
    """Both tokenizations of many texts and their alignments, in the order of the texts.

    A text that was skipped has no tokens and no pairs; `failures` says why.
    """

    source: tuple[EncodedText, ...]
    target: tuple[EncodedText, ...]
    alignments: tuple[TokenAlignment, ...]
    report: AlignmentReport
    failures: dict[int, str]


def align(source: EncodedText, target: EncodedText) -> TokenAlignment:
    """Pair the tokens of one text that end at the same byte.

    Special tokens, tokens that read nothing and tokens that could not be verified pair with
    nothing. Two encodings by one tokenizer give the identity on all other positions.

    Raises:
        InputError: the two are of different texts.
    """
    if source.text != target.text:
        raise InputError(
            "target: not the text of the source",
            got=f"source {source.text[:60]!r}, target {target.text[:60]!r}",
            valid="two encodings of the same text",
            hint="encode one text with both tokenizers; for chats use tl_transfer.data.chat",
        )
    return align_all([source], [target])[0]


def pair_many(
    texts: Sequence[str],
    source_tokenizer: Any,
    target_tokenizer: Any,
    *,
    invalid: str = "raise",
) -> PairedTexts:
    """Tokenise every text twice, in batches, and align.

    Args:
        texts: Plain texts.
        source_tokenizer: Fast tokenizer of the source.
        target_tokenizer: Fast tokenizer of the target.
        invalid: ``"raise"``, or ``"skip"`` to leave out and report texts that cannot be tokenised.

    Raises:
        InputError: see `encode`; with ``"skip"`` only for the tokenizers themselves.
    """
    if isinstance(texts, str):
        raise InputError(
            "texts: one string where a list is expected",
            got="str",
            valid="a list of strings",
            hint="pass [text]",
        )
    if invalid not in ("raise", "skip"):
        raise InputError(
            "invalid: unknown choice",
            got=repr(invalid),
            valid='"raise" or "skip"',
            hint='leave it out for "raise"',
        )
    both = (source_tokenizer, target_tokenizer)
    for tokenizer in both:
        require_fast(tokenizer)
    failures = _failures(texts, both) if invalid == "skip" else {}
    good = [i for i in range(len(texts)) if i not in failures]
    source, target = (_encode_good(texts, good, tokenizer) for tokenizer in both)
    alignments = align_all(source, target)
    report = summarise(source, target, alignments, n_failed=len(failures))
    return PairedTexts(tuple(source), tuple(target), tuple(alignments), report, failures)


def summarise(
    source: Sequence[EncodedText],
    target: Sequence[EncodedText],
    alignments: Sequence[TokenAlignment],
    *,
    n_failed: int = 0,
) -> AlignmentReport:
    """Counts over many alignments."""
    return AlignmentReport(
        n_texts=len(alignments),
        n_failed=n_failed,
        n_unpaired=sum(not len(item) for item in alignments) - n_failed,
        n_pairs=sum(len(item) for item in alignments),
        n_source=sum(item.n_text_tokens for item in source),
        n_target=sum(item.n_text_tokens for item in target),
        n_dropped=sum(item.n_dropped for item in alignments),
    )


def align_all(source: Sequence[EncodedText], target: Sequence[EncodedText]) -> list[TokenAlignment]:
    """Align many texts at once."""
    positions = [
        [np.asarray(t.pairable(), dtype=np.int64) for t in side] for side in (source, target)
    ]
    ends = [
        [np.asarray(text.ends, dtype=np.int64)[row] for text, row in zip(side, rows, strict=True)]
        for side, rows in zip((source, target), positions, strict=True)
    ]
    return [
        TokenAlignment(
            torch.from_numpy(positions[0][i][here]),
            torch.from_numpy(positions[1][i][there]),
            len(here) / max(source[i].n_text_tokens, 1),
            len(there) / max(target[i].n_text_tokens, 1),
            source[i].n_dropped + target[i].n_dropped,
        )
        for i, (here, there) in enumerate(match_many(*ends))
    ]


#: Keys are below 2^42, and texts are matched this many at a time: a pair fits in 63 bits.
_KEY_BITS = 42
_AT_ONCE = 4096


def match_many(
    source: Sequence[np.ndarray], target: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of equal keys, text by text.

    Args:
        source: What each token has read, rising within a text, at least 0 and below 2^42.
        target: The same of the other model.

    Yields:
        For every text, places in its two rows of keys, rising.
    """
    for first in range(0, len(source), _AT_ONCE):
        rows = (source[first : first + _AT_ONCE], target[first : first + _AT_ONCE])
        # (text, key) is one sortable number, so one merge does it for many texts.
        keys_s, keys_t = (
            np.concatenate([row + (i << _KEY_BITS) for i, row in enumerate(side)]) for side in rows
        )
        shared, here, there = np.intersect1d(
            keys_s, keys_t, assume_unique=True, return_indices=True
        )
        starts = [np.cumsum([0, *map(len, side)]) for side in rows]
        text = shared >> _KEY_BITS
        cuts = np.searchsorted(text, np.arange(1, len(rows[0])))
        yield from zip(
            np.split(here - starts[0][text], cuts),
            np.split(there - starts[1][text], cuts),
            strict=True,
        )


def _failures(texts: Sequence[str], tokenizers: Sequence[Any]) -> dict[int, str]:
    """Why each text that cannot be tokenised cannot."""
    failures: dict[int, str] = {}
    for index, text in enumerate(texts):
        try:
            utf8(text, index)
        except InputError as error:
            failures[index] = str(error)
    good = [i for i in range(len(texts)) if i not in failures]
    for tokenizer in tokenizers:
        try:
            encode_many([texts[i] for i in good], tokenizer)
        except InputError:  # rare: find which
            for index in good:
                try:
                    encode(texts[index], tokenizer)
                except InputError as error:
                    failures.setdefault(index, str(error))
    return failures


def _encode_good(texts: Sequence[str], good: Sequence[int], tokenizer: Any) -> list[EncodedText]:
    encoded = dict(zip(good, encode_many([texts[i] for i in good], tokenizer), strict=True))
    return [encoded.get(i, EncodedText(str(text), (), (), (), 0)) for i, text in enumerate(texts)]
