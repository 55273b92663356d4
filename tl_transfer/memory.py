"""What the machine has left, so that too much is refused before it starts and not killed later."""

from pathlib import Path

from tl_transfer.errors import InputError

_MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say (Linux does)."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def require_memory(needed: int, what: str, hint: str) -> None:
    """Refuse what does not fit.

    Args:
        needed: Bytes.
        what: What they are for.
        hint: What would need less.

    Raises:
        InputError: the machine has less.
    """
    free = available_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{what}: too little memory",
            got=f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            valid="less than what is free",
            hint=hint,
        )
