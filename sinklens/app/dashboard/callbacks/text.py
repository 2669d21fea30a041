"""The tokens of a sequence, coloured by the attention they receive."""

import math
from typing import Any, Final

import numpy as np
import plotly.colors
from dash import ClientsideFunction, Dash, Input, Output, State

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.census_run import PAGE, CensusRun
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import SinkLensError
from sinklens.plots.style import SEQUENTIAL, number, visible_text
from sinklens.studies.census.result import not_kept

_STOPS: Final = 32
_SPAN: Final = 1e4
_FEWEST: Final = 10
"""Queries that a coloured token is seen by at least; fewer say too little."""


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks; the page draws the strip itself, every token as text."""

    @app.callback(
        Output("strip-data", "data"),
        Output("strip-legend", "children"),
        Output("text-of", "children"),
        Output("text-card", "style"),
        Output("sequence", "max"),
        Input("text-key", "data"),
        prevent_initial_call=True,
    )
    def show_text(key: dict[str, Any]) -> tuple[Any, ...]:
        return text_view(bench, key)

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("sinklens", "strip"),
        Output("strip-drawn", "data"),
        Input("strip-data", "data"),
        Input("token-key", "data"),
        State("strip-drawn", "data"),
    )


def text_view(bench: Bench, key: dict[str, Any]) -> tuple[dict[str, Any], str, str, dict[str, str], int | None]:
    """What the strip shows, its legend, which text it is, whether there is one, and the last one.

    Args:
        bench: What is opened.
        key: ``run``, ``head``, ``sequence``, ``colours`` and ``page``.
    """
    state = Shown.from_mapping(key)
    try:
        run = bench.run(state.run) if state.run else None
        if not isinstance(run, CensusRun):
            return {"tokens": []}, "", "", {"display": "none"}, None
        rows = run.tokens(state.sequence)
    except SinkLensError as error:
        return {"tokens": []}, str(error), "", {}, None
    length = len(rows)
    received, what = _received(run, state, rows["received"].to_numpy(float))
    received = received.copy()
    received[max(0, length - _FEWEST + 1) :] = np.nan
    start = min(int(key.get("page") or 0) * PAGE, max(0, length - 1))
    shown = slice(start, start + PAGE)
    places, legend = _places(received)
    tokens = [visible_text(str(token)) for token in rows["token"].iloc[shown]]
    colours = plotly.colors.sample_colorscale(SEQUENTIAL, [i / (_STOPS - 1) for i in range(_STOPS)])
    data = {
        "text": f"{state.run}/{state.sequence}/{start}",  # the same text is not written again, only its colours
        "tokens": tokens,
        "breaks": [i for i, token in enumerate(rows["token"].iloc[shown]) if "\n" in str(token)],
        "first": start,
        "places": places[shown],
        "values": [number(value, ".3g") for value in received[shown]],
        "colours": colours,
        "light": [i >= 0.62 * _STOPS for i in range(_STOPS)],
    }
    cut = f" Tokens {start:,} to {min(length, start + PAGE) - 1:,} of {length:,}." if length > PAGE else ""
    return data, f"{what}: {legend}.{cut}", f"text {state.sequence} of {len(run.lengths)}", {}, len(run.lengths) - 1


def _received(run: CensusRun, state: Shown, overall: np.ndarray) -> tuple[np.ndarray, str]:
    """Attention per query that each token receives on this text, and what it is."""
    pair = state.pair
    all_heads = "Attention each token receives per query on this text, mean over heads"
    if state.colours != "head" or pair is None:
        return overall, all_heads
    one = run.text(state.sequence)
    if one is None:
        why = not_kept(state.sequence, run.numbers.kept, len(run.lengths))
        return overall, f"{why} {all_heads}"
    if pair[0] >= one.importance.shape[1] or not np.isfinite(one.importance[:, pair[0], pair[1]]).any():
        return np.full(len(overall), np.nan), f"{state.head} has no attention to show"
    own = np.asarray(one.importance[:, pair[0], pair[1]], dtype=float)
    return own, f"Attention {state.head} gives to each token per query on this text"


def _places(received: np.ndarray) -> tuple[list[int], str]:
    """Place of every value on the logarithmic colour scale, -1 without one, and the scale in words."""
    positive = received[np.isfinite(received) & (received > 0)]
    if not len(positive):
        return [-1] * len(received), "nothing to colour"
    high = float(positive.max())
    low = max(float(positive.min()), high / _SPAN)
    span = math.log(high / low) or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(np.maximum(received, low) / low) / span
    places = np.where(np.isfinite(share), np.round(share * (_STOPS - 1)), -1)
    return [int(place) for place in places], (
        f"log colours from {number(low)} (dark) to {number(high)} (light); grey: none, or seen by fewer than "
        f"{_FEWEST} queries"
    )
