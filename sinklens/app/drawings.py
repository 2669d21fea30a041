"""Which figures show a whole result, by its kind; report and dashboard draw them."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import plotly.graph_objects as go

from sinklens.plots.draws import FIGURES, Figure
from sinklens.plots.style import empty_figure

Drawing = Callable[[Any], go.Figure]
"""Draws a figure of a result."""


def drawings(kind: str) -> Mapping[str, Drawing]:
    """Figures of a whole result by title, made when asked for: those that are registered for it with a title.

    Args:
        kind: Its ``format``; one that nobody knows has none.
    """
    import_module("sinklens.plots")  # every figure registers itself
    return {
        title: partial(_draw, figure, options)
        for figure in FIGURES.values()
        if kind in figure.of
        for title, options in figure.whole.items()
    }


def _draw(figure: Figure, options: Mapping[str, Any], result: Any) -> go.Figure:
    missing = figure.missing(result)
    if missing:
        title = figure.name.replace("_", " ")
        return empty_figure(title, f"Not measured: this run made no table {missing[0]}.")
    drawn: go.Figure = figure.draw(result, **options)
    return drawn
