"""From texts to vectors: estimators, and checks of what they are made from."""

from tl_transfer.data.texts import text_hash
from tl_transfer.extract.components import contrast_subspace, pca_difference
from tl_transfer.extract.contrast import Contrast, read_contrast, read_contrasts
from tl_transfer.extract.features import random_directions, sae_feature
from tl_transfer.extract.hygiene import ContrastCheck, ContrastWarning, check_contrast
from tl_transfer.extract.means import mean_difference, mean_differences
from tl_transfer.extract.phrase_pairs import prompt_pairs
from tl_transfer.extract.phrases import prompt_pair
from tl_transfer.extract.probes import lda_probe, logistic_probe
from tl_transfer.extract.reading import user_messages

__all__ = [
    "Contrast",
    "ContrastCheck",
    "ContrastWarning",
    "check_contrast",
    "contrast_subspace",
    "lda_probe",
    "logistic_probe",
    "mean_difference",
    "mean_differences",
    "pca_difference",
    "prompt_pair",
    "prompt_pairs",
    "random_directions",
    "read_contrast",
    "read_contrasts",
    "sae_feature",
    "text_hash",
    "user_messages",
]
