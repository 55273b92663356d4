"""bake: interventions written into the weights, saved as an ordinary Hugging Face checkpoint.

An addition at every token is a bias, an ablation at every write is a projection of every matrix
that writes to the stream (Arditi et al. 2024, section 2.4), so both can be had with no hook and at
no cost, in any tool that reads checkpoints. What the weights cannot express exactly is refused.
"""

import copy
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tl_transfer.errors import InputError, ModelError
from tl_transfer.files import fresh_folder
from tl_transfer.interventions import Intervention, Passes, Plan
from tl_transfer.interventions.affine import NAMES, AffineForm, affine_form, is_affine
from tl_transfer.models.attach import attach
from tl_transfer.models.load import load_model
from tl_transfer.models.point import HookPoint
from tl_transfer.models.self_check import CHECK_TEXT
from tl_transfer.models.stream_terms import State, Term, Terms
from tl_transfer.models.surface import HookedModel
from tl_transfer.models.writes import with_biases, writes_of
from tl_transfer.positions import everywhere


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
        InputError: no interventions, or a rule for positions, a strength or an operator that
            weights cannot express.
        ModelError: the architecture cannot express the edit exactly, or the check failed. Nothing
            is written then.
    """
    hooked = load_model(model)
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    if not given:
        raise InputError(
            "interventions: nothing to bake",
            got="no interventions",
            valid="one or several",
            hint="save_pretrained of the Hugging Face model saves it as it is",
        )
    hf = _checkpoint_model(hooked)
    writes = writes_of(type(hf).__name__)
    steps = _by_point(given, hooked)
    # A bridge puts this into the names of the model it wraps.
    state = {name.replace("._original_component", ""): p for name, p in hf.state_dict().items()}
    plan = Terms.of(state, writes, hooked.n_layers)
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


def _embedding_scale(hf: Any) -> float:
    """What the model multiplies token embeddings by, as rounded to the dtype of its weights."""
    scale = getattr(hf.get_input_embeddings(), "embed_scale", 1.0)
    return float(torch.as_tensor(scale).to(next(hf.parameters()).dtype))


def _config(hf: Any, plan: Terms, changed: State) -> Any:
    """A configuration with the biases that are needed, untied if need be; completes `changed`."""

    def biased(terms: list[Term]) -> bool:
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
