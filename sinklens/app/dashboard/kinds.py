"""Which kinds of saved results the dashboard knows, and how each is opened; a new kind is one entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go

from sinklens.app.dashboard.census_run import census_run
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.stored import StoredTables
from sinklens.app.dashboard.sweep_run import sweep_run
from sinklens.errors import ResultError
from sinklens.studies.ablation.result import FORMAT as SWEEP
from sinklens.studies.ablation.result import FORMAT_VERSION as SWEEP_VERSION
from sinklens.studies.active_dormant.result import FORMAT as ACTIVE_DORMANT
from sinklens.studies.active_dormant.result import FORMAT_VERSION as ACTIVE_DORMANT_VERSION
from sinklens.studies.census.result import FORMAT as CENSUS
from sinklens.studies.census.result import FORMAT_VERSION as CENSUS_VERSION
from sinklens.studies.census.result import AttentionMap


@dataclass(frozen=True)
class Kind:
    """How results of one ``format`` are opened.

    Attributes:
        newest: Newest ``format_version`` this sinklens reads.
        open: Makes the run from its name, label, and tables; default: any tables, grids of those with a row per head.
        drawings: Figures of the whole result by title.
        result: Its class as ``module:name``, for results whose verdict is not in their header.
    """

    newest: int
    open: Callable[[str, str, StoredTables], Run] | None = None
    drawings: Mapping[str, Callable[[Run], go.Figure]] = field(default_factory=dict)
    result: str = ""


def _census(name: str, label: str, tables: StoredTables) -> Run:
    meta = dict(tables.meta)
    try:
        described, tokens = meta.pop("maps"), meta.pop("map_tokens")
        arrays = tables.arrays() if described else {}
        maps = {each: AttentionMap(values=arrays[each], tokens=tokens, **m) for each, m in described.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{tables.directory} is damaged: {error} is missing or wrong in its header.") from error
    return census_run(name, label, meta, tables, maps)


def _sweep(name: str, label: str, tables: StoredTables) -> Run:
    return sweep_run(name, label, tables.meta, tables)


def _draw(function: str, *tables: str, **options: Any) -> Callable[[Run], go.Figure]:
    """A figure of :mod:`sinklens.plots` from some of a result's tables."""

    def drawing(run: Run) -> go.Figure:
        from sinklens import plots

        figure: go.Figure = getattr(plots, function)(*(run.tables.frame(table) for table in tables), **options)
        return figure

    return drawing


def _verdict(result: str) -> Callable[[Run], list[str]]:
    """What a result's class says about its tables."""

    def say(run: Run) -> list[str]:
        module, _, name = result.partition(":")
        tables = {table: run.tables.frame(table) for table in run.tables.names}
        try:
            said = getattr(import_module(module), name)(dict(run.meta), tables).verdict
        except (KeyError, TypeError, ValueError) as error:  # of a header or table that is not as it was saved
            return [f"Its verdict cannot be written: {type(error).__name__} {error}."]
        return [said] if isinstance(said, str) else list(said)

    return say


KINDS: Final[dict[str, Kind]] = {
    CENSUS: Kind(CENSUS_VERSION, _census),
    SWEEP: Kind(SWEEP_VERSION, _sweep, result="sinklens.studies.ablation.result:Sweep"),
    ACTIVE_DORMANT: Kind(
        ACTIVE_DORMANT_VERSION,
        drawings={"Active and dormant heads": _draw("active_dormant", "heads")},
        result="sinklens.studies.active_dormant.run:ActiveDormant",
    ),
    "sinklens-needles": Kind(1, drawings={"Needles by length and depth": _draw("needle_grid", "grid")}),
    "sinklens-roles": Kind(
        1, drawings={"Scores, labels and their agreement": _draw("head_roles", "heads", "criteria", "agreement")}
    ),
    "sinklens-dynamics": Kind(
        1,
        drawings={"By training step": _draw("dynamics", "steps", "heads")},
        result="sinklens.studies.dynamics.result:Dynamics",
    ),
}


def open_run(path: Path, name: str, label: str) -> Run:
    """Open a saved result of any kind; an unknown one shows its tables.

    Raises:
        ResultError: No result there, one of a newer format, or damaged.
    """
    tables = StoredTables(path)
    kind = KINDS.get(tables.kind)
    if kind is not None and tables.version > kind.newest:
        raise ResultError(
            f"{name} was saved in format {tables.version} by sinklens {tables.meta.get('sinklens_version')}; this "
            f"version reads up to format {kind.newest}. Update sinklens."
        )
    tables.warm()
    if kind is None:
        return Run(name, label, tables.kind, tables.meta, tables)
    if kind.open is not None:
        run = kind.open(name, label, tables)
    else:
        run = Run(name, label, tables.kind, tables.meta, tables, drawings=kind.drawings)
    run.say = _verdict(kind.result) if kind.result else None
    return run
