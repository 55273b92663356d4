"""check_sae: does this SAE belong to these activations? Refused with the numbers if not.

What an SAE says of itself (width, hook point, space) is compared first. Then it reads texts: the
variance it leaves (FVU), how many features are on, how many never are, and the length of what it
rebuilds, beside a random dictionary with as many active directions. Another model of the same width
or activations in other units show in FVU, whatever the labels say. The layers next door are too
much alike for any limit, so they are read in the same pass: an SAE belongs where it fits best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import Site
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.load import require_site
from tl_transfer.sae.measure import Fidelity, fidelity, fvu_of, random_dictionary
from tl_transfer.sae.rows import read_rows

#: Refused above this share of unexplained variance: see docs/how-to/train_sae.md for what the
#: SAEs of this package and their neighbours' layers reach.
MAX_FVU = 0.5
#: Rows below which no verdict is given.
MIN_ROWS = 200
#: Rows read at most, and of those for the control: the verdict is not about the third digit.
MAX_ROWS = 8192
_CONTROL_ROWS = 2048
#: Layers on either side that are read too, and how much lower the FVU there must be to count.
_NEAR = 2
_CLEARLY = 0.95


class WrongSaeError(InputError):
    """An SAE that does not belong to the activations it was checked on; `check` has the numbers."""

    check: "SaeCheck"


@dataclass(frozen=True, repr=False)
class SaeCheck:
    """How an SAE fits a site.

    Attributes:
        sae: The SAE, with its space if it was accepted.
        fidelity: FVU, L0 and the rest on the texts.
        random_fvu: FVU of a random dictionary with as many directions on.
        max_fvu: The limit it was held against.
        elsewhere: FVU at the neighbouring layers, on some of the rows; this one among them.
        dropped: Tokens left out, by reason.
        reasons: Why it is refused; empty when it belongs here.
        remarks: What a reader should know.
    """

    sae: Dictionary
    fidelity: Fidelity
    random_fvu: float
    max_fvu: float
    elsewhere: dict[str, float]
    dropped: dict[str, int]
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    @property
    def belongs(self) -> bool:
        """Whether it was accepted."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Every number, for a JSON file."""
        space = self.sae.space
        return {
            "sae": self.sae.identity,
            "architecture": self.sae.architecture,
            "d_sae": self.sae.d_sae,
            "d_model": self.sae.d_model,
            "space": None if space is None else space.to_json(),
            "belongs": self.belongs,
            **self.fidelity.to_dict(),
            "random_fvu": self.random_fvu,
            "max_fvu": self.max_fvu,
            "elsewhere": self.elsewhere,
            "dropped": self.dropped,
            "reasons": list(self.reasons),
            "remarks": list(self.remarks),
        }

    def __repr__(self) -> str:
        f = self.fidelity
        ci = "" if f.fvu_ci95 is None else f" [{f.fvu_ci95[0]:.3f}, {f.fvu_ci95[1]:.3f}]"
        lines = [
            f"{'belongs' if self.belongs else 'DOES NOT BELONG'}: {self.sae!r}",
            f"  FVU          {f.fvu:.3f}{ci} over {f.n_rows} rows of {f.n_documents} documents "
            f"(at most {self.max_fvu:g}; random dictionary {self.random_fvu:.3f})",
            "  next door    "
            + ", ".join(f"{name.split('.')[1]}: {fvu:.3f}" for name, fvu in self.elsewhere.items())
            + " (FVU by layer)",
            f"  L0           {f.l0:.1f} on average, {f.l0_spread[0]:.0f} to {f.l0_spread[2]:.0f} "
            "in nine rows of ten",
            f"  never on     {f.dead_share:.1%} of {self.sae.d_sae} features over these rows",
            f"  length       {f.norm_ratio:.2f} of the rows' own",
        ]
        lines += [f"  refused:     {reason}" for reason in self.reasons]
        lines += [f"  remark:      {remark}" for remark in self.remarks]
        return "\n".join(lines)


