"""Figures as a paper prints them: one or two columns wide, text that stays readable, shades that survive grey."""

import html
import math
import re
import textwrap
from typing import Any, Final, Literal

import plotly.graph_objects as go

from sinklens.errors import InputError
from sinklens.plots.style import CATEGORICAL, MUTED

PrintWidth = Literal["column", "page"]

INCHES: Final[dict[str, float]] = {"column": 3.35, "page": 7.0}
"""Width in print: a column of a two-column page, and the whole text of one."""

PIXELS: Final[dict[str, int]] = {"column": 420, "page": 880}
"""Layout pixels of that width: a text of 12 px, the smallest there is, is 6.9 points high in print."""

DPI: Final = 300
SIGNED: Final = "Cividis"
"""Signed colours in print: from dark (below 0) to light (above), where red and blue would be one grey."""

_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")
_PATTERNS: Final = ("", "", "/", "\\", "x", "-", "|", "+")
_BARS: Final = ("#00507d", "#f3a86b")
"""Of bars of the first two colours: as much apart in grey as in colour, also where a bar is a few pixels wide."""
_SPAN: Final = re.compile(r"<br>|</?span[^>]*>")


def for_print(fig: go.Figure, width: PrintWidth) -> go.Figure:
    """Return a figure for print: as wide as a column or a page, nothing cut off, and readable in grey.

    Title and notes are wrapped to the width and the figure becomes as much higher; the legend stands below; signed
    colours run from dark to light; lines and marks of different colours get different symbols, bars different patterns.

    Args:
        fig: A figure of sinklens; it stays as it is.
        width: "column" (3.35 inches) or "page" (7 inches).

    Raises:
        InputError: A column is too narrow for the figure.

    Example:
        >>> from sinklens.plots.style import new_figure
        >>> for_print(new_figure("A title"), "column").layout.width
        420
    """
    if width == "column" and (fig.layout.meta or {}).get("least_width") == "page":
        raise InputError("This figure has numbers or panels side by side and does not fit a column; use width='page'.")
    out, pixels = go.Figure(fig), PIXELS[width]
    before = out.layout.margin.t or 60
    top = _title(out, pixels)
    _panels(out, pixels)
    bottom = _legend(out, pixels) + _axes(out, pixels)
    height = (out.layout.height or 450) + top - before + bottom - (out.layout.margin.b or 56)
    out.update_layout(width=pixels, height=height, margin={"t": top, "b": bottom})
    _in_grey(out)
    return out


def _title(fig: go.Figure, pixels: int) -> int:
    """Wrap title and notes; returns the room that they take."""
    size = 15 if pixels < 600 else 17
    first, *rest = str(fig.layout.title.text or "").split("<br>")
    notes = html.unescape(" ".join(_SPAN.sub("", line) for line in rest))
    lines = _wrapped(html.unescape(first), (pixels - 40) / (0.62 * size))
    small = _wrapped(notes, (pixels - 24) / (0.52 * 12))
    words = "<br>".join(html.escape(line, quote=False) for line in lines)
    words += "".join(
        f'<br><span style="font-size:12px;color:{MUTED}">{html.escape(line, quote=False)}</span>' for line in small
    )
    fig.layout.title.text = words
    fig.layout.title.font.size = size
    fig.layout.title.pad.t = 16  # the first of several lines reaches higher than a single one
    room = 28 + round(1.35 * size) * len(lines) + round(1.35 * size) * len(small)
    panels = max((str(note.text).count("<br>") + 1 for note in _panel_titles(fig)), default=0)
    return room + 16 * panels


def _wrapped(text: str, characters: float) -> list[str]:
    return textwrap.wrap(text, max(12, int(characters)))


def _panel_titles(fig: go.Figure) -> list[Any]:
    """Words above panels: they stand on the page's coordinates and end at the bottom of their text."""
    return [
        note for note in fig.layout.annotations
        if note.xref == "paper" and note.yref == "paper" and note.yanchor == "bottom"
    ]  # fmt: skip


