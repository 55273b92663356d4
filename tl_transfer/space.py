"""ActivationSpace: where activations live, and the refusal to mix two different places."""

from dataclasses import asdict, dataclass, fields

from tl_transfer.errors import SpaceError


@dataclass(frozen=True)
class ActivationSpace:
    """Identity of the space in which a vector, a map or a row of activations lives.

    Attributes:
        model: Name or path the model was loaded under (for people; not compared).
        weights: Fingerprint of the weights (SHA-256 over sampled parameters).
        hook_point: Canonical hook point, e.g. ``blocks.9.hook_resid_post``.
        d_model: Width.
        processing: ``"raw"``, or what was folded or centred in the weights.
        tokenizer: Fingerprint of vocabulary, merges and normaliser.
        chat_template: Fingerprint of the chat template, ``"none"`` when there is none.
        dtype: Parameter dtype when the activations were read (recorded, not compared).
    """

    model: str
    weights: str
    hook_point: str
    d_model: int
    processing: str
    tokenizer: str
    chat_template: str
    dtype: str

    def differences(self, other: "ActivationSpace") -> list[str]:
        """Lines ``field: mine != theirs`` for every compared field that differs."""
        ignored = {"model", "dtype"}
        return [
            f"{field.name}: {getattr(self, field.name)} != {getattr(other, field.name)}"
            for field in fields(self)
            if field.name not in ignored and getattr(self, field.name) != getattr(other, field.name)
        ]

    def require(self, other: "ActivationSpace", what: str) -> None:
        """Raise SpaceError, with both sides printed, unless `other` is this space.

        Args:
            other: The space that came.
            what: Who meets whom, e.g. ``"steering vector on target model"``.
        """
        differences = self.differences(other)
        if differences:
            raise SpaceError(
                f"{what}: the two activation spaces differ in {'; '.join(differences)}",
                got=str(other),
                valid=str(self),
                hint="use the artefact with the model, hook point and processing it was made on, "
                "or make it again here",
            )

    def __str__(self) -> str:
        return (
            f"{self.model} @ {self.hook_point} (d_model {self.d_model}, {self.processing}, "
            f"weights {self.weights[:12]}, tokenizer {self.tokenizer[:12]}, "
            f"chat template {self.chat_template[:12]})"
        )

    def to_json(self) -> dict[str, str | int]:
        """Plain fields, for headers and reports."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields_: dict) -> "ActivationSpace":
        """Inverse of `to_json`; unknown or missing fields raise TypeError."""
        return cls(**fields_)
