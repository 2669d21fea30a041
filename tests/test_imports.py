"""The drawing of the imports: no two modules need each other, wherever in a file the import stands."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sinklens

ROOT = Path(sinklens.__file__).parent


def modules() -> dict[str, Path]:
    """Files by the name that imports them."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each import, also those in functions and for the type checker; ``""`` for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, "") for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((str(node.module), each.name) for each in node.names)


def drawing() -> dict[str, set[str]]:
    """For each module those it imports; a name that is a module of a package counts as that module."""
    files, edges = modules(), {}
    for name, path in files.items():
        pairs = imported(ast.parse(path.read_text("utf-8")))
        needed = {f"{module}.{part}" if f"{module}.{part}" in files else module for module, part in pairs}
        edges[name] = (needed & files.keys()) - {name}
    return edges


def test_no_two_modules_import_each_other() -> None:
    edges = drawing()
    assert len(edges) > 300 and "sinklens.attention.engine" in edges["sinklens.attention"]  # it sees the house
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail("Imports go round: " + " <- ".join(error.args[1]))


def test_a_circle_would_be_seen() -> None:
    edges = drawing()
    edges["sinklens.studies.census.result"].add("sinklens.app.census_report")
    with pytest.raises(CycleError):
        TopologicalSorter(edges).prepare()
