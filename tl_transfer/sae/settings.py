"""SaeSettings: how an SAE is trained."""

from dataclasses import dataclass

from tl_transfer.errors import InputError

ARCHITECTURES = ("batchtopk", "topk")


@dataclass(frozen=True)
class SaeSettings:
    """How an SAE is trained.

    Attributes:
        d_sae: Features.
        k: Features on in a row: exactly (``topk``) or on average (``batchtopk``).
        architecture: ``batchtopk`` (saved as jumprelu with one threshold) or ``topk``.
        epochs: Passes over the rows.
        batch_rows: Rows of a step.
        learning_rate: Of Adam; warmed up over the first twentieth, to zero over the last quarter.
        dead_after_rows: A feature that was not on in so many rows gets the auxiliary loss.
        start: ``"rows"``: decoder rows begin as differences of training rows from their mean;
            ``"random"``: as sae-lens draws them.
        seed: Of the start and the order of rows.
    """

    d_sae: int = 4096
    k: int = 32
    architecture: str = "batchtopk"
    epochs: int = 2
    batch_rows: int = 512
    learning_rate: float = 2e-3
    dead_after_rows: int = 50_000
    start: str = "rows"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, valid in (
            ("architecture", self.architecture in ARCHITECTURES, ", ".join(ARCHITECTURES)),
            ("start", self.start in ("rows", "random"), '"rows" or "random"'),
            ("d_sae", self.d_sae >= 1, "1 or more"),
            ("k", 1 <= self.k <= self.d_sae, f"1 to d_sae = {self.d_sae}"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_rows", self.batch_rows >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("dead_after_rows", self.dead_after_rows >= 1, "1 or more"),
        ):
            if not ok:
                raise InputError(
                    f"{name}: cannot be trained with",
                    got=repr(getattr(self, name)),
                    valid=valid,
                    hint="leave it out for the default",
                )
