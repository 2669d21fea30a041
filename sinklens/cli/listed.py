"""What detectors and policies there are, read from their source: a list and a wrong name need no torch.

Loading the classes themselves takes seconds, nearly all of it torch and transformers. Their names, sentences and other
constants stand in the files; what is inherited is looked up in the bases that lie in the same folder.
"""

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import sinklens
from sinklens.errors import InputError


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


def policies() -> dict[str, Listed]:
    """Every listed policy by name, in alphabetical order, as :func:`sinklens.policies.policies` has them."""
    known = _classes("policies")
    named = {kind: _inherited(known, kind) for kind in known if "Policy" in _ancestors(known, kind)}
    found = {each.constants["name"]: each for kind, each in named.items() if known[kind].constants.get("name")}
    return dict(sorted(found.items()))


def detectors() -> tuple[list[str], list[str]] | None:
    """Names of the detectors that a scan runs, and of the others that a name alone can ask for, by rank.

    None where an installed package brings detectors of its own: these are known only when they are loaded.
    """
    if entry_points(group="sinklens.detectors"):
        return None
    known = _classes("detectors")
    made = [_inherited(known, kind) for kind, each in known.items() if each.registered]
    made.sort(key=lambda each: (each.constants["rank"], each.constants["name"]))
    usual = [each.constants["name"] for each in made if each.constants["by_default"]]
    others = [each.constants["name"] for each in made if not each.constants["by_default"] and not each.asked_for]
    return usual, others


def check_detectors(names: list[str]) -> None:
    """Refuse a name that no detector has, before anything is loaded.

    Raises:
        InputError: There is one, or there are none at all.
    """
    if detectors() is None:
        return
    every = sorted(
        (each.constants["rank"], each.constants["name"])
        for each in (_inherited(_classes("detectors"), kind) for kind in _classes("detectors"))
        if each.registered
    )
    known = [name for _, name in every]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        close = [match for name in unknown for match in difflib.get_close_matches(name, known)]
        near = f" Did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""
        raise InputError(
            f"Unknown detectors {', '.join(unknown) or '(none)'}; expected some of {', '.join(known)}.{near}"
        )


def criteria() -> dict[str, bool]:
    """Criteria of head roles by name, in their order, and whether each is one of the usual, fast ones."""
    made = [
        [ast.literal_eval(argument) for argument in (node.args[0], node.args[2])]
        for node in ast.walk(_tree("studies/head_roles/criteria.py"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Criterion"
    ]
    return {name: not slow for name, slow in made}


def check_criteria(names: list[str]) -> None:
    """Refuse a criterion that there is not, before anything is loaded.

    Raises:
        InputError: Naming those that there are.
    """
    known = criteria()
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"Unknown criteria {', '.join(unknown)}; expected some of {', '.join(known)}.")


def check_policies(texts: list[str]) -> None:
    """Refuse a rule that there is not, before anything is loaded.

    Raises:
        InputError: Naming those that there are.
    """
    known = policies()
    for name in (text.strip().partition(":")[0] for text in texts):
        if name not in known:
            near = difflib.get_close_matches(name, known)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise InputError(f"Unknown policy {name!r}{meant}; there are {', '.join(known)}.")


def check_ranking_methods(names: list[str]) -> None:
    """Refuse a rule for documents that there is not.

    Raises:
        InputError: Naming those that there are.
    """
    known = ranking_methods()
    if not names or any(name not in known for name in names):
        raise InputError(f"methods must be some of {', '.join(known)}; got {', '.join(names) or 'none'}.")


def ranking_methods() -> list[str]:
    """Rules by which documents are put in order."""
    table = _assigned("studies/document_ranking/methods.py", "METHODS")
    return [str(key.value) for key in getattr(table, "keys", []) if isinstance(key, ast.Constant)]


def check_poolings(names: list[str]) -> None:
    """Refuse a pooling that there is not.

    Raises:
        InputError: Naming those that there are.
    """
    known = ast.literal_eval(_assigned("studies/pooling/vectors.py", "POOLINGS"))
    if not names or any(name not in known for name in names):
        raise InputError(f"poolings must be some of {', '.join(known)}; got {', '.join(names) or 'none'}.")


def parse_places(names: list[str]) -> list[str | int]:
    """Places to put tokens in, positions as numbers.

    Raises:
        InputError: Naming those that there are.
    """
    known = ast.literal_eval(_assigned("studies/injection/run.py", "PLACES"))
    if not names or any(name not in known and not name.isdecimal() for name in names):
        raise InputError(
            f"places must be some of {', '.join(known)}, or positions from 0 on; got {', '.join(names) or 'none'}."
        )
    return [int(name) if name.isdecimal() else name for name in names]


def _assigned(file: str, name: str) -> ast.expr:
    """What a module gives to a name of its own."""
    for node in _tree(file).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and getattr(target, "id", None) == name and node.value:
            return node.value
    raise KeyError(name)


def _tree(file: str) -> ast.Module:
    return ast.parse((Path(sinklens.__file__).parent / file).read_text("utf-8"))


@cache
def _classes(folder: str) -> dict[str, Listed]:
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


def _ancestors(known: dict[str, Listed], kind: str) -> list[str]:
    """The class and its bases in the folder, nearest first."""
    found = [kind]
    for base in known[kind].bases:
        found += _ancestors(known, base) if base in known else [base]
    return found


def _inherited(known: dict[str, Listed], kind: str) -> Listed:
    """A class with the constants of its bases."""
    constants: dict[str, Any] = {}
    for name in reversed(_ancestors(known, kind)):
        constants |= known[name].constants if name in known else {}
    own = known[kind]
    return Listed(own.bases, own.doc, constants, tuple(constants.get("__init__", ())), own.registered)
