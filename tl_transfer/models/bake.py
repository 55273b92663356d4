"""bake: interventions written into the weights, saved as an ordinary Hugging Face checkpoint.

An addition at every token is a bias, an ablation at every write is a projection of every matrix
that writes to the stream (Arditi et al. 2024, section 2.4), so both can be had with no hook and at
no cost, in any tool that reads checkpoints. What the weights cannot express exactly is refused.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError, ModelError
from tl_transfer.files import fresh_folder
from tl_transfer.interventions import Intervention, Passes, Plan
from tl_transfer.interventions.affine import NAMES, AffineForm, affine_form, is_affine
from tl_transfer.models.attach import attach
from tl_transfer.models.load import load_model
from tl_transfer.models.point import HookPoint
from tl_transfer.models.self_check import CHECK_TEXT
from tl_transfer.models.surface import HookedModel
from tl_transfer.models.writes import Writes, with_biases, writes_of
from tl_transfer.positions import everywhere

State = dict[str, Tensor]


@dataclass
class _Term:
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


def bake(
    model: Any,
    interventions: Intervention | Sequence[Intervention],
    folder: str | Path,
    *,
    check: bool = True,
) -> Path:
    """Write interventions into the weights and save a Hugging Face checkpoint.

    ``Add`` at ``resid_post@L``, ``mlp_out@L`` and ``attn_out@L`` becomes a bias, at ``resid_pre@0``
    part of the token embedding. ``Ablate(layers="all")`` projects every matrix that writes to the
    stream, and ``Ablate`` at one of the writes (``resid_pre@0``, ``attn_out@L``, ``mlp_out@L``)
    that matrix; at ``resid_post@L`` it is accepted where nothing before writes along the direction
    any more, that is, together with ablations at all earlier writes. ``Clamp`` and ``AffineEdit``
    are an ablation and an addition in one.

    Embeddings are untied if they change: the unembedding stays. Qwen 2 and Mistral have no bias on
    their outputs; where one is needed they are saved as ``LlamaForCausalLM``, which computes the
    same and has them.

    A weight acts on every token, so only ``everywhere(sinks=True)`` and one strength for all rows
    can be baked.

    Args:
        model: A `HookedModel` on a bridge, or a live bridge; it is not changed.
        interventions: One or several; at one hook point they act in the order of `attach`.
        folder: Created; it must not exist, or be empty.
        check: Load what was saved and compare its logits with those of the hooks, on one text.

    Returns:
        The folder: config, safetensors, generation settings, tokenizer, and ``baked.json``, which
        says what was baked and how far the check was off.

    Raises:
        InputError: a rule for positions, a strength or an operator that weights cannot express.
        ModelError: the architecture cannot express the edit exactly, or the check failed. Nothing
            is written then.
    """
    hooked = load_model(model)
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    hf = _checkpoint_model(hooked)
    writes = writes_of(type(hf).__name__)
    steps = _by_point(given, hooked)
    # A bridge puts this into the names of the model it wraps.
    state = {name.replace("._original_component", ""): p for name, p in hf.state_dict().items()}
    plan = _Plan.of(state, writes, hooked.n_layers)
    plan.apply(steps)
    changed = plan.new(_embedding_scale(hf))
    config = _config(hf, plan, changed)
    with fresh_folder(folder) as building:
        _save(building, config, state | changed, hf, hooked)
        error = _compare(building, hooked, given) if check else None
        note = _provenance(hooked, given, sorted(changed), type(hf).__name__, error)
        (building / "baked.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


# ------------------------------------------------------------------------- what is asked


def _checkpoint_model(model: HookedModel) -> Any:
    """The Hugging Face model under the host, with the weights of its checkpoint."""
    if model.processing != "raw":
        raise ModelError(
            "model: its weights were folded or centred, so they are not those of a checkpoint",
            got=model.processing,
            valid="a model in raw space, as load_model makes it",
            hint="load it with tl_transfer.load_model",
        )
    if model._hf is None:
        raise ModelError(
            "model: this host keeps converted weights, not those of a Hugging Face checkpoint",
            got=model.host_class,
            valid="a TransformerBridge",
            hint='load it with host="bridge": the spaces are the same, so your vectors fit',
        )
    return model._hf


def _by_point(
    given: Sequence[Intervention], model: HookedModel
) -> dict[HookPoint, list[AffineForm]]:
    """What the hooks would do at each point, in their order."""
    for item in given:
        _require_constant(item)
    plan = Plan(model, given, Passes())
    return {
        model.hook_point(point): [
            affine_form(item, point, float(strength))  # type: ignore[arg-type]
            for item, strength, _ in plan.order(point)
        ]
        for point in plan.points
    }


def _require_constant(item: Intervention) -> None:
    """Refuse what is not one affine map for every token of every row."""
    if not is_affine(item):
        raise InputError(
            "interventions: this is not one affine map, the same for every row and every step",
            got=repr(item)[:200],
            valid=f"{NAMES}, with one number as strength",
            hint="weights cannot express it; use hooks: attach(model, ...)",
        )
    if item.where != everywhere(sinks=True):
        raise InputError(
            "where: a weight acts on every token, the attention sink at position 0 included",
            got=str(item.where),
            valid="everywhere(sinks=True)",
            hint="pass where=everywhere(sinks=True) if that is what you want; its effect "
            "differs from everywhere(), so compare the two with attach first",
        )


# -------------------------------------------------------------------------- new weights


@dataclass(frozen=True)
class _Plan:
    """All terms of the stream with their edits, and the parameters they are made of."""

    writes: Writes
    state: State
    embeddings: list[_Term]
    attn: list[_Term]
    mlp: list[_Term]

    @classmethod
    def of(cls, state: State, writes: Writes, n_layers: int) -> "_Plan":
        """The unedited terms of a checkpoint."""
        names = [writes.embedding] + ([writes.positions] if writes.positions else [])

        def outputs(name: str, norm: str | None) -> list[_Term]:
            return [_output(state, writes, name, norm, layer) for layer in range(n_layers)]

        return cls(
            writes,
            state,
            [_Term(name, state[name].detach().T) for name in names],
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

    def _output(self, term: _Term, norm: str | None) -> State:
        if norm is not None and term.gain is not None:
            gain = term.linear(term.gain.diag()).diagonal()
            return {f"{norm}.weight": gain - self.writes.gain_offset}
        matrix = term.linear(term.matrix.cpu().double())
        found = {f"{term.name}.weight": matrix.T if self.writes.transposed else matrix}
        if term.bias is not None or bool(term.constant().any()):
            found[f"{term.name}.bias"] = term.constant()
        return found


def _like(tensor: Tensor, old: Tensor | None, fallback: _Term) -> Tensor:
    reference = fallback.matrix if old is None else old
    return tensor.to(reference.dtype).contiguous()


def _output(state: State, writes: Writes, name: str, norm: str | None, layer: int) -> _Term:
    name = name.format(layer)
    matrix = state[f"{name}.weight"].detach()
    gain = None
    if norm is not None:
        stored = state[f"{norm.format(layer)}.weight"].detach().cpu().double()
        gain = stored + writes.gain_offset
    bias = state.get(f"{name}.bias")
    return _Term(name, matrix.T if writes.transposed else matrix, bias, gain)


def _edit_stream(step: AffineForm, terms: list[_Term], layer: int) -> None:
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


def _embedding_scale(hf: Any) -> float:
    """What the model multiplies token embeddings by, as rounded to the dtype of its weights."""
    scale = getattr(hf.get_input_embeddings(), "embed_scale", 1.0)
    return float(torch.as_tensor(scale).to(next(hf.parameters()).dtype))


def _config(hf: Any, plan: _Plan, changed: State) -> Any:
    """A configuration with the biases that are needed, untied if need be; completes `changed`."""

    def biased(terms: list[_Term]) -> bool:
        return any(f"{term.name}.bias" in changed for term in terms if term.bias is None)

    config = with_biases(hf.config, type(hf).__name__, attn=biased(plan.attn), mlp=biased(plan.mlp))
    if plan.unties and config.tie_word_embeddings:
        config.tie_word_embeddings = False
        changed[plan.writes.unembedding] = plan.state[plan.writes.embedding].detach()
    return config


# -------------------------------------------------------------------------------- files


def _save(folder: Path, config: Any, state: State, hf: Any, model: HookedModel) -> None:
    """Write a checkpoint through transformers' own writer."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        new = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    filled: State = {}
    for name, expected in new.state_dict().items():
        tensor = state.get(name)
        if tensor is None and name.endswith(".bias"):
            # An option such as mlp_bias gives biases to its neighbours as well.
            tensor = torch.zeros(expected.shape, dtype=model.dtype)
        if tensor is None or tensor.shape != expected.shape:
            raise ModelError(
                f"model: the weights under {model.host_class} are not those of its checkpoint",
                got=f"{name}: {None if tensor is None else tuple(tensor.shape)}",
                valid=str(tuple(expected.shape)),
                hint="report this architecture; hooks still work",
            )
        filled[name] = tensor.detach().cpu()
    new.load_state_dict(filled, assign=True)
    new.tie_weights()
    new.generation_config = copy.deepcopy(hf.generation_config)
    new.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


