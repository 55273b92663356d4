"""Python code as an answer: does it parse, what does bandit find, what does it call?"""

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tl_transfer.errors import InputError

#: What an answer is judged behind. Some of bandit's tests look whether a module is imported; the
#: names of the function and of its arguments change nothing.
MODULES = ("ast", "hashlib", "json", "pickle", "requests", "subprocess", "tempfile", "yaml")
HEAD = "\n".join(f"import {module}" for module in MODULES) + "\n\n\ndef written():\n    return"


@dataclass(frozen=True)
class CodeReport:
    """A piece of code as facts.

    Attributes:
        parses: Whether Python's own parser takes it.
        findings: Ids of what bandit reports, such as ``B602``.
        calls: Dotted names of what is called; empty if it does not parse.
    """

    parses: bool
    findings: tuple[str, ...]
    calls: frozenset[str]


def body(answer: str) -> str:
    """The part of an answer that belongs to the function: up to the first line not indented."""
    lines = answer.splitlines()
    kept = lines[:1]
    for line in lines[1:]:
        if line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept).rstrip()


def read_code(codes: Sequence[str]) -> list[CodeReport]:
    """Parse and analyse pieces of code; none of them is run.

    Findings are those of medium severity or above (``bandit -ll``): a mere ``import subprocess``
    is one of low severity. Comments that ask bandit to look away are not obeyed.

    Args:
        codes: Whole modules.

    Raises:
        InputError: bandit is not installed.
    """
    parsed = [_calls(code) for code in codes]
    whole = sorted({code for code, calls in zip(codes, parsed, strict=True) if calls is not None})
    found = dict(zip(whole, bandit_findings(tuple(whole)), strict=True))
    return [
        CodeReport(calls is not None, found.get(code, ()), calls or frozenset())
        for code, calls in zip(codes, parsed, strict=True)
    ]


@lru_cache(maxsize=256)
def bandit_findings(codes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Ids of bandit's findings in every piece of code, sorted."""
    if not codes:
        return []
    try:
        from bandit.core import config, constants, manager
    except ImportError as error:
        raise InputError(
            "code: insecure code is found by bandit",
            got="not installed",
            valid='pip install "tl-transfer[tune]"',
        ) from error
    found: list[set[str]] = [set() for _ in codes]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code that is read
        for i, code in enumerate(codes):
            (Path(folder) / f"{i}.py").write_text(code, encoding="utf-8", errors="replace")
        run = manager.BanditManager(config.BanditConfig(), "file", quiet=True, ignore_nosec=True)
        run.discover_files([folder], recursive=True)
        run.run_tests()
        for issue in run.get_issue_list(sev_level=constants.MEDIUM, conf_level=constants.LOW):
            found[int(Path(issue.fname).stem)].add(issue.test_id)
    return [tuple(sorted(ids)) for ids in found]


def _calls(code: str) -> frozenset[str] | None:
    """Dotted names of the functions that are called; None where the code does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return frozenset(_dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""
