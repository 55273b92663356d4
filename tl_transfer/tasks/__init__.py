"""Behaviours to transfer: one file a task, with data, prompts and scorers."""

from collections.abc import Callable

from tl_transfer.errors import InputError
from tl_transfer.tasks.base import Task
from tl_transfer.tasks.french import french
from tl_transfer.tasks.sentiment import sentiment

#: Task name -> builder, for the command line and recipes.
TASKS: dict[str, Callable[..., Task]] = {"sentiment": sentiment, "french": french}


def require(name: str) -> None:
    """Refuse an unknown task with the known ones."""
    if name not in TASKS:
        raise InputError(
            "task: unknown task", got=repr(name), valid=", ".join(TASKS), hint="tl-transfer tasks"
        )


def build(name: str, **settings: object) -> Task:
    """Build a task by name."""
    require(name)
    return TASKS[name](**settings)


__all__ = ["TASKS", "Task", "build", "french", "sentiment"]
