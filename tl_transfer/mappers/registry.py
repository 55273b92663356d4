"""The registry of mapping methods: a name, the solver behind it, its options and its source.

Every affine method is a function of `Training` (sums by document fold, nothing of the held-out
part) with keyword options, which are its hyperparameters; what is left out is chosen on the folds.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

from tl_transfer.errors import InputError
from tl_transfer.mappers import controls
from tl_transfer.mappers.anchors import anchors
from tl_transfer.mappers.autoencoder import autoencoder, gradient_affine, untrained_autoencoder
from tl_transfer.mappers.embeddings import embeddings
from tl_transfer.mappers.identity import ridge_to_identity
from tl_transfer.mappers.procrustes import procrustes
from tl_transfer.mappers.reduced_rank import reduced_rank
from tl_transfer.mappers.ridge import ols, ridge
from tl_transfer.mappers.solution import ReluSolution, Solution
from tl_transfer.mappers.spectral import cca, soft_cca, whitened_procrustes
from tl_transfer.mappers.training import Training

Solver = Callable[..., Solution | ReluSolution]


@dataclass(frozen=True)
class Method:
    """One way to fit a map.

    Attributes:
        name: What ``fit(method=...)`` takes.
        solve: Function of `Training` and keyword options.
        reads: ``"sums"``, ``"rows"`` or ``"embeddings"``: what it needs besides the sums.
        control: True for maps that must not work.
        summary: One line, with the source.
        back: Method of the way back; "": the same.
    """

    name: str
    solve: Solver
    summary: str
    reads: str = "sums"
    control: bool = False
    back: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the hyperparameters."""
        return tuple(inspect.signature(self.solve).parameters)[1:]


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS: dict[str, Method] = _table(
    Method("ridge", ridge, "least squares with a penalty (Hoerl and Kennard 1970)"),
    Method("ols", ols, "least squares"),
    Method("procrustes", procrustes, "one rotation and one scale (Schönemann 1966)"),
    Method(
        "whitened_procrustes", whitened_procrustes, "rotation between whitened spaces; no shrinkage"
    ),
    Method("cca", cca, "the most correlated directions only, unshrunk (Hotelling 1936)"),
    Method("soft_cca", soft_cca, "least squares with uncorrelated directions faded out"),
    Method("reduced_rank", reduced_rank, "ridge of limited rank (Izenman 1975)"),
    Method(
        "ridge_to_identity", ridge_to_identity, "one plus a small change, for versions of one model"
    ),
    Method(
        "anchors", anchors, "coordinates against anchor rows (Moschella et al. 2023)", reads="rows"
    ),
    Method(
        "embeddings",
        embeddings,
        "ridge on the embeddings of shared tokens (Lee et al. 2025)",
        reads="embeddings",
    ),
    Method(
        "autoencoder",
        autoencoder,
        "one hidden layer of rectified units (Oozeer et al. 2025), or affine plus one",
        reads="rows",
        back="ridge",
    ),
    Method("mean_only", controls.mean_only, "control: everything to the mean", control=True),
    Method(
        "random_orthogonal", controls.random_orthogonal, "control: a random rotation", control=True
    ),
    Method("identity", controls.identity, "control: coordinates copied, zero-padded", control=True),
    Method(
        "untrained_autoencoder",
        untrained_autoencoder,
        "control: the paper's network before training",
        reads="rows",
        control=True,
        back="ridge",
    ),
    Method(
        "gradient_affine",
        gradient_affine,
        "control: the paper's affine baseline, trained like its autoencoder",
        reads="rows",
        control=True,
        back="ridge",
    ),
)


def find(name: str, options: dict[str, Any] | None = None) -> Method:
    """The method of that name; unknown names and options are refused with the valid ones."""
    method = METHODS.get(name)
    if method is None:
        raise InputError(
            "method: unknown mapping method",
            got=repr(name),
            valid=", ".join(METHODS),
            hint='"ridge" is the default',
        )
    unknown = sorted(set(options or {}) - set(method.options))
    if unknown:
        raise InputError(
            f"{unknown[0]}: not an option of method {name!r}",
            got=", ".join(f"{key}={(options or {})[key]!r}" for key in unknown),
            valid=", ".join(method.options) or "none",
            hint="leave it out, or choose another method",
        )
    for option, value in (options or {}).items():
        _require_kind(method, option, value)
    return method


#: Type in a solver's signature -> what a value of it is; a truth value is no number.
_KINDS: dict[type, Callable[[Any], bool]] = {
    int: lambda v: isinstance(v, Integral) and not isinstance(v, bool),
    float: lambda v: isinstance(v, Real) and not isinstance(v, bool),
    str: lambda v: isinstance(v, str),
    bool: lambda v: isinstance(v, bool),
    NoneType: lambda v: v is None,
}


def _require_kind(method: Method, option: str, value: Any) -> None:
    annotation = inspect.signature(method.solve).parameters[option].annotation
    kinds = get_args(annotation) or (annotation,)
    if not any(_KINDS[kind](value) for kind in kinds):
        raise InputError(
            f"{option}: not a value of this option of method {method.name!r}",
            got=repr(value)[:80],
            valid=" or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds),
            hint="leave it out for the default",
        )


def solve(name: str, training: Training, **options: Any) -> Solution | ReluSolution:
    """Solve one method on sums; any number of machines may have made them.

    Raises:
        InputError: unknown method or option, or rows that cannot determine a map.
    """
    method = find(name, options)
    require_rows(training)
    return method.solve(training, **options)


def require_rows(training: Training) -> None:
    """Refuse sums that cannot determine a map: too few rows, not finite, or not varying."""
    m = training.total
    d_source = len(m.mean_x)
    if m.n <= d_source:
        raise InputError(
            "texts: fewer training rows than source dimensions, so any labels could be fitted",
            got=f"{m.n:g} aligned token pairs in the training documents, d_source {d_source}",
            valid=f"more than {d_source}, and better {20 * d_source}",
            hint="pass more or longer texts",
        )
    size = {"source": float(m.xx.trace()), "target": float(m.yy.trace())}
    total = sum(size.values()) + float(m.xy.sum())
    if total != total or total in (float("inf"), float("-inf")):
        raise InputError(
            "activations: the sums are not finite",
            got=f"total variance {size}",
            valid="finite activations",
            hint="use dtype='float32', or look for the text with NaN activations",
        )
    for side, variance in size.items():
        if variance <= 0.0:
            raise InputError(
                f"activations: all {side} rows are the same",
                got=f"variance {variance} over {m.n} rows",
                valid="rows that vary",
                hint="pass more varied texts, and check the hook point",
            )


def mapping_methods() -> dict[str, Method]:
    """Name -> method, for every value of ``fit(method=...)``; controls are marked."""
    return dict(METHODS)
