"""A crosscoder on planted data: shared and exclusive latents are known."""

import pytest
import torch

from tests.sparse import space, unit_rows
from tl_transfer.errors import InputError
from tl_transfer.features.crosscoder import train_crosscoder

SHARED, ALONE = 24, 6


@pytest.fixture(scope="module")
def planted():
    """24 shared latents, 6 of the source alone, 6 of the target alone; the target is larger."""
    n = SHARED + 2 * ALONE
    generator = torch.Generator().manual_seed(0)
    # Each by itself: with a fixed number on in a row, one that is on would say that others are off.
    odds = torch.linspace(0.18, 0.05, n)[torch.randperm(n, generator=generator)]
    on = torch.rand(5000, n, generator=generator) < odds
    z = on * (1 + torch.rand(5000, n, generator=generator))
    here, there = unit_rows(n, 48, 1), unit_rows(n, 64, 2)
    in_source = torch.arange(n) < SHARED + ALONE
    in_target = (torch.arange(n) < SHARED) | (torch.arange(n) >= SHARED + ALONE)
    x = z[:, in_source] @ here[in_source]
    y = 30 * z[:, in_target] @ there[in_target] + 100
    truth = ["shared"] * SHARED + ["source"] * ALONE + ["target"] * ALONE
    return x, y, here, there, truth


@pytest.fixture(scope="module")
def trained(planted):
    x, y, *_ = planted
    return train_crosscoder(
        x[:4000], y[:4000], (x[4000:], y[4000:]), n_latents=48, k=4, steps=1200, progress=False
    )


def test_latents_are_found_and_told_apart(planted, trained) -> None:
    x, y, here, there, truth = planted
    kinds = trained.kinds(x[4000:], y[4000:])
    right = found = 0
    for i, kind in enumerate(truth):
        rows, planted_row = (
            (trained.target, there[i]) if kind == "target" else (trained.source, here[i])
        )
        cosine = torch.nn.functional.cosine_similarity(rows, planted_row[None], dim=1)
        best = int(cosine.argmax())
        found += bool(cosine[best] > 0.9)
        right += bool(cosine[best] > 0.9) and kinds[best] == kind
    assert found >= 0.9 * len(truth)
    assert right >= 0.85 * len(truth)
    card = trained.card
    assert max(card["fvu"].values()) < 0.25 and 2.5 < card["l0"] < 6
    assert "held-out FVU" in repr(trained)


def test_a_latent_in_two_halves_is_no_exclusive_one(planted, trained) -> None:
    """Decoupling: the same concept in two latents, each of which seems to belong to one model."""
    x, y, *_ = planted
    kinds = trained.kinds(x[4000:], y[4000:])
    shared = kinds.index("shared")
    halves = type(trained)(
        trained.encoder,
        trained.bias,
        trained.source,
        trained.target * (torch.arange(48) != shared)[:, None],
        trained.scalings,
        0.0,
        trained.card,
    )
    assert float(halves.target_share[shared]) == 0.0
    assert halves.kinds(x[4000:], y[4000:])[shared] == "false exclusive"


def test_what_chance_explains_of_few_rows_makes_no_latent_a_false_exclusive(
    planted, trained
) -> None:
    x, y, *_ = planted
    full, few = trained.kinds(x[4000:], y[4000:]), trained.kinds(x[4000:4150], y[4000:4150])
    exclusive = [i for i, kind in enumerate(full) if kind in ("source", "target")]
    wrong = sum(few[i] == "false exclusive" for i in exclusive)
    assert len(exclusive) >= 8 and wrong <= 2


def test_codes_do_not_depend_on_the_batch_and_directions_are_in_raw_units(planted, trained) -> None:
    x, y, *_ = planted
    codes = trained.encode(x[:50], y[:50])
    assert torch.allclose(trained.encode(x[7:8], y[7:8]), codes[7:8], atol=1e-5)
    latent = int(codes.sum(0).argmax())
    vector = trained.vector(latent, space("t", 64), median_norm=1.0)
    more = codes.clone()
    more[:, latent] += 1
    step = trained.decode(more)[1] - trained.decode(codes)[1]
    assert torch.allclose(step[0], vector.direction, atol=1e-3)


def test_what_is_refused(planted) -> None:
    x, y, *_ = planted
    with pytest.raises(InputError, match="k from 1 to n_latents"):
        train_crosscoder(x, y, (x, y), n_latents=8, k=9)
