"""One small artefact of every kind that this package writes and reads back."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tl_transfer as tt
from tests.maps import HERE, THERE
from tests.unit.sample_report import sample_report
from tests.words import random_texts
from tl_transfer import exchange, sealed
from tl_transfer.evaluation.result import TransferReport
from tl_transfer.exchange import tensors as plain_tensors
from tl_transfer.exchange.steer import Steering
from tl_transfer.experiments.parts import Parts
from tl_transfer.features.map import FeatureMap, pack_features
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.packing import pack_map, pack_sums
from tl_transfer.mappers.relu import ReluMap
from tl_transfer.mappers.sums import Sums
from tl_transfer.mappers.train import Schedule, Trainer
from tl_transfer.packing import pack
from tl_transfer.sae.coder import SparseCoder
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.folder import write_folder
from tl_transfer.sae.load import load_sae
from tl_transfer.switch import SafetySwitch


@dataclass(frozen=True)
class Kind:
    """How one kind is written and read.

    Attributes:
        files: Those that are read, in a folder.
        write: Writes them into the folder.
        read: Reads them; says what they hold in a text that differs when anything differs.
    """

    files: tuple[str, ...]
    write: Callable[[Path], object]
    read: Callable[[Path], str]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _said(packed: tuple[dict[str, Any], dict[str, Tensor]]) -> str:
    return str(sealed.seal(*packed)[sealed.SEAL])


def _value(found: Any) -> str:
    if isinstance(found, Mapper):
        return _said(pack_map(found))
    if isinstance(found, Sums):
        return _said(pack_sums(found))
    return _said(pack_features(found) if isinstance(found, FeatureMap) else pack(found))


def _saved(value: Any) -> Kind:
    name = "a.safetensors"
    return Kind(
        (name,), lambda at: tt.save(value, at / name), lambda at: _value(tt.load(at / name))
    )


def vector(seed: int = 0) -> tt.SteeringVector:
    """A steering vector with an origin."""
    more = {"n": 3, "texts": ["é", "\U0001f600"]}
    return tt.SteeringVector(
        _draw(12, seed=seed), HERE, 2.5, "mean_difference", more, origin=_draw(12, seed=9)
    )


def affine() -> tt.AffineMap:
    """A map with its shuffled control."""
    common: Any = {"source": HERE, "target": THERE, "source_norm": 1.5, "target_norm": 2.0}
    card = {"held_out": {"fvu": 0.25}, "note": '12 % \\ "quoted"'}
    other = tt.AffineMap(_draw(12, 16, seed=1), _draw(16), **common, method="control")
    return tt.AffineMap(
        _draw(12, 16), _draw(16), **common, method="ridge", settings={"strength": 0.1},
        scorecard=card, fit_texts=frozenset({"abc"}), shuffled=other,
    )  # fmt: skip


def _relu() -> ReluMap:
    return ReluMap(
        source=HERE, target=THERE, source_norm=1.0, target_norm=1.0, method="autoencoder",
        w_in=_draw(12, 5), b_in=_draw(5), w_out=_draw(5, 16), bias=_draw(16),
    )  # fmt: skip


def _features() -> FeatureMap:
    whole = torch.arange(3)
    part = _draw(3).clamp(-1, 1)
    return FeatureMap(
        source_space=HERE, target_space=THERE, source_sae="a" * 16, target_sae="b" * 16,
        method="mutual", source=whole, target=whole, r_train=part, r=part, ci95=_draw(3, 2),
        shuffled=_draw(3, 5), random=_draw(3, 5), n_active=whole, candidates=whole.repeat(4, 1),
        candidate_r=_draw(4, 3), live_source=torch.ones(4, dtype=torch.bool),
        live_target=torch.ones(5, dtype=torch.bool), mass=_draw(4).abs(), n_rows=(10, 5),
        n_documents=4, procedure=part,
    )  # fmt: skip


def _sae() -> Kind:
    offset = _draw(12, seed=3)
    coder = SparseCoder(
        W_enc=_draw(12, 9), b_enc=_draw(9), W_dec=_draw(9, 12), b_dec=offset, offset=offset,
        activation="topk", k=3,
    )  # fmt: skip
    sae = replace(Dictionary.of(coder), space=HERE, hook_point=HERE.hook_point)

    def read(at: Path) -> str:
        found = load_sae(at)
        return f"{found.identity} {found.space} {found.hook_point} {found.origin.get('metadata')}"

    return Kind(("cfg.json", "sae_weights.safetensors"), lambda at: write_folder(sae, at), read)


def _checkpoint() -> Kind:
    x, y = _draw(40, 3), _draw(40, 2, seed=1)

    def trainer(path: Path) -> Trainer:
        return Trainer(
            {"w": _draw(3, 2, seed=2)}, lambda p, x: x @ p["w"], lambda epoch: iter([(x, y)] * 4),
            Schedule(3, 1e-2), checkpoint=path, identity={"a": 1},
        )  # fmt: skip

    def read(at: Path) -> str:
        found = trainer(at / "c.safetensors")
        (state,) = found.optimiser.state.values()
        place = {"at": [found.epoch, found.batch, found.update], "history": found.history}
        return _said((place, found.values() | state))

    def write(at: Path) -> None:
        made = trainer(at / "c.safetensors")
        made.run(lambda p: {"loss": float(p["w"].sum())})

    return Kind(("c.safetensors",), write, read)


def _store(texts: list[str], site: Any) -> Kind:
    def write(at: Path) -> None:
        tt.capture(site, texts, store=at, shard_rows=40, progress=False)

    def read(at: Path) -> str:
        store = tt.ActivationStore(at)
        store.verify()
        batch = next(iter(store.batches(10**6)))
        found = _said(({}, {**batch.values, "text": batch.text, "key": batch.key}))
        found += f"{store.hashes} {store.documents}"
        return f"{found} {store.spaces} {store.counts} {store.tokens} {store.manifest['spec']}"

    files = ("manifest.json", "texts.safetensors", "rows-00000.safetensors")
    return Kind(files, write, read)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _grid() -> tt.LayerGrid:
    side = {"model": "a", "hook_points": ["blocks.0.hook_resid_post"]}
    return tt.LayerGrid(side, side, [[0.5]], [[0.1]], [[0.25]], None, {}, {"fit": 9}, {"fit": 3})


def _recipe(model: tt.HookedModel) -> Kind:
    site = model.at("resid_post@1")
    edit = tt.Add(tt.SteeringVector(_draw(model.d_model), site.space, 2.0, "random"), 0.5)

    def read(at: Path) -> str:
        found = Steering(at / "folder")
        return _said((found.recipe, found.tensors))

    return Kind(
        ("folder/recipe.json", "folder/vectors.safetensors"),
        lambda at: exchange.write_hook_recipe([edit], model, at / "folder"),
        read,
    )


def kinds(model: tt.HookedModel) -> dict[str, Kind]:
    """Name -> how it is written and read."""
    v = vector()
    texts = random_texts(12, seed=4)
    collected = tt.collect(
        model.at("resid_post@1"), model.at("resid_post@2"), texts=random_texts(40, seed=1),
        progress=False,
    )  # fmt: skip
    switch = SafetySwitch(_within(affine()))
    report = TransferReport(sample_report())
    set_path, gguf = "plain.safetensors", "v.gguf"
    read_plain = plain_tensors._read
    return {
        "steering vector": _saved(v),
        "vector set": _saved(tt.VectorSet.of(v, note="kept")),
        "subspace": _saved(
            tt.Subspace(torch.linalg.qr(_draw(12, 2)).Q.T.contiguous(), HERE, 1.0, "pca", {})
        ),
        "probe": _saved(tt.Probe(_draw(12), 0.5, _draw(12, seed=1), HERE, 2.0, "logistic", {})),
        "position vectors": _saved(
            tt.PositionVectors(_draw(2, 12), "a b", (1, 3), HERE, 1.0, "prompt_pair", {})
        ),
        "affine map": _saved(affine()),
        "relu map": _saved(_relu()),
        "sums": _saved(collected),
        "feature map": _saved(_features()),
        "safety switch": Kind(
            ("s.safetensors",),
            lambda at: switch.save(at / "s.safetensors"),
            lambda at: _value(SafetySwitch.load(at / "s.safetensors").mapper),
        ),
        "SAE folder": _sae(),
        "training state": _checkpoint(),
        "store": _store(texts, model.at("resid_post@1")),
        "report": Kind(
            ("report.json",),
            lambda at: report.save_json(at / "report.json"),
            lambda at: _json(TransferReport.load(at / "report.json").data),
        ),
        "layer grid": Kind(
            ("grid.json",),
            lambda at: _grid().save(at / "grid.json"),
            lambda at: _json(tt.LayerGrid.load(at / "grid.json").to_dict()),
        ),
        "part of a run": Kind(
            ("part.json",),
            lambda at: Parts(at, {"a": 1}).keep("part", [1.5, "é"]),
            _part,
        ),
        "hook recipe": _recipe(model),
        "control vector": Kind(
            (gguf,),
            lambda at: exchange.write_control_vector(v, at / gguf),
            lambda at: _value(exchange.read_control_vector(at / gguf)),
        ),
        "plain tensors": Kind(
            (set_path,),
            lambda at: exchange.write_tensors(v, at / set_path),
            lambda at: _said(({}, read_plain(at / set_path))),
        ),
    }


def _part(at: Path) -> str:
    found = Parts(at, {"a": 1}).recall("part")
    if found is None:
        raise tt.errors.ArtefactError("it is made again")  # which is how a part is refused
    return _json(found)


def _within(mapper: tt.AffineMap) -> tt.AffineMap:
    """The same map within one width, as a switch wants it."""
    target = replace(HERE, model="base", weights="v" * 64)
    return replace(mapper, target=target, weight=_draw(12, 12), bias=_draw(12), shuffled=None)
