"""Imports inside the package point one way, and `import tl_transfer` stays light.

Every import counts: at the top, inside functions, and under ``TYPE_CHECKING``.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tl_transfer"
PAGE = ROOT / "docs" / "concepts" / "architecture.md"

#: A module may import from its own layer (without a cycle) and from the layers before it. A folder
#: name stands for all modules in it that have no line of their own.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "shapes", "files", "sealed", "memory"),
    (
        "space",
        "metrics",
        "statistics",
        "streaming",
        "mispairing",
        "similarity",
        "intervals",
    ),
    (
        "data",
        "models.bare",
        "models.calling",
        "models.fingerprints",
        "models.point",
        "models.reader",
        "models.surface",
        "positions",
    ),
    ("models",),
    (
        "vectors",
        "interventions",
        "mappers",
        "sae.coder",
        "sae.convert",
        "sae.dictionary",
        "sae.foreign",
    ),
    (
        "edited",
        "extract",
        "features",
        "mappers.fit",
        "mappers.transfer",
        "models.attach",
        "models.driver",
        "models.bake",
        "models.stream_terms",
        "exchange",
        "packing",
        "persistence",
        "sae",
        "splicing",
        "stitched",
        "switch",
    ),
    ("report", "plots"),
    ("tasks", "cluster", "evaluation", "layers", "strength", "tuning", "views"),
    ("experiments", "recipe", "pipeline"),
    ("cli", "cli_files", "cli_fit", "cli_sae"),
]

#: Slow to import or optional: they load when first used.
HEAVY = (
    "torch",
    "transformer_lens",
    "transformers",
    "sae_lens",
    "circuitsvis",
    "ipywidgets",
    "plotly",
    "gguf",
    "peft",
    "ray",
    "pyarrow",
)

Graph = dict[str, set[str]]


def test_every_import_points_to_the_same_or_an_earlier_layer() -> None:
    found = wrong_arrows(import_graph())
    assert not found, "\n" + "\n".join(found)


def test_there_is_no_import_cycle() -> None:
    found = cycles(import_graph())
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"extract": {"cli"}}, "tl_transfer.extract (layer 6) imports tl_transfer.cli (layer 10)"),
        ({"space": {""}}, "tl_transfer.space imports the package root: import the module instead"),
        ({"stray": set()}, "tl_transfer.stray has no layer: give it one in tests/test_layers.py"),
        (
            {"models.surface": {"models.load"}},
            "models.surface (layer 3) imports tl_transfer.models",
        ),
    ],
)
def test_the_checker_names_the_offending_arrow(graph: Graph, message: str) -> None:
    (found,) = wrong_arrows(graph)
    assert message in found


def test_the_checker_finds_a_cycle_and_spells_it_out() -> None:
    graph: Graph = {"fit": {"extract"}, "extract": {"transfer"}, "transfer": {"fit", "space"}}
    (found,) = cycles(graph | {"space": set()})
    assert found == "extract -> transfer -> fit -> extract"


def test_imports_in_every_position_are_seen(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    (package / "models").mkdir(parents=True)
    for name in ("__init__", "errors", "space", "models/__init__", "models/load"):
        (package / f"{name}.py").touch()
    (package / "models" / "use.py").write_text(
        "import tl_transfer.space\n"
        "def f():\n    from tl_transfer.models import load\n"
        "class C:\n    from ..errors import InputError\n"
        "from tl_transfer import something, __version__\n"
    )
    assert import_graph(package)["models.use"] == {"space", "models.load", "errors", ""}


def test_every_entry_of_the_layers_exists() -> None:
    modules = set(import_graph())
    assert [name for layer in LAYERS for name in layer if name not in modules] == []


def test_the_architecture_page_draws_the_same_layers() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    drawn = [cells(row) for row in rows if cells(row)[0].isdigit()]
    expected = [
        (str(number), ", ".join(f"`{name}`" for name in layer))
        for number, layer in enumerate(LAYERS, start=1)
    ]
    assert [(number, modules) for number, modules, *_ in drawn] == expected, (
        f"bring the table of {PAGE.relative_to(ROOT)} up to date"
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, {PACKAGE}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == [], f"run: {sys.executable} -X importtime -c 'import {PACKAGE}'"


def test_importing_the_package_takes_no_time() -> None:
    command = [sys.executable, "-X", "importtime", "-c", f"import {PACKAGE}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    (line,) = [row for row in done.stderr.splitlines() if row.endswith(f" {PACKAGE}")]
    seconds = int(line.split("|")[1]) / 1e6
    assert seconds < 0.3, f"{line}; run: {' '.join(command)}"


def import_graph(package: Path = ROOT / PACKAGE) -> Graph:
    """Module -> modules of the package it imports, without the package name ("" is the root)."""
    names = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {
        name: {imported for imported in imports(path, name, set(names)) if imported != name}
        for name, path in names.items()
        if name  # the root gathers the public names from everywhere
    }


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, known: set[str]) -> Iterator[str]:
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, name, is_package)
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in found:
            if dotted == f"{PACKAGE}.__version__":
                continue  # set by the root before anything else can run
            if dotted == PACKAGE or dotted.startswith(f"{PACKAGE}."):
                yield longest_known(dotted.removeprefix(PACKAGE).removeprefix("."), known)


def absolute(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    """Full dotted base of ``from ... import``; dots are resolved against the importing module."""
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *filter(None, name.split("."))]
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def longest_known(dotted: str, known: set[str]) -> str:
    """The module behind ``module.attribute``; "" when only the package root is left."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted


def layer_of(module: str) -> int | None:
    """Number of the layer, by the longest entry that names the module or a folder above it."""
    best: tuple[int, int] | None = None
    for number, layer in enumerate(LAYERS, start=1):
        for entry in layer:
            if module == entry or module.startswith(f"{entry}."):
                best = max(best or (0, 0), (len(entry), number))
    return best and best[1]


def wrong_arrows(graph: Graph) -> list[str]:
    found = []
    for module, imported in sorted(graph.items()):
        here = layer_of(module)
        if here is None:
            found.append(
                f"{PACKAGE}.{module} has no layer: give it one in tests/test_layers.py and "
                f"docs/concepts/architecture.md"
            )
            continue
        for other in sorted(imported):
            there = layer_of(other)
            if other == "":
                found.append(
                    f"{PACKAGE}.{module} imports the package root: import the module instead"
                )
            elif there is not None and there > here:
                found.append(
                    f"{PACKAGE}.{module} (layer {here}) imports {PACKAGE}.{other} (layer {there})"
                )
    return found


def cycles(graph: Graph) -> list[str]:
    """One closed path for each group of modules that import each other, starting alphabetically."""
    found, seen = [], set[str]()
    for start in sorted(graph):
        if start in seen:
            continue
        path = path_back(graph, start)
        if path:
            seen.update(path)
            found.append(" -> ".join(path))
    return found


def path_back(graph: Graph, start: str) -> list[str]:
    """Shortest import path from a module back to itself, or an empty list."""
    queue, visited = [[start]], set[str]()
    while queue:
        path = queue.pop(0)
        for after in sorted(graph.get(path[-1], ())):
            if after == start:
                return [*path, start]
            if after not in visited:
                visited.add(after)
                queue.append([*path, after])
    return []


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
