"""One head: its attention as a map, in lines or beside those of its layer, and its numbers beside their nulls."""

from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.callbacks.grid import untitled
from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.figures.exact_rows import exact_rows
from sinklens.app.dashboard.figures.layer_maps import layer_maps
from sinklens.app.dashboard.graphs import square_graph, wide_graph
from sinklens.app.dashboard.lines import lines_of
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import InputError, SinkLensError
from sinklens.plots.attention_map import attention_map

_SIDE = 330
_CHOOSE = "Click a cell of the grid, or choose a head above."


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks."""

    @app.callback(
        Output("head-title", "children"),
        Output("head-of", "children"),
        Output("head-facts", "children"),
        Output("map-place", "children"),
        Output("map-b-place", "children"),
        Output("lines-data", "data"),
        Output("map-note", "children"),
        Output("map-name", "children"),
        Output("map-b-name", "children"),
        Output("log", "style"),
        Output("maps", "hidden"),
        Output("exact", "hidden"),
        Output("whole", "hidden"),
        Output("tick", "disabled", allow_duplicate=True),
        Input("head-key", "data"),
        Input("arrival", "data"),
        State("head-key", "data"),
        prevent_initial_call=True,
    )
    def show_head(_key: Any, _arrival: Any, key: dict[str, Any] | None) -> tuple[Any, ...]:
        view = head_view(bench, key or {})
        both = view.map is not None and view.second is not None
        return (
            view.title,
            view.of,
            view.facts,
            square_graph(view.graph, view.map, says=f"{view.title}: {view.note}"),
            square_graph("map-b", view.second, says=f"{view.title} in the second result"),
            view.lines,
            view.note,
            "A" if both else "",
            "B" if view.second is not None else "",
            {} if view.map is not None or view.second is not None else {"display": "none"},
            not view.can_map,
            not view.can_zoom,
            not view.is_zoomed,
            False if view.can_map and begun_by_itself(bench, key or {}) else no_update,
        )

    @app.callback(
        Output("positions-place", "children"),
        Output("positions-card", "hidden"),
        Output("positions-title", "children"),
        Output("positions-of", "children"),
        Input("positions-later", "data"),
        State("state", "data"),
        prevent_initial_call=True,
    )
    def show_positions(key: dict[str, Any], shown: dict[str, Any]) -> tuple[Any, bool, str, str]:
        state = Shown.from_mapping(key)
        figure = positions_view(bench, state, Shown.from_mapping(shown).token)
        run = _at(bench, state.run, state)
        title = "" if run is None else run.beside(state.head)
        height = None if run is None else run.beside_height
        said = f"{title}: attention received and value norms" if isinstance(run, CensusRun) else title
        graph = wide_graph("positions", figure, height, fitted=height is None, says=said)
        return graph, figure is None, title, run.of if run is not None else ""

    for part in ("positions", "token"):  # below the first screen, which is drawn first
        app.clientside_callback(  # type: ignore[no-untyped-call]
            ClientsideFunction("sinklens", f"later{part.capitalize()}"),
            Output(f"{part}-later", "data"),
            Input(f"{part}-key", "data"),
            prevent_initial_call=True,
        )

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("sinklens", "lines"),
        Output("lines-drawn", "data"),
        Input("lines-data", "data"),
        Input("token-key", "data"),
        State("lines-drawn", "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("message", "children", allow_duplicate=True),
        Output("tick", "disabled", allow_duplicate=True),
        Input("maps", "n_clicks"),
        Input("exact", "n_clicks"),
        State("state", "data"),
        State("map", "relayoutData", allow_optional=True),
        prevent_initial_call=True,
    )
    def ask(_maps: Any, _exact: Any, shown: dict[str, Any], zoom: dict[str, Any] | None) -> tuple[str, bool]:
        state = Shown.from_mapping(shown)
        run, pair = bench.run(state.run), state.pair
        if ctx.triggered_id == "maps":
            bench.compute_maps(state.run, state.sequence)
        elif isinstance(run, CensusRun) and pair is not None and state.look == "lines":
            bench.compute_rows(state.run, state.sequence, pair, state.token or 0)
        elif isinstance(run, CensusRun) and pair is not None:
            kept = run.map(state.sequence, *pair)
            region = zoomed(zoom, kept.cell if kept is not None else 1, run.lengths[state.sequence])
            bench.compute_window(state.run, state.sequence, pair, region)
        return "", False


@dataclass(frozen=True)
class HeadView:
    """What the card of a head shows.

    Attributes:
        title: Its name.
        facts: Table of its numbers.
        map: Attention map in the shown result, ``None`` without one.
        second: The same in the result beside it.
        note: What the map is, or why there is none.
        of: On what the numbers were taken.
        lines: What the lines from token to token are drawn of, ``None`` where they are not asked for.
        graph: Name of the graph of the map.
        can_map: The model is at hand to compute what is missing.
        can_zoom: The map is pooled, and exact rows can be computed.
        is_zoomed: A part of the map is shown.
    """

    title: str
    facts: Any
    map: go.Figure | None = None
    second: go.Figure | None = None
    note: str = ""
    of: str = ""
    lines: dict[str, Any] | None = None
    graph: str = "map"
    can_map: bool = False
    can_zoom: bool = False
    is_zoomed: bool = False


def begun_by_itself(bench: Bench, key: dict[str, Any]) -> bool:
    """Compute the maps of the shown text at once where the model is loaded already; whether that has begun."""
    state = Shown.from_mapping(key)
    try:
        return bench.begin_maps(state.run, state.sequence)
    except SinkLensError:
        return False


def _none_chosen(run: Run | None) -> str:
    """What to do about it, or that there is none to choose."""
    try:
        nothing = run is not None and not run.scores
    except SinkLensError as error:  # of a damaged file
        return str(error)
    return "No table of this result has one row per head." if nothing else _CHOOSE


def head_view(bench: Bench, key: dict[str, Any]) -> HeadView:
    """Everything in the card of a head.

    Args:
        bench: What is opened.
        key: ``run``, ``compare``, ``of``, ``head``, ``sequence``, ``look``, ``log`` and ``region``.
    """
    state = Shown.from_mapping(key)
    run, other, pair = _open(bench, state.run), _open(bench, state.compare), state.pair
    if run is None or pair is None:
        return HeadView("Head", html.P(_none_chosen(run), className="note"))
    numbers = _at(bench, state.run, state)
    facts = (
        html.P(_why_not(bench, state), className="note")
        if numbers is None
        else (_facts(numbers, _at(bench, state.compare, state), pair))
    )
    of = "" if numbers is None else f"numbers: {numbers.of}" if numbers.of else ""
    second = _map(bench, other, state)[0] if isinstance(other, CensusRun) and state.look != "lines" else None
    if not isinstance(run, CensusRun):
        note = "A census of this model keeps attention maps; this kind of result does not."
        return HeadView(state.head, facts, None, second, note, of)
    if state.look == "lines" and state.sequence < len(run.lengths):
        lines = lines_of(run, state.sequence, pair)
        able = lines["kind"] != "map" and bench.can_compute(run)
        short = run.lengths[state.sequence] <= 128
        note = f"Text {state.sequence}. {lines['note']}"
        return HeadView(state.head, facts, None, None, note, of, lines, "map", able and short, able and not short)
    found, note, pooled = _map(bench, run, state)
    able = bench.can_compute(run)
    graph = "layer" if state.look == "layer" else "map"
    missing = found is None or (graph == "layer" and "Not all" in note)
    return HeadView(
        state.head, facts, found, second, note, of, None, graph, missing and able, pooled and able,
        state.window is not None,
    )  # fmt: skip


def _map(bench: Bench, run: CensusRun, state: Shown) -> tuple[go.Figure | None, str, bool]:
    """Figure, what to know about it, and whether it is pooled."""
    pair, region = state.pair, state.window
    if pair is None or state.sequence >= len(run.lengths):
        return None, f"This census has the sequences 0 to {len(run.lengths) - 1}.", False
    if state.look == "layer":
        return _layer(bench, run, state, pair)
    if region is not None:
        values = run.windows.get((state.sequence, *pair, region))
        if values is not None:
            figure = exact_rows(
                values, region[0], region[2], run.token_strings(state.sequence), log=state.log, side=_SIDE
            )
            q0, q1, k0, k1 = region
            note = f"Exact weights: queries {q0} to {q1 - 1}, keys {k0} to {k1 - 1} of text {state.sequence}."
            return figure, note, False
    kept = run.map(state.sequence, *pair)
    if kept is None:
        return None, _missing_map(bench, run, state), False
    figure = attention_map(replace(kept, why=""), log=state.log, side=_SIDE)  # why speaks of all texts
    top, height = int(figure.layout.margin.t), int(figure.layout.height)
    figure, note = untitled(figure)
    if kept.cell > 1:
        note += " Drag a box over the map to zoom in."
    figure.update_layout(margin={"t": 8}, height=height - top + 8)  # square: its own height, not that of a card
    return figure, f"Text {state.sequence}. {note}", kept.cell > 1


def _layer(bench: Bench, run: CensusRun, state: Shown, pair: tuple[int, int]) -> tuple[go.Figure | None, str, bool]:
    """Maps of all heads of the layer."""
    count = int(run.model.get("n_heads") or 1 + pair[1])
    maps = {head: each for head in range(count) if (each := run.map(state.sequence, pair[0], head)) is not None}
    if not maps:
        return None, _missing_map(bench, run, state), False
    note = f"Text {state.sequence}: layer {pair[0]}, queries downwards and keys to the right; click a map."
    if len(maps) < count:
        more = "the model can compute the others" if bench.can_compute(run) else "start with --model to see the others"
        note += f" Not all: {len(maps)} of {count} are kept; {more}."
    return layer_maps(maps, count, chosen=pair[1], log=state.log), note, False


def _missing_map(bench: Bench, run: CensusRun, state: Shown) -> str:
    kept = ", ".join(
        dict.fromkeys(f"L{layer}H{head}" for sequence, layer, head in run.maps if sequence == state.sequence)
    )
    what = f"This census keeps maps of {kept} on this text." if kept else "This census keeps no map of this text."
    if bench.can_compute(run):
        return f"{what} The model can compute those of all heads."
    name = run.model.get("name", "the model")
    return f"{what} To see others start the dashboard with --model and the name or folder of {name}."


def positions_view(bench: Bench, state: Shown, token: int | None) -> go.Figure | None:
    """What the head gives to every position, in both results where two are compared; ``None`` without a head."""
    run, pair = _at(bench, state.run, state), state.pair
    if run is None or pair is None:
        return None
    return run.head_figure(*pair, token, _at(bench, state.compare, state))


def zoomed(zoom: dict[str, Any] | None, cell: int, length: int) -> tuple[int, int, int, int]:
    """Queries and keys under a zoomed part of a map.

    Args:
        zoom: What Plotly says after a zoom: ranges of both axes, in cells.
        cell: Tokens per cell.
        length: Tokens of the sequence.

    Raises:
        InputError: Nothing was zoomed.

    >>> zoomed({"xaxis.range[0]": -0.5, "xaxis.range[1]": 1.5, "yaxis.range[0]": 9.5, "yaxis.range[1]": 4.2}, 8, 75)
    (32, 75, 0, 16)
    """
    try:
        spans = [[float((zoom or {})[f"{axis}.range[{end}]"]) for end in (0, 1)] for axis in ("yaxis", "xaxis")]
    except (KeyError, TypeError, ValueError):
        raise InputError("Drag a box over the map first; its exact rows are computed then.") from None
    out = []
    for span in spans:
        first, last = sorted(span)
        start = max(0, round(first + 0.5 - 0.3)) * cell
        stop = min(length, max(round(last + 0.5 + 0.3) * cell, start + 1))
        out += [min(start, length - 1), stop]
    return (out[0], out[1], out[2], out[3])


def _facts(run: Run, other: Run | None, pair: tuple[int, int]) -> Any:
    """The table of a head's numbers, those of both results beside each other where they have the same."""
    first = run.facts(*pair)
    if other is None:
        rows = [html.Tr([html.Th(f.what, scope="row"), html.Td(f.value), html.Td(f.beside)]) for f in first]
        return html.Table(html.Tbody(rows))
    second = {fact.what: fact for fact in other.facts(*pair)}
    rows = [html.Tr([html.Th(""), html.Th("A"), html.Th("B"), html.Th("")])]
    for fact in first:
        also = second.pop(fact.what, None)
        beside = fact.beside
        if also is not None and also.beside != fact.beside:  # each has a null of its own
            beside = f"A: {fact.beside}; B: {also.beside}"
        cells = [html.Td(fact.value), html.Td("" if also is None else also.value), html.Td(beside)]
        rows.append(html.Tr([html.Th(fact.what, scope="row"), *cells]))
    for fact in second.values():
        rows.append(html.Tr([html.Th(fact.what, scope="row"), html.Td(""), html.Td(fact.value), html.Td(fact.beside)]))
    return html.Table(html.Tbody(rows))


def _open(bench: Bench, name: str) -> Run | None:
    try:
        return bench.run(name) if name else None
    except SinkLensError:
        return None


def _at(bench: Bench, name: str, state: Shown) -> Run | None:
    """A result as its numbers per head are shown: means, or one text; ``None`` where it has none."""
    try:
        return bench.run(name).at(state.text) if name else None
    except SinkLensError:
        return None


def _why_not(bench: Bench, state: Shown) -> str:
    try:
        bench.run(state.run).at(state.text)
    except SinkLensError as error:
        return str(error)
    return ""
