"""What `attach` continues: prompts as tokens, and the ids at which a row ends."""

from collections.abc import Sequence
from typing import Any

from tl_transfer.data.chat import EncodedChat
from tl_transfer.data.encode import EncodedText, encode_many
from tl_transfer.errors import InputError
from tl_transfer.models.stops import stop_tokens
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.layout import Encoded

#: What can be continued: text, or tokens that know their text.
Prompt = str | Encoded


def stop_ids(model: HookedModel, stops: Sequence[int] | None) -> tuple[int, ...]:
    """Ids that end a row; those of the model where none are given.

    Raises:
        InputError: not ids of its vocabulary.
    """
    if stops is None:
        return stop_tokens(model)
    vocabulary = len(model.tokenizer)
    bad = [i for i in stops if not 0 <= i < vocabulary]
    if bad:
        raise InputError(
            "stops: not token ids",
            got=repr(bad[0]),
            valid=f"ids from 0 to {vocabulary - 1}",
            hint="model.tokenizer.convert_tokens_to_ids(token) gives the id of a token",
        )
    return tuple(stops)


def encoded(model: HookedModel, prompts: Sequence[Any], max_new_tokens: int) -> list[Encoded]:
    """Tokens of each prompt; too long ones are refused rather than cut.

    Raises:
        InputError: something that cannot be continued, or longer than the context.
        ModelError: the model is in training mode.
    """
    model.require_eval()
    bad = [p for p in prompts if not isinstance(p, str | EncodedText | EncodedChat)]
    if bad:
        raise InputError(
            "prompts: not something that can be continued",
            got=type(bad[0]).__name__,
            valid="text, or what encode and encode_chat return",
            hint="decode token ids to text first",
        )
    plain = iter(encode_many([p for p in prompts if isinstance(p, str)], model.tokenizer))
    rows = [next(plain) if isinstance(p, str) else p for p in prompts]
    longest = max((len(row.ids) for row in rows), default=0)
    model.require_fits(longest + max_new_tokens, "prompts (with max_new_tokens)")
    return rows
