"""Rules on token ids, in the prompt and in what is generated."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_transfer.errors import HookError, InputError
from tl_transfer.positions.layout import Layout
from tl_transfer.positions.where import Need, Where


@dataclass(frozen=True)
class TokenIds(Where):
    """Positions that hold one of some tokens."""

    ids: tuple[int, ...]

    @property
    def needs(self) -> frozenset[Need]:
        """The tokens."""
        return frozenset({"tokens"})

    def matches(self, layout: Layout) -> Bool[Tensor, "batch pos"]:
        """Where the token is one of them; columns that hold no token yet do not match."""
        tokens = layout.tokens
        if tokens is None:
            raise HookError(
                "where: token_ids needs the tokens, and they are unknown here",
                got=str(self),
                valid="attach(...).generate or .logits, or fwd_hooks(..., prompts=...)",
                hint="generated tokens are known to attach only",
            )
        positions = layout.positions
        # Once a batch: this is asked at every step.
        wanted = layout.remember(self, lambda: torch.tensor(self.ids, device=positions.device))
        found = torch.isin(tokens.to(positions.device), wanted)
        missing = positions.shape[1] - found.shape[1]
        return torch.nn.functional.pad(found, (0, missing)) if missing else found

    def __str__(self) -> str:
        return f"token_ids({list(self.ids)})"


def token_ids(ids: int | Iterable[int], *, sinks: bool = False) -> Where:
    """Positions that hold one of these tokens, in the prompt and generated.

    Args:
        ids: One token id or several.
        sinks: See `everywhere`.

    Raises:
        InputError: none, or something else than token ids.
    """
    numbers = (ids,) if isinstance(ids, int) else tuple(ids)
    if not numbers or any(type(i) is not int or i < 0 for i in numbers):
        raise InputError(
            "ids: not token ids",
            got=repr(ids)[:80],
            valid="one token id, or several",
            hint='tokenizer(" film", add_special_tokens=False)["input_ids"] gives them',
        )
    return TokenIds(numbers, sinks=sinks)