def check_sae(
    sae: Any,
    site: Site,
    texts: Sequence[Any],
    *,
    documents: Sequence[str] | None = None,
    max_fvu: float = MAX_FVU,
    refuse: bool = True,
    progress: bool = False,
) -> SaeCheck:
    """Whether an SAE belongs to the activations of a site, measured on texts.

    Args:
        sae: A `Dictionary`, or whatever `tl_transfer.load_sae` takes as an object.
        site: Model and hook point.
        texts: General texts it was not trained on; some tens of passages.
        documents: Document of each text, for the interval.
        max_fvu: Most unexplained variance; a real number says how good the SAE must be for you.
        refuse: Raise when it does not belong; otherwise the reasons are in the result.
        progress: Show a progress bar.

    Returns:
        The numbers, and the SAE with its space (`SaeCheck.sae`), ready for use at this site.

    Raises:
        InputError: another width or hook point, or too few rows.
        SpaceError: it was trained here, on other activations.
        WrongSaeError: it explains too little here.
    """
    dictionary = Dictionary.of(sae)
    require_site(dictionary, site)
    near = _neighbours(site)
    rows = read_rows(
        site, texts, documents=documents, max_rows=MAX_ROWS, beside=near, progress=progress
    )
    if len(rows.x) < MIN_ROWS:
        raise InputError(
            "texts: too few tokens to judge an SAE by",
            got=f"{len(rows.x)} rows of {len(texts)} texts",
            valid=f"{MIN_ROWS} rows or more",
            hint="pass some tens of passages, e.g. tl_transfer.corpora.general(40)",
        )
    scores = fidelity(dictionary, rows.x, rows.document)
    k = max(1, round(min(scores.l0, dictionary.d_model)))
    step = -(-len(rows.x) // _CONTROL_ROWS)
    some = rows.x[::step]
    chance = fvu_of(random_dictionary(some, dictionary.d_sae, k).reconstruct, some)
    by_layer = {site.point.name: some, **{name: x[::step] for name, x in rows.beside.items()}}
    elsewhere = {
        point.name: fvu_of(dictionary.reconstruct, by_layer[point.name])
        for point in sorted([site.point, *near], key=lambda point: point.layer)
    }
    result = SaeCheck(
        dictionary,
        scores,
        chance,
        max_fvu,
        elsewhere,
        rows.dropped,
        tuple(_reasons(scores, chance, max_fvu) + _better_fit(elsewhere, site)),
        tuple(_remarks(dictionary, site)),
    )
    if result.belongs:
        return replace(result, sae=replace(dictionary, space=site.space))
    if not refuse:
        return result
    error = WrongSaeError(
        f"sae: does not belong to the activations of {site!r}",
        got=f"{'; '.join(result.reasons)} (FVU {scores.fvu:.3f}, L0 {scores.l0:.1f}, "
        f"{scores.dead_share:.0%} of the features never on, length {scores.norm_ratio:.2f})",
        valid=f"FVU at most {max_fvu:g}, below a random dictionary's {chance:.3f}, and no layer "
        "next door that it fits better",
        hint=_hint(scores, _better_fit(elsewhere, site)),
    )
    error.check = result
    raise error


def _reasons(scores: Fidelity, chance: float, max_fvu: float) -> list[str]:
    found = []
    if not scores.fvu <= max_fvu:
        found.append(f"leaves {scores.fvu:.3f} of the variance")
    if not scores.fvu < chance:
        found.append(f"no better than a random dictionary with as many directions ({chance:.3f})")
    if scores.l0 == 0:
        found.append("no feature is ever on")
    return found


def _neighbours(site: Site) -> list[HookPoint]:
    """The same hook point of the layers on either side."""
    here = site.point
    layers = range(max(0, here.layer - _NEAR), min(site.model.n_layers, here.layer + _NEAR + 1))
    named = [HookPoint(here.kind, layer).name for layer in layers if layer != here.layer]
    return [site.model.hook_point(name) for name in named]


def _better_fit(elsewhere: dict[str, float], site: Site) -> list[str]:
    best = min(elsewhere, key=lambda name: elsewhere[name])
    here = elsewhere[site.point.name]
    if elsewhere[best] >= _CLEARLY * here:
        return []
    return [f"fits {best} better (FVU {elsewhere[best]:.3f} there, {here:.3f} here)"]


def _remarks(dictionary: Dictionary, site: Site) -> list[str]:
    metadata = dictionary.origin.get("metadata") or {}
    found = []
    if dictionary.hook_point is None:
        found.append("the SAE does not say where it was trained: only the numbers speak for it")
    said = metadata.get("model_name")
    if said and str(said).lower().split("/")[-1] != site.model.name.lower().split("/")[-1]:
        found.append(f"it says it was trained on {said!r}, here is {site.model.name!r}")
    if processing := metadata.get("model_from_pretrained_kwargs"):
        found.append(
            f"it says its model was loaded with {processing}, here the weights are "
            f"{site.space.processing}: other numbers, unless it was trained on the same"
        )
    if metadata.get("prepend_bos") is True:
        found.append("trained with a BOS before each text; position 0 is never read here")
    if dictionary.row_norm != "none":
        found.append(f"normalises every row ({dictionary.row_norm}): decode needs at=")
    return found


def _hint(scores: Fidelity, better: list[str]) -> str:
    if better:
        return "try the layer where it fits best, or find out where it was trained"
    if scores.norm_ratio < 0.5 or scores.norm_ratio > 2.0:
        return (
            "what it rebuilds has another length: other units (input_scale), another layer, "
            "folded weights or another model"
        )
    return (
        "take the SAE of this model and layer; raise max_fvu if this one is known to be that "
        "coarse; refuse=False returns the numbers"
    )
