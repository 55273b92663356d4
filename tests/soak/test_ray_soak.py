"""Long campaigns on a local Ray cluster: random kills, lost nodes, Ctrl-C, large sums, captures.

Not part of `make test`: run ``pytest tests/soak/test_ray_soak.py -m soak``. ``RAY_SOAK_ROUNDS``
(default 3) says how many random campaigns are run.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tl_transfer as tt
from tests import cluster_models as cm
from tests import tiny
from tests.unit.test_corpus_fit import difference
from tl_transfer.data.texts import text_hash
from tl_transfer.persistence import read_artefact

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("RAY_SOAK_ROUNDS", "3"))
OPTIONS: dict[str, Any] = {"document": "doc", "unit_bytes": 1500, "progress": False}
POISON = [b"{", b'{"text": "waves ~ and ~ foam", "doc": "poison"}', b'{"text": "\xff"}']


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": cpus, "object_store_memory": 200_000_000}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        made.add_node(**node)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def raylets(made: Any) -> set[int]:
    nodes = [made.head_node, *made.worker_nodes]
    return {n.all_processes["raylet"][0].process.pid for n in nodes if n.all_processes["raylet"]}


def workers_of(made: Any) -> list[int]:
    """Processes of our actors on the nodes of this cluster, and of no other."""
    found, parents = [], raylets(made)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            title = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent in parents and title.startswith(b"ray::Worker"):
            found.append(int(entry.name))
    return found


class Chaos(threading.Thread):
    """Kills workers at random moments, and one node."""

    def __init__(self, made: Any, seed: int, *, kills: int, node: bool) -> None:
        super().__init__(daemon=True)
        self._cluster, self._random = made, random.Random(seed)
        self._left, self._node = kills, node
        self.log: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(self._random.uniform(1.0, 6.0)):
            found = workers_of(self._cluster)
            if self._node and len(self.log) == 1:
                node = self._random.choice(sorted(self._cluster.worker_nodes, key=id))
                self._cluster.remove_node(node)
                self.log.append("node removed")
                self._node = False
            elif self._left and found:
                victim = self._random.choice(found)
                os.kill(victim, signal.SIGKILL)
                self.log.append(f"killed {victim}")
                self._left -= 1


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_kills_and_a_lost_node_change_nothing(seed: int, tmp_path: Path) -> None:
    cm.write_corpus(tmp_path, n=240, extra=POISON)
    sites = ((cm.poisoned, "resid_post@1"), cm.SITES[1])
    expected = tt.fit_corpus(*sites, tmp_path, **OPTIONS)
    with cluster(3) as made:
        chaos = Chaos(made, seed, kills=2 + seed % 3, node=True)
        chaos.start()
        try:
            found = tt.fit_corpus(*sites, tmp_path, engine="ray", actors=3, num_gpus=0, **OPTIONS)
        finally:
            chaos.done.set()
            chaos.join()
        print(chaos.log, found.report)
        assert difference(found.sums, expected.sums) < 1e-9
        assert found.report == expected.report
        assert found.report.skipped.counts == {"not_utf8": 1, "not_json": 1, "not_finite": 1}


def test_sums_that_travel_through_shared_memory_survive_the_loss_of_their_node(
    tmp_path: Path,
) -> None:
    """Over 100 kB Ray leaves a result on the node that made it, so it can be lost there."""
    cm.write_corpus(tmp_path, n=240)
    sites = ((cm.wide, "resid_post@1"), (cm.wide, "resid_post@2"))
    expected = tt.fit_corpus(*sites, tmp_path, **OPTIONS)
    with cluster(3) as made:
        chaos = Chaos(made, 5, kills=1, node=True)
        chaos.start()
        try:
            found = tt.fit_corpus(*sites, tmp_path, engine="ray", actors=3, num_gpus=0, **OPTIONS)
        finally:
            chaos.done.set()
            chaos.join()
        print(chaos.log)
    assert difference(found.sums, expected.sums) < 1e-9


class Sleeper:
    """Says where it is."""

    def where(self, item: tuple[int, float]) -> tuple[int, str, int]:
        number, seconds = item
        time.sleep(seconds)
        return number, ray.get_runtime_context().get_node_id(), os.getpid()


def test_units_do_not_wait_for_an_actor_that_has_no_place() -> None:
    from tl_transfer.cluster.ray_engine import RayPool

    with cluster(2) as made:
        actor = ray.remote(Sleeper).options(num_cpus=1, max_restarts=-1, max_task_retries=4)
        pool = RayPool(actor.remote, 2)
        seen: list[int] = []
        nodes: set[str] = set()
        for number, (same, node, pid) in pool.map("where", [(i, 0.15) for i in range(24)]):
            assert number == same
            seen.append(number)
            nodes.add(node)
            if len(seen) == 4:
                os.kill(pid, signal.SIGKILL)
            if len(seen) == 10:
                made.remove_node(next(iter(made.worker_nodes)))
        assert sorted(seen) == list(range(24)) and len(nodes) == 2
        # The next call goes on with what is left.
        assert {n for n, _ in pool.map("where", [(i, 0.0) for i in range(5)])} == set(range(5))


def test_a_capture_under_kills_is_the_capture_without(tmp_path: Path) -> None:
    cm.write_corpus(tmp_path / "corpus", n=240, extra=POISON)
    site = (cm.poisoned, "resid_post@1")
    options = {**OPTIONS, "shard_rows": 100}
    expected = tt.capture_corpus(site, tmp_path / "corpus", store=tmp_path / "one", **options)
    with cluster(2) as made:
        chaos = Chaos(made, 7, kills=3, node=False)
        chaos.start()
        try:
            found = tt.capture_corpus(
                site, tmp_path / "corpus", store=tmp_path / "two",
                engine="ray", actors=2, num_gpus=0, **options,
            )  # fmt: skip
        finally:
            chaos.done.set()
            chaos.join()
    assert found.report == expected.report
    for one, two in zip(expected.stores, found.stores, strict=True):
        two.verify()
        mine, theirs = next(one.batches(10**6)), next(two.batches(10**6))
        for name, values in mine.values.items():
            assert torch.allclose(values, theirs.values[name], rtol=1e-9)


class Reversed:
    """Ray, with the last unit first."""

    def __init__(self, actors: int) -> None:
        from tl_transfer.cluster.ray_engine import RayEngine

        self._engine = RayEngine(actors, num_gpus=0)

    @contextmanager
    def pool(self, job: Any) -> Iterator[Any]:
        with self._engine.pool(job) as self._pool:
            yield self

    def map(self, method: str, items: Any) -> Iterator[tuple[int, Any]]:
        for number, found in self._pool.map(method, items[::-1]):
            yield len(items) - 1 - number, found


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_any_number_of_actors_in_any_order_gives_the_same(actors: int, tmp_path: Path) -> None:
    cm.write_corpus(tmp_path)
    expected = tt.fit_corpus(*cm.SITES, tmp_path, **OPTIONS)
    with cluster(1, cpus=2):
        forwards = tt.fit_corpus(
            *cm.SITES, tmp_path, engine="ray", actors=actors, num_gpus=0, **OPTIONS
        )
        backwards = tt.fit_corpus(*cm.SITES, tmp_path, engine=Reversed(actors), **OPTIONS)
    for found in (forwards, backwards):
        assert found.report == expected.report and found.report.n_units > 4
        assert difference(found.sums, expected.sums) < 1e-9
        assert torch.allclose(found.mapper.weight, expected.mapper.weight, rtol=1e-6)


def test_a_unit_that_kills_every_worker_is_counted_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every death costs a start of Python and two models.
    monkeypatch.setattr("tl_transfer.cluster.ray_engine.RETRIES", 0)
    monkeypatch.setattr("tl_transfer.cluster.ray_engine._ROUNDS", 1)
    # Not among the texts with the smallest hashes, by which norms are learned.
    fatal = next(t for i in range(99) if text_hash(t := f"waves ~ and foam {i}") > "f")
    line = json.dumps({"text": fatal, "doc": "fatal"}).encode()
    rows = cm.write_corpus(tmp_path, n=240, extra=[line])
    site = (cm.Mortal("", "~"), "resid_post@1")
    with cluster(2):
        found = tt.fit_corpus(
            site, cm.SITES[1], tmp_path, engine="ray", actors=2, num_gpus=0, **OPTIONS
        )
    n_lost = found.report.skipped.counts["worker_died"]
    assert 1 < n_lost < 40 and found.report.n_texts == len(rows) + 1 - n_lost
    assert "part-1.jsonl" in found.report.skipped.names["worker_died"][0]


def started(command: list[str]) -> subprocess.Popen[str]:
    """A job in a process of its own, on a cluster of its own unless it names another."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=ROOT, env=environment,
    )  # fmt: skip


