"""What every sinklens figure shares: template, colours, browser settings and how a token is written.

Figures are made for white paper: colour-blind-safe colours, text of 12 px or more, units in titles, grey for
"not applicable". Nothing here changes Plotly's global defaults, so importing sinklens restyles nobody's
notebook.
"""

import html
import math
import textwrap
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go
import plotly.io as pio

from sinklens.errors import InputError
from sinklens.wording import run_words

SEQUENTIAL: Final = "Viridis"
DIVERGING: Final = "RdBu_r"
CATEGORICAL: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#000000")
"""Okabe and Ito's set, yellow replaced by a purple that can be read on white."""

MISSING: Final = "#d4d7dc"
"""Background of heatmaps; it shows through wherever a cell is missing."""

INK: Final = "#1f2933"
MUTED: Final = "#52606d"
GRID: Final = "#e4e7eb"
SANS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

CONFIG: Final[dict[str, Any]] = {
    "showSendToCloud": False,
    "displaylogo": False,
    "plotlyServerURL": "",
    "typesetMath": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "png", "scale": 2},
}
"""Pass to `fig.show(config=CONFIG)` and `fig.write_html(config=CONFIG)`.

Turns off the mode bar's upload button (unpublished results stay here) and MathJax (a token `$x$` is text).
"""

ABOVE: Final = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
BELOW: Final = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}
"""Places of a legend: over the plot area at its right, and below the axis, where a long subtitle cannot run into it."""

_AXIS: Final[dict[str, Any]] = {
    "gridcolor": GRID,
    "linecolor": "#9aa5b1",
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": "#9aa5b1",
    "tickfont": {"size": 12},
    "title": {"font": {"size": 14}, "standoff": 10},
    "automargin": True,
}

TEMPLATE: Final = go.layout.Template(
    layout={
        "font": {"family": SANS, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(CATEGORICAL),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {
            "bgcolor": "white",
            "bordercolor": "#9aa5b1",
            "font": {"size": 13, "color": INK},
            "align": "left",
        },
        "legend": {"font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.8)"},
        "hovermode": "closest",
    }
)

_SPACES: Final = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}


def visible_text(text: str) -> str:
    r"""Write a token so that nothing in it is invisible or rearranges the text around it.

    A space becomes `·`, a newline `⏎`, a tab `⇥`; other white space `␣`; control, format (zero-width,
    direction marks) and unpaired surrogate characters become `U+XXXX`; an empty token `∅`. The result is
    plain text: it is *not* escaped for HTML.

    >>> visible_text(" the\n")
    '·the⏎'
    >>> visible_text("a\u200bb")
    'aU+200Bb'
    """
    if not text:
        return "∅"
    parts = []
    for char in text:
        category = unicodedata.category(char)
        if char in _SPACES:
            parts.append(_SPACES[char])
        elif category == "Zs":
            parts.append("␣")
        elif category[0] == "C" or category in ("Zl", "Zp"):
            parts.append(f"U+{ord(char):04X}")
        else:
            parts.append(char)
    # A combining mark alone would be drawn over whatever stands before it.
    return ("◌" if unicodedata.combining(text[0]) else "") + "".join(parts)


def token_label(text: str, limit: int = 12) -> str:
    r"""Write a token for a Plotly text (tick, hover, title): visible, short, HTML-escaped.

    Plotly reads a subset of HTML in all its texts, so an unescaped token `<b>` would vanish and embolden the
    rest. Truncation to `limit` characters comes before escaping, so that no entity is cut in two.

    >>> token_label("<b> the")
    '&lt;b&gt;·the'
    >>> token_label("internationalisation")
    'internation…'
    """
    shown = visible_text(text)
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return escaped(shown)


def escaped(text: str) -> str:
    """Escape plain text for a Plotly text, which reads `<`, `>` and `&` as HTML but not `&quot;`."""
    return html.escape(text, quote=False)


def head_label(layer: int, head: int) -> str:
    """Name a head the way the literature does, counted from 0: `head_label(5, 1)` is `L5H1`."""
    return f"L{layer}H{head}"


def layer_name(layer: int) -> str:
    """Say after what a hidden state stands: a layer, or for -1 the embedding."""
    return "embedding" if layer < 0 else f"layer {layer}"


def number(value: float | None, spec: str = "") -> str:
    """Write a number for a reader; NaN and None are "n/a", never 0, and what rounds to 0 has no sign of a loss.

    Without a `spec`, three significant digits, and whole numbers from 1,000 on.

    >>> number(0.98765), number(3749.6), number(float("nan")), number(-1e-9, "+.2f")
    ('0.988', '3,750', 'n/a', '+0.00')
    """
    if value is None or math.isnan(value):
        return "n/a"
    if not spec and 999.5 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    signed, plain = ("+", spec[1:]) if spec.startswith("+") else ("", spec)
    return format(value, f"{signed}z{plain or '.3g'}")


