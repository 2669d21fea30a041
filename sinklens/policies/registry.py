"""Which policies there are, and how a text such as ``h2o:heavy=16,recent=16`` becomes one."""

import difflib
import importlib
import json
import pkgutil
from dataclasses import fields
from typing import Any

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.policies.base import Policy

_FOLDER = "sinklens.policies"


def policies() -> dict[str, type[Policy]]:
    """Every listed policy by name, in alphabetical order; it finds all files of this folder."""
    for module in pkgutil.iter_modules(importlib.import_module(_FOLDER).__path__, f"{_FOLDER}."):
        importlib.import_module(module.name)
    found: dict[str, type[Policy]] = {}
    waiting: list[type[Policy]] = list(Policy.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.name:
            found[kind.name] = kind
    return dict(sorted(found.items()))


def budgeted(kind: type[Policy]) -> bool:
    """Whether a rule can be set by a number of keys."""
    return getattr(kind.sized, "__func__", None) is not getattr(Policy.sized, "__func__", None)


@checked
def make_policy(text: str, *, keys: int | None = None, length: int | None = None) -> Policy:
    """A policy from its name and, after a colon, its fields.

    Args:
        text: Such as ``"h2o"``, ``"h2o:heavy=16,recent=16"`` or ``"h2o:budget=0.1"``.
        keys: Budget in keys a row for a policy whose fields are not given.
        length: Tokens of the text, which a ``budget`` below 1 is a share of.

    Raises:
        InputError: An unknown name (with those that are near) or field, a value of the wrong kind, or a budget for a
        rule that has none.

    >>> make_policy("sink_window:sinks=2,recent=8")
    SinkWindow(prompt=None, sinks=2, recent=8, evict_after=False)
    """
    name, _, given = text.strip().partition(":")
    known = policies()
    if name not in known:
        near = difflib.get_close_matches(name, known)
        raise InputError(f"Unknown policy {name!r}{_meant(near)}; there are {', '.join(known)}.")
    kind, values = known[name], _values(text, given)
    budget = values.pop("budget", None)
    if budget is not None:
        if type(budget) not in (int, float) or budget <= 0 or (budget < 1 and length is None):
            raise InputError(f"{text}: a budget is a number of keys, or a share of the text below 1; got {budget!r}.")
        keys = int(budget) if budget >= 1 else max(1, round(budget * (length or 0)))
    accepted = {each.name for each in fields(kind)}
    wrong = sorted(values.keys() - accepted)
    if wrong:
        near = difflib.get_close_matches(wrong[0], accepted)
        raise InputError(f"{name} has no field {wrong[0]!r}{_meant(near)}; it has {', '.join(sorted(accepted))}.")
    if keys is None or values.keys() - {"prompt"}:
        return kind(**values)
    sized = kind.sized(keys, length or keys)
    return type(sized)(**{each.name: getattr(sized, each.name) for each in fields(sized)} | values)


def _values(text: str, given: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        name, sign, value = part.partition("=")
        if not sign:
            raise InputError(f"{text}: expected fields as name=value with commas between, got {part!r}.")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = {"True": True, "False": False, "None": None}.get(value.strip(), value.strip())
    return values


def _meant(near: list[str]) -> str:
    return f" (did you mean {near[0]}?)" if near else ""
