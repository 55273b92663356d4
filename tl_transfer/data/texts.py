"""What a model is given to read: plain texts and chats, and how each is known again.

A chat is kept as its messages, not as one model's rendering of it, because each model reads it in
its own template.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_transfer.data.template import require_messages
from tl_transfer.errors import InputError


@dataclass(frozen=True)
class Chat:
    """Messages, each a role and a content, and whether an answer is to follow.

    Attributes:
        messages: (role, content) of every message.
        add_generation_prompt: End with the header of the answer, as before generating.
    """

    messages: tuple[tuple[str, str], ...]
    add_generation_prompt: bool

    def to_messages(self) -> list[dict[str, str]]:
        """The form that chat templates take."""
        return [{"role": role, "content": content} for role, content in self.messages]


Text = str | Chat


def as_texts(items: Any, argument: str = "texts") -> list[Text]:
    """Strings, lists of messages and encoded chats as texts.

    A list of messages gets the header of an answer unless an assistant has the last word;
    `tl_transfer.encode_chat` says it outright.

    Raises:
        InputError: no list, an empty one, or something in it that is no text.
    """
    if isinstance(items, str) or not isinstance(items, Sequence) or not items:
        raise InputError(
            f"{argument}: needs a list of texts",
            got=type(items).__name__ + (" of length 0" if isinstance(items, list) else ""),
            valid="one or more strings, or chats as lists of messages, in a list",
            hint="wrap a single text in a list",
        )
    return [_as_text(item, i, argument) for i, item in enumerate(items)]


def _as_text(item: Any, number: int, argument: str) -> Text:
    if isinstance(item, str | Chat):
        return item
    known = getattr(item, "chat", None)  # an EncodedChat of one model: the other encodes it anew
    if isinstance(known, Chat):
        return known
    if isinstance(item, Sequence) and item and all(isinstance(m, Mapping) for m in item):
        require_messages(item)
        messages = tuple((str(m["role"]), str(m["content"])) for m in item)
        return Chat(messages, messages[-1][0] != "assistant")
    raise InputError(
        f"{argument}: needs a list of texts",
        got=f"{type(item).__name__} at place {number}: {item!r:.80}",
        valid='strings, or chats like [{"role": "user", "content": "..."}]',
        hint="one message alone needs brackets too: it is a chat of one message",
    )


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank, as texts.

    Raises:
        InputError: no such file, or not UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"texts: cannot read {path}",
            got=str(error),
            valid="a text file in UTF-8, one text a line",
            hint="check the path and the encoding",
        ) from error
    return [line for line in lines if line.strip()]


def text_hash(text: Text) -> str:
    """SHA-256 of a text, as kept by maps and vectors to find leaks between splits."""
    if isinstance(text, Chat):
        text = json.dumps([text.messages, text.add_generation_prompt])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def n_bytes(text: Text) -> int:
    """Bytes of what is said, whatever a template adds."""
    contents = [text] if isinstance(text, str) else [content for _, content in text.messages]
    return sum(len(content.encode("utf-8", "surrogatepass")) for content in contents)


def documents_of(
    hashes: Sequence[str], documents: Sequence[str] | None, argument: str = "texts"
) -> list[str]:
    """Document of every text; copies of a text share one, so that no split tears them apart.

    Args:
        hashes: Hash of every text.
        documents: Document of each; default, each text is its own.
        argument: Name of the texts in errors.

    Returns:
        Documents; for copies in several documents, the first of these in the alphabet.
    """
    if documents is None:
        return list(hashes)
    if len(documents) != len(hashes):
        raise InputError(
            "documents: one id for each text",
            got=f"{len(documents)} ids, {len(hashes)} {argument}",
            valid=f"{len(hashes)} ids",
            hint="leave it out if each text is its own document",
        )
    first: dict[str, str] = {}
    for name, document in zip(hashes, documents, strict=True):
        first[name] = min(str(document), first.get(name, str(document)))
    return [first[name] for name in hashes]
