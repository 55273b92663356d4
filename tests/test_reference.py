"""What a public name must say of itself: every argument, shapes of tensors, and its errors."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

import torch

import tl_transfer
from tl_transfer.errors import InputError

#: Arguments that explain themselves wherever they occur.
OBVIOUS = {"self", "cls", "args", "kwargs"}
#: `strength` is one number a row (`interventions.protocol.Strength`); `like` is any activation.
SHAPELESS = {"strength", "like"}


def public() -> Iterator[tuple[str, Any]]:
    """Every public name, and every public method of the classes among them."""
    for name in tl_transfer._PUBLIC:
        value = getattr(tl_transfer, name)
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                member = getattr(member, "__func__", member)
                if not attribute.startswith("_") and inspect.isfunction(member):
                    yield f"{name}.{attribute}", member


def missing(find: Callable[[str, Any], list[str]]) -> list[str]:
    return [f"{name}: {what}" for name, value in public() for what in find(name, value)]


def report(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def doc(name: str, value: Any) -> str:
    """Own docstring, those of the classes it comes from, and of what it says it is like.

    ``As for `fit```, ``see `read_contrasts```: an argument that is explained there is explained.
    """
    found = [_own(name, value)]
    for other in re.findall(r"`([A-Za-z_]+(?:\.\w+)?)`", found[0]):
        known = _NAMES.get(other) or _NAMES.get(f"{name.partition('.')[0]}.{other}")
        if known is not None and inspect.isfunction(known) and known is not value:
            found.append(inspect.getdoc(known) or "")
    return "\n".join(found)


def _own(name: str, value: Any) -> str:
    if inspect.isclass(value):
        bases = [kind for kind in value.__mro__ if kind.__module__.startswith("tl_transfer")]
        return "\n".join(inspect.cleandoc(vars(kind).get("__doc__") or "") for kind in bases)
    owner, _, attribute = name.partition(".")
    kinds = getattr(tl_transfer, owner).__mro__ if attribute else ()
    members = [vars(kind).get(attribute) for kind in kinds] or [value]
    return "\n".join(inspect.getdoc(getattr(m, "__func__", m)) or "" for m in members if m)


_NAMES = dict(public())


def arguments(name: str, value: Any) -> list[str]:
    """Arguments that the docstring does not explain in a list; one alone may be in the sentence."""
    if inspect.isclass(value) and issubclass(value, Exception | Warning):
        return []
    wanted = [argument for argument in _parameters(value) if not argument.startswith("_")]
    if len(wanted) < 2 and not inspect.isclass(value):
        return []
    text = doc(name, value)
    lines = re.findall(r"^\s*((?:\**\w+, )*\**\w+):", text, re.M)
    listed = {one.strip(" *") for line in lines for one in line.split(",")}
    if len(wanted) == 2:
        listed |= set(re.findall(r"\w+", text))
    return [f"argument {argument}" for argument in wanted if argument not in listed]


def _parameters(value: Any) -> list[str]:
    if inspect.isclass(value):
        if is_dataclass(value):
            return [field.name for field in fields(value) if field.init]
        value = value.__init__
        if value is object.__init__:
            return []
    return [name for name in inspect.signature(value).parameters if name not in OBVIOUS]


def shapes(name: str, value: Any) -> list[str]:
    """Tensors without axis names."""
    return [
        f"{argument} is a Tensor without a shape"
        for argument, kind in getattr(value, "__annotations__", {}).items()
        if argument not in SHAPELESS and not argument.startswith("_") and _is_bare(kind)
    ]


def _is_bare(kind: Any) -> bool:
    """Whether an annotation is torch.Tensor itself, or a union with it."""
    united = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return kind is torch.Tensor or torch.Tensor in united


def errors(name: str, value: Any) -> list[str]:
    """Errors that the body raises and the docstring does not name."""
    if inspect.isclass(value):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value))))
    raised = {
        ast.unparse(node.exc.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    ours = {error for error in raised if error in vars(tl_transfer.errors)}
    text = doc(name, value)
    return [f"raises {error} without saying when" for error in sorted(ours) if error not in text]


def test_every_argument_is_explained() -> None:
    report(missing(arguments))


def test_every_tensor_has_its_axes() -> None:
    report(missing(shapes))


def test_every_error_is_named() -> None:
    report(missing(errors))


def test_every_name_has_a_sentence() -> None:
    report(missing(lambda n, v: [] if len(_own(n, v)) > 15 else ["no docstring"]))


def test_what_is_missing_is_found() -> None:
    def bad(x: torch.Tensor, y: int) -> None:
        """Does it."""
        raise InputError("no")

    assert arguments("bad", bad) == ["argument x", "argument y"]
    assert shapes("bad", bad) == ["x is a Tensor without a shape"]
    assert errors("bad", bad) == ["raises InputError without saying when"]
