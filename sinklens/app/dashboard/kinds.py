"""How the dashboard opens a saved result: a census and a sweep in views of their own, any other kind by its tables."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sinklens.app.dashboard.census_run import census_run
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.stored import MemoryTables, StoredTables
from sinklens.app.dashboard.sweep_run import sweep_run
from sinklens.app.drawings import Drawing, drawings
from sinklens.app.parts import drawn_in
from sinklens.app.study_parts import PARTS
from sinklens.results.damage import blamed
from sinklens.results.header_file import refuse_newer
from sinklens.results.result import Result, known_kind
from sinklens.studies import Census, Sweep


def open_run(path: Path, name: str, label: str) -> Run:
    """Open a saved result of any kind; an unknown one shows its tables.

    Raises:
        ResultError: No result there, one of a newer format, or damaged.
    """
    tables = StoredTables(path)
    kind = known_kind(tables.kind)
    if kind is not None:
        refuse_newer(name, tables.meta, kind.newest)
    one_text = dict(tables.meta.get("tokens") or {}).get("n_sequences") == 1
    if not (one_text and dict(tables.meta.get("by_sequence") or {}).get("kept")):  # else nothing reads them
        tables.warm()
    make = _VIEWS.get(tables.kind, _any)
    with blamed(path):
        return make(name, label, tables)


def live_run(result: Result, name: str, label: str) -> Run:
    """A result that lives in memory."""
    tables = MemoryTables(result.tables, result.arrays)
    if isinstance(result, Census):
        return census_run(name, label, result.meta, tables, result.maps, lambda: result.arrays)
    if isinstance(result, Sweep):
        return sweep_run(name, label, result.meta, tables)
    return Run(name, label, result.format, result.meta, tables, drawings=_drawings(result.format))


def _drawings(kind: str) -> Mapping[str, Drawing]:
    """Its figures as its report has them, so that the first one is what it is about."""
    drawn = drawings(kind)
    parts = drawn_in(PARTS.get(kind, ()), drawn).values()
    return {title: draw for figures in parts for title, draw in figures.items()} or drawn


def _any(name: str, label: str, tables: StoredTables) -> Run:
    return Run(name, label, tables.kind, tables.meta, tables, drawings=_drawings(tables.kind))


def _census(name: str, label: str, tables: StoredTables) -> Run:
    arrays = tables.arrays() if tables.meta["maps"] else {}
    maps = Census(tables.meta, {}, arrays).maps
    return census_run(name, label, tables.meta, tables, maps, tables.arrays)


def _sweep(name: str, label: str, tables: StoredTables) -> Run:
    return sweep_run(name, label, tables.meta, tables)


_VIEWS: Final[dict[str, Callable[[str, str, StoredTables], Run]]] = {Census.format: _census, Sweep.format: _sweep}
