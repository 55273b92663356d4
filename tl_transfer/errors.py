"""Every error a user can meet: what was wrong, what came, what is valid, and what to do next."""


class TransferError(Exception):
    """Base of all errors raised on purpose by tl_transfer.

    Args:
        what: One sentence naming the argument or file and the problem.
        got: What came.
        valid: What would have been accepted.
        hint: The next step for the user.
    """

    def __init__(
        self, what: str, *, got: object = None, valid: object = None, hint: str | None = None
    ) -> None:
        lines = [what]
        if got is not None:
            lines.append(f"  got:   {got}")
        if valid is not None:
            lines.append(f"  valid: {valid}")
        if hint is not None:
            lines.append(f"  next:  {hint}")
        super().__init__("\n".join(lines))


class InputError(TransferError, ValueError):
    """An argument is outside what the function accepts."""


class SpaceError(TransferError, ValueError):
    """Two things from different activation spaces met; both are printed."""


class ModelError(TransferError, RuntimeError):
    """A model cannot be used as it is (unsupported, in training mode, failing its self-check)."""


class FetchError(TransferError, OSError):
    """A model or data set could not be obtained."""


class ArtefactError(TransferError, ValueError):
    """A file is corrupt, truncated, of another format version, or not ours."""


class HookError(TransferError, RuntimeError):
    """A hook did not act as asked (did not fire, fired too often, cannot place positions)."""
