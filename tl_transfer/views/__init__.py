"""Things to look at in a notebook; each holds its data, and needs no network to be drawn."""

from tl_transfer.views.attention import attention
from tl_transfer.views.chart import Chart
from tl_transfer.views.effects import logit_effect, logit_lens
from tl_transfer.views.pairs import transfer_matrix
from tl_transfer.views.tokens import projection, token_change
from tl_transfer.views.view import View, save_page

__all__ = [
    "Chart",
    "View",
    "attention",
    "logit_effect",
    "logit_lens",
    "projection",
    "save_page",
    "token_change",
    "transfer_matrix",
]