@torch.no_grad()
def _compare(folder: Path, model: HookedModel, given: Sequence[Intervention]) -> float:
    """Relative difference of the logits of the saved checkpoint to those of the hooks."""
    from transformers import AutoModelForCausalLM

    tokens = model.tokenizer(CHECK_TEXT, return_tensors="pt")["input_ids"].to(model.device)
    with attach(model, *given) as live:
        expected = live.logits(tokens).float()
    assert model._hf is not None
    saved = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=model.dtype,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=model._hf.config._attn_implementation,
    )
    got = saved.eval().to(model.device)(tokens, use_cache=False).logits.float()
    error = float((got - expected).norm() / expected.norm())
    tolerance = 1e-4 if model.dtype == torch.float32 else 8e-2
    if not error <= tolerance:
        raise ModelError(
            "bake: the saved checkpoint does not compute what the hooks compute",
            got=f"relative difference of the logits {error:.2e}",
            valid=f"at most {tolerance:.0e}",
            hint="nothing was kept; report the architecture and the interventions",
        )
    return error


def _provenance(
    model: HookedModel,
    given: Sequence[Intervention],
    changed: list[str],
    architecture: str,
    error: float | None,
) -> dict[str, Any]:
    """What ``baked.json`` holds."""
    return {
        "tl_transfer": version("tl-transfer"),
        "model": model.name,
        "weights": model.weights,
        "architecture": architecture,
        "interventions": [
            {
                "operator": type(item).__name__,
                "hook_points": list(item.points(model)),
                "strength": float(item.strength),  # type: ignore[arg-type]
                "intervention": repr(item),
            }
            for item in given
        ],
        "parameters_changed": changed,
        "logits_relative_difference_to_hooks": error,
    }
