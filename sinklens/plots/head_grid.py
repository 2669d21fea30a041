"""The layer x head grid that several figures draw one number per head on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import head_axis, layer_rows
from sinklens.plots.marks import add_cells
from sinklens.plots.style import head_label, layer_list

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class HeadGrid:
    """Where the rows of a table lie on the grid, layer 0 at the top.

    Args:
        table: One row per head with `layer` and `head`.
        n_layers: Layers of the model, so that trailing layers without attention keep their (grey) row.
    """

    def __init__(self, table: pd.DataFrame, n_layers: int | None = None) -> None:
        self._layer, self._head = table["layer"].to_numpy(dtype=int), table["head"].to_numpy(dtype=int)
        self._records = table.to_dict("records")
        self.rows, self.columns = max(n_layers or 0, int(self._layer.max()) + 1), int(self._head.max()) + 1

    def fill(self, values: "pd.Series[Any]") -> Numbers:
        """The values in their cells; every other cell is NaN."""
        cells = np.full((self.rows, self.columns), np.nan)
        cells[self._layer, self._head] = values.to_numpy(dtype=float, na_value=np.nan)
        return cells

    def texts(self, hover: Callable[[dict[Any, Any], str], str]) -> list[list[str]]:
        """Hover text of every cell, from a row of the table and the head's name."""
        texts = np.full((self.rows, self.columns), "", dtype=object)
        for layer, head, record in zip(self._layer, self._head, self._records, strict=True):
            texts[layer, head] = hover(record, f"<b>{head_label(layer, head)}</b>")
        found: list[list[str]] = texts.tolist()
        return found

    def grey(
        self, *grids: Numbers, rows: str = "no attention in {}, not applicable", cells: str = "not applicable"
    ) -> list[str]:
        """Sentences about layers without any head of the table, and about cells of other layers without a number."""
        without = sorted({*range(self.rows)} - {*self._layer.tolist()})
        empty = sum(int(np.isnan(grid).sum()) for grid in grids) - self.columns * len(without) * len(grids)
        notes = [f"Grey rows: {rows.format(layer_list(without))}."] if without else []
        return notes + ([f"Grey cells ({empty}): {cells}."] if empty else [])


def grid_height(rows: int) -> int:
    """Pixels of a grid of so many layers."""
    return min(900, max(230, 22 * rows))


def draw_heads(fig: go.Figure, z: Any, hover: Any, *, ticks: tuple[int, int] = (32, 40), **options: Any) -> None:
    """Draw a number per head, ``[layer head]``, over the whole figure; `ticks` are the most along each axis."""
    rows, columns = np.shape(z)
    add_cells(fig, z, hover, **options)
    fig.update_layout(xaxis=head_axis(columns, limit=ticks[0]), yaxis=layer_rows(rows, limit=ticks[1]))
