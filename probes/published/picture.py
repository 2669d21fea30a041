"""The verdicts at a glance."""

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.style import TEMPLATE

COLOURS = {
    "reproduced": "#0072B2",
    "differs": "#F0E442",
    "not reproduced": "#D55E00",
    "not testable here": "#DDDDDD",
    "not measured": "#FFFFFF",
}


def picture(results: pd.DataFrame) -> go.Figure:
    """One cell per claim and model, coloured by verdict; hover shows the figures."""
    models = [*dict.fromkeys(results["model"])]
    claims = [*dict.fromkeys(results["claim"])][::-1]
    fig = go.Figure(layout={"template": TEMPLATE})
    once = results.drop_duplicates(["claim", "model"])
    for verdict, colour in COLOURS.items():
        own = once[once["verdict"] == verdict]
        if own.empty:
            continue
        marker = {"symbol": "square", "size": 14, "color": colour, "line": {"width": 1, "color": "#666666"}}
        fig.add_scatter(x=own["model"], y=own["claim"], mode="markers", name=verdict, marker=marker)
    fig.update_xaxes(categoryorder="array", categoryarray=models, side="top")
    fig.update_yaxes(categoryorder="array", categoryarray=claims, automargin=True)
    fig.update_layout(title="Published claims on real and built-in models", height=120 + 20 * len(claims), width=900)
    return fig
