"""What one head gives to and reads from every position: attention received beside its null, and value norms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from sinklens.plots.axes import log_axis, value_axis
from sinklens.plots.marks import add_line
from sinklens.plots.style import ABOVE, CATEGORICAL, MUTED, TEMPLATE, empty_figure, head_label, token_label


@dataclass(frozen=True)
class Positions:
    """What a head does by position, in one result.

    Attributes:
        received: ``importance`` and ``null`` by position, NaN where there is none.
        values: ``value_norm`` (of its KV head) and ``output_norm`` (after W_O) by position.
        of: What the numbers are of: a text, or a mean over how many.
        tokens: Of that text, for the hover.
    """

    received: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    of: str = ""
    tokens: Sequence[str] = ()


@dataclass(frozen=True)
class _Line:
    """One quantity by position: how it is called and drawn, and in which of the two panels."""

    values: np.ndarray | None
    name: str
    colour: str
    dash: str
    panel: int


def _lines(shown: Sequence[Positions]) -> list[_Line]:
    """All lines: those of a second result are lighter in dash and named B."""
    out = []
    for i, each in enumerate(shown):
        letter = f"{'AB'[i]} " if len(shown) > 1 else ""
        dash = "dot" if i else "solid"
        out += [
            _Line(each.received.get("importance"), f"{letter}attention received", CATEGORICAL[4 if i else 0], dash, 1),
            _Line(each.received.get("null"), f"{letter}uniform null", MUTED if i else "black", "dash", 1),
            _Line(each.values.get("value_norm"), f"{letter}|v| (KV head)", CATEGORICAL[5 if i else 2], dash, 2),
            _Line(each.values.get("output_norm"), f"{letter}|W_O v|", CATEGORICAL[3 if i else 1], dash, 2),
        ]
    return out


def by_position(layer: int, head: int, shown: Sequence[Positions], *, token: int | None = None) -> go.Figure:
    """Draw one head by key position: importance with the causal-uniform null above, value norms below.

    Args:
        layer: Of the head.
        head: Its index.
        shown: In one result, or in two that are compared.
        token: Marked position.
    """
    lines, tokens = _lines(shown), shown[0].tokens
    note = shown[0].of if len(shown) == 1 else "; ".join(f"{'AB'[i]}: {each.of}" for i, each in enumerate(shown))
    drawn = [(line, y) for line in lines if (y := line.values) is not None and np.isfinite(y).any()]
    if not drawn:
        title = f"{head_label(layer, head)} by position"
        return empty_figure(title, "Not applicable: nothing was measured by position.")
    fig = go.Figure(layout={"template": TEMPLATE, "height": 390, "margin": {"l": 82, "r": 16, "t": 30, "b": 44}})
    panels = sorted({line.panel for line, _ in drawn})
    names = [token_label(token, 20) for token in tokens]
    for line, y in drawn:
        count, first = len(y), line is drawn[0][0]  # one line names the tokens: they are the same for all
        marked = count <= 96 and line.dash != "dash"
        add_line(
            fig,
            np.arange(count),
            y,
            line.name,
            line.colour,
            hover=f"%{{x}}{' %{text}' if first else ''}<br>{line.name} %{{y:.4g}}",
            width=1.8,
            dash=line.dash,
            symbol="circle" if marked else None,
            size=5,
            text=[*names[:count], *[""] * (count - len(names))] if first else None,
            yaxis="y" if line.panel == 1 else "y2",
        )
    heights = {panel: np.concatenate([y for line, y in drawn if line.panel == panel]) for panel in panels}
    both = len(panels) == 2
    if 1 in panels:
        upper = {"title": {"text": "attention per query"}, "domain": [0.55, 1] if both else [0, 1]}
        fig.update_layout(yaxis=upper | log_axis(heights[1]))
    if 2 in panels:
        top = float(np.nanmax(heights[2])) or 1.0
        lower = value_axis("value norm (L2)", range=[0, 1.06 * top], anchor="x", domain=[0, 0.45] if both else [0, 1])
        fig.update_layout(yaxis2=lower)
    last = max(len(y) for _, y in drawn)
    fig.update_layout(
        xaxis=value_axis(
            f"key position (0-based){'; ' + note if note else ''}",
            range=[-0.02 * last, 1.0 * last],
            anchor="y2" if 2 in panels else "y",
        ),
        legend=ABOVE,
        shapes=mark(token),
        meta={"positions": True},  # lets the page move the mark itself
    )
    return fig


def mark(token: int | None) -> list[dict[str, object]]:
    """A vertical line at the chosen position."""
    if token is None:
        return []
    line = {"color": MUTED, "width": 1.5, "dash": "dot"}
    return [{"type": "line", "x0": token, "x1": token, "y0": 0, "y1": 1, "yref": "paper", "line": line}]
