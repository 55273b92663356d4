"""write_hook_recipe: interventions as a folder that runs without this package.

``recipe.json`` says what is done where, ``vectors.safetensors`` holds the numbers, and ``steer.py``
(a copy of `tl_transfer.exchange.steer`) applies them with plain TransformerLens hooks or plain
forward hooks on the Hugging Face model.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.files import fresh_folder
from tl_transfer.interventions import Intervention, Passes, Plan
from tl_transfer.interventions.affine import NAMES, affine_form, is_affine
from tl_transfer.models.load import load_model
from tl_transfer.models.point import HookPoint
from tl_transfer.models.surface import HookedModel
from tl_transfer.models.writes import WRITES
from tl_transfer.positions import Where
from tl_transfer.positions.by_position import Around, Everywhere, Window
from tl_transfer.sealed import seal

_TENSORS = "vectors.safetensors"


def write_hook_recipe(
    interventions: Intervention | Sequence[Intervention], model: Any, folder: str | Path
) -> Path:
    """Write interventions as a folder of JSON, safetensors and one Python file.

    Args:
        interventions: `Add`, `Ablate`, `Clamp` and `AffineEdit` with one strength; rules on
            positions alone (`everywhere`, `prompt`, `generated`, `last_prompt_token`,
            `first_generated`, `window`, `from_position`).
        model: The model they are for.
        folder: Created; it must not exist, or be empty.

    Raises:
        InputError: an operator, strength or rule that needs this package.
        SpaceError: one of them is for another model.
    """
    from safetensors.torch import save_file

    hooked = load_model(model)
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    if not given:
        raise InputError(
            "interventions: none",
            got="an empty list",
            valid="one intervention or several",
            hint="Add(vector, 0.1) is one",
        )
    for item in given:
        _require_plain(item)
    plan = Plan(hooked, given, Passes())
    edits: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for point in plan.points:
        place = _module(hooked, hooked.hook_point(point))
        for item, strength, where in plan.order(point):
            number = float(strength)  # type: ignore[arg-type]
            for operator, tensor in _numbers(item, point, number):
                name = f"edit_{len(edits)}"
                tensors[name] = tensor
                edits.append(
                    {
                        "hook_point": point,
                        **place,
                        "operator": operator,
                        "strength": number,
                        "tensor": name,
                        "where": _rule(where),
                    }
                )
    space = given[0].points(hooked)[0]
    recipe = {
        "tl_transfer": version("tl-transfer"),
        "space": hooked.at(space).space.to_json(),
        "tensors": _TENSORS,
        "edits": edits,
    }
    source = Path(__file__).with_name("steer.py").read_text(encoding="utf-8")
    with fresh_folder(folder) as building:
        (building / "steer.py").write_text(source, encoding="utf-8")
        save_file(tensors, building / _TENSORS)
        recipe["tensors_sha256"] = hashlib.sha256((building / _TENSORS).read_bytes()).hexdigest()
        text = json.dumps(seal(recipe), indent=2) + "\n"
        (building / "recipe.json").write_text(text, encoding="utf-8")
    return Path(folder)


def _require_plain(item: Intervention) -> None:
    if not is_affine(item):
        raise InputError(
            "interventions: a recipe holds affine edits of one strength",
            got=repr(item)[:120],
            valid=f"{NAMES}, with one number as strength",
            hint="save the vector, and use attach where this package is installed",
        )


def _numbers(item: Intervention, point: str, strength: float) -> list[tuple[str, Tensor]]:
    """Operator and tensor of the one or two edits that an intervention comes to."""
    form = affine_form(item, point, strength)
    edits = [("ablate", form.basis.T), ("add", form.shift)]
    return [(name, tensor.float().contiguous()) for name, tensor in edits if tensor.any()]


def _rule(where: Where) -> dict[str, Any]:
    """A rule as bounds on the position and on the distance from the last prompt token."""
    match where:
        case Everywhere():
            return {"sinks": where.sinks}
        case Around(first=first, last=last):
            return {"sinks": where.sinks, "distance": [first, last]}
        case Window(start=start, stop=stop):
            last = None if stop is None else stop - 1
            return {"sinks": where.sinks, "position": [start, last]}
    raise InputError(
        "where: this rule needs the text, the batch, or this package",
        got=str(where),
        valid="everywhere, prompt, generated, last_prompt_token, first_generated, window, "
        "from_position",
        hint="use attach where this package is installed",
    )


def _module(model: HookedModel, point: HookPoint) -> dict[str, str | None]:
    """The module of the plain Hugging Face model whose output (or input) is the hook point."""
    architecture = (
        type(model._hf).__name__
        if model._hf is not None
        else str(getattr(model.host.cfg, "original_architecture", ""))
    )
    if architecture not in WRITES:
        return {"module": None, "side": "output"}
    writes = WRITES[architecture]
    block = writes.attn_out.split(".{}.")[0] + f".{point.layer}"
    if point.kind in ("resid_pre", "resid_post"):
        return {"module": block, "side": "input" if point.kind == "resid_pre" else "output"}
    names = {
        "attn_out": writes.attn_norm or writes.attn_out,
        "mlp_out": writes.mlp_norm or writes.mlp_out,
    }
    return {"module": names[point.kind].format(point.layer), "side": "output"}
