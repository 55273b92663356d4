"""Artefacts survive a round trip bit for bit; damaged, foreign and misplaced ones are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tl_transfer as tt
from tl_transfer.errors import ArtefactError, InputError, SpaceError
from tl_transfer.space import ActivationSpace
from tl_transfer.statistics import PairedMoments

SPACE = ActivationSpace(
    "tiny", "w" * 64, "blocks.1.hook_resid_post", 6, "raw", "t" * 64, "none", "float32"
)
TARGET = replace(SPACE, model="other", weights="v" * 64, d_model=4)


def vector() -> tt.SteeringVector:
    return tt.SteeringVector(torch.arange(1.0, 7.0), SPACE, 2.5, "mean_difference", {"n": 3})


def mapper() -> tt.AffineMap:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=g), torch.randn(50, 4, generator=g)
    common = {"source": SPACE, "target": TARGET, "source_norm": 1.0, "target_norm": 2.0}
    return tt.AffineMap(
        torch.randn(6, 4, generator=g),
        torch.randn(4, generator=g),
        **common,
        method="ridge",
        settings={"strength": 0.1},
        scorecard={"held_out": {"fvu": 0.5}, "shuffled": {"fvu": 1.0}},
        fit_texts=frozenset({"abc"}),
        held_out=PairedMoments.of(x, y),
        shuffled=tt.AffineMap(torch.ones(6, 4), torch.ones(4), **common, method="control"),
    )


def test_round_trip(tmp_path: Path) -> None:
    loaded = tt.load(tt.save(vector(), tmp_path / "v.safetensors"))
    assert isinstance(loaded, tt.SteeringVector)
    assert torch.equal(loaded.direction, vector().direction)
    assert (loaded.space, loaded.median_norm, loaded.method, loaded.provenance) == (
        SPACE,
        2.5,
        "mean_difference",
        {"n": 3},
    )
    before, after = mapper(), tt.load(tt.save(mapper(), tmp_path / "sub" / "m.safetensors"))
    assert isinstance(after, tt.AffineMap)
    x = torch.randn(3, 6)
    assert torch.equal(before.map_points(x), after.map_points(x))
    u = torch.ones(4)
    assert before.direction_r2(u) == after.direction_r2(u)
    assert after.shuffled is not None and torch.equal(after.shuffled.weight, torch.ones(6, 4))
    assert after.scorecard == before.scorecard and after.fit_texts == before.fit_texts


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "huge header"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tt.save(mapper(), tmp_path / "m.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-5] ^= 0x10
    elif damage == "empty":
        content = bytearray()
    elif damage == "text":
        content = bytearray(b"not an artefact at all")
    else:
        content[:8] = (2**60).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="make it again|damaged"):
        tt.load(path)


def test_foreign_and_future_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ArtefactError, match="not a readable file"):
        tt.load(tmp_path / "foreign.safetensors")
    header = json.dumps({"format": 99, "kind": "steering_vector"})
    save_file({"a": torch.ones(2)}, tmp_path / "new.safetensors", {"tl_transfer": header})
    with pytest.raises(ArtefactError, match="another format version"):
        tt.load(tmp_path / "new.safetensors")
    with pytest.raises(ArtefactError, match="no such file"):
        tt.load(tmp_path / "missing.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        tt.save(vector(), tmp_path / "v.safetensors")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        tt.save(vector(), tmp_path / "file" / "v.safetensors")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tt.save(vector(), tmp_path / "v.safetensors")
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="nothing was changed"):
        tt.save(mapper(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", "x" * 64),
        ("hook_point", "blocks.2.hook_resid_post"),
        ("d_model", 8),
        ("processing", "folded"),
        ("tokenizer", "y" * 64),
        ("chat_template", "z" * 64),
    ],
)
def test_every_difference_of_spaces_is_refused_with_both_sides(field: str, value: object) -> None:
    other = replace(SPACE, **{field: value})
    with pytest.raises(SpaceError) as error:
        other.require(SPACE, "steering vector on this model")
    text = str(error.value)
    assert f"{field}: {value} != {getattr(SPACE, field)}" in text
    assert str(SPACE) in text and str(other) in text
