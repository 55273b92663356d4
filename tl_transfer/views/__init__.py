"""Things to look at in a notebook; each holds its data, and needs no network to be drawn."""

from tl_transfer.views.attention import attention
from tl_transfer.views.chart import Chart
from tl_transfer.views.chosen import chosen_tokens
from tl_transfer.views.curves import effect_damage, matched_damage, strength_curves
from tl_transfer.views.effects import logit_effect, logit_lens
from tl_transfer.views.feature import direction, feature
from tl_transfer.views.live import live
from tl_transfer.views.maps import direction_r2, layer_grid, score_card, singular_spectrum
from tl_transfer.views.pairs import transfer_matrix
from tl_transfer.views.steering import steer
from tl_transfer.views.tokens import projection, token_change
from tl_transfer.views.view import View, save_page

__all__ = [
    "Chart",
    "View",
    "attention",
    "chosen_tokens",
    "direction",
    "direction_r2",
    "effect_damage",
    "feature",
    "layer_grid",
    "live",
    "logit_effect",
    "logit_lens",
    "matched_damage",
    "projection",
    "save_page",
    "score_card",
    "singular_spectrum",
    "steer",
    "strength_curves",
    "token_change",
    "transfer_matrix",
]
