"""What detectors and policies there are, read from their source: a list and a wrong name need no torch.

Loading the classes themselves takes seconds, nearly all of it torch and transformers. Their names, sentences and other
constants stand in the files; what is inherited is looked up in the bases that lie in the same folder.
"""

import ast
import difflib
from importlib.metadata import entry_points

from sinklens.cli import source
from sinklens.errors import InputError


def policies() -> dict[str, source.Listed]:
    """Every listed policy by name, in alphabetical order, as :func:`sinklens.policies.policies` has them."""
    known = source.classes("policies")
    named = {kind: source.inherited(known, kind) for kind in known if "Policy" in source.ancestors(known, kind)}
    found = {each.constants["name"]: each for kind, each in named.items() if known[kind].constants.get("name")}
    return dict(sorted(found.items()))


def detectors() -> tuple[list[str], list[str]] | None:
    """Names of the detectors that a scan runs, and of the others that a name alone can ask for, by rank.

    None where an installed package brings detectors of its own: these are known only when they are loaded.
    """
    if entry_points(group="sinklens.detectors"):
        return None
    known = source.classes("detectors")
    made = [source.inherited(known, kind) for kind, each in known.items() if each.registered]
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
        for each in (source.inherited(source.classes("detectors"), kind) for kind in source.classes("detectors"))
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
        for node in ast.walk(source.tree("studies/head_roles/criteria.py"))
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
    table = source.assigned("studies/document_ranking/methods.py", "METHODS")
    return [str(key.value) for key in getattr(table, "keys", []) if isinstance(key, ast.Constant)]


def check_poolings(names: list[str]) -> None:
    """Refuse a pooling that there is not.

    Raises:
        InputError: Naming those that there are.
    """
    known = ast.literal_eval(source.assigned("studies/pooling/vectors.py", "POOLINGS"))
    if not names or any(name not in known for name in names):
        raise InputError(f"poolings must be some of {', '.join(known)}; got {', '.join(names) or 'none'}.")


def parse_places(names: list[str]) -> list[str | int]:
    """Places to put tokens in, positions as numbers.

    Raises:
        InputError: Naming those that there are.
    """
    known = ast.literal_eval(source.assigned("studies/injection/run.py", "PLACES"))
    if not names or any(name not in known and not name.isdecimal() for name in names):
        raise InputError(
            f"places must be some of {', '.join(known)}, or positions from 0 on; got {', '.join(names) or 'none'}."
        )
    return [int(name) if name.isdecimal() else name for name in names]
