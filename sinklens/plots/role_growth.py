"""How scores of heads grow through training, and how far heads specialise."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import BELOW, CATEGORICAL, empty_figure, escaped, new_figure, require_columns

_TITLE: Final = "Scores of heads through training"


@draws(needs={"growth": ("step", "score")}, made_by={"growth": "Dynamics.role_growth()"})
def role_growth(growth: pd.DataFrame) -> go.Figure:
    """Draw, for each score, what its strongest head gains over the first step, and how unevenly heads share it.

    Left: the largest excess of any head over its own score at the first step. Right: specialisation (Gini coefficient
    over heads: 0 where all have as much, near 1 where one has all).

    Args:
        growth: What ``Dynamics.role_growth()`` gives.

    Raises:
        InputError: A missing column.
    """
    require_columns(growth, ("step", "score", "excess_top", "specialisation"), "role_growth")
    if growth.empty:
        return empty_figure(_TITLE, 'Not measured: ask for roles, as in measure_dynamics(series, roles=["pattern"]).')
    fig = new_figure(_TITLE, "Steps are placed evenly, in their order.", height=340)
    steps = sorted(int(step) for step in growth["step"].unique())
    for number, (score, rows) in enumerate(growth.sort_values("step").groupby("score", sort=True)):
        places = [steps.index(int(step)) for step in rows["step"]]
        colour = CATEGORICAL[number % len(CATEGORICAL)]
        for panel, column in enumerate(("excess_top", "specialisation"), 1):
            suffix = "" if panel == 1 else "2"
            add_line(
                fig,
                places,
                rows[column],
                escaped(str(score)),
                colour,
                symbol="circle",
                dash="solid" if number < len(CATEGORICAL) else "dot",
                text=[f"{escaped(str(score))}, step {step:,}" for step in rows["step"].astype(int)],
                hover="%{text}<br>%{y:.3f}",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                showlegend=panel == 1,
                legendgroup=str(score),
            )
    ticks = {"tickmode": "array", "tickvals": [*range(len(steps))], "ticktext": [f"{step:,}" for step in steps]}
    axis = {"title": {"text": "training step"}, **ticks}
    fig.update_layout(
        xaxis=axis | {"domain": [0, 0.46]},
        xaxis2=axis | {"domain": [0.54, 1], "anchor": "y2"},
        yaxis=value_axis("largest excess over the first step"),
        yaxis2=value_axis("specialisation of heads", range=[-0.02, 1.02], anchor="x2"),
        legend=BELOW,
        margin={"b": 130},
        height=fig.layout.height + 74,
    )
    return fig
