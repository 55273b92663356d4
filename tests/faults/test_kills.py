"""kill -9 at moments that seeds choose: nothing corrupt is accepted, nothing good is lost.

Twenty of them here; ``make soak`` does hundreds (`tools/soak.py`).
"""

import os
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Campaign

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_any_moment_a_job_ends_as_if_nothing_had_happened(
    name: str, tmp_path: Path
) -> None:
    if name == "SAE training":
        pytest.importorskip("sae_lens", reason="sae-lens needs TransformerLens 3.x")
    campaign, kills, seed = Campaign(JOBS[name](), tmp_path), 0, 0
    while kills < {"run and report": 1, "SAE training": 2, "convert": 2}.get(name, 3):
        happened = campaign.kill(seed)
        kills += sum(n for kind, n in happened.items() if kind != "ended before")
        seed += 1
    assert seed < 12, f"most kills came too late: {seed} seeds for {kills} kills"
