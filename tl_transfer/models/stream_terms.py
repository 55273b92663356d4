"""The residual stream of a checkpoint as a sum of terms, and affine edits moved into the weights.

Every term is a matrix that writes to the stream (embedding, attention output, MLP output), with
its bias and the gain of a norm behind it. An edit of the stream becomes an edit of the terms where
that is exact, and is refused elsewhere (see `models.writes` for where checkpoints keep them).
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError, ModelError
from tl_transfer.interventions.affine import AffineForm
from tl_transfer.models.point import HookPoint
from tl_transfer.models.writes import Writes

State = dict[str, Tensor]


@dataclass
class Term:
    """One term of the residual stream and the edits it is to have.

    Attributes:
        name: Name of the matrix, without ``.weight`` where it is a module's.
        matrix: The matrix as [d_model, n], a view of the checkpoint's.
        bias: Its bias, or None.
        gain: Gain of the norm between the matrix and the stream, or None.
        steps: Edits, in order.
    """

    name: str
    matrix: Tensor
    bias: Tensor | None = None
    gain: Float[Tensor, " d_model"] | None = None
    steps: list[AffineForm] = field(default_factory=list)

    def apply(self, step: AffineForm) -> None:
        """Add an edit at the end."""
        if self.gain is not None:
            _require_diagonal(step, self.name)
        self.steps.append(step)

    def linear(self, columns: Float[Tensor, "d_model n"]) -> Float[Tensor, "d_model n"]:
        """The linear parts of all edits."""
        for step in self.steps:
            columns = step.linear(columns)
        return columns

    def constant(self) -> Float[Tensor, " d_model"]:
        """What the term adds at every token: the bias, edited."""
        if self.bias is None:
            point = torch.zeros(len(self.matrix), dtype=torch.float64)
        else:
            point = self.bias.detach().cpu().double()
        size = float(point.norm())
        for step in self.steps:
            point = step(point)
            size += float(step.shift.norm())
        # What an ablation left of a constant by rounding needs no bias.
        return point if float(point.norm()) > 1e-12 * size else torch.zeros_like(point)

    def writes_along(self, basis: Float[Tensor, "d_model k"]) -> bool:
        """Whether the edited term has any component along a subspace."""
        constant = self.constant()
        if float((basis.T @ constant).norm()) > 1e-6 * float(constant.norm()):
            return True
        # Every linear part is symmetric, so B^T M2 M1 W = (M1 M2 B)^T W; no large matrix is made.
        for step in reversed(self.steps):
            basis = step.linear(basis)
        if self.gain is not None:
            basis = self.gain[:, None] * basis
        if float(basis.norm()) < 1e-9:
            return False
        matrix = self.matrix.detach().float()
        along = basis.float().to(matrix.device).T @ matrix
        return float(along.norm()) > 1e-6 * float(matrix.norm())


def _require_diagonal(step: AffineForm, name: str) -> None:
    """Behind a norm only an edit of single coordinates can be absorbed; see `models.writes`."""
    # A projection is diagonal only if its diagonal is all zeros and ones.
    removed = step.basis.square().sum(1)
    constant = bool(step.shift.any())
    if constant or bool(torch.minimum(removed, 1.0 - removed).max() > 1e-6):
        raise ModelError(
            f"interventions: {name} goes through a norm before it is added to the stream",
            got="a constant" if constant else "a projection",
            valid="ablation of single coordinates of the stream, which the gain of the norm "
            "absorbs, or edits of the embedding (resid_pre@0)",
            hint="the norm divides by a length that the edit changes, so no weights give exactly "
            "this; use hooks: attach(model, ...), or export a hook recipe",
        )


@dataclass(frozen=True)
class Terms:
    """All terms of the stream with their edits, and the parameters they are made of."""

    writes: Writes
    state: State
    embeddings: list[Term]
    attn: list[Term]
    mlp: list[Term]

    @classmethod
    def of(cls, state: State, writes: Writes, n_layers: int) -> "Terms":
        """The unedited terms of a checkpoint."""
        names = [writes.embedding] + ([writes.positions] if writes.positions else [])

        def outputs(name: str, norm: str | None) -> list[Term]:
            return [_term(state, writes, name, norm, layer) for layer in range(n_layers)]

        return cls(
            writes,
            state,
            [Term(name, state[name].detach().T) for name in names],
            outputs(writes.attn_out, writes.attn_norm),
            outputs(writes.mlp_out, writes.mlp_norm),
        )

    def apply(self, steps: dict[HookPoint, list[AffineForm]]) -> None:
        """Give every edit to the term it belongs to, in the order in which hooks would fire."""
        for i, term in enumerate(self.embeddings):
            for step in steps.get(HookPoint("resid_pre", 0), []):
                # The sum of the embeddings moves once: the constant goes to the first of them.
                term.apply(step if i == 0 else replace(step, shift=0.0 * step.shift))
        before = list(self.embeddings)
        for layer, (attn, mlp) in enumerate(zip(self.attn, self.mlp, strict=True)):
            for step in steps.get(HookPoint("attn_out", layer), []):
                attn.apply(step)
            for step in steps.get(HookPoint("mlp_out", layer), []):
                mlp.apply(step)
            before += [attn, mlp]
            for step in steps.get(HookPoint("resid_post", layer), []):
                _edit_stream(step, before, layer)

    @property
    def unties(self) -> bool:
        """Whether the token embedding changes, which a tied unembedding must not."""
        return bool(self.embeddings[0].steps)

    def new(self, embedding_scale: float) -> State:
        """The parameters that change, in the dtype of the old ones."""
        found: State = {}
        first = self.embeddings[0]
        for term in self.embeddings:
            if term.steps:
                matrix = term.linear(term.matrix.cpu().double())
                if term is first:
                    # Gemma multiplies the rows it looks up by this number.
                    matrix = matrix + (term.constant() / embedding_scale)[:, None]
                found[term.name] = matrix.T
        for norm, terms in ((self.writes.attn_norm, self.attn), (self.writes.mlp_norm, self.mlp)):
            for layer, term in enumerate(terms):
                if term.steps:
                    found |= self._output(term, norm.format(layer) if norm else None)
        return {name: _like(tensor, self.state.get(name), first) for name, tensor in found.items()}

    def _output(self, term: Term, norm: str | None) -> State:
        if norm is not None and term.gain is not None:
            gain = term.linear(term.gain.diag()).diagonal()
            return {f"{norm}.weight": gain - self.writes.gain_offset}
        matrix = term.linear(term.matrix.cpu().double())
        found = {f"{term.name}.weight": matrix.T if self.writes.transposed else matrix}
        if term.bias is not None or bool(term.constant().any()):
            found[f"{term.name}.bias"] = term.constant()
        return found


def _like(tensor: Tensor, old: Tensor | None, fallback: Term) -> Tensor:
    reference = fallback.matrix if old is None else old
    return tensor.to(reference.dtype).contiguous()


def _term(state: State, writes: Writes, name: str, norm: str | None, layer: int) -> Term:
    name = name.format(layer)
    matrix = state[f"{name}.weight"].detach()
    gain = None
    if norm is not None:
        stored = state[f"{norm.format(layer)}.weight"].detach().cpu().double()
        gain = stored + writes.gain_offset
    bias = state.get(f"{name}.bias")
    return Term(name, matrix.T if writes.transposed else matrix, bias, gain)


def _edit_stream(step: AffineForm, terms: list[Term], layer: int) -> None:
    """An edit of the sum after a layer: a projection must be idle; a constant joins a term."""
    along = [term.name for term in terms if term.writes_along(step.basis)]
    if along:
        raise InputError(
            f"interventions: an ablation at resid_post@{layer} alone is no change of weights, for "
            "what was written along the direction before is in the stream already",
            got=f"{len(along)} of {len(terms)} terms write along it, first {along[0]}",
            valid='Ablate(vector, layers="all"): at every write',
            hint="ablate at every write, or use hooks: attach(model, ...)",
        )
    if bool(step.shift.any()):
        terms[-1].apply(AffineForm(step.basis[:, :0], 0.0, step.shift))
