"""Every Python block of the README and of docs/ runs, and every `make` target they name exists.

The blocks of a page share one namespace, so a page reads like one session. A block that cannot run
has ``<!-- not executed: the reason -->`` on the line before it; the reasons are printed.
"""

import functools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tl_transfer
from tl_transfer.errors import FetchError
from tl_transfer.models.bundled import BUNDLED

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
         if page.exists()]  # fmt: skip
FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*\{?[ \t]*\.?(?P<language>\w*)")
EXCUSE = re.compile(r"<!--\s*not executed:\s*(?P<reason>\S.*?)\s*-->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its code, the line it starts on, and why it is not run (if it is not)."""

    code: str
    line: int
    reason: str | None = None


def blocks(text: str, languages: tuple[str, ...] = ("python", "py")) -> list[Block]:
    """Fenced blocks of the given languages, in order."""
    lines = text.splitlines()
    found: list[Block] = []
    start = 0
    while start < len(lines):
        opening = FENCE.match(lines[start])
        if opening is None:
            start += 1
            continue
        end = start + 1
        while end < len(lines) and not lines[end].strip().startswith(opening["ticks"]):
            end += 1
        if opening["language"] in languages:
            excuse = EXCUSE.search(lines[start - 1]) if start else None
            code = textwrap.dedent("\n".join(lines[start + 1 : end]))
            found.append(Block(code, start + 2, excuse["reason"] if excuse else None))
        start = end + 1
    return found


def execute(page: str, found: list[Block]) -> dict[str, Any]:
    """Run the blocks in one namespace; a traceback shows the page and its line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        if block.reason is None:
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
    return namespace


#: The real one; pages get a version that remembers.
_load_model = tl_transfer.load_model


@functools.cache
def _loaded(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return _load_model(name, **dict(options))


def load_once(source: Any, **options: Any) -> Any:
    """`load_model` that loads a named model once for all pages: none of them changes weights."""
    if isinstance(source, str) and source in BUNDLED:
        return _loaded(source, tuple(sorted(options.items())))
    return _load_model(source, **options)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.real
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=name_of)
def test_the_python_blocks_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = blocks(page.read_text())
    with capsys.disabled():
        for block in found:
            if block.reason:
                print(f"\n{name_of(page)}:{block.line} not executed: {block.reason}", end="")
    monkeypatch.chdir(tmp_path)  # what an example saves stays out of the repository
    monkeypatch.setattr("tl_transfer.models.load.load_model", load_once)
    try:
        execute(name_of(page), found)
    except FetchError as error:
        pytest.skip(f"{name_of(page)}: {error}")


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not written yet")
def test_the_readme_shows_code_that_runs() -> None:
    assert any(block.reason is None for block in blocks((ROOT / "README.md").read_text()))


def test_every_make_target_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (name_of(page), target)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"(?:^|[`$] ?)make ([a-z]+)", page.read_text(), re.M)
    }
    assert named, "no page names a make target: the pattern no longer matches"
    assert sorted((page, target) for page, target in named if target not in targets) == []


def test_every_page_is_named_on_the_first_one() -> None:
    docs = ROOT / "docs"
    named = set(re.findall(r"\]\(([^)#]+\.md)", (docs / "index.md").read_text()))
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"index.md"}
    assert pages - named == set(), "readers would not find these from docs/index.md"


def test_blocks_are_found_with_their_line_and_reason() -> None:
    page = "\n".join(
        [
            "# Title",
            "```python",
            "x = 1",
            "```",
            "<!-- not executed: needs a GPU -->",
            '```python title="later"',
            "x = 2",
            "```",
            "- a list",
            "    ```py",
            "    if x:",
            "        y = x + 1",
            "    ```",
            "```bash",
            "python",
            "```",
        ]
    )
    assert blocks(page) == [
        Block("x = 1", 3),
        Block("x = 2", 7, "needs a GPU"),
        Block("if x:\n    y = x + 1", 11),
    ]
    namespace = execute("page.md", blocks(page))
    assert (namespace["x"], namespace["y"]) == (1, 2)


def test_a_failing_block_is_reported_at_its_line_in_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        execute("page.md", blocks("text\n\n```python\nx = 1\nx / 0\n```"))
    assert (caught.traceback[-1].frame.code.raw.co_filename, caught.traceback[-1].lineno + 1) == (
        "page.md",
        5,
    )


def test_the_reference_shows_the_module_of_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.M))
    hidden = {
        name: module
        for name, module in tl_transfer._PUBLIC.items()
        # A package that only gathers names need not be shown itself.
        if not {f"tl_transfer.{module}", getattr(tl_transfer, name).__module__} & shown
    }
    assert hidden == {}
