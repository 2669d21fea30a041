"""Which figures show a whole result, by its kind; report and dashboard draw them."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

Drawing = Callable[[Mapping[str, pd.DataFrame]], go.Figure]
"""Draws a figure from a result's tables by name."""


def drawings(kind: str) -> Mapping[str, Drawing]:
    """Figures of a whole result by title, made when asked for.

    Args:
        kind: Its ``format``; one that nobody knows has none.
    """
    return _DRAWINGS.get(kind, {})


def _draw(function: str, *tables: str, **options: Any) -> Drawing:
    """A figure of :mod:`sinklens.plots` from some of a result's tables."""

    def drawing(given: Mapping[str, pd.DataFrame]) -> go.Figure:
        from sinklens import plots
        from sinklens.plots.style import empty_figure

        missing = [table for table in tables if table not in given]
        if missing:
            return empty_figure(function.replace("_", " "), f"Not measured: this run made no table {missing[0]}.")
        figure: go.Figure = getattr(plots, function)(*(given[table] for table in tables), **options)
        return figure

    return drawing


_DRAWINGS: Final[dict[str, dict[str, Drawing]]] = {
    "sinklens-census": {
        "Residual norm of position 0 by layer": _draw("residual_peaks", "layers"),
        "Residual norm by layer and token": _draw("norms_by_token", "profile", value="resid_norm"),
        "Value norm by layer and token": _draw("norms_by_token", "profile", value="value_norm"),
        "Attention received by layer and token": _draw("norms_by_token", "profile", value="received"),
        "Sink rate against its threshold": _draw("eps_sweep", "eps_sweep"),
        "Strongest massive activations": _draw("massive_table", "massive"),
        "Secondary sinks": _draw("secondary_sinks", "secondary_sinks"),
    },
    "sinklens-active-dormant": {"Active and dormant heads": _draw("active_dormant", "heads")},
    "sinklens-needles": {"Needles by length and depth": _draw("needle_grid", "grid")},
    "sinklens-roles": {"Scores, labels and their agreement": _draw("head_roles", "heads", "criteria", "agreement")},
    "sinklens-dynamics": {"By training step": _draw("dynamics", "steps", "heads")},
}
