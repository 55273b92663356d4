"""The job on a local Ray cluster, with a worker that dies and records that are bad.

One node and one test, because a cluster takes longer to start than to use; lost nodes, random
kills and interruptions are in tests/soak.
"""

from pathlib import Path
from typing import Any

import pytest

import tl_transfer as tt
from tests import cluster_models as cm
from tests.unit.test_corpus_fit import difference

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")


def test_a_dead_worker_and_bad_records_change_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cm.write_corpus(tmp_path, extra=[b"{", b'{"text": "waves ~ and ~ foam", "doc": "poison"}'])
    options: dict[str, Any] = {"document": "doc", "unit_bytes": 2500, "progress": False}
    expected = tt.fit_corpus((cm.poisoned, "resid_post@1"), cm.SITES[1], tmp_path, **options)
    # The first worker that reads its third batch kills itself, like one that runs out of memory.
    grave = tmp_path / "grave"
    mortal = (cm.Mortal(str(grave)), "resid_post@1")
    found = tt.fit_corpus(
        mortal, cm.SITES[1], tmp_path, engine="ray", actors=2, num_gpus=0, **options
    )
    assert grave.exists() and not ray.is_initialized()
    assert difference(found.sums, expected.sums) < 1e-9
    assert found.report == expected.report
    assert found.report.skipped.counts == {"not_json": 1, "not_finite": 1}
