"""The job on a local Ray cluster of two nodes, while its parts are being killed.

Longer campaigns are in tests/soak. All in one test: a cluster takes longer to start than to use.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import cluster_models as cm
from tests.unit.test_corpus_fit import difference

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


class Sleeper:
    """Says where it is, and dies when it is told to."""

    def where(self, item: tuple[int, float]) -> tuple[int, str, int]:
        number, seconds = item
        time.sleep(seconds)
        return number, ray.get_runtime_context().get_node_id(), os.getpid()


def test_a_job_survives_dead_workers_lost_nodes_and_poison(cluster: Any, tmp_path: Path) -> None:
    cm.write_corpus(tmp_path, extra=[b"{", b'{"text": "waves ~ and ~ foam", "doc": "poison"}'])
    options: dict[str, Any] = {"document": "doc", "unit_bytes": 2500, "progress": False}
    expected = tt.fit_corpus((cm.poisoned, "resid_post@1"), cm.SITES[1], tmp_path, **options)

    # The first worker that reads its third batch kills itself, like one that runs out of memory.
    grave = tmp_path / "grave"
    sites = ((cm.Mortal(str(grave)), "resid_post@1"), cm.SITES[1])
    found = tt.fit_corpus(*sites, tmp_path, engine="ray", actors=2, num_gpus=0, **options)
    assert grave.exists()
    assert difference(found.sums, expected.sums) < 1e-9
    assert found.report == expected.report
    assert found.report.skipped.counts == {"not_json": 1, "not_finite": 1}
    assert ray.is_initialized(), "a cluster that was there before is left alone"

    from tl_transfer.cluster.ray_engine import RayPool

    actor = ray.remote(Sleeper).options(num_cpus=1, max_restarts=-1, max_task_retries=4)
    pool = RayPool([actor.remote() for _ in range(2)])
    seen: list[int] = []
    nodes: set[str] = set()
    head = ray.get_runtime_context().get_node_id()
    for number, (same, node, pid) in pool.map("where", [(i, 0.15) for i in range(24)]):
        assert number == same
        seen.append(number)
        nodes.add(node)
        if len(seen) == 4:
            os.kill(pid, signal.SIGKILL)
        if len(seen) == 10:
            # Its actor can be placed nowhere now: what it held must not wait for it.
            cluster.remove_node(cluster.worker_nodes.copy().pop())
    assert sorted(seen) == list(range(24)) and len(nodes) == 2 and head in nodes
