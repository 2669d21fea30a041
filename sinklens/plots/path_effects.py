"""The strongest paths between heads: what a sender hands to a receiver of what tells two prompts apart."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_intervals
from sinklens.plots.style import BELOW, CATEGORICAL, MUTED, empty_figure, escaped, new_figure, number, require_columns

_TITLE: Final = "What heads hand to each other"


@draws(
    "sinklens-path-patching",
    needs={"paths": ("sender", "receiver")},
    whole={_TITLE: {}},
)
def path_effects(paths: pd.DataFrame, *, rows: int = 25) -> go.Figure:
    """Draw the paths with the largest effects, by size, with their intervals; a colour a receiver.

    An effect of 1 is all that tells the two prompts apart, 0 nothing; below 0 the path works against it.

    Args:
        paths: A :class:`~sinklens.studies.path_patching.result.PatchedPaths`, or its `paths`.
        rows: Most paths drawn.

    Raises:
        InputError: A missing column.
    """
    require_columns(paths, ("sender", "receiver", "effect", "low", "high"), "path_effects")
    known = paths.dropna(subset=["effect"])
    if known.empty:
        return empty_figure(_TITLE, "Not applicable: both prompts give the same answers, so no path has an effect.")
    order = known["effect"].abs().sort_values(ascending=False, kind="stable").index
    shown = known.loc[order].head(rows).reset_index(drop=True)
    note = "Share of what tells the prompts apart that goes this way, mean over prompts with its 95 % interval."
    note += f" The {len(shown)} largest of {len(known)} paths." if len(shown) < len(known) else ""
    fig = new_figure(_TITLE, note, height=46 + 24 * len(shown))
    for at, (receiver, some) in enumerate(shown.groupby("receiver", sort=False)):
        texts = [
            f"<b>{row['sender']} to {row['receiver']}</b><br>effect {number(row['effect'])}"
            for row in some.to_dict("records")
        ]
        colour, symbol = CATEGORICAL[at % len(CATEGORICAL)], ("circle", "square", "diamond", "cross")[at % 4]
        name = f"to {escaped(str(receiver))}"
        add_intervals(fig, some, "effect", some.index, texts, name=name, colour=colour, symbol=symbol)
    fig.add_vline(x=0, line={"color": MUTED, "width": 1})
    fig.update_layout(
        xaxis=value_axis("effect (1 = all that tells the prompts apart)"),
        yaxis=named_axis([f"{row.sender} to {row.receiver}" for row in shown.itertuples()], down=True),
        legend=BELOW,
        margin={"b": 96},
        height=fig.layout.height + 40,
        showlegend=shown["receiver"].nunique() > 1,
    )
    return fig