def layer_spans(layers: Iterable[int]) -> str:
    """Write layer numbers shortly, runs joined.

    >>> layer_spans([0, 1, 2, 5, 7, 8]), layer_spans([])
    ('0-2, 5, 7, 8', '')
    """
    return ", ".join(run_words(layers))


def layer_list(layers: Collection[int]) -> str:
    """Write layer numbers shortly, with the word.

    >>> layer_list([0, 1, 2, 5, 7, 8]), layer_list([3])
    ('layers 0-2, 5, 7, 8', 'layer 3')
    """
    return f"layer{'s' if len(layers) > 1 else ''} {layer_spans(layers)}"


def require_columns(table: pd.DataFrame, columns: Iterable[str], function: str) -> None:
    """Stop with one sentence when `table` lacks a column that `function` draws.

    Raises:
        InputError: naming the missing columns and those present.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        have = ", ".join(map(str, table.columns)) or "none"
        raise InputError(f"{function} needs the column(s) {', '.join(missing)}, but the table has: {have}.")


def float32(values: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Cast to float32, the widest type sent to the browser: float64 only doubles the page."""
    return np.asarray(values, dtype=np.float32)


def new_figure(title: str, subtitle: str = "", *, height: int = 420, wrap: int = 130) -> go.Figure:
    """Start a figure in the house style, with room at the top for the title and the wrapped subtitle.

    Args:
        title: Plain text; escaped here.
        subtitle: Plain text, one or more sentences: what is missing, clipped or pooled. Escaped here.
        height: Height of the plot area in pixels; title and axis labels are added to it.
        wrap: Characters per subtitle line.
    """
    lines = textwrap.wrap(subtitle, wrap)
    top = 44 + 18 * len(lines)
    # One text and not layout.title.subtitle, whose distance from the title varies with its number of lines.
    small = "".join(f'<br><span style="font-size:13px;color:{MUTED}">{escaped(line)}</span>' for line in lines)
    bottom = 56
    return go.Figure(
        layout={
            "template": TEMPLATE,
            "height": height + top + bottom,
            "margin": {"l": 64, "r": 24, "t": top, "b": bottom},
            "title": {
                "text": escaped(title) + small,
                "font": {"size": 17},
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"l": 12, "t": 22 if lines else 12},
            },
        }
    )


def empty_figure(title: str, sentence: str) -> go.Figure:
    """Say in a sentence why there is nothing to draw: "not applicable", never a row of zeros."""
    fig = new_figure(title, height=120)
    fig.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    fig.add_annotation(
        text="<br>".join(escaped(line) for line in textwrap.wrap(sentence, 100)),
        showarrow=False,
        font={"size": 14, "color": MUTED},
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
    )
    return fig


def colorbar(title: str, **options: Any) -> dict[str, Any]:
    """Return a thin colour bar whose title, with its unit, stands beside it."""
    return {
        "title": {"text": escaped(title), "side": "right", "font": {"size": 13}},
        "thickness": 14,
        "outlinewidth": 0,
        "tickfont": {"size": 12},
        **options,
    }


def signed_colours(top: float) -> dict[str, Any]:
    """Return the colours of numbers with a sign: centred on 0 and symmetric, up to a magnitude (1 if that is 0)."""
    return {"zmin": -(top or 1.0), "zmax": top or 1.0, "zmid": 0, "colorscale": DIVERGING}


def faint(colour: str, alpha: float) -> str:
    """Return a colour such as `#0072B2` that lets through what lies behind it."""
    red, green, blue = plotly.colors.hex_to_rgb(colour)
    return f"rgba({red},{green},{blue},{alpha})"


def use_in_notebook() -> None:
    """Show figures with the house's settings from here on: no button that uploads them, no logo.

    Plotly's mode bar has a "Share chart" button by default, which sends the figure to a server. This changes the
    configuration of Plotly's notebook renderers in this process; which of them is used stays Plotly's choice (set
    ``plotly.io.renderers.default`` yourself if a figure does not appear, for instance to ``"notebook"``).

    Example:
        >>> use_in_notebook()
        >>> pio.renderers["plotly_mimetype"].config["showSendToCloud"]
        False
    """
    for name in pio.renderers:
        renderer = pio.renderers[name]
        if hasattr(renderer, "config"):
            renderer.config = {**(renderer.config or {}), **CONFIG}