def wait_for_sums(job: subprocess.Popen[str]) -> None:
    """Until its progress bar says that the sums of a unit have come."""
    seen = ""
    assert job.stderr
    while not re.search(r"sums: +[1-9]", seen):
        part = job.stderr.read(80)
        assert part, seen
        seen += part


def test_ctrl_c_in_the_command_loses_nothing(tmp_path: Path) -> None:
    """What was added up lies in the checkpoint; called again, it reads the rest."""
    cm.write_corpus(tmp_path / "corpus", n=1500)
    command = [sys.executable, "-m", "tl_transfer.cli", "fit", str(tmp_path / "corpus")]
    for seed, (side, family, kind) in enumerate(
        (("source", "llama", "bos"), ("target", "qwen2", "nobos"))
    ):
        folder, tokenizer = tmp_path / side, tiny.tiny_tokenizer(kind)
        tiny.tiny_hf(family, seed, vocab_size=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        command += [f"--{side}", f"{folder}@resid_post@1"]
    command += ["--document", "doc", "--unit-mb", "0.004", "--dtype", "float64"]
    alone = subprocess.run([*command, "--out", str(tmp_path / "alone"), "--quiet"], cwd=ROOT)
    assert alone.returncode == 0
    command += ["--engine", "ray", "--actors", "2", "--num-gpus", "0"]
    command += ["--checkpoint", str(tmp_path / "kept"), "--out", str(tmp_path / "found")]

    job = started(command)
    wait_for_sums(job)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=90)
    assert job.returncode == 130, said
    assert not (tmp_path / "found").exists()
    header, _ = read_artefact(tmp_path / "kept" / "total.safetensors")
    n_units = json.loads((tmp_path / "alone" / "corpus.json").read_text())["report"]["n_units"]
    assert 0 < len(header["done"]) < n_units

    again = started(command)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    ours, theirs = (tt.load(tmp_path / name / "sums.safetensors") for name in ("found", "alone"))
    assert isinstance(ours, tt.Sums) and isinstance(theirs, tt.Sums)
    assert difference(ours, theirs) < 1e-9


