"""Two grids of one score on one scale, and their difference."""

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.axes import head_axis, layer_rows
from sinklens.plots.marks import add_cells, add_words
from sinklens.plots.style import TEMPLATE, colorbar, escaped, head_label, number, signed_colours

_ROUNDING = 1e-5
"""Share of the largest value up to which all differences are those of rounding."""


def side_by_side(first: go.Figure, second: go.Figure, names: tuple[str, str]) -> go.Figure:
    """Put two layer x head grids beside each other on one colour scale, with second minus first where shapes agree.

    What the colours of the single grids stand for is kept: with logarithmic colours the difference is that of log10,
    a factor, and its hover says so.

    Args:
        first: A grid whose first trace is the heatmap.
        second: Another of the same score.
        names: What to call them, plain text.
    """
    a, b = first.data[0], second.data[0]
    wider = a if (a.zmax - a.zmin) >= (b.zmax - b.zmin) else b
    low, high = min(a.zmin, b.zmin), max(a.zmax, b.zmax)
    za, zb = np.asarray(a.z, dtype=float), np.asarray(b.z, dtype=float)
    same = za.shape == zb.shape
    logarithmic = wider.colorbar.ticktext is not None and "log" in str(wider.colorbar.title.text)
    n = 3 if same else 2
    gap = 0.055
    width = (1 - gap * (n - 1)) / n
    fig = go.Figure(layout={"template": TEMPLATE, "height": 420})
    panels = [(a, za, names[0]), (b, zb, names[1])]
    colours = {"zmin": low, "zmax": high, "zmid": wider.zmid, "colorscale": wider.colorscale}
    colours["colorbar"] = wider.colorbar.to_plotly_json() | _below(0, 2 * width + gap)
    for i, (trace, z, name) in enumerate(panels):
        said = {"hovertemplate": f"{escaped(name)}<br>%{{text}}<extra></extra>", "showscale": i == 0}
        add_cells(fig, z, trace.text, xaxis=f"x{i + 1}", yaxis=f"y{i + 1}", **said, **colours)
    titles = [*names, "difference, B − A" + (" (log10)" if logarithmic else "")]
    if same:
        change = zb - za
        top = float(np.nanmax(np.abs(change))) if np.isfinite(change).any() else 0.0
        if top <= _ROUNDING * float(np.nanmax(np.abs([za, zb]), initial=0)):
            top = 0.0  # two kernels, machines or versions round differently: no colour says that something changed
        bar = colorbar("B − A") | _below(2 * (width + gap), 1)
        said = {"hovertemplate": "B − A<br>%{text}<extra></extra>", "colorbar": bar}
        add_cells(fig, change, _differences(change, logarithmic), xaxis="x3", yaxis="y3", **said, **signed_colours(top))
    for i in range(n):
        rows, columns = (za, zb, za)[i].shape
        start = i * (width + gap)
        axis = "" if i == 0 else str(i + 1)
        fig.update_layout(
            {
                f"xaxis{axis}": head_axis(columns, limit=16, domain=[start, start + width], anchor=f"y{axis}")
                | {"showgrid": False, "title": {"text": "head", "standoff": 4}},
                f"yaxis{axis}": layer_rows(rows, limit=20, anchor=f"x{axis}", showgrid=False)
                | ({} if i == 0 else {"title": {"text": ""}}),
            }
        )
        add_words(fig, f"<b>{'ABΔ'[i]}</b> {escaped(_short(titles[i]))}", start, 1)
    fig.update_layout(margin={"l": 56, "r": 16, "t": 32, "b": 96})
    return fig


def _below(start: float, stop: float) -> dict[str, object]:
    """A horizontal colour bar under the panels from ``start`` to ``stop``."""
    middle, length = (start + stop) / 2, 0.7 * (stop - start)
    return {
        "orientation": "h",
        "x": middle,
        "xanchor": "center",
        "y": 0,
        "yanchor": "bottom",
        "yref": "container",
        "len": length,
        "thickness": 10,
    }


def _differences(change: np.ndarray, logarithmic: bool) -> list[list[str]]:
    def text(layer: int, head: int) -> str:
        value = change[layer, head]
        shown = f"{number(10**value)} times A's" if logarithmic else f"{value:+.3g}"
        return f"<b>{head_label(layer, head)}</b><br>{'n/a' if np.isnan(value) else shown}"

    return [[text(layer, head) for head in range(change.shape[1])] for layer in range(change.shape[0])]


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:47] + "…"
