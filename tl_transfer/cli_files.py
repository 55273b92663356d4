"""The commands that change formats: export and import of vectors, and baking."""

import argparse
from pathlib import Path
from typing import Any

from tl_transfer.errors import InputError


def add_to(commands: Any) -> None:
    """Add the three commands to the subparsers of ``tl-transfer``."""
    export = commands.add_parser("export", help="write a vector for llama.cpp, repeng or others")
    export.add_argument("vector", help="a file of tl_transfer.save")
    export.add_argument("out", help="*.gguf (control vector) or *.safetensors (plain tensors)")
    export.add_argument(
        "--strength", type=float, help="make scale 1 equal Add(vector, strength); default: as is"
    )
    export.set_defaults(command=_export)

    import_ = commands.add_parser("import", help="read a control vector or plain tensors")
    import_.add_argument("file", help="*.gguf or *.safetensors")
    import_.add_argument("out", help="file to write, *.safetensors")
    import_.add_argument("--model", required=True, help="what it was made on, as for load_model")
    import_.add_argument(
        "--site", action="append", default=[], metavar="[TENSOR=]HOOK",
        help="for plain tensors: where each lives, e.g. layer_9=resid_post@9",
    )  # fmt: skip
    unit = import_.add_mutually_exclusive_group(required=True)
    unit.add_argument("--median-norm", type=float, help="unit of strength, if it is known")
    unit.add_argument("--texts", help="file with one text a line to measure the unit on")
    import_.set_defaults(command=_import)

    bake = commands.add_parser("bake", help="write an edit into the weights of a model")
    bake.add_argument("model", help="as for load_model")
    bake.add_argument("vector", help="a file of tl_transfer.save")
    bake.add_argument("out", help="folder to make")
    edit = bake.add_mutually_exclusive_group(required=True)
    edit.add_argument("--add", type=float, metavar="STRENGTH", help="in median residual norms")
    edit.add_argument("--ablate", action="store_true", help="at every write to the stream")
    bake.set_defaults(command=_bake)


def _vectors(path: str) -> Any:
    """A vector or a set of them."""
    from tl_transfer.persistence import load
    from tl_transfer.vectors import SteeringVector, VectorSet

    found = load(path)
    if not isinstance(found, SteeringVector | VectorSet):
        raise InputError(
            "vector: another kind of artefact",
            got=f"{path}: {type(found).__name__}",
            valid="a SteeringVector or a VectorSet",
            hint="maps and probes have no such format",
        )
    return found


def _export(arguments: argparse.Namespace) -> int:
    from tl_transfer import exchange

    writers = {
        ".gguf": exchange.write_control_vector,
        ".safetensors": exchange.write_tensors,
    }
    write = writers.get(Path(arguments.out).suffix)
    if write is None:
        raise _unknown_format("out", arguments.out)
    print(write(_vectors(arguments.vector), arguments.out, strength=arguments.strength))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tl_transfer import exchange
    from tl_transfer.data.texts import read_lines
    from tl_transfer.models.load import load_model
    from tl_transfer.persistence import save

    kind = Path(arguments.file).suffix
    if kind not in (".gguf", ".safetensors"):
        raise _unknown_format("file", arguments.file)
    texts = read_lines(arguments.texts) if arguments.texts else None
    model = load_model(arguments.model)
    unit: dict[str, Any] = {"median_norm": arguments.median_norm, "texts": texts}
    if kind == ".gguf":
        found = exchange.read_control_vector(arguments.file, model, **unit)
    else:
        named = [site.rpartition("=") for site in arguments.site]
        if not named or (len(named) > 1 and not all(name for name, _, _ in named)):
            raise InputError(
                "site: where the tensors live",
                got=" ".join(arguments.site) or "nothing",
                valid="--site resid_post@9, or --site TENSOR=resid_post@9 for each of several",
                hint="plain tensors do not say it themselves",
            )
        sites: Any = {name: model.at(hook) for name, _, hook in named}
        found = exchange.read_tensors(arguments.file, sites.get("", sites), **unit)
    out = next(iter(found.values())) if len(found) == 1 else found
    print(f"{save(out, arguments.out)}: {out!r}")
    return 0


def _bake(arguments: argparse.Namespace) -> int:
    from tl_transfer.interventions import Ablate, Add
    from tl_transfer.models.bake import bake
    from tl_transfer.models.load import load_model
    from tl_transfer.positions import everywhere

    vector, where = _vectors(arguments.vector), everywhere(sinks=True)
    edit: Any = (
        Ablate(vector, 1.0, where, layers="all")
        if arguments.ablate
        else Add(vector, arguments.add, where)
    )
    print(bake(load_model(arguments.model), edit, arguments.out))
    return 0


def _unknown_format(name: str, path: str) -> InputError:
    return InputError(
        f"{name}: a format that is told by the end of the name",
        got=path,
        valid="*.gguf or *.safetensors",
        hint="rename it",
    )
