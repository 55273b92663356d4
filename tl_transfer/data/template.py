"""Rendering a chat template, and finding the messages again in what it wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl_transfer.data.encode import utf8
from tl_transfer.errors import InputError


@dataclass(frozen=True)
class Content:
    """Where a message's content lies in the rendered text.

    Attributes:
        role: Role of the message.
        text: Content as given.
        start: First byte in the rendered text.
        end: Byte after the last one.
        lead: Bytes at the content's front that the template stripped.
    """

    role: str
    text: str
    start: int
    end: int
    lead: int


def require_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that has no chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            "tokenizer: this model has no chat template (it is probably a base model)",
            got=str(tokenizer.name_or_path or type(tokenizer).__name__),
            valid="a tokenizer with chat_template set",
            hint="use plain texts (encode, align) with this model, take its instruction-tuned "
            "version, or set tokenizer.chat_template to the template it was tuned with",
        )


def require_messages(messages: Sequence[Any]) -> None:
    """Refuse anything but roles with texts."""
    for i, message in enumerate(messages):
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(key), str) for key in ("role", "content")):
            raise InputError(
                f"messages: message {i} is not a role with a text",
                got=repr(message)[:120],
                valid='{"role": "user", "content": "..."}',
                hint="images, tool calls and lists of parts are not supported",
            )
        utf8(message["content"], i)
    if not messages:
        raise InputError(
            "messages: empty",
            got="0 messages",
            valid='[{"role": "user", "content": "..."}, ...]',
            hint="pass at least one message",
        )


def render(messages: Sequence[Mapping[str, str]], tokenizer: Any, prompt: bool) -> str:
    """The chat as the model's own template writes it."""
    from jinja2.exceptions import TemplateError

    plain = [dict(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateError as error:
        raise InputError(
            "messages: the model's chat template refuses them",
            got=f"roles {[message['role'] for message in messages]}: {error}",
            valid="roles and an order that this template knows",
            hint="many templates know no system role, or want user and assistant in turn",
        ) from error


def locate(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, rendered: str, prompt: bool
) -> tuple[Content, ...]:
    """Find the contents by rendering once more with marks in their place.

    Searching the rendered text for the contents alone would find a message "user" in the header.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    marked = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
    skeleton = render(marked, tokenizer, prompt)
    contents: list[Content] = []
    cursor = 0
    for i, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        before, found, skeleton = skeleton.partition(mark)
        after = skeleton.partition(marks[i + 1])[0] if i + 1 < len(marks) else skeleton
        start, kept = (
            _place(rendered, cursor, before, message["content"], after) if found else (-1, "")
        )
        if start < 0:
            raise InputError(
                f"messages: the chat template leaves out or rewrites message {i}",
                got=f"{message['role']}: {message['content'][:80]!r}",
                valid="messages that the template shows as they are, in order",
                hint="look at tokenizer.apply_chat_template(messages, tokenize=False)",
            )
        cursor = start + len(kept)
        lead = 0 if not kept else message["content"].index(kept)
        contents.append(
            Content(
                message["role"],
                message["content"],
                len(rendered[:start].encode()),
                len(rendered[:cursor].encode()),
                len(message["content"][:lead].encode()),
            )
        )
    return tuple(contents)


def _place(text: str, cursor: int, before: str, content: str, after: str) -> tuple[int, str]:
    """Where the content, or what the template left of it, lies; (-1, "") if it is not there."""
    forms = (content, content.strip(), content.lstrip(), content.rstrip())
    for form in forms:
        if text.startswith(before + form + after, cursor):
            return cursor + len(before), form
    # A template that looks at the contents: hold on to the header's last line only.
    header = before.splitlines(keepends=True)[-1] if before else ""
    for form in forms:
        found = text.find(header + form, cursor)
        if found >= 0:
            return found + len(header), form
    return -1, ""
