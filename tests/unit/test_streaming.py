"""Streaming sums against float64 on stored rows, and the control's pairs."""

from dataclasses import replace

import pytest
import torch

from tl_transfer.mispairing import Run, plan, runs
from tl_transfer.statistics import PairedMoments, merge
from tl_transfer.streaming import MomentGrid


def rows(n: int = 900, d: int = 12, seed: int = 0) -> torch.Tensor:
    """Scales from 1e-3 to 1e3, a massive mean, a nearly constant and a constant dimension."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(-3, 3, d)
    x[:, 1] += 3000.0
    x[:, 2] = 7.0 + 1e-4 * torch.randn(n, generator=g, dtype=torch.float64)
    x[:, 3] = 0.5
    x[: n // 3, 4] += 50.0  # its mean drifts
    return x.float()


def stream(x, y, fold, *, size: int, buffer_rows: int = 128, **labels) -> list[PairedMoments]:
    grid = MomentGrid({"s": x.shape[1]}, {"t": y.shape[1]}, 3, buffer_rows=buffer_rows)
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        chosen = {name: value[part] for name, value in labels.items()}
        grid.add({"s": x[part]}, {"t": y[part]}, fold[part], **chosen)
    return grid.folds("s", "t")


@pytest.mark.parametrize("size", [1, 7, 100, 900])
def test_sums_equal_float64_whatever_the_batches(size: int) -> None:
    x, y = rows(), rows(seed=1, d=9)
    fold = torch.arange(len(x)) % 3
    for k, found in enumerate(stream(x, y, fold, size=size)):
        truth = PairedMoments.of(x[fold == k], y[fold == k])
        assert found.n == truth.n
        sd_x = (truth.xx.diagonal() / truth.n).sqrt().clamp(min=1e-30)
        sd_y = (truth.yy.diagonal() / truth.n).sqrt().clamp(min=1e-30)
        live_x, live_y = sd_x > 1e-12, sd_y > 1e-12
        for name, left, right in (("xx", sd_x, sd_x), ("xy", sd_x, sd_y), ("yy", sd_y, sd_y)):
            error = (getattr(found, name) - getattr(truth, name)) / torch.outer(left, right)
            error = error[left > 1e-12][:, right > 1e-12] / truth.n
            assert float(error.abs().max()) < 3e-6, name
        assert float(((found.mean_x - truth.mean_x) / sd_x)[live_x].abs().max()) < 1e-6
        assert float(((found.mean_y - truth.mean_y) / sd_y)[live_y].abs().max()) < 1e-6
        # A constant dimension has no variance at all.
        assert float(found.xx[3].abs().max()) < 1e-9 * truth.n


def test_rows_of_float64_keep_their_precision() -> None:
    x, y = rows().double(), rows(seed=1, d=9).double()
    fold = torch.arange(len(x)) % 3
    total = merge(stream(x, y, fold, size=50))
    truth = PairedMoments.of(x, y)
    for name in ("xx", "xy", "yy"):
        left, right = getattr(total, name), getattr(truth, name)
        assert float((left - right).norm() / right.norm()) < 1e-12


def test_bfloat16_rows_are_added_up_in_float32() -> None:
    x, y = rows().bfloat16(), rows(seed=1, d=9).bfloat16()
    fold = torch.zeros(len(x), dtype=torch.long)
    found = stream(x, y, fold, size=100)[0]
    truth = PairedMoments.of(x.float(), y.float())
    assert float((found.xy - truth.xy).norm() / truth.xy.norm()) < 1e-5


def labelled(lengths: list[int], documents: list[int]) -> dict[str, torch.Tensor]:
    n = torch.tensor(lengths)
    return {
        "key": torch.repeat_interleave(torch.arange(len(lengths)) * 37 + 5, n),
        "document": torch.repeat_interleave(torch.tensor(documents), n),
    }


def test_the_control_depends_on_the_texts_and_not_on_the_batches() -> None:
    lengths = [40, 30, 30, 20, 200, 10, 10, 5, 1]
    labels = labelled(lengths, [0, 1, 1, 2, 3, 4, 4, 5, 6])
    x, y = rows(sum(lengths)).double(), rows(sum(lengths), seed=1, d=9).double()
    fold = labels["document"] % 2
    batches = torch.tensor([0, *lengths]).cumsum(0).tolist()

    def grid(step: int, seed: int = 0) -> torch.Tensor:
        found = MomentGrid({"s": 12}, {"t": 9}, 2, buffer_rows=60, seed=seed)
        for i in range(0, len(lengths), step):
            part = slice(batches[i], batches[min(i + step, len(lengths))])
            found.add({"s": x[part]}, {"t": y[part]}, fold[part],
                      key=labels["key"][part], document=labels["document"][part])  # fmt: skip
        return torch.stack([moments.xy_shuffled for moments in found.folds("s", "t")])

    whole = grid(len(lengths))
    for step in (1, 2, 5):
        assert torch.equal(grid(step), whole)
    assert float((grid(3, seed=1) - whole).norm() / whole.norm()) > 1e-3


def after(texts: list[Run]) -> list[Run]:
    """All but the first, their rows counted from its end."""
    return [replace(text, start=text.start - texts[0].n) for text in texts[1:]]


def test_every_partner_is_of_another_document() -> None:
    labels = labelled([4, 3, 3, 300, 2], [0, 1, 1, 1, 2])
    texts = runs(labels["document"], labels["key"])
    partner, carried = plan(texts[:1], after(texts), seed=0, pool=4, most=100)
    assert not bool((labels["document"][partner] == labels["document"][4:]).any())
    assert [run.document for run in carried] == [0, 1, 1, 1]
    assert sum(len(run.partners(100)) for run in carried) == 4 + 3 + 3 + 100


def test_a_long_document_leaves_a_text_of_another_one_to_pair_with() -> None:
    labels = labelled([2] * 10, [0] * 7 + [1] * 3)
    texts = runs(labels["document"], labels["key"])
    partner, carried = plan(texts[:1], after(texts), seed=0, pool=3)
    assert [run.document for run in carried] == [0, 0, 0, 1]
    assert set(partner[-4:].tolist()) <= set(range(6))


def test_partners_are_drawn_from_all_texts_of_the_pool() -> None:
    n, pool = 2000, 10
    labels = labelled([1] * n, list(range(n)))
    texts = runs(labels["document"], labels["key"])
    partner, _ = plan(texts[:1], after(texts), seed=0, pool=pool)
    assert bool((partner < torch.arange(1, n)).all())
    counts = torch.bincount(partner[pool:], minlength=pool)
    # Uniform: a chi-squared statistic of 9 degrees of freedom is above 34 once in 10,000 draws.
    expected = (n - 1 - pool) / pool
    assert len(counts) == pool and float(((counts - expected) ** 2 / expected).sum()) < 34


def test_what_goes_with_length_is_not_paired_rightly() -> None:
    # Texts as they are read: a random sample, then longest first; a dimension says how long.
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 80, (600,), generator=g)
    lengths = torch.cat([lengths[:60], lengths[60:].sort(descending=True).values]).tolist()
    labels = labelled(lengths, list(range(600)))
    long = torch.cat([torch.full((n,), float(n)) for n in lengths])[:, None]
    found = stream(long, long, torch.arange(600).repeat_interleave(torch.tensor(lengths)) % 2,
                   size=4000, **labels)  # fmt: skip
    total = merge(found)
    assert abs(float(total.xy_shuffled / total.xy)) < 0.15


def test_a_fold_of_one_text_is_paired_within_it() -> None:
    x, y = rows(20), rows(20, seed=1, d=9)
    same = torch.zeros(20, dtype=torch.long)
    found = stream(x, y, same, size=20, key=same, document=same)[0]
    assert found.n == 20 and float((found.xy_shuffled - found.xy).norm()) > 0.1


def test_the_control_is_the_sum_over_rows_of_their_wrong_pairs() -> None:
    lengths, documents = [7, 5, 9, 4, 8, 3, 6, 9, 5, 4, 7, 6, 8], list(range(13))
    labels, n = labelled(lengths, documents), sum(lengths)
    fold, one = torch.zeros(n, dtype=torch.long), torch.eye(n, dtype=torch.float64)
    # Rows that name themselves say who met whom.
    met = stream(one, one, fold, size=20, buffer_rows=30, **labels)[0].xy_shuffled
    pairs = (met - met.min(0).values > 0.5).double()
    assert bool((pairs.sum(1) == 1).all()) and float((pairs * one).sum()) == 0
    assert float(pairs.sum(0).max()) > 1  # some serve several times
    x, y = rows(n).double(), rows(n, seed=1, d=9).double()
    found = stream(x, y, fold, size=20, buffer_rows=30, **labels)[0].xy_shuffled
    truth = PairedMoments.of(x, pairs @ y).xy
    assert float((found - truth).norm() / truth.norm()) < 1e-12
