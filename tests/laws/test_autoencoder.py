"""The trained maps: the paper's recipe to the letter, ours no worse than its start, resumable."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tl_transfer as tt
from tests.maps import HERE, THERE, built, curved, fvu, rows, sums
from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.mappers.network import draw_network, generator_of
from tl_transfer.mappers.registry import solve
from tl_transfer.mappers.relu import RULES, ReluMap
from tl_transfer.mappers.train import Schedule, Trainer


def reference(training: Any, epochs: int) -> torch.nn.Module:
    """The paper's trainer as one would write it with torch.nn, on padded batches with a mask."""
    kept = training.rows
    d_source, d_target = kept.x.shape[1], kept.y.shape[1]
    hidden = int((d_source * d_target) ** 0.5)
    model = torch.nn.Sequential(
        torch.nn.Linear(d_source, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, d_target)
    )
    start = draw_network(d_source, hidden, d_target, generator_of(training.seed))
    with torch.no_grad():
        model[0].weight.copy_(start["w_in"].T)
        model[0].bias.copy_(start["b_in"])
        model[2].weight.copy_(start["w_out"].T)
        model[2].bias.copy_(start["bias"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    texts = [(kept.text == i).nonzero().flatten() for i in kept.text.unique_consecutive()]
    for epoch in range(epochs):
        order = torch.randperm(len(texts), generator=generator_of(training.seed, epoch)).tolist()
        batches = [order[i : i + 16] for i in range(0, len(order), 16)]
        for number, batch in enumerate(batches, start=1):
            width = max(len(texts[i]) for i in batch)
            x = torch.full((len(batch), width, d_source), 1e6)  # padding is not zero
            y = torch.zeros(len(batch), width, d_target)
            mask = torch.zeros(len(batch), width)
            for row, i in enumerate(batch):
                x[row, : len(texts[i])] = kept.x[texts[i]].float()
                y[row, : len(texts[i])] = kept.y[texts[i]].float()
                mask[row, : len(texts[i])] = 1
            squared = ((model(x) - y).square() * mask[..., None]).sum()
            (squared / (mask.sum() * d_target) / 4).backward()
            if number % 4 == 0 or number == len(batches):
                optimiser.step()
                optimiser.zero_grad()
    return model


def uneven(x: Tensor, y: Tensor) -> Any:
    """Training rows in texts of different lengths."""
    training = sums(x, y)
    lengths = itertools.cycle((3, 11, 7))
    text = torch.cat([torch.full((n,), i) for i, n in zip(range(600), lengths)])[: len(x)]  # noqa: B905
    return replace(training, rows=replace(training.rows, text=text))


def test_the_papers_recipe_is_the_papers() -> None:
    x, y, _ = rows("linear")
    training = uneven(x, y)
    ours = solve("autoencoder", training, recipe="paper")
    assert ours.options == {"recipe": "paper", "hidden": 13, "learning_rate": 1e-4, "epochs": 3}
    theirs = reference(training, epochs=3)
    with torch.no_grad():
        expected = theirs(x.float())
    got = built(ours, x, y).map_points(x.float())
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    moved = solve("autoencoder", training, recipe="paper", epochs=4)
    assert not torch.allclose(built(moved, x, y).map_points(x.float()), expected, atol=1e-4)


def test_updates_are_counted() -> None:
    x, y, _ = rows("linear")
    training = uneven(x, y)
    n = 3 * -(-len(training.rows.text.unique()) // 64)  # whole epochs of 64 texts an update
    by_epochs = solve("autoencoder", training, recipe="paper", epochs=3)
    by_updates = solve("autoencoder", training, recipe="paper", updates=n)
    assert torch.equal(by_epochs.parameters["w_in"], by_updates.parameters["w_in"])
    fewer = solve("gradient_affine", training, updates=2, batch_rows=100)
    none = solve("gradient_affine", training, epochs=0)
    assert 0 < float((fewer.weight - none.weight).abs().max()) < 3e-4  # two steps of 1e-4


def test_curvature_is_found_and_noise_is_not() -> None:
    x, y = curved()
    training = sums(x[:3000], y[:3000])
    affine = fvu(solve("ridge", training), x[3000:], y[3000:])
    bent = solve("autoencoder", training, hidden=32)
    assert bent.options["epochs"] > 3
    assert fvu(bent, x[3000:], y[3000:]) < 0.5 * affine
    # On a linear truth with noise there is nothing to gain, and next to nothing is lost.
    x, y, _ = rows("linear", noise=3.0)
    training = sums(x[:1200], y[:1200])
    flat = solve("autoencoder", training, hidden=32)
    floor = fvu(solve("ridge", training), x[1200:], y[1200:])
    assert fvu(flat, x[1200:], y[1200:]) < 1.02 * floor


def test_no_epoch_is_the_closed_form() -> None:
    x, y, _ = rows("linear", noise=0.5)
    start = solve("autoencoder", sums(x, y), epochs=0, strength=1e-3)
    ridge = solve("ridge", sums(x, y), strength=1e-3)
    torch.testing.assert_close(
        built(start, x, y).map_points(x), built(ridge, x, y).map_points(x), atol=1e-2, rtol=1e-4
    )


def test_seeds() -> None:
    x, y = curved(1000)
    a, b, c = (
        solve("autoencoder", sums(x, y, seed=seed), epochs=2, hidden=8) for seed in (1, 1, 2)
    )
    assert torch.equal(a.parameters["w_in"], b.parameters["w_in"])
    assert not torch.equal(a.parameters["w_in"], c.parameters["w_in"])


# -- interruptions ---------------------------------------------------------------------------------


class Cut(Exception):
    pass


@pytest.mark.parametrize("error", [Cut, KeyboardInterrupt])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, error: type[BaseException], accumulate: int
) -> None:
    x, y = (t.float() for t in curved(640))
    start = draw_network(8, 5, 6, generator_of(0))
    cut_at = [37, 90, 50]

    def train(checkpoint: Path | None, cuts: list[int]) -> tuple[Trainer, dict[str, Tensor]]:
        seen = itertools.count()

        def batches(epoch: int) -> Any:
            order = torch.randperm(640, generator=torch.Generator().manual_seed(epoch))
            for index in order.split(16):
                if cuts and next(seen) == cuts[0]:
                    cuts.pop(0)
                    raise error
                yield x[index], y[index]

        trainer = Trainer(
            start,
            lambda p, x: torch.relu(x @ p["w_in"] + p["b_in"]) @ p["w_out"] + p["bias"],
            batches,
            Schedule(4, 1e-3, accumulate),
            checkpoint=checkpoint,
            identity={"a": 1},
        )
        trainer.run(lambda p: {"norm": float(p["w_in"].norm())})
        return trainer, trainer.values()

    whole, expected = train(None, [])
    path = tmp_path / "state.safetensors"
    while cut_at:
        with pytest.raises(error):
            train(path, cut_at)
    again, got = train(path, [])
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert again.update == whole.update and again.history == whole.history
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_rows_or_settings_do_not_resume(tmp_path: Path) -> None:
    x, y = curved(1000)
    training = replace(sums(x, y), checkpoint=tmp_path)
    first = solve("autoencoder", training, epochs=2, hidden=8)
    other = solve("autoencoder", replace(sums(2 * x, y), checkpoint=tmp_path), epochs=2, hidden=8)
    assert not torch.equal(first.parameters["w_in"], other.parameters["w_in"])
    fresh = solve("autoencoder", sums(2 * x, y), epochs=2, hidden=8)
    assert torch.equal(fresh.parameters["w_in"], other.parameters["w_in"])
    (tmp_path / "final.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ArtefactError, match="delete it"):
        solve("autoencoder", training, epochs=2, hidden=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "mine"}, '"ours" or "paper"'),
        ({"recipe": "paper", "strength": 1.0}, "not an option of this recipe"),
        ({"updates": 5}, "not an option of this recipe"),
        ({"recipe": "paper", "updates": 5, "epochs": 1}, "one of them"),
        ({"hidden": 0}, "no units"),
        ({"epochs": -1}, "epochs: not an amount"),
        ({"batch_rows": 0}, "batch_rows: not an amount"),
        ({"learning_rate": 0.0}, "learning_rate: not an amount"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    x, y = curved(500)
    with pytest.raises(InputError, match=message):
        solve("autoencoder", sums(x, y), **options)


# -- directions through a map that is not affine ---------------------------------------------------


def bent() -> ReluMap:
    x, y = curved(2000)
    mapper = built(solve("autoencoder", sums(x, y), hidden=16), x, y)
    assert isinstance(mapper, ReluMap)
    return mapper


def test_the_mean_jacobian_is_that_of_autograd() -> None:
    mapper, (x, _) = bent(), curved(2000)
    few = x[:200].float()
    expected = torch.stack(
        [torch.autograd.functional.jacobian(mapper.map_points, row).T for row in few]
    ).mean(0)
    torch.testing.assert_close(mapper.jacobian(few), expected, atol=1e-3, rtol=1e-3)
    every = mapper.jacobian(x.float())
    torch.testing.assert_close(mapper.jacobian(), every, atol=1e-3, rtol=1e-3)


def test_rules() -> None:
    mapper, (x, y) = bent(), curved(2000)
    v = (x[:1000].mean(0) - x[1000:].mean(0)).float() * 5
    rows_ = x[:300].float()
    local = mapper.map_direction(v, at=rows_)
    expected = (mapper.map_points(rows_ + v) - mapper.map_points(rows_)).mean(0)
    torch.testing.assert_close(local, expected, atol=1e-3, rtol=1e-4)
    point = rows_[:1]
    means = mapper.map_direction(v, at=point, rule="class_means")
    torch.testing.assert_close(
        means, (mapper.map_points(point + v) - mapper.map_points(point))[0], atol=1e-3, rtol=1e-4
    )
    # A small step follows the Jacobian; a large one does not; f(v) - f(0) is something else.
    small, large = (
        torch.nn.functional.cosine_similarity(
            mapper.map_direction(s * v, at=rows_),
            mapper.map_direction(s * v, at=rows_, rule="jacobian"),
            dim=0,
        )
        for s in (1e-2, 30.0)
    )
    assert small > 0.999 > large
    batch = torch.stack([v, -v, 0 * v])[:, None].expand(3, 2, 8)
    assert mapper.map_direction(batch).shape == (3, 2, y.shape[1])
    for rule, at, message in (
        ("nonsense", None, "local_mean, class_means, jacobian"),
        ("class_means", None, "the mean of the negative class"),
        ("class_means", rows_, "the mean of the negative class"),
    ):
        with pytest.raises(InputError, match=message):
            mapper.map_direction(v, at=at, rule=rule)
    bare = replace(mapper, points=None, active=None)
    with pytest.raises(InputError, match="kept no rows"):
        bare.map_direction(v)
    with pytest.raises(InputError, match="kept no rows"):
        bare.jacobian()
    assert len(RULES) == 4


def test_composition_with_affine_maps() -> None:
    mapper, (_x, _y) = bent(), curved(2000)
    g = torch.Generator().manual_seed(0)
    there = mapper.target
    before = replace(HERE, model="c", weights="x" * 64, d_model=5)
    after = replace(THERE, model="d", weights="y" * 64, d_model=7)
    norms = {"source_norm": 1.0, "target_norm": 1.0, "method": "affine"}
    first = tt.AffineMap(
        torch.randn(5, 8, generator=g), 30 + torch.randn(8, generator=g),
        source=before, target=mapper.source, **norms,
    )  # fmt: skip
    last = tt.AffineMap(
        torch.randn(6, 7, generator=g), torch.randn(7, generator=g),
        source=there, target=after, **norms,
    )  # fmt: skip
    z = torch.randn(9, 5, generator=g)
    chained = last.map_points(mapper.map_points(first.map_points(z)))
    for joined in (first.then(mapper).then(last), first.then(mapper.then(last))):
        torch.testing.assert_close(joined.map_points(z), chained, atol=1e-2, rtol=1e-4)
        assert (joined.source, joined.target) == (before, after)
    flipped = {
        "w_in": mapper.w_out.T, "b_in": mapper.b_in, "w_out": mapper.w_in.T,
        "bias": torch.zeros(8), "weight": None, "points": None,
    }  # fmt: skip
    with pytest.raises(InputError, match="cannot be written as one"):
        mapper.then(replace(mapper, source=mapper.target, target=mapper.source, **flipped))
    with pytest.raises(tt.errors.SpaceError):
        last.then(first)
