"""Reader: hooks that read several hook points during one forward pass, each exactly once."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tl_transfer.errors import HookError
from tl_transfer.models.bare import HookFunction


class Reader:
    """Activations of one pass.

    Args:
        names: Canonical names of the hook points.

    Attributes:
        fired: Hook point -> how often it fired.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.fired = dict.fromkeys(names, 0)
        self._seen: dict[str, Tensor] = {}

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """(hook point, function) of each; the functions change nothing."""
        return [(name, self._read(name)) for name in self.fired]

    def _read(self, name: str) -> HookFunction:
        def read(activation: Tensor, hook: Any) -> None:
            self._seen[name] = activation.detach()
            self.fired[name] += 1

        return read

    def once(self) -> dict[str, Tensor]:
        """What was read, by hook point.

        Raises:
            HookError: a hook did not fire exactly once.
        """
        wrong = {name: count for name, count in self.fired.items() if count != 1}
        if wrong:
            raise HookError(
                "hook points: each must fire exactly once a forward pass",
                got=str(wrong),
                valid="1 each",
                hint="list model.host.hook_dict, or report this architecture",
            )
        return self._seen
