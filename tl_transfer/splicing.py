"""splice: let the target continue from mapped activations, and see how much of its loss is left.

A far harder test of a map than steering: everything the later layers read has gone through it. But
a permissive one: much of what a target needs can be stitched in from unlike models (Smith et al.
2025), so the shuffled map, the identity and mean ablation stand beside it.

`tl_transfer.stitched` says which positions are replaced. Loss and KL are read at those only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.errors import InputError
from tl_transfer.intervals import DocumentBootstrap
from tl_transfer.mappers.base import Mapper
from tl_transfer.metrics import Reference
from tl_transfer.models.capture import MAX_TOKENS
from tl_transfer.models.surface import HookedModel
from tl_transfer.stitched import MEAN, Stitch, Stitched

#: Positions read of a text: neighbours say nearly the same, and unembedding them is the cost.
PER_TEXT = 16
#: Rows unembedded together: a vocabulary of 262k makes each of them a megabyte.
_ROWS = 64


@dataclass(frozen=True)
class Splice:
    """Next-token loss of a target that continues from other activations.

    Attributes:
        loss: The target's own loss at the same positions, nats a token.
        arms: ``mapped``, ``mean_ablation``, and where they exist ``shuffled`` (the control map)
            and ``identity`` (the source's activation as it is; equal widths). Each has ``loss``,
            ``recovered`` = 1 - (loss - own) / (mean ablation's loss - own), and ``kl`` from the
            target's own distribution, each with ``_ci95`` over documents (None with one).
        n_tokens: Positions read.
        n_texts, n_documents: What they are from.
        coverage: Share of the target's text tokens that were spliced.
        undefined: Why `recovered` is None; empty where it is defined.
    """

    loss: float
    arms: dict[str, dict[str, Any]]
    n_tokens: int
    n_texts: int
    n_documents: int
    coverage: float
    undefined: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "loss": self.loss,
            "arms": self.arms,
            "n_tokens": self.n_tokens,
            "n_texts": self.n_texts,
            "n_documents": self.n_documents,
            "coverage": self.coverage,
            "undefined": self.undefined,
        }

    def on_card(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """A score card with the splice scores of the map and of its control added."""
        added: dict[str, Any] = {**card, "splice": self.to_dict()}
        for side, arm in (("held_out", "mapped"), ("shuffled", "shuffled")):
            scores = self.arms.get(arm, {})
            found = {
                f"splice_{name}{end}": scores.get(f"{name}{end}")
                for name in ("recovered", "kl")
                for end in ("", "_ci95")
            }
            added[side] = {**card.get(side, {}), **(found if scores else {})}
        return added

    def __repr__(self) -> str:
        lines = [
            f"Splice: own loss {self.loss:.3f} nats over {self.n_tokens} tokens of "
            f"{self.n_documents} documents, {self.coverage:.0%} of the tokens spliced"
        ]
        for name, arm in self.arms.items():
            recovered = "n/a" if arm["recovered"] is None else f"{arm['recovered']:.1%}"
            lines.append(
                f"  {name:<14} loss {arm['loss']:.3f}, recovered {recovered}, KL {arm['kl']:.3f}"
            )
        return "\n".join([*lines, *([f"  {self.undefined}"] if self.undefined else [])])


@torch.no_grad()
def splice(
    mapper: Mapper,
    source: HookedModel,
    target: HookedModel,
    texts: Sequence[Any],
    *,
    documents: Sequence[str] | None = None,
    others: Mapping[str, Mapper] | None = None,
    added: Mapping[str, Float[Tensor, " d_target"]] | None = None,
    per_text: int = PER_TEXT,
    max_tokens: int = MAX_TOKENS // 4,
    progress: bool = True,
) -> Splice:
    """Loss of the target when its residual stream at one layer is replaced by mapped activations.

    Args:
        mapper: A map into a ``resid_post`` hook point of the target.
        source: Its source model.
        target: Its target model.
        texts: Texts (or chats) that were not given to `fit`.
        documents: Document id of each text; default, each text is its own document.
        others: More maps between the same hook points, each an arm under its name, on the same
            positions and from the same forward passes.
        added: Steps, each an arm under its name that adds it at every position but the first and
            replaces nothing: the cost of steering beside that of replacement.
        per_text: Spliced positions of a text at which loss and KL are read, evenly spaced.
        max_tokens: Cells of one forward batch; the result does not depend on it.
        progress: Show a progress bar.

    Raises:
        SpaceError: the map is not of these models.
        InputError: a text was given to `fit`, or no position can be spliced.
        HookError: the map's target is not after a block.
    """
    others = dict(others or {})
    source.at(mapper.source.hook_point).space.require(mapper.source, "map and source model")
    target.at(mapper.target.hook_point).space.require(mapper.target, "map and target model")
    given = as_texts(texts)
    hashes = [text_hash(text) for text in given]
    for one in (mapper, *others.values()):
        mapper.source.require(one.source, "two maps spliced at once")
        mapper.target.require(one.target, "two maps spliced at once")
        _require_unseen(one, hashes)
    names = documents_of(hashes, documents)
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    maps = {"mapped": mapper, "shuffled": mapper.shuffled, **others}
    job = Stitched({k: v for k, v in maps.items() if v is not None}, source, target, given)
    groups = job.groups(max_tokens)
    rows = _Rows(per_text)
    for batch in tqdm(
        job.batches(groups), desc="splice", unit="batch", total=len(groups), disable=not progress
    ):
        rows.measure(batch, added or {}, target)
    return rows.summary(torch.tensor([number[name] for name in names]), job.n_tokens)


def _require_unseen(mapper: Mapper, hashes: Sequence[str]) -> None:
    seen = set(hashes) & mapper.fit_texts
    if seen:
        raise InputError(
            "texts: some were given to fit, so their loss would flatter the map",
            got=f"{len(seen)} of {len(hashes)} texts",
            valid="other texts",
            hint="keep some texts back from fit",
        )


@dataclass
class _Rows:
    """What was measured at each position, batch by batch."""

    per_text: int
    text: list[Tensor] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)
    loss: dict[str, list[Tensor]] = field(default_factory=dict)
    kl: dict[str, list[Tensor]] = field(default_factory=dict)
    n_spliced: int = 0

    def measure(self, batch: Stitch, added: Mapping[str, Tensor], target: HookedModel) -> None:
        """Loss and KL of every arm on one batch."""
        self.n_spliced += len(batch.text)
        width = batch.tokens.shape[1]
        read = self._read(batch.text, batch.column, width)
        if not len(read):
            return
        row, column = batch.row[read], batch.column[read]
        names, states = batch.final(added, keep=torch.arange(width))
        states = states[:, row, column]
        following = batch.tokens[row, column + 1]
        self.text.append(batch.text[read.cpu()])
        for first in range(0, len(read), _ROWS):
            part = slice(first, first + _ROWS)
            self._compare(states[:, part], following[part], names, target)

    def _compare(
        self, states: Tensor, following: Tensor, names: list[str], target: HookedModel
    ) -> None:
        def logits(arm: Tensor) -> Tensor:  # one arm at a time: a wide vocabulary fills the memory
            return target.capped(target.host.unembed(arm[None]))[0]

        own = logits(states[0])
        reference = Reference.of(own)
        self.own.append(reference.compare(own, following)[1].double().cpu())
        for name, arm in zip(names[1:], states[1:], strict=True):
            kl, loss = reference.compare(logits(arm), following)
            self.kl.setdefault(name, []).append(kl.clamp(min=0.0).double().cpu())
            self.loss.setdefault(name, []).append(loss.double().cpu())

    def _read(self, text: Tensor, column: Tensor, width: int) -> Int[Tensor, " read"]:
        """Of the spliced positions with a next token, at most `per_text` a text, evenly spaced."""
        usable = (column.cpu() + 1 < width).nonzero()[:, 0]
        parts = []
        for name in text[usable].unique_consecutive().tolist():
            mine = usable[text[usable] == name]
            n = min(self.per_text, len(mine))
            parts.append(mine[torch.linspace(0, len(mine) - 1, n).round().long()])
        return torch.cat(parts).to(column.device) if parts else usable.to(column.device)

    def summary(self, document: Int[Tensor, " text"], n_tokens: int) -> Splice:
        if not self.text:
            raise InputError(
                "texts: no position can be spliced and has a next token",
                got=f"{len(document)} texts",
                valid="texts of a few words that both tokenizers cut at a common place",
                hint="pass longer texts",
            )
        text, own = torch.cat(self.text), torch.cat(self.own)
        loss = {name: torch.cat(parts) for name, parts in self.loss.items()}
        bootstrap = DocumentBootstrap(document[text])
        one, damage = torch.ones_like(own), loss[MEAN] - own
        hurts = float(damage.sum()) > 0
        arms = {}
        for name, values in loss.items():
            kl = torch.cat(self.kl[name])
            share = bootstrap.ratio(values - own, damage) if hurts else None
            arms[name] = {
                "loss": float(values.mean()),
                "loss_ci95": bootstrap.ratio(values, one),
                "recovered": 1.0 - float((values - own).sum() / damage.sum()) if hurts else None,
                "recovered_ci95": None if share is None else [1.0 - share[1], 1.0 - share[0]],
                "kl": float(kl.mean()),
                "kl_ci95": bootstrap.ratio(kl, one),
            }
        return Splice(
            float(own.mean()),
            arms,
            len(own),
            len(text.unique()),
            bootstrap.n,
            self.n_spliced / max(1, n_tokens),
            "" if hurts else "mean ablation does not raise the loss: nothing to recover",
        )


def with_splice(mapper: Mapper, result: Splice) -> Mapper:
    """The same map with the splice scores on its card, which printing shows and saving keeps.

    Args:
        mapper: The map that was spliced.
        result: What `splice` said of it.
    """
    return replace(mapper, scorecard=result.on_card(mapper.scorecard))
