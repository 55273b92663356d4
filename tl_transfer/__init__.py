"""tl_transfer: move an intervention from one language model to another, and know whether it worked.

Public names are loaded on first use, so importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public name -> module that defines it.
_PUBLIC = {
    "Ablate": "interventions",
    "ActivationSpace": "space",
    "ActivationStore": "data.store",
    "Add": "interventions",
    "AddAtPhrase": "interventions",
    "AddRows": "interventions",
    "AffineEdit": "interventions",
    "AffineMap": "mappers.base",
    "Calibration": "strength.curve",
    "Clamp": "interventions",
    "Contrast": "extract.contrast",
    "CorpusCapture": "cluster.capture",
    "CorpusFit": "cluster.fit",
    "CorpusReport": "cluster.report",
    "ContrastCheck": "extract.hygiene",
    "ContrastWarning": "extract.hygiene",
    "Dictionary": "sae.dictionary",
    "DirectionReading": "features.direction",
    "EffectTable": "evaluation.feature_effects",
    "Estimate": "features.estimate",
    "FeatureFrom": "features.edit",
    "FeatureMap": "features.map",
    "FeatureReading": "features.inspect",
    "FeatureRoutes": "features.routes",
    "Gate": "interventions",
    "HalfSpace": "interventions",
    "HookedModel": "models.surface",
    "LayerGrid": "layers.grid",
    "LayerSuggestions": "layers.suggest",
    "Mapper": "mappers.base",
    "ModelSite": "cluster.job",
    "NextTokenEffect": "strength.effect",
    "NormKeepingAdd": "interventions",
    "PositionVectors": "vectors.positions",
    "Probe": "vectors.probe",
    "Recipe": "recipe",
    "ReluMap": "mappers.relu",
    "Replace": "interventions",
    "ReplaceFrom": "interventions",
    "Rotate": "interventions",
    "SaeCheck": "sae.check",
    "SaeSettings": "sae.settings",
    "SafetySwitch": "switch",
    "Sampling": "models.generate",
    "Selection": "extract.selection",
    "SetFeature": "features.edit",
    "Settings": "evaluation.evaluate",
    "SparseCoder": "sae.coder",
    "Splice": "splicing",
    "SteeringVector": "vectors.steering",
    "StrengthBench": "strength.bench",
    "StrengthCurve": "strength.curve",
    "Subspace": "vectors.subspace",
    "Sums": "mappers.sums",
    "Tokens": "data.tokens",
    "TransferReport": "evaluation.result",
    "VectorSet": "vectors.bundle",
    "Where": "positions",
    "attach": "models.attach",
    "bake": "models.bake",
    "calibrate": "strength.bench",
    "capture": "models.record",
    "capture_corpus": "cluster.capture",
    "check_contrast": "extract.hygiene",
    "check_sae": "sae.check",
    "collect": "mappers.fit",
    "contrast_subspace": "extract.components",
    "correlate_features": "features.correlate",
    "cycle_fvu": "mappers.cycle",
    "describe": "interventions",
    "encode": "data.encode",
    "encode_chat": "data.chat",
    "evaluate": "evaluation.report",
    "everywhere": "positions",
    "feature_effects": "evaluation.feature_effects",
    "first_generated": "positions",
    "fit": "mappers.fit",
    "fit_corpus": "cluster.fit",
    "fit_gate": "interventions",
    "fit_grid": "mappers.fit",
    "fit_sums": "mappers.fit",
    "fold_sae": "sae.fold",
    "from_position": "positions",
    "fvu_gap": "mappers.compare",
    "generated": "positions",
    "last_prompt_token": "positions",
    "layer_grid": "layers.grid",
    "lda_probe": "extract.probes",
    "load": "persistence",
    "load_model": "models.load",
    "load_sae": "sae.load",
    "logistic_probe": "extract.probes",
    "mapping_methods": "mappers.registry",
    "match_features": "features.match",
    "mean_difference": "extract.means",
    "mean_differences": "extract.means",
    "message": "positions",
    "open_stores": "cluster.capture",
    "opening_score": "extract.selection",
    "pca_difference": "extract.components",
    "plan_capture": "models.record",
    "prompt": "positions",
    "prompt_pair": "extract.phrases",
    "prompt_pairs": "extract.phrase_pairs",
    "random_directions": "extract.features",
    "random_label_cosines": "evaluation.random_labels",
    "read_contrast": "extract.contrast",
    "read_contrasts": "extract.contrast",
    "read_direction": "features.direction",
    "read_features": "features.inspect",
    "regex": "positions",
    "regress_features": "features.regress",
    "rows": "positions",
    "run": "pipeline",
    "sae_feature": "extract.features",
    "save": "persistence",
    "select_direction": "extract.selection",
    "span": "positions",
    "splice": "splicing",
    "strength_sweep": "strength.bench",
    "suggest_layers": "layers.suggest",
    "token_ids": "positions",
    "token_mask": "positions",
    "train_sae": "sae.train",
    "train_crosscoder": "features.crosscoder",
    "transfer": "mappers.transfer",
    "transfer_level": "mappers.transfer",
    "user_messages": "extract.reading",
    "when": "interventions",
    "window": "positions",
    "with_splice": "splicing",
    "words_of_feature": "evaluation.feature_effects",
}
_MODULES = ("corpora", "errors", "exchange", "metrics", "plots", "schedules", "tasks", "views")

__all__ = ["__version__", *sorted(_PUBLIC), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"tl_transfer.{_PUBLIC[name]}"), name)
    if name == "corpora":
        return import_module("tl_transfer.data.corpora")
    if name == "schedules":
        return import_module("tl_transfer.interventions.schedules")
    if name in _MODULES:
        return import_module(f"tl_transfer.{name}")
    raise AttributeError(f"module 'tl_transfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
