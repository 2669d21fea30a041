"""Classes and tables of sinklens as their source tells them, without loading torch."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import sinklens


@dataclass(frozen=True)
class Listed:
    """A class as its source tells it.

    Attributes:
        bases: Names of its bases.
        doc: Its docstring, cleaned.
        constants: Attributes with a literal value.
        asked_for: Parameters of its own constructor without a default.
        registered: Whether it is decorated with ``@register``.
    """

    bases: tuple[str, ...]
    doc: str
    constants: dict[str, Any] = field(default_factory=dict)
    asked_for: tuple[str, ...] = ()
    registered: bool = False


def assigned(file: str, name: str) -> ast.expr:
    """What a module gives to a name of its own."""
    for node in tree(file).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and getattr(target, "id", None) == name and node.value:
            return node.value
    raise KeyError(name)


def tree(file: str) -> ast.Module:
    """A file of the package, by its path in it."""
    return ast.parse((Path(sinklens.__file__).parent / file).read_text("utf-8"))


@cache
def classes(folder: str) -> dict[str, Listed]:
    """The classes in the files of a package of sinklens, by name."""
    files = sorted((Path(sinklens.__file__).parent / folder).glob("*.py"))
    trees = [ast.parse(file.read_text("utf-8")) for file in files]
    return {node.name: _read(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _read(node: ast.ClassDef) -> Listed:
    constants = dict(_constants(node))
    asked: tuple[str, ...] = ()
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            given = each.args.args[1 : len(each.args.args) - len(each.args.defaults)]
            named = [
                name for name, value in zip(each.args.kwonlyargs, each.args.kw_defaults, strict=True) if value is None
            ]
            asked = tuple(argument.arg for argument in (*given, *named))
            constants["__init__"] = asked
    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
    registered = any(isinstance(each, ast.Name) and each.id == "register" for each in node.decorator_list)
    return Listed(bases, inspect.cleandoc(ast.get_docstring(node) or ""), constants, asked, registered)


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for each in node.body:
        target = each.targets[0] if isinstance(each, ast.Assign) else getattr(each, "target", None)
        if isinstance(each, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and each.value is not None:
            try:
                yield target.id, ast.literal_eval(each.value)
            except ValueError:
                continue  # made when the file is loaded


def ancestors(known: dict[str, Listed], kind: str) -> list[str]:
    """The class and its bases in the folder, nearest first."""
    found = [kind]
    for base in known[kind].bases:
        found += ancestors(known, base) if base in known else [base]
    return found


def inherited(known: dict[str, Listed], kind: str) -> Listed:
    """A class with the constants of its bases."""
    constants: dict[str, Any] = {}
    for name in reversed(ancestors(known, kind)):
        constants |= known[name].constants if name in known else {}
    own = known[kind]
    return Listed(own.bases, own.doc, constants, tuple(constants.get("__init__", ())), own.registered)
