"""Saving what is on the screen: figures as one HTML file, the table as CSV, the picture as PNG."""

import html as html_escape
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.callbacks.everything import chosen_table, drawing
from sinklens.app.dashboard.callbacks.grid import frames, grid_view, panels
from sinklens.app.dashboard.callbacks.head import head_view, positions_view
from sinklens.app.dashboard.callbacks.navigate import describe
from sinklens.app.dashboard.callbacks.token import token_view
from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import InputError
from sinklens.plots.style import CONFIG


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks."""

    @app.callback(
        Output("download", "data"),
        Output("image", "data"),
        Input({"save": ALL, "as": ALL}, "n_clicks"),
        State("state", "data"),
        prevent_initial_call=True,
    )
    def save(clicks: list[int | None], shown: dict[str, Any]) -> tuple[Any, Any]:
        button = ctx.triggered_id
        if not any(clicks) or not isinstance(button, dict):
            return no_update, no_update
        card, form = button["save"], button["as"]
        state = Shown.from_mapping(shown)
        if form == "png":  # the browser has the picture already
            return no_update, {
                "graphs": _GRAPHS[card],
                "name": file_name(state, card, ""),
                "n": sum(count or 0 for count in clicks),
            }
        return {"content": saved(bench, state, card, form), "filename": file_name(state, card, form)}, no_update

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("sinklens", "picture"),
        Output("strip", "title"),
        Input("image", "data"),
        prevent_initial_call=True,
    )


_GRAPHS = {
    "grid": ["grid", "pair"],
    "head": ["map", "layer", "map-b"],
    "positions": ["positions"],
    "token": ["token-norm", "token-heads"],
    "all": ["drawing"],
}


def saved(bench: Bench, state: Shown, card: str, form: str) -> str:
    """Contents of the file.

    Args:
        bench: What is opened.
        state: What is on the screen.
        card: ``grid``, ``head``, ``positions``, ``token`` or ``all``.
        form: ``html`` or ``csv``.

    Raises:
        InputError: The card shows nothing to save.
    """
    run = bench.run(state.run)
    if form == "csv":
        table = shown_table(run, state, card)
        if table is None or table.empty:
            raise InputError("There is no table here to save; choose a head or token first.")
        return str(table.to_csv(index=False))
    figures = [figure for figure in shown_figures(bench, run, state, card) if figure is not None and figure.data]
    if not figures:
        raise InputError("There is no figure here to save; choose a head or token first.")
    parts = [
        str(figure.to_html(full_html=False, include_plotlyjs=i == 0, config={**CONFIG}))
        for i, figure in enumerate(figures)
    ]
    lines = [run.label, *run.notes, *run.verdict[:1], *run.provenance]
    said = "".join(f"<p>{html_escape.escape(line)}</p>" for line in lines)
    title = html_escape.escape(f"{run.label}: {card}")
    head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
    return f"<!DOCTYPE html><html>{head}<body>{said}{''.join(parts)}</body></html>"


def shown_figures(bench: Bench, run: Run, state: Shown, card: str) -> list[go.Figure | None]:
    """The figures of a card as they stand on the screen."""
    keys = describe(bench, state)
    if card == "grid":
        figure = grid_view(bench, keys["grid-key"])[0]
        figure.update_layout(shapes=frames(state, panels(figure)))
        return [figure]
    if card == "head":
        view = head_view(bench, keys["head-key"])
        return [view.map, view.second]
    if card == "positions":
        return [positions_view(bench, state, state.token)]
    if card == "token":
        token = token_view(bench, keys["token-key"])
        return [token.norm, token.heads]
    return [drawing(run, state.table)]


def shown_table(run: Run, state: Shown, card: str) -> pd.DataFrame | None:
    """The numbers behind a card."""
    pair, whole = state.pair, run
    if card in ("grid", "head", "positions"):
        run = run.at(state.text)
    if card == "grid":
        return run.table_for_grid()
    if card == "all":
        return chosen_table(run, state.table)
    if card == "token":
        return _token_rows(run, state)
    if pair is None:
        return None
    if card == "head":
        rows = [{"head": state.head, "what": f.what, "value": f.value, "beside": f.beside} for f in run.facts(*pair)]
        return pd.DataFrame(rows)
    if not isinstance(run, CensusRun):
        return None
    shown = run.positions(*pair)
    table = pd.DataFrame({**shown.received, **shown.values})
    table.insert(0, "position", range(len(table)))
    tokens = whole.token_strings(state.sequence) if isinstance(whole, CensusRun) and run.is_one_text else []
    table.insert(1, "token", [*tokens[: len(table)], *[""] * (len(table) - len(tokens))])
    return table


def _token_rows(run: Run, state: Shown) -> pd.DataFrame | None:
    if state.token is None or not isinstance(run, CensusRun):
        return None
    one = run.text(state.sequence)
    if one is None or state.token >= one.length:
        return None
    heads = np.asarray(one.importance[state.token])
    layers, count = heads.shape
    return pd.DataFrame(
        {
            "sequence": state.sequence,
            "position": state.token,
            "layer": [layer for layer in range(layers) for _ in range(count)],
            "head": list(range(count)) * layers,
            "importance": heads.ravel(),
        }
    )


def file_name(state: Shown, card: str, form: str) -> str:
    """A plain name that says what is in the file.

    >>> file_name(Shown(run="demo/run", head="L1H0"), "head", "csv")
    'demo-run-head-L1H0.csv'
    """
    parts = [
        state.run,
        card,
        state.head if card in ("head", "positions") else "",
        f"{state.token}" if card == "token" else "",
    ]
    stem = "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-") for part in parts if part)
    return f"{stem.strip('-') or 'sinklens'}{'.' if form else ''}{form}"
