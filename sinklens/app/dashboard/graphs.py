"""A figure as a part of the page, or nothing: a graph costs the browser a tenth of a second even when it is empty."""

from typing import Any, Final

import plotly.graph_objects as go
from dash import dcc, html

from sinklens.plots.style import CONFIG

_FIXED: Final[Any] = {**CONFIG, "responsive": False}
_WIDE: Final[Any] = CONFIG


def place(name: str) -> html.Div:
    """Where the graph of that name will stand."""
    return html.Div(id=f"{name}-place", className="place")


def wide_graph(
    name: str, figure: go.Figure | None, height: int | None = None, *, fitted: bool = False, says: str = ""
) -> Any:
    """A graph as wide as its place, of the figure's height; nothing without a figure.

    Args:
        name: Its id.
        figure: What it shows.
        height: Pixels; by default the figure's own.
        fitted: Let Plotly measure the labels and widen the margins, which takes it two tenths of a second.
        says: What it is, for those who hear the page.
    """
    if figure is None:
        return None
    if not fitted:
        figure.update_xaxes(automargin=False)
        figure.update_yaxes(automargin=False)
    style = {"height": f"{height or figure.layout.height or 450}px"}
    return _heard(dcc.Graph(id=name, figure=figure, config=_WIDE, responsive=True, style=style), says or name)


def square_graph(name: str, figure: go.Figure | None, *, says: str = "") -> Any:
    """A graph of the figure's own width and height; nothing without a figure."""
    return None if figure is None else _heard(dcc.Graph(id=name, figure=figure, config=_FIXED), says or name)


def _heard(graph: dcc.Graph, says: str) -> html.Div:
    named: Any = {"aria-label": says[:300]}
    return html.Div(graph, role="img", **named)
