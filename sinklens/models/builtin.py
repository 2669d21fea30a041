"""The data that sinklens brings along: built-in models, corpora and tables."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sinklens.errors import ResultError


@dataclass(frozen=True)
class BuiltinModel:
    """A checkpoint that ships with sinklens.

    Attributes:
        name: What :func:`sinklens.load` takes.
        path: Its Hugging Face directory.
        shows: What it is good for, in one sentence.
        recipe: How it was trained (``recipe.json``).
        measured: The figures measured on it when it was trained (``measured.json``).
    """

    name: str
    path: Path
    shows: str
    recipe: dict[str, Any]
    measured: dict[str, Any]


def data_dir() -> Path:
    """Return the folder of the built-in data.

    A checkout keeps it beside the package (`<repository>/data`), an installed wheel inside it (`sinklens/_data`).

    Raises:
        ResultError: if neither folder exists, which means a broken installation.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "_data", package.parent / "data")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ResultError(
        f"The built-in data was expected in {candidates[0]} or {candidates[1]} and neither exists; "
        "install sinklens again or run it from a complete checkout."
    )


@cache
def builtin_models() -> dict[str, BuiltinModel]:
    """Every built-in model by name: each directory under ``data/models`` with a ``recipe.json``."""
    found = {}
    for recipe_path in sorted((data_dir() / "models").glob("*/recipe.json")):
        recipe = json.loads(recipe_path.read_text("utf-8"))
        measured_path = recipe_path.with_name("measured.json")
        measured = json.loads(measured_path.read_text("utf-8")) if measured_path.is_file() else {}
        name = recipe_path.parent.name
        found[name] = BuiltinModel(name, recipe_path.parent, recipe.get("shows", ""), recipe, measured)
    return found