_INTERRUPTED = """
import sys, threading, os, signal
from pathlib import Path
import tl_transfer as tt
from tests import cluster_models as cm
from tests import tiny
folder, address = Path(sys.argv[1]), sys.argv[2] or None
cm.write_corpus(folder, n=3000)
threading.Thread(target=lambda: (sys.stdin.readline(), os.kill(os.getpid(), signal.SIGINT)),
                 daemon=True).start()
try:
    tt.fit_corpus(*cm.SITES, folder, document="doc", unit_bytes=2000, progress=True,
                  engine="ray", actors=2, num_gpus=0, address=address)
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
    sys.exit(130)
print("FINISHED", flush=True)
"""


def _ray_processes(before: set[int]) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        is_ray = "/ray/" in title or title.startswith("ray::")
        if is_ray and int(entry.name) not in before and state != "Z":
            found.append(f"{entry.name} {title[:80]}")
    return found


@pytest.mark.parametrize("own", [True, False], ids=["started here", "of the user"])
def test_an_interrupted_job_leaves_no_process_and_no_stranger_s_cluster_harmed(
    own: bool, tmp_path: Path
) -> None:
    before = {int(entry.name) for entry in Path("/proc").glob("[0-9]*")}

    def interrupt(address: str) -> None:
        job = started([sys.executable, "-c", _INTERRUPTED, str(tmp_path), address])
        wait_for_sums(job)
        assert job.stdin
        job.stdin.write("now\n")
        job.stdin.flush()
        out, _ = job.communicate(timeout=90)
        assert "INTERRUPTED" in out and job.returncode == 130

    if own:
        interrupt("")
        deadline = time.monotonic() + 20
        while _ray_processes(before) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert _ray_processes(before) == []
        return
    with cluster(1, cpus=2) as made:
        interrupt(made.address)
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        deadline = time.monotonic() + 20
        while workers_of(made) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert workers_of(made) == []
