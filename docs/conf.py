"""Sphinx configuration: `make docs` writes docs/_build/html."""

import sys
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "sinklens"
author = "sinklens contributors"
copyright = "sinklens contributors, MIT licence"
project_file = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
release = version = tomllib.loads(project_file)["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "metric_directive",
    "figure_directive",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False, "show-inheritance": False}
templates_path = ["_templates"]
# Docstrings name private classes and tensors' shapes that have no page of their own.
nitpicky = False
suppress_warnings = ["ref.python"]  # one name is often both a function and a module of detectors


def _escape_bars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Norms and magnitudes such as |h| are no substitutions; inside literals bars stay as they are."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        lines[index] = "``".join(p.replace("|", r"\|") if i % 2 == 0 else p for i, p in enumerate(parts))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape_bars, priority=900)


html_theme = "furo"
html_title = "sinklens"
html_copy_source = False
html_show_sphinx = False
