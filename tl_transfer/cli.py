"""Command line: thin. Recipes and flags in, folders of artefacts out.

Exit status: 0 done (also when the verdict is that nothing transfers: that is a result), 2 bad
input or a failed step (one message, no traceback), 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from tl_transfer import cli_files, cli_fit, cli_sae
from tl_transfer.errors import InputError, TransferError
from tl_transfer.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``tl-transfer``."""
    arguments = _parser().parse_args(argv)
    # Tokenizers of two models in one process print a warning at every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return int(arguments.command(arguments))
    except TransferError as error:
        print(f"tl-transfer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tl-transfer: interrupted; finished files are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tl-transfer",
        description="Move an intervention from one language model to another, and show whether it "
        "worked.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the main job on the two smallest bundled models")
    _run_flags(demo, folder="runs/demo")
    demo.set_defaults(command=_demo)

    run = commands.add_parser("run", help="run a recipe, or flags, for any pair and hook points")
    run.add_argument("recipe", nargs="?", help="TOML file; without it, the defaults and flags")
    run.add_argument("--source", help="bundled name, hub id, folder or GGUF file")
    run.add_argument("--target", help="the same")
    run.add_argument("--task", help="task name, e.g. sentiment")
    run.add_argument("--method", help="how the map is fitted, e.g. ridge, soft_cca, autoencoder")
    run.add_argument("--source-layers", nargs="+", metavar="HOOK", help="e.g. resid_post@15")
    run.add_argument("--target-layers", nargs="+", metavar="HOOK")
    run.add_argument("--seed", type=int)
    _run_flags(run, folder="runs/latest")
    run.set_defaults(command=_run)

    fetch = commands.add_parser("fetch", help="download a bundled model into the cache")
    fetch.add_argument("name", nargs="+")
    fetch.set_defaults(command=_fetch)

    models = commands.add_parser("models", help="list the bundled models")
    models.set_defaults(command=_models)

    tasks = commands.add_parser("tasks", help="list the tasks")
    tasks.set_defaults(command=_tasks)

    cli_files.add_to(commands)
    cli_sae.add_to(commands)
    cli_fit.add_to(commands)

    report = commands.add_parser("report", help="print the report of a run folder")
    report.add_argument("folder")
    report.set_defaults(command=_report)
    return parser


def _run_flags(parser: argparse.ArgumentParser, *, folder: str) -> None:
    parser.add_argument("--out", default=folder, help=f"folder to write (default {folder})")
    parser.add_argument(
        "--plan", action="store_true", help="show downloads, disk, memory and steps; run nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _demo(arguments: argparse.Namespace) -> int:
    return _execute(Recipe(), arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.recipe:
        from tl_transfer.experiments import registry

        found = registry.read(arguments.recipe)
        if found is not None:
            return _experiment(*found, arguments)
    recipe = Recipe.read(arguments.recipe) if arguments.recipe else Recipe()
    recipe = recipe.with_(
        source=arguments.source,
        target=arguments.target,
        task=arguments.task,
        method=arguments.method,
        source_layers=_tuple(arguments.source_layers),
        target_layers=_tuple(arguments.target_layers),
        seed=arguments.seed,
    )
    return _execute(recipe, arguments)


def _experiment(recipe: Any, run: Any, arguments: argparse.Namespace) -> int:
    """An experiment with a recipe of its own; flags for other pairs need another file."""
    flags = ("source", "target", "task", "method", "source_layers", "target_layers", "seed")
    given = [name for name in flags if getattr(arguments, name) is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: not with a recipe of this task",
            got=arguments.recipe,
            valid="settings in the recipe file",
            hint="copy the file and change it there",
        )
    if arguments.plan:
        return _plan(recipe, recipe.plan())
    report = run(
        recipe,
        arguments.out,
        say=lambda line: print(f"-- {line}", file=sys.stderr),
        progress=not arguments.quiet,
    )
    print(_rendered(report))
    print(f"\nwritten to {arguments.out}/: report.json")
    return 0


def _plan(recipe: Any, lines: list[str]) -> int:
    """What a run would do, and whether it could: 1 if a check fails."""
    from tl_transfer.experiments.dry_run import dry_run

    checks = dry_run(recipe)
    print("\n".join([*lines, "", *map(str, checks)]))
    return int(any(check.passed is False for check in checks))


def _rendered(report: dict[str, Any]) -> str | None:
    """The report of an experiment as text; None for another kind of report."""
    from tl_transfer.report.capability_tables import render_capabilities
    from tl_transfer.report.matrix_tables import render_matrix
    from tl_transfer.report.rate_tables import render_rates
    from tl_transfer.report.replacement_tables import render_replacement
    from tl_transfer.report.switch_tables import render_switch

    renderers = {
        "tl_transfer.rates/1": render_rates,
        "tl_transfer.replacement/1": render_replacement,
        "tl_transfer.switch/1": render_switch,
        "tl_transfer.matrix/1": render_matrix,
        "tl_transfer.capabilities/1": render_capabilities,
    }
    render = renderers.get(str(report.get("format")))
    return None if render is None else render(report)


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None


def _execute(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from tl_transfer import pipeline

    if arguments.plan:
        return _plan(recipe, pipeline.plan(recipe))
    result = pipeline.run(
        recipe,
        arguments.out,
        say=lambda line: print(f"-- {line}", file=sys.stderr),
        progress=not arguments.quiet,
    )
    _print_report(result.report.data)
    print(
        f"\nwritten to {result.folder}/: report.html, report.json, mapper.safetensors, "
        "vector.safetensors, recipe.toml"
    )
    return 0


def _print_report(data: dict[str, Any]) -> None:
    from tl_transfer.report import tables

    print(tables.render_report(data))


def _fetch(arguments: argparse.Namespace) -> int:
    from tl_transfer.models import bundled

    unknown = [name for name in arguments.name if name not in bundled.BUNDLED]
    if unknown:
        raise InputError(
            "name: not a bundled model",
            got=", ".join(unknown),
            valid=", ".join(bundled.BUNDLED),
            hint="other models are loaded by hub id or path and need no fetch",
        )
    for name in arguments.name:
        print(f"{name}: {bundled.fetch(name)}")
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from tl_transfer.models import bundled

    rows = bundled.list_models()
    for row in rows:
        print("  ".join(f"{value}" for value in row.values()))
    return 0


def _tasks(arguments: argparse.Namespace) -> int:
    from tl_transfer.tasks import TASKS

    for name, build in TASKS.items():
        print(f"{name}: {(build.__doc__ or '').splitlines()[0]}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from tl_transfer.evaluation.result import TransferReport
    from tl_transfer.sealed import read_json

    path = Path(arguments.folder) / "report.json"
    data = read_json(path, written_by="tl-transfer run", hint="run the job again")
    shown = _rendered(data)
    if shown is not None:
        print(shown)
        return 0
    _print_report(TransferReport.load(path).data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
