"""What a training cost: seconds by part, added up over its interruptions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_transfer.sealed import read_json, write_json


class Clock:
    """Seconds on the wall and of the processors, kept in a file between calls.

    A training that was paused or ran beside others has a wall time that says little; the seconds of
    the processors (all threads of this process) do not count what others did.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        hint = "remove the file: the seconds are counted anew"
        found = read_json(path, written_by="train_sae", hint=hint) if path.is_file() else {}
        self.wall: dict[str, float] = dict(found.get("wall", {}))
        self.processor: dict[str, float] = dict(found.get("processor", {}))
        self._part: tuple[str, float, float] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside, also where it ends by an exception."""
        self._part = (name, time.perf_counter(), time.process_time())
        try:
            yield
        finally:
            self.write()
            self._part = None

    def write(self) -> None:
        """Write what was spent so far; a kill loses what came after."""
        if self._part is not None:
            name, wall, processor = self._part
            now = (name, time.perf_counter(), time.process_time())
            self.wall[name] = self.wall.get(name, 0.0) + now[1] - wall
            self.processor[name] = self.processor.get(name, 0.0) + now[2] - processor
            self._part = now
        write_json(self.path, {"wall": self.wall, "processor": self.processor})
