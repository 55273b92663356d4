"""A forked process that works until it is killed at a moment that a seed has chosen.

Three ways to choose: before the k-th thing that Python does to the file system (exact, and the same
every time), after a share of the usual time, or when a file has grown to n bytes (the kernel kills
the process in the middle of the write, also inside libraries that Python does not see).
"""

import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

#: Seconds after which a job at toy size hangs; it is ended, and so it fails.
_HANGS = 600
#: Audit events that come before the file system is touched.
_TOUCHES = frozenset(
    {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate",
     "shutil.rmtree", "fcntl.flock"}
)  # fmt: skip
_WATCH: dict[str, Any] = {"on": False, "kill_at": None, "seen": 0, "signal": signal.SIGKILL}


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH["on"] or event not in _TOUCHES:
        return
    if event == "open" and str(arguments[1] or "r").startswith("r") and not _writes(arguments[2]):
        return
    _WATCH["seen"] += 1  # first: Ctrl-C raises out of this function, and comes once
    if _WATCH["seen"] - 1 == _WATCH["kill_at"]:
        os.kill(os.getpid(), _WATCH["signal"])


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@dataclass(frozen=True)
class Usual:
    """What a job does when nobody disturbs it.

    Attributes:
        events: Times that it touches the file system.
        seconds: How long it takes.
        longest: Bytes of the largest file it writes.
    """

    events: int
    seconds: float
    longest: int


@dataclass(frozen=True)
class Moment:
    """When a process is killed.

    Attributes:
        kind: ``"event"``, ``"time"`` or ``"byte"``.
        value: Number of the event, seconds, or bytes.
    """

    kind: str
    value: float

    @classmethod
    def draw(cls, chance: random.Random, usual: Usual) -> "Moment":
        """Any moment of a job; one in five in the middle of a write."""
        kind = chance.choice(("event", "event", "time", "time", "byte"))
        if kind == "event":
            return cls(kind, chance.randrange(usual.events))
        if kind == "time":
            return cls(kind, chance.uniform(0, usual.seconds))
        return cls(kind, int(usual.longest ** chance.uniform(0.3, 1)))


def measure(work: Callable[[], object], folder: Path) -> Usual:
    """Run a job to its end in a process of its own and see what it does."""
    read, write = os.pipe()

    def counted() -> None:
        _WATCH.update(on=True, kill_at=None, seen=0)
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        _WATCH["on"] = False
        os.write(write, f"{_WATCH['seen']} {seconds}".encode())

    require_done(fork(counted))
    os.close(write)
    with os.fdopen(read) as pipe:
        events, seconds = pipe.read().split()
    longest = max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=1)
    return Usual(int(events), float(seconds), longest)


def kill(work: Callable[[], object], moment: Moment) -> bool:
    """Run a job in a process of its own and kill it; False if it had ended before."""

    def doomed() -> None:
        if moment.kind == "event":
            _WATCH.update(on=True, kill_at=int(moment.value), seen=0)
        if moment.kind == "byte":
            # Python ignores the signal and gets an error instead; here it must be deadly.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment.value), -1))
        work()

    child = start(doomed)
    if moment.kind == "time":
        time.sleep(moment.value)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXFSZ), status
        return True
    require_done(os.waitstatus_to_exitcode(status))
    return False


def interrupt(work: Callable[[], object], event: int) -> bool:
    """Run a job in a process of its own and press Ctrl-C; False if it ended all the same."""

    def disturbed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _WATCH.update(on=True, kill_at=event, seen=0, signal=signal.SIGINT)
        try:
            work()
        except KeyboardInterrupt:
            os._exit(130)

    code = fork(disturbed)
    assert code in (0, 130), f"Ctrl-C ended in {code}, not in KeyboardInterrupt"
    return code == 130


def fork(work: Callable[[], object]) -> int:
    """Run a job in a process of its own: its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


def require_done(code: int) -> None:
    """A job that failed has printed why."""
    assert code == 0, f"a job that nobody disturbed ended with {code}: see its traceback above"


def start(work: Callable[[], object]) -> int:
    """Fork and run; the child never returns into pytest. Its exit code is 0 or 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    signal.alarm(_HANGS)
    _give_own_lock(tqdm)
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _give_own_lock(bars: type[tqdm]) -> None:
    """Forks share the lock of progress bars: one that died with it would stop all later ones."""
    bars.set_lock(threading.RLock())
    for kind in bars.__subclasses__():
        _give_own_lock(kind)


sys.addaudithook(_count)  # cannot be taken off again; it does nothing until a victim turns it on
