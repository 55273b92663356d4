"""Rules on the text of the prompt: spans, patterns and messages, by the bytes a token read.

They are resolved once on the prompt and never look at what is generated. A token is chosen when
it reads at least one byte of the span; a token that reads none (BOS, template markup) never is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from tl_transfer.data.chat import EncodedChat
from tl_transfer.errors import HookError, InputError
from tl_transfer.positions.by_row import by_position, look_up
from tl_transfer.positions.layout import Encoded, Layout
from tl_transfer.positions.where import Need, Where

#: Bytes of the prompt, from the first up to but not including the second.
Span = tuple[int, int]


@dataclass(frozen=True)
class _ByText(Where):
    @property
    def needs(self) -> frozenset[Need]:
        """The text of the prompt."""
        return frozenset({"text"})

    def spans(self, prompt: Encoded) -> Iterator[Span]:
        """The parts of the prompt that are meant."""
        raise NotImplementedError

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """The prompt tokens that read a byte of a span."""
        prompts = layout.prompts
        if prompts is None:
            raise HookError(
                "where: this rule reads the text of the prompt, and it is unknown here",
                got=str(self),
                valid="attach(...).generate with texts, or fwd_hooks(..., prompts=...)",
                hint="token_mask takes a mask that you made yourself",
            )

        def table() -> Tensor:
            chosen = [tokens_in(prompt, list(self.spans(prompt))) for prompt in prompts]
            return by_position(chosen, layout.positions.device)

        return look_up(layout.remember(self, table), layout)


@dataclass(frozen=True)
class Pattern(_ByText):
    """Matches of a regular expression.

    Attributes:
        pattern: The expression.
        flags: Of the `re` module.
        group: Group whose span counts.
        template: Whether to look in the markup of a chat template too.
        name: How the rule was written.
    """

    pattern: str
    flags: int
    group: int | str
    template: bool
    name: str

    def spans(self, prompt: Encoded) -> Iterator[Span]:
        """Every match, in the text or in each message of a chat."""
        compiled = re.compile(self.pattern, self.flags)
        raw = prompt.text.encode()
        parts = [(0, len(raw))]
        if isinstance(prompt, EncodedChat) and not self.template:
            parts = [(content.start, content.end) for content in prompt.contents]
        for start, end in parts:
            text = raw[start:end].decode()
            for match in compiled.finditer(text):
                first, last = match.span(self.group)
                before = start + len(text[:first].encode())
                yield before, before + len(text[first:last].encode())

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Message(_ByText):
    """The contents of the messages of a chat."""

    role: str | None
    index: int | None

    def spans(self, prompt: Encoded) -> Iterator[Span]:
        """Contents with the role, or the one with the index."""
        if not isinstance(prompt, EncodedChat):
            raise InputError(
                "where: message() is for chats",
                got=f"text {prompt.text[:60]!r}",
                valid="prompts made by encode_chat",
                hint="use span or regex on plain text",
            )
        contents = [c for c in prompt.contents if self.role in (None, c.role)]
        if self.index is not None:
            contents = contents[self.index :][:1]
        yield from ((content.start, content.end) for content in contents)

    def __str__(self) -> str:
        given = [repr(v) if k == "role" else f"index={v}" for k, v in
                 (("role", self.role), ("index", self.index)) if v is not None]  # fmt: skip
        return f"message({', '.join(given)})"


def tokens_in(prompt: Encoded, spans: list[Span]) -> list[bool]:
    """For each token whether it reads a byte of one of the spans."""
    encoded = prompt.encoded if isinstance(prompt, EncodedChat) else prompt
    begins = (0, *encoded.ends)
    return [
        any(begin < last and end > first for first, last in spans) and end > begin
        for begin, end in zip(begins, encoded.ends, strict=False)
    ]


def span(literal: str, *, template: bool = False, sinks: bool = False) -> Where:
    """The prompt tokens that spell a piece of text, wherever it occurs.

    A token that holds part of it counts: in ``" film"`` the space and the word are one token.

    Args:
        literal: The text, as written.
        template: Also look in the markup of a chat; by default only in the messages.
        sinks: See `everywhere`.

    Raises:
        InputError: an empty text.
    """
    if not literal:
        raise InputError(
            "span: empty",
            got=repr(literal),
            valid="a piece of the prompt",
            hint="prompt() chooses all of it",
        )
    return Pattern(re.escape(literal), 0, 0, template, f"span({literal!r})", sinks=sinks)


def regex(
    pattern: str,
    *,
    flags: int = 0,
    group: int | str = 0,
    template: bool = False,
    sinks: bool = False,
) -> Where:
    """The prompt tokens in the matches of a regular expression.

    Args:
        pattern: Searched with `re.finditer` in the text, or in each message of a chat.
        flags: ``re.IGNORECASE`` and friends.
        group: Only the span of this group.
        template: Also look in the markup of a chat; by default only in the messages.
        sinks: See `everywhere`.

    Raises:
        InputError: not a regular expression, or a group it does not have.
    """
    try:
        groups = re.compile(pattern, flags)
    except re.error as error:
        raise InputError(
            "pattern: not a regular expression",
            got=repr(pattern),
            valid="the syntax of the re module",
            hint=str(error),
        ) from error
    if group not in groups.groupindex and group not in range(groups.groups + 1):
        raise InputError(
            "group: the pattern has no such group",
            got=repr(group),
            valid=f"0 to {groups.groups}, {', '.join(groups.groupindex) or 'no names'}",
            hint="0 is the whole match",
        )
    return Pattern(pattern, int(flags), group, template, f"regex({pattern!r})", sinks=sinks)


def message(role: str | None = None, *, index: int | None = None, sinks: bool = False) -> Where:
    """What the messages of a chat say, without the template around them.

    Args:
        role: Only messages of this role, e.g. ``"user"``.
        index: Only this one of them; -1 is the last.
        sinks: See `everywhere`.
    """
    return Message(role, index, sinks=sinks)
