"""Reading chosen positions of prompts, texts and chats alike."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.data.chat import EncodedChat, encode_chat
from tl_transfer.data.encode import EncodedText, encode
from tl_transfer.data.texts import as_texts
from tl_transfer.models.batches import by_length, pad
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel


def user_messages(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    """Each text as a chat of one message of the user, to be answered."""
    return [[{"role": "user", "content": text}] for text in texts]


def encode_prompts(
    model: HookedModel, texts: Sequence[Any], argument: str = "prompts"
) -> list[EncodedText | EncodedChat]:
    """Texts and chats as this model reads them, chats in its own template.

    Raises:
        InputError: no texts, no chat template, a message that the template drops, or a prompt
            longer than the context.
    """
    encoded: list[EncodedText | EncodedChat] = [
        encode(text, model.tokenizer)
        if isinstance(text, str)
        else encode_chat(
            text.to_messages(),
            model.tokenizer,
            add_generation_prompt=text.add_generation_prompt,
        )
        for text in as_texts(texts, argument)
    ]
    model.require_fits(max(len(prompt.ids) for prompt in encoded), argument)
    return encoded


def read_columns(
    model: HookedModel,
    points: Sequence[HookPoint],
    ids: Sequence[Sequence[int]],
    columns: Sequence[Sequence[int]],
    *,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, list[Float[Tensor, "column d_model"]]]:
    """Activations at chosen positions of every token row.

    Args:
        model: Who reads.
        points: Hook points.
        ids: Tokens of every text.
        columns: For each text, the positions to read.
        max_tokens: Most cells of a batch.

    Returns:
        Hook point -> for each text, rows in float32 on the CPU, in the order of its columns.
    """
    found: dict[str, list[Tensor]] = {point.name: [torch.empty(0)] * len(ids) for point in points}
    for index in by_length([len(row) for row in ids], max_tokens=max_tokens):
        batch = pad([ids[i] for i in index], side="right", pad_id=model.tokenizer.pad_token_id or 0)
        tokens, mask = batch.tokens.to(model.device), batch.mask.to(model.device)
        for name, read in model.residuals(tokens, mask, points).items():
            for row, i in enumerate(index):
                chosen = torch.tensor(list(columns[i]), device=read.device)
                found[name][i] = read[row, chosen].float().cpu()
    return found