def _panels(fig: go.Figure, pixels: int) -> None:
    """Wrap the titles of panels to the room until the next one."""
    notes = _panel_titles(fig)
    for note in notes:
        beside = [other.x - note.x for other in notes if abs(other.y - note.y) < 0.02 and other is not note]
        right = min((step for step in beside if step > 0.02), default=1 - note.x)
        left = min((-step for step in beside if step < -0.02), default=note.x)
        share = 2 * min(left or 1, right or 1, note.x, 1 - note.x) if note.xanchor == "center" else right
        room = share * (pixels - 80)
        if _is_plain(note.text):
            plain = html.unescape(str(note.text).replace("<br>", " "))
            note.text = "<br>".join(html.escape(line, quote=False) for line in _wrapped(plain, room / 6.6))
            note.font.size = 12

    for note in fig.layout.annotations:
        inside = note not in notes and not note.showarrow and _is_plain(note.text)
        if inside and 6.6 * len(str(note.text)) > (pixels - 100):
            note.text = "<br>".join(_wrapped(str(note.text).replace("<br>", " "), (pixels - 100) / 6.6))


def _is_plain(text: Any) -> bool:
    return "<" not in str(text).replace("<br>", "")


def _axes(fig: go.Figure, pixels: int) -> int:
    """Wrap the titles of axes to the length of their axis; returns the room of further lines below the plot."""
    labels = [
        str(label) for axis in fig.select_yaxes() for label in axis.ticktext or () if axis.showticklabels is not False
    ]
    left = max([float(fig.layout.margin.l or 64), *(7.0 * len(_SPAN.sub("", label)) + 20 for label in labels)])
    extra = 0
    for axis in fig.select_xaxes():
        _thin(axis, pixels - left - 10)
        if (words := axis.title.text) and _is_plain(words):
            low, high = axis.domain or (0.0, 1.0)
            lines = _wrapped(html.unescape(words), (high - low) * (pixels - left - 10) / 7.2)
            axis.title.text = "<br>".join(html.escape(line, quote=False) for line in lines)
            extra = max(extra, 18 * (len(lines) - 1))
    return extra


def _thin(axis: Any, pixels: float) -> None:
    """Keep as many of an axis's tick labels as can be read: those that stand upright need less room."""
    vals, text = axis.tickvals, axis.ticktext
    if vals is None or text is None or axis.showticklabels is False:
        return
    low, high = axis.domain or (0.0, 1.0)
    each = 14 if axis.tickangle in (-90, 90) else 10 + 7 * max((len(str(label)) for label in text[1:]), default=1)
    step = max(1, math.ceil(len(vals) * each / max(1.0, (high - low) * pixels)))
    shown = range(len(vals))[::step]
    axis.update(tickvals=[vals[i] for i in shown], ticktext=[text[i] for i in shown])


def _legend(fig: go.Figure, pixels: int) -> int:
    """Put the legend below the axis; returns the room below the plot."""
    bottom = int(fig.layout.margin.b or 56)
    named = [trace for trace in fig.data if getattr(trace, "showlegend", False) is not False and trace.name]
    if fig.layout.showlegend is False or not (len(named) > 1 or fig.layout.showlegend):
        return bottom
    longest = max((len(str(trace.name)) for trace in named), default=0)
    each = max(1, int((pixels - 20) / (6.6 * longest + 46)))
    rows = math.ceil(len(named) / each)
    fig.update_layout(
        legend={"orientation": "h", "x": 0, "xref": "container", "xanchor": "left", "y": 0, "yref": "container",
                "yanchor": "bottom", "font": {"size": 12}, "entrywidth": 0}
    )  # fmt: skip
    return 62 + 20 * rows


def _in_grey(fig: go.Figure) -> None:
    """What colour alone tells apart is told apart by symbol or pattern as well; signed colours become one ramp."""
    for trace in fig.data:
        kind = {colour.lower(): place for place, colour in enumerate(CATEGORICAL)}
        if trace.type == "heatmap" and trace.zmid == 0:
            trace.update(colorscale=SIGNED, zmid=None)
        elif trace.type == "bar" and isinstance(trace.marker.color, str):
            place = kind.get(trace.marker.color.lower())
            if place is not None and place < len(_BARS):
                trace.marker.color = _BARS[place]
            elif place is not None:
                trace.marker.pattern = {"shape": _PATTERNS[place], "fgcolor": "white", "size": 5}
        elif trace.type == "scatter" and trace.mode in ("lines", "lines+markers") and trace.fill is None:
            place = kind.get(str(trace.line.color).lower())
            plain = trace.mode == "lines" or trace.marker.symbol in (None, "circle")
            if place is not None and plain and trace.x is not None and 1 < len(trace.x) <= 64:
                trace.update(mode="lines+markers", marker={"symbol": _SYMBOLS[place], "size": 6})
