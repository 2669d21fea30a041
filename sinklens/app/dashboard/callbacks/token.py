"""One token: its residual norm by layer, its massive channels, and the heads that sink on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import Dash, Input, Output, html

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.figures.score_grid import score_grid
from sinklens.app.dashboard.figures.token_norm import token_norm
from sinklens.app.dashboard.graphs import wide_graph
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import SinkLensError
from sinklens.plots.style import empty_figure, layer_spans, number, visible_text
from sinklens.studies.census.by_sequence import NO_KEY, OneSequence
from sinklens.studies.census.result import not_kept


def register(app: Dash, bench: Bench) -> None:
    """Connect the callback."""

    @app.callback(
        Output("token-title", "children"),
        Output("token-of", "children"),
        Output("token-facts", "children"),
        Output("token-norm-place", "children"),
        Output("token-heads-place", "children"),
        Output("token-reads", "children"),
        Output("token-massive", "children"),
        Output("token-card", "className"),
        Output("token", "max"),
        Input("token-later", "data"),
        prevent_initial_call=True,
    )
    def show_token(key: dict[str, Any]) -> tuple[Any, ...]:
        view = token_view(bench, key)
        norm = wide_graph("token-norm", view.norm, 300, says=f"{view.title}: residual norm by layer")
        heads = wide_graph("token-heads", view.heads, 300, says=f"{view.title}: attention received from every head")
        return view.title, view.of, view.facts, norm, heads, view.reads, view.massive, view.look, view.last


@dataclass(frozen=True)
class TokenView:
    """What the card of a token shows; all of it is of one text.

    Attributes:
        title: Its position and string.
        facts: What is known of it, in one line.
        of: Which text.
        norm: Residual norm by layer.
        heads: Attention that it receives from every head.
        reads: What it reads most, over the heads.
        massive: Its largest channels.
        look: Class of the card.
        last: Last position of the text.
    """

    title: str = "Token"
    facts: str = ""
    of: str = ""
    norm: go.Figure | None = None
    heads: go.Figure | None = None
    reads: Any = ""
    massive: Any = ""
    look: str = "card waiting"
    last: int | None = None


def token_view(bench: Bench, key: dict[str, Any]) -> TokenView:
    """Everything in the card of a token."""
    state = Shown.from_mapping(key)
    try:
        run = bench.run(state.run) if state.run else None
        if not isinstance(run, CensusRun):
            return TokenView(look="card hidden")
        last = run.lengths[state.sequence] - 1 if state.sequence < len(run.lengths) else 0
        if state.token is None:
            return TokenView(facts="Click a token of the text, a key of a map, or a point below it.", last=last)
        if state.token > last:
            sentence = f"Text {state.sequence} has the positions 0 to {last}, not {state.token}."
            return TokenView(facts=sentence, last=last)
        return _filled(run, state, last)
    except SinkLensError as error:
        return TokenView(facts=str(error))


def _filled(run: CensusRun, state: Shown, last: int) -> TokenView:
    position = state.token or 0
    row = run.tokens(state.sequence).iloc[position].to_dict()
    one, norms = run.text(state.sequence), run.norms(state.sequence)
    why = "" if one is not None else not_kept(state.sequence, run.numbers.kept, len(run.lengths))
    if norms is None:
        norm = empty_figure("Residual norm by layer", why or "Residual norms were not measured in this scan.")
    else:
        norm = token_norm(norms, position)
    heads = None if one is None else np.asarray(one.importance[position], dtype=float)
    return TokenView(
        title=f"Token {position}: {visible_text(str(row['token']))}",
        facts=_facts(run, row, heads),
        of=f"text {state.sequence} of {len(run.lengths)}",
        norm=norm,
        heads=_heads_figure(heads, position, why),
        reads=_reads(run, state.sequence, position, one),
        massive=_massive(run, state.sequence, position),
        look="card",
        last=last,
    )


def _heads_figure(heads: np.ndarray | None, position: int, why: str) -> go.Figure:
    title = f"Attention that position {position} receives from every head"
    if heads is None:
        return empty_figure(title, why)
    figure = score_grid(heads, title, unit="attention (share)", note="Per query that sees it.", signed=False, ticks=16)
    if figure.data:
        figure.data[0].update(zmin=0, zmax=1)
        figure.update_layout(height=300, title=None, margin={"t": 30, "b": 48})
        figure.add_annotation(
            text="attention received per query, by head", x=0, y=1, xref="paper",
            yref="paper", xanchor="left", yanchor="bottom", showarrow=False, font={"size": 12},
        )  # fmt: skip
    return figure


def _reads(run: CensusRun, sequence: int, position: int, one: OneSequence | None) -> Any:
    """The keys that are the strongest of most heads when this token is the query."""
    if one is None or one.top_key is None or one.top_weight is None:
        return ""
    keys, weights = np.asarray(one.top_key[position]).ravel(), np.asarray(one.top_weight[position]).ravel()
    known = (keys != NO_KEY) & np.isfinite(weights)
    if not known.any():
        return ""
    tokens = run.token_strings(sequence)
    found, counts = np.unique(keys[known], return_counts=True)
    order = np.lexsort((found, -counts))[:6]
    parts = [
        f"{found[i]} {visible_text(tokens[found[i]])} in {counts[i]} (mean weight "
        f"{number(float(weights[known & (keys == found[i])].mean()))})"
        for i in order
    ]
    said = f"As a query it reads most, of {int(known.sum())} heads: {'; '.join(parts)}."
    return html.P(said, className="note")


def _facts(run: CensusRun, row: dict[Any, Any], heads: np.ndarray | None) -> str:
    """What is known of the token on this text, in one line."""
    parts = [f"id {row.get('token_id')}"]
    parts += [name for key, name in (("is_bos", "BOS"), ("is_special", "special")) if row.get(key)]
    sinks, received, peak = (float(row.get(name, np.nan)) for name in ("n_sink_heads", "received", "peak_ratio"))
    if np.isnan(received):
        parts.append("no attention was measured on this text, or it is NaN or infinite")
    else:
        parts.append(
            "too few queries see it to judge it" if np.isnan(sinks) else f"sink (> {run.eps}) of {sinks:.0f} heads"
        )
    if heads is not None and not np.isnan(sinks) and np.isfinite(heads).any():
        layer, head = np.unravel_index(int(np.nanargmax(heads)), heads.shape)
        parts.append(f"most from L{layer}H{head}: {number(float(heads[layer, head]))}")
    parts += [] if np.isnan(received) else [f"mean attention received {number(received, '.3g')}"]
    parts += [] if np.isnan(peak) else [f"residual peak {number(peak)} × the median token"]
    flags = (("is_massive_absolute", "massive: |h| > 100"), ("is_massive_ratio", "massive: |h| > 1,000 × median"))
    parts += [name for key, name in flags if row.get(key)]
    return " · ".join(parts)


def spans(layers: Iterable[int]) -> str:
    """Layers with runs joined; -1 is the embedding.

    >>> spans([-1, 1, 2, 3, 7])
    'embed, 1-3, 7'
    """
    found = sorted(layers)
    rest = [layer for layer in found if layer >= 0]
    words = layer_spans(rest)
    return ", ".join(filter(None, ["embed" if -1 in found else "", words]))


def _massive(run: CensusRun, sequence: int, position: int) -> Any:
    """Largest entries of the residual stream at this token, by layer."""
    if "massive" not in run.tables.names:
        return html.P("Massive activations were not measured in this scan.", className="note")
    rows = run.massive(sequence, position)
    if rows.empty:
        sentence = "None of its channels is among the five largest entries of any layer in this sequence."
        return html.P(sentence, className="note")
    grouped = []
    for channel, part in rows.groupby("channel"):
        best = part.iloc[int(part["value"].abs().to_numpy().argmax())]
        layers = spans(int(layer) for layer in part["layer"])
        over = [name for name, key in (("> 100", "absolute"), ("> 1,000 × median", "relative")) if part[key].any()]
        grouped.append((abs(float(best["value"])), int(str(channel)), best, layers, ", ".join(over) or "no"))
    grouped.sort(key=lambda item: -item[0])
    head = ["channel", "largest h", "× median", "at layer", "among the five largest after layers", "massive"]
    body = [
        html.Tr(
            [
                html.Td(channel),
                html.Td(number(float(best["value"]))),
                html.Td(number(float(best["ratio"]))),
                html.Td("embed" if best["layer"] < 0 else str(int(best["layer"]))),
                html.Td(layers),
                html.Td(over),
            ]
        )
        for _, channel, best, layers, over in grouped[:12]
    ]
    table = html.Table([html.Thead(html.Tr([html.Th(name) for name in head])), html.Tbody(body)])
    return html.Div([html.H3("Largest channels of the residual stream at this token"), table], className="scroll")
