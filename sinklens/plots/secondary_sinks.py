"""When tokens turn into the BOS's direction, and for how long they stay."""

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.plots.axes import layer_axis, value_axis
from sinklens.plots.draws import CENSUS, draws
from sinklens.plots.marks import add_line, add_marks
from sinklens.plots.style import CATEGORICAL, MUTED, empty_figure, new_figure, require_columns, token_label
from sinklens.wording import several

_TITLE: Final = "Tokens that point along the BOS: creation and lifetime"
_LABELS: Final[dict[str, tuple[str, str, str]]] = {
    "secondary": ("secondary sink", CATEGORICAL[1], "circle"),
    "bos_sink": ("as long as the BOS", CATEGORICAL[0], "diamond"),
    "aligned, not a sink": ("aligned, hardly attended to", CATEGORICAL[2], "square"),
    "aligned, not judged": ("aligned, attention not judged", CATEGORICAL[3], "cross"),
    "noise": ("too brief", MUTED, "x"),
}


@draws(
    CENSUS,
    needs={"secondary_sinks": ("sequence", "position"), "secondary_windows": ("sequence", "window")},
    wants=("secondary_windows",),
    whole={"Secondary sinks": {}},
)
def secondary_sinks(tokens: pd.DataFrame, windows: pd.DataFrame | None = None) -> go.Figure:
    """Draw in which layer tokens begin to point along the BOS and for how long; the area of a mark is their number.

    The hover names some of the tokens. A grey line is the longest possible life of a token created in a layer: until
    the BOS loses its norm, by its windows, of which it may have several; the subtitle counts the sequences that share
    the one drawn.

    Args:
        tokens: A census, or its table `secondary_sinks`: `first_layer`, `life`, `label`, `token`,
            `importance_max`.
        windows: `start` and `end` of the BOS's own windows, with `window` to tell several of a sequence apart.

    Raises:
        InputError: A missing column.

    Source: after Wong et al. 2025 (arXiv 2512.22213), creation layer and lifetime of secondary sinks.
    """
    require_columns(tokens, ("first_layer", "life", "label", "token", "importance_max"), "secondary_sinks")
    judged = None if windows is None else windows.dropna(subset=["start"])
    spans = [] if judged is None or judged.empty else _spans(judged)
    notes = []
    if windows is not None and judged is not None:
        having, of = (frame["sequence"].nunique() if "sequence" in frame else len(frame) for frame in (judged, windows))
        notes.append(
            f"{having} of {of} sequences have a BOS that is much longer than the other tokens for some layers."
        )
    if spans:
        drawn = ", ".join(f"layers {start} to {end - 1} ({count} sequences)" for start, end, count in spans)
        notes.append(f"Dashed: {drawn}.")
    if tokens.empty:
        why = "no token points along the BOS while that is long"
        if judged is not None and judged.empty:
            why = "no sequence has a BOS that is much longer than the other tokens"
        return empty_figure(_TITLE, f"Not applicable: {why}.")
    fig = new_figure(_TITLE, " ".join([*notes, "The area of a mark is the number of tokens."]), height=360)
    largest = int(tokens.groupby(["label", "first_layer", "life"]).size().max())
    for number, (start, end, _) in enumerate(spans):
        look: dict[str, Any] = {"width": 1.5, "dash": "dash", "legendgroup": "window", "showlegend": number == 0}
        add_line(fig, [start, end - 1], [end - start, 1], "until the BOS loses its norm", MUTED, **look)
    for label, (name, colour, symbol) in _LABELS.items():
        rows = tokens[tokens["label"] == label]
        if rows.empty:
            continue
        layers_made, lives, counts, texts = [], [], [], []
        for _, group in rows.sort_values("importance_max", ascending=False).groupby(["first_layer", "life"]):
            some = ", ".join(token_label(str(token), 16) for token in group["token"].drop_duplicates().head(5))
            layers_made.append(int(group["first_layer"].iloc[0]))
            lives.append(int(group["life"].iloc[0]))
            counts.append(len(group))
            texts.append(f"{several(len(group), 'token')}, such as {some}")
        add_marks(
            fig,
            layers_made,
            lives,
            f"{name} ({len(rows)})",
            {
                "size": 8 + 22 * np.sqrt(np.array(counts) / largest),
                "color": colour,
                "symbol": symbol,
                "opacity": 0.75,
                "line": {"width": 1, "color": "white"},
            },
            hover=f"<b>{name}</b><br>after layer %{{x}}, for %{{y}} layers<br>%{{text}}",
            cliponaxis=False,
            text=texts,
        )
    layers = list(range(int(tokens["first_layer"].min()), int(tokens["first_layer"].max()) + 1))
    if spans:
        first, last = min(start for start, _, _ in spans), max(end for _, end, _ in spans)
        layers = list(range(min(first, layers[0]), max(last, layers[-1] + 1)))
    made = layer_axis(layers) | value_axis("created after layer (0-based)", range=[layers[0] - 0.6, layers[-1] + 0.6])
    fig.update_layout(xaxis=made, yaxis=value_axis("lifetime (layers)", rangemode="tozero"))
    return fig


def _spans(judged: pd.DataFrame) -> list[tuple[int, int, int]]:
    """Start and end of every window that at least half of the sequences have, the most common pair, and its count."""
    numbers = judged["window"] if "window" in judged else pd.Series(0, judged.index)
    groups = [group for _, group in judged.groupby(numbers)]
    most = max(len(group) for group in groups)
    pairs = [group.groupby(["start", "end"]).size() for group in groups if 2 * len(group) >= most]
    best = [pair.index[int(pair.argmax())] + (int(pair.max()),) for pair in pairs]
    return [(int(start), int(end), count) for start, end, count in best]
