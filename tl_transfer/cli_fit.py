"""The command that fits a map on files of any size, here or on Ray."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tl_transfer.errors import InputError


def add_to(commands: Any) -> None:
    """Add ``fit`` to the subparsers of ``tl-transfer``."""
    fit = commands.add_parser("fit", help="fit a map on Parquet, JSON lines or text files")
    fit.add_argument("files", nargs="+", help="files, folders or patterns")
    fit.add_argument("--source", required=True, metavar="MODEL@HOOK",
                     help="e.g. smollm2-135m-instruct@resid_post@15")  # fmt: skip
    fit.add_argument("--target", required=True, metavar="MODEL@HOOK", help="the same")
    fit.add_argument("--out", default="runs/fit", help="folder to write (default runs/fit)")
    fit.add_argument("--text", default="text", help="column or key of the text (default text)")
    fit.add_argument("--document", help="column or key of the document id")
    fit.add_argument("--tokens", default="all", help="rows: all (default), last or mean")
    fit.add_argument("--method", default="ridge", help="one that reads sums (default ridge)")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--dtype", help="of both models, as for load_model")
    fit.add_argument("--engine", choices=["local", "ray"], default="local",
                     help="this process (default), or workers on Ray")  # fmt: skip
    fit.add_argument("--actors", type=int, help="workers on Ray (default 1)")
    fit.add_argument("--num-gpus", type=float, help="GPUs of each worker (default 1 if any)")
    fit.add_argument("--address", help="of a running Ray cluster (default: RAY_ADDRESS, or start)")
    fit.add_argument("--unit-mb", type=float, default=16, help="text in a unit of work, in MB")
    fit.add_argument("--max-tokens", type=int, default=4096, help="cells of a forward batch")
    fit.add_argument("--checkpoint", help="folder; run again after an interruption to go on")
    fit.add_argument("--quiet", action="store_true", help="no progress bars")
    fit.set_defaults(command=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    from tl_transfer.cluster.fit import fit_corpus
    from tl_transfer.data.shards import write_json
    from tl_transfer.persistence import save

    out = Path(arguments.out)
    found = fit_corpus(
        _site(arguments, "source"),
        _site(arguments, "target"),
        arguments.files,
        text=arguments.text,
        document=arguments.document,
        tokens=arguments.tokens,
        method=arguments.method,
        seed=arguments.seed,
        engine=arguments.engine,
        actors=arguments.actors,
        num_gpus=arguments.num_gpus,
        address=arguments.address,
        unit_bytes=max(1, round(arguments.unit_mb * (1 << 20))),
        max_tokens=arguments.max_tokens,
        checkpoint=arguments.checkpoint,
        progress=not arguments.quiet,
    )
    save(found.mapper, out / "mapper.safetensors")
    save(found.sums, out / "sums.safetensors")
    card = found.mapper.scorecard
    write_json(out / "corpus.json", {"report": found.report.to_json(), "scorecard": card})
    print(found.report)
    print(
        f"held-out FVU {card['held_out']['fvu']:.3f}, of a map fitted on shuffled pairs "
        f"{card['shuffled']['fvu']:.3f}; {card['n_tokens']['train']:g} rows to fit, "
        f"{card['n_tokens']['test']:g} held out"
    )
    for warning in card["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"\nwritten to {out}/: mapper.safetensors, sums.safetensors, corpus.json")
    return 0


def _site(arguments: argparse.Namespace, name: str) -> Any:
    """Model and hook point from ``MODEL@HOOK``, where a short hook point has an ``@`` itself."""
    from tl_transfer.cluster.job import ModelSite

    given = getattr(arguments, name)
    model, _, hook = given.rpartition("@")
    if hook.isdigit():
        model, _, kind = model.rpartition("@")
        hook = f"{kind}@{hook}"
    if not model:
        raise InputError(
            f"--{name}: a model and a hook point",
            got=given,
            valid="MODEL@HOOK, e.g. gemma-3-270m@resid_post@9",
            hint="tl-transfer models lists the bundled models",
        )
    return ModelSite(model, hook, {"dtype": arguments.dtype} if arguments.dtype else {})
