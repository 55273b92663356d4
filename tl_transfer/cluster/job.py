"""What a worker is told: which models to load, which corpus, and how to read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_transfer.cluster.records import Corpus
from tl_transfer.data.tokens import Tokens
from tl_transfer.errors import InputError
from tl_transfer.models import load
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.surface import HookedModel

#: Bytes of text in a unit: what is lost when a process dies, and what one set of sums is sent for.
UNIT_BYTES = 16 << 20
#: Bytes of text that are tokenised together; batches are formed within them.
PART_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelSite:
    """A model that every worker loads for itself, at a hook point.

    Attributes:
        model: What `load_model` takes (a bundled name, a hub id, a folder that every worker
            sees), or a function without arguments that returns a `HookedModel`, for quantised
            models and for models over several GPUs.
        hook_point: E.g. ``resid_post@15``.
        options: Further arguments of `load_model`.
    """

    model: str | Path | Callable[[], HookedModel]
    hook_point: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, argument: str) -> "ModelSite":
        """From itself, or from a pair of model and hook point.

        Args:
            given: A `ModelSite`, or a pair.
            argument: Its name in errors.

        Raises:
            InputError: anything else, a loaded model among it.
        """
        if isinstance(given, ModelSite):
            return given
        pair = given if isinstance(given, tuple | list) and len(given) == 2 else ("", None)
        model: Any = pair[0]
        named = isinstance(model, str | Path) or (
            callable(model) and not isinstance(model, HookedModel)
        )
        if named and isinstance(pair[1], str):
            return cls(model, pair[1])
        raise InputError(
            f"{argument}: a model that every worker can load, and a hook point",
            got=repr(given)[:120],
            valid='("gemma-3-270m", "resid_post@9"), or a ModelSite with options or a function',
            hint="a model that is loaded here cannot travel: pass its name or folder",
        )

    def load(self) -> HookedModel:
        """The model, loaded in this process."""
        if isinstance(self.model, str | Path):
            return load.load_model(self.model, **self.options)
        return self.model()


@dataclass(frozen=True)
class Job:
    """All that decides what the workers compute.

    Attributes:
        corpus: What is read.
        sites: Source and target; one site for a capture.
        tokens: Which tokens are rows.
        seed: Of the split by document and of the shuffled control.
        max_tokens: Cells of one forward batch.
        part_bytes: See `PART_BYTES`.
        threads: Threads of torch in a worker; None leaves them as they are. Another number may
            round float32 products differently.
        store: Folder of a capture.
        shard_rows: Rows of one of its files.
    """

    corpus: Corpus
    sites: tuple[ModelSite, ...]
    tokens: Tokens = field(default_factory=Tokens)
    seed: int = 0
    max_tokens: int = MAX_TOKENS
    part_bytes: int = PART_BYTES
    threads: int | None = None
    store: str | None = None
    shard_rows: int | None = None
