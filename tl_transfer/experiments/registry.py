"""Which task has an experiment of its own, by the ``task`` line of its recipe file."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tl_transfer.recipe import read_toml

#: Task -> (module, recipe class).
EXPERIMENTS = {
    "backdoor": ("backdoor", "BackdoorRecipe"),
    "capabilities": ("capabilities", "CapabilitiesRecipe"),
    "matrix": ("matrix", "MatrixRecipe"),
    "refusal": ("refusal", "RefusalRecipe"),
    "replacement": ("replacement", "ReplacementRecipe"),
    "switch": ("switch", "SwitchRecipe"),
    "vulnerability": ("vulnerability", "VulnerabilityRecipe"),
}


def read(path: str | Path) -> tuple[Any, Callable[..., dict[str, Any]]] | None:
    """The recipe of an experiment and the function that runs it; None for other tasks.

    Raises:
        InputError: not a readable TOML file, or keys that the experiment does not know.
    """
    values = read_toml(path)
    task = str(values.get("task"))
    if task not in EXPERIMENTS:
        return None
    module, name = EXPERIMENTS[task]
    found = import_module(f"tl_transfer.experiments.{module}")
    return getattr(found, name).from_dict(values), found.run
