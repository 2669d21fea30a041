"""How often each rule puts the right document first, beside chance."""

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import named_axis, value_axis
from sinklens.plots.draws import draws
from sinklens.plots.marks import add_intervals, add_null
from sinklens.plots.style import CATEGORICAL, MUTED, empty_figure, escaped, new_figure, require_columns
from sinklens.studies.document_ranking.result import CONTROLS, summarize

_TITLE: Final = "How often the right document comes first"


@draws(
    "sinklens-document-ranking",
    needs={"ranks": ("task", "method", "document")},
    whole={_TITLE: {}},
)
def document_ranks(ranks: pd.DataFrame) -> go.Figure:
    """Draw, for each rule, the share of tasks whose right document it ranks first, with its interval.

    Rules that never ask the model are grey squares; the dashed line is chance, one over the documents of a task.

    Args:
        ranks: A :class:`~sinklens.studies.document_ranking.result.DocumentRanking`, or its `ranks`.

    Raises:
        InputError: A missing column.
    """
    require_columns(ranks, ("task", "method", "document", "gold", "rank"), "document_ranks")
    table = summarize(ranks)
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no task says which document is the right one.")
    note = f"Share of {int(table['n'].max())} tasks, with Wilson's 95 % interval. Grey: rules that never ask the model."
    fig = new_figure(_TITLE, note, height=46 + 34 * len(table))
    control = table["method"].isin(CONTROLS).to_numpy()
    for rows, name, colour, symbol in (
        (~control, "rule", CATEGORICAL[0], "circle"),
        (control, "control", MUTED, "square"),
    ):
        some = table[rows]
        if len(some):
            texts = [
                f"<b>{escaped(str(row.method))}</b><br>first in {row.first} of {row.n} tasks<br>mean reciprocal rank "
                f"{row.mrr:.3f}"
                for row in some.itertuples()
            ]
            add_intervals(fig, some, "share", some.index, texts, name=name, colour=colour, symbol=symbol)
    add_null(fig, float(table["chance"].mean()), "chance")
    fig.update_layout(
        xaxis=value_axis("share of tasks whose right document is first", range=[-0.02, 1.02]),
        yaxis=named_axis(map(escaped, map(str, table["method"])), down=True),
        showlegend=False,
    )
    return fig
