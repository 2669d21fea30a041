"""All figures, tables and settings of a result, one at a time."""

import json
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, html

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.graphs import wide_graph
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import SinkLensError
from sinklens.plots.style import number, visible_text

ROWS: Final = 200


def register(app: Dash, bench: Bench) -> None:
    """Connect the callback."""

    @app.callback(
        Output("drawing-place", "children"),
        Output("table-body", "children"),
        Input("all-key", "data"),
        prevent_initial_call=True,
    )
    def show(key: dict[str, Any]) -> tuple[Any, ...]:
        figure, body = everything_view(bench, key)
        return wide_graph("drawing", figure, fitted=True), body


def everything_view(bench: Bench, key: dict[str, Any]) -> tuple[go.Figure | None, Any]:
    """The chosen figure, or the chosen table."""
    state = Shown.from_mapping(key)
    if not state.run or not state.table:
        return None, ""
    try:
        run = bench.run(state.run)
        figure = drawing(run, state.table)
        if figure is not None:
            return figure, ""
        return None, table_view(run, state.table)
    except SinkLensError as error:
        return None, html.P(str(error), className="note")


def drawing(run: Run, title: str) -> go.Figure | None:
    """A figure of the whole result; ``None`` when there is none of that title."""
    return run.draw(title) if title in run.drawings else None


def chosen_table(run: Run, title: str) -> pd.DataFrame | None:
    """The first rows of a table; ``None`` when there is none of that title."""
    name = title.removeprefix("table ")
    return run.tables.frame(name, ROWS) if title.startswith("table ") and name in run.tables.names else None


def table_view(run: Run, title: str) -> Any:
    """A table, its first 200 rows, or the header as text."""
    if title == "settings":
        return html.Pre(json.dumps(dict(run.meta), indent=1, default=str)[:60_000])
    frame = chosen_table(run, title)
    if frame is None:
        return ""
    total = run.tables.count(title.removeprefix("table "))
    head = html.Thead(html.Tr([html.Th(str(column)) for column in frame.columns]))
    body = [html.Tr([html.Td(_cell(value)) for value in row]) for row in frame.itertuples(index=False)]
    caption = f"{total:,} rows" + (f", the first {ROWS} of them" if total > ROWS else "")
    return html.Table([html.Caption(caption), head, html.Tbody(body)])


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray | list):  # ids of a prompt
        return " ".join(str(each) for each in value)
    if value is None or value is pd.NA or value != value:
        return "n/a"
    if isinstance(value, float):
        return number(value)
    return visible_text(value) if isinstance(value, str) else str(value)
