"""Intervals: coverage of the plain bootstrap, width of the crossed one, reproducibility."""

import torch

from tl_transfer.intervals import mean_ci, ratio_ci


def test_plain_interval_has_the_width_of_the_standard_error() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = mean_ci(values)
    expected = 2 * 1.96 * float(values.std()) / 20
    assert abs((high - low) / expected - 1) < 0.1
    assert [low, high] == mean_ci(values)
    assert [low, high] != mean_ci(values, seed=1)


def test_prompts_of_one_frame_are_not_independent() -> None:
    """Forty prompts that say ten things are ten things, and the interval must know."""
    frames = [f for f in range(10) for _ in range(4)]
    subjects = [s for _ in range(10) for s in range(4)]
    g = torch.Generator().manual_seed(0)
    values = torch.randn(10, generator=g)[frames] + 0.01 * torch.randn(40, generator=g)
    narrow = mean_ci(values)
    wide = mean_ci(values, factors=(frames, subjects))
    assert (wide[1] - wide[0]) > 1.6 * (narrow[1] - narrow[0])


def test_a_paired_ratio_is_certain_when_every_unit_agrees() -> None:
    native = torch.linspace(1, 3, 40)
    frames = [f for f in range(10) for _ in range(4)]
    for factors in (None, (frames,)):
        low, high = ratio_ci(0.5 * native, native, factors=factors)
        assert abs(low - 0.5) < 1e-9
        assert abs(high - 0.5) < 1e-9
