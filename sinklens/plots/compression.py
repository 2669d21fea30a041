"""Matrix entropy by layer, with and without row 0: is a compression valley more than one long row?"""

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, light_grid, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line
from sinklens.plots.style import CATEGORICAL, MUTED, empty_figure, layer_name, new_figure, require_columns

_TITLE: Final = "Matrix entropy of the residual stream"
_LINES: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("entropy", "all tokens", CATEGORICAL[1], {"symbol": "circle"}),
    ("entropy_others", "without position 0", CATEGORICAL[0], {"symbol": "square"}),
    ("entropy_bound", "most that position 0 allows", CATEGORICAL[1], {"width": 1.5, "dash": "dot"}),
    ("entropy_null", "null: orthogonal tokens", MUTED, {"width": 1.5, "dash": "dash"}),
)


@draws(
    CENSUS,
    needs={"compression": ("layer",)},
    made_by={"compression": 'scan(model, detectors=[..., "compression"])'},
)
def compression(layers: pd.DataFrame) -> go.Figure:
    """Draw how many directions the hidden states of a text fill after each layer: their matrix entropy, in nats.

    A valley that is there without position 0 as well is compression of all tokens; one that closes without it is the
    length of one row. The dotted line is the most that the length of position 0 alone allows, the dashed one what
    orthogonal tokens of equal length would have. Anisotropy shows in the hover when present.

    Args:
        layers: A census made with the detector `compression`, or one row per layer with `layer`, `entropy`,
            `entropy_others`; `entropy_bound`, `entropy_null`, `anisotropy`, `anisotropy_others` and `first_share` when
            present.

    Raises:
        InputError: A missing column.

    Source: after Queipo-de-Llano et al. 2025 (arXiv 2510.06477), with the line without position 0 and the null added.
    """
    require_columns(layers, ("layer", "entropy", "entropy_others"), "compression")
    table = layers.sort_values("layer").dropna(subset=["entropy", "entropy_others"], how="all")
    if table.empty:
        return empty_figure(_TITLE, "Not applicable: no hidden state was recorded.")
    numbers = [int(layer) for layer in table["layer"]]
    fig = new_figure(_TITLE, "After each layer, mean over sequences. 0 = all tokens point one way.", height=340)
    drawn = [line for line in _LINES if line[0] in table]
    for column, name, colour, look in drawn:
        text = [_hover(row, column) for row in table.to_dict("records")]
        hover = f"%{{text}}<br>{name}: %{{y:.3f}} nats"
        add_line(fig, numbers, table[column], name, colour, text=text, hover=hover, **look)
    top = max(float(table[column].max()) for column, *_ in drawn)
    heights = value_axis("matrix entropy (nats)", range=[0, 1.05 * top])
    fig.update_layout(xaxis=layer_axis(numbers) | light_grid(), yaxis=heights)
    return fig


def _hover(row: dict[Any, Any], column: str) -> str:
    text = layer_name(row["layer"])
    share = "anisotropy_others" if column == "entropy_others" else "anisotropy" if column == "entropy" else ""
    if share in row:
        text += f"<br>strongest direction: {row[share]:.1%}"
    if column == "entropy" and "first_share" in row:
        text += f"<br>position 0's part of the squared length: {row['first_share']:.1%}"
    return text
