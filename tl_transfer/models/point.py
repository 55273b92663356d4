"""Names of places in the residual stream: one point, whichever way it is spelled."""

import difflib
import re
from dataclasses import dataclass

from tl_transfer.errors import InputError

_SHORT = re.compile(r"^(?:hook_)?(resid_pre|resid_mid|resid_post|attn_out|mlp_out)@(\d+)$")
_LONG = re.compile(
    r"^blocks\.(\d+)\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out|in|out)$"
)
# The bridge's own names for the two ends of a block.
_BRIDGE_NAMES = {"in": "resid_pre", "out": "resid_post"}


@dataclass(frozen=True)
class HookPoint:
    """One place in the residual stream: `kind` at `layer`, spelled the classic way."""

    kind: str
    layer: int

    @property
    def name(self) -> str:
        """Canonical spelling, e.g. ``blocks.9.hook_resid_post``."""
        return f"blocks.{self.layer}.hook_{self.kind}"

    @property
    def n_blocks(self) -> int:
        """Blocks that must run for this point to have fired."""
        return self.layer + 1


def parse(name: str) -> HookPoint | None:
    """The point of any spelling, whatever the model; None if it is none.

    What enters a block is what left the one before it.
    """
    if match := _LONG.match(name):
        layer, kind = int(match[1]), _BRIDGE_NAMES.get(match[2], match[2])
    elif match := _SHORT.match(name):
        kind, layer = match[1], int(match[2])
    else:
        return None
    if kind == "resid_pre" and layer > 0:
        kind, layer = "resid_post", layer - 1
    return HookPoint(kind, layer)


def unknown(name: str, model: str, n_layers: int) -> InputError:
    """The error for a name that a model does not have, with the nearest that it has."""
    valid = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.4) or valid[:1] + valid[-1:]
    return InputError(
        f"hook_point: {model} has no residual hook point of this name",
        got=repr(name),
        valid=f"blocks.L.hook_resid_post (or resid_post@L), L from 0 to {n_layers - 1};"
        " also resid_pre, attn_out, mlp_out",
        hint="nearest: " + ", ".join(near),
    )
