"""The cost model counts what the models and the sums really do."""

import json
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

import tl_transfer as tt
from tests import tiny
from tests.cluster_models import SITES, write_corpus
from tl_transfer.cluster import cost
from tl_transfer.cluster.cost import Body, Machines, plan_corpus

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "latest.json"
BIG = Body(2304, 9216, 14, 8, 4, 256)
SMALL = Body(640, 2048, 10, 4, 1, 256)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_flop_of_a_body_are_those_that_torch_counts(family: str) -> None:
    model = tt.load_model(tiny.tiny_bridge(family, d_model=64, d_mlp=160, n_layers=3))
    tokens = tiny.random_tokens(model.host.cfg.d_vocab, 2, 48)
    point, counter = model.hook_point("resid_post@1"), FlopCounterMode(display=False)
    model.residuals(tokens, tokens >= 0, [point])  # the first time a bridge is looked through
    with counter:
        model.residuals(tokens, tokens >= 0, [point])
    body = Body.of_config(model.host.original_model.config, n_layers=2)
    # Eager attention computes the masked half as well, which a fused kernel leaves out.
    counted = counter.get_total_flops() / tokens.numel()
    assert body.flop_per_token(2 * 48) == pytest.approx(counted, rel=0.02)


def test_bytes_of_the_sums_are_those_that_are_sent(tmp_path: Path) -> None:
    from tl_transfer.cluster.engines import Local
    from tl_transfer.cluster.job import Job, ModelSite
    from tl_transfer.cluster.records import Corpus
    from tl_transfer.cluster.run import Run

    write_corpus(tmp_path)
    sites = tuple(ModelSite(*site) for site in SITES)
    run = Run(Job(Corpus.of(tmp_path, "text", "doc"), sites), 2000, False)
    results = [packed for _, packed in run.results(Local(), "sums")]
    plan = plan_corpus(Body(48, 96, 2, 4, 2, 16), Body(48, 96, 3, 4, 2, 16), tokens=1e6)
    for packed in results:
        sent = sum(
            value.nbytes
            for fold in packed["folds"]
            for name, value in fold.items()
            if name in ("xx", "xy", "yy", "xy_shuffled")
        )
        assert sent == plan.sums_bytes


def test_larger_units_send_less_and_more_workers_move_the_bottleneck() -> None:
    few = plan_corpus(BIG, BIG, tokens=1e9, unit_bytes=16 << 20)
    many = plan_corpus(BIG, BIG, tokens=1e9, unit_bytes=64 << 20)
    assert many.sent_bytes < few.sent_bytes / 3 and many.lost_seconds > 3 * few.lost_seconds
    assert many.flop_per_token == few.flop_per_token
    plan = plan_corpus(BIG, SMALL, tokens=1e9, machines=Machines(workers=8))
    twice = plan_corpus(BIG, SMALL, tokens=1e9, machines=Machines(workers=16))
    assert twice.seconds["forward"] == pytest.approx(plan.seconds["forward"] / 2)
    assert twice.seconds["merge"] == plan.seconds["merge"]
    assert plan_corpus(SMALL, SMALL, tokens=1e9).bottleneck == "tokenise"
    assert plan_corpus(BIG, BIG, tokens=1e9).rows_bytes == 2e9 * 2 * 2304
    assert "of which the" in str(plan) and "GB" in str(plan)


def test_the_table_of_the_page_is_what_the_function_says() -> None:
    page = (RESULTS.parents[2] / "docs" / "concepts" / "billion_tokens.md").read_text()
    lines = [line for line in page.splitlines() if " MB | " in line and " to " in line]
    shapes = {
        "SmolLM2-135M": Body(576, 1536, 16, 9, 3, 64),
        "Gemma-3-270M": Body(640, 2048, 10, 4, 1, 256),
        "Gemma-2-2B": Body(2304, 9216, 14, 8, 4, 256),
        "Llama-3.1-8B": Body(4096, 14336, 17, 32, 8, 128),
        "Llama-3.1-70B": Body(8192, 28672, 41, 64, 8, 128),
    }
    assert len(lines) == 3
    for line in lines:
        pair, unit, flop, sums, sent, rows, wall, decided = line.strip("| ").split(" | ")
        source, target = (shapes[name] for name in pair.split(" to "))
        plan = plan_corpus(source, target, tokens=1e9, unit_bytes=int(unit[:-3]) << 20)
        assert flop == f"{sum(plan.flop_per_token.values()):.3g}"
        assert [sums, sent, rows] == [
            cost._bytes(n) for n in (plan.sums_bytes, plan.sent_bytes, plan.rows_bytes)
        ]
        assert (wall, decided) == (cost._time(plan.total_seconds), plan.bottleneck)


def test_the_measured_ratio_is_near_the_last_measurement() -> None:
    (line,) = [r for r in json.loads(RESULTS.read_text()) if r["name"].startswith("streaming sums")]
    assert pytest.approx(line["ratio"], rel=0.35) == cost.SUMS_OVERHEAD
