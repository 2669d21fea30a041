"""The layer x head grid, of one result or of two side by side."""

import re
from html import unescape
from typing import Any

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, html

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.differences import differences
from sinklens.app.dashboard.figures.side_by_side import side_by_side
from sinklens.app.dashboard.graphs import wide_graph
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import SinkLensError
from sinklens.plots.axes import layer_rows
from sinklens.plots.style import INK, empty_figure

_TALLEST = 400
_LABELS = 20
_TITLE = "Layers × heads"


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks."""

    @app.callback(
        Output("grid-place", "children"),
        Output("grid-note", "children"),
        Output("grid-title", "children"),
        Output("grid-of", "children"),
        Output("headline", "children"),
        Output("panels", "className"),
        Input("grid-key", "data"),
        State("state", "data"),
        prevent_initial_call=True,
    )
    def show_grid(key: dict[str, Any], shown: dict[str, Any]) -> tuple[Any, ...]:
        figure, note, title = grid_view(bench, key)
        figure.update_layout(shapes=frames(Shown.from_mapping(shown), panels(figure)))
        # two graphs, because Plotly cannot go from one panel to three while its place changes its width
        name = "grid" if panels(figure) < 2 else "pair"
        graph = wide_graph(name, figure, fitted=not key["score"], says=f"{title}, by layer and head. {note}")
        wide = key["compare"] or not key["score"]
        return graph, note, title, said_of(bench, key), headline(bench, key), "panels compare" if wide else "panels"

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("sinklens", "mark"),
        Output("marked", "data"),
        Input("head-key", "data"),
        Input("token-key", "data"),
        prevent_initial_call=True,
    )


def grid_view(bench: Bench, key: dict[str, Any]) -> tuple[go.Figure, str, str]:
    """Figure, what the score is, and the title of the card.

    Args:
        bench: What is opened.
        key: Names of ``run``, ``compare`` and ``score``, and the ``text`` by itself, ``None`` for means over texts.
    """
    if not key["run"]:
        return empty_figure("No result yet", 'Type a text under "Compute" below and press the button.'), "", _TITLE
    try:
        run = bench.run(key["run"]).at(key.get("text"))
        other = bench.run(key["compare"]).at(key.get("text")) if key["compare"] else None
        score = next((each for each in run.scores if each.name == key["score"]), None)
        others = {each.name for each in other.scores} if other is not None else set()
    except SinkLensError as error:
        return empty_figure("This cannot be shown", str(error)), "", _TITLE
    if score is None and run.drawings:  # a result that is not about single heads, such as a needle test
        title = next(iter(run.drawings))
        return run.draw(title), "", title
    if score is None:
        sentence = "It has no table with one row per head; its tables are under “Everything in this result”."
        return empty_figure("This result has no scores of heads", sentence), "", _TITLE
    single = run.grid(score.name)
    if other is None:
        figure, said = untitled(single)
        # the figure's own sentence may be the definition
        return figure, said if score.definition in said else f"{said} {score.definition}", score.label
    if score.name not in others:
        note = f"{other.label} has no score {score.label!r}, so it cannot be compared; choose another score or result."
        return untitled(single)[0], note, score.label
    second = other.grid(score.name)
    if not single.data or not second.data:
        return go.Figure(single if not single.data else second), score.definition, score.label
    figure = side_by_side(single, second, (run.label, other.label))
    sentence = score.definition
    if len(figure.data) == 2:
        sentence = f"The two have different shapes, so there is no difference. {sentence}"
    return figure, sentence, score.label


def untitled(figure: go.Figure) -> tuple[go.Figure, str]:
    """The figure without its title, for a card that has its own, and the sentences below that title as plain text."""
    if not figure.data:
        return go.Figure(figure), ""
    lines = str(figure.layout.title.text or "").split("<br>")[1:]
    said = " ".join(unescape(re.sub("<[^>]*>", "", line)) for line in lines)
    out, top = go.Figure(figure), int(figure.layout.margin.t or 0)
    height = min(int(figure.layout.height) - top + 26, _TALLEST)
    out.update_layout(title=None, margin={"t": 26}, height=height)
    rows = len(figure.data[0].z) if figure.data[0].type == "heatmap" and figure.layout.yaxis.ticktext else 0
    if rows > _LABELS and rows == len(figure.layout.yaxis.tickvals):
        out.update_layout(yaxis=layer_rows(rows, limit=_LABELS))
    return out, said


def said_of(bench: Bench, key: dict[str, Any]) -> str:
    """Whether the grid shows one text or a mean."""
    try:
        return bench.run(key["run"]).at(key.get("text")).of if key["run"] else ""
    except SinkLensError:
        return ""


def headline(bench: Bench, key: dict[str, Any]) -> list[Any]:
    """What was found and on what it was measured, details folded; and what two results differ in besides."""
    out: list[Any] = []
    if key["run"] and key["compare"]:
        try:
            found = differences(bench.run(key["run"]), bench.run(key["compare"]))
        except SinkLensError:
            found = []
        if found:
            said: list[Any] = [html.B("Not like with like. "), " ".join(found)]
            out.append(html.Div(said, className="message", role="status", id="differ"))
    for name in filter(None, (key["run"], key["compare"])):
        try:
            run = bench.run(name)
        except SinkLensError:
            continue
        out.append(_said(run, "A" if name == key["run"] and key["compare"] else "B" if key["compare"] else ""))
    return out


def _said(run: Run, letter: str) -> html.Details:
    # what an intervention did, and its controls, stand together
    first, *rest = [*([" ".join(run.notes)] if run.notes else []), *run.verdict] or [run.label]
    mark: list[Any] = [html.B(f"{letter} ")] if letter else []
    mark += [html.Span(run.of, className="of"), " "] if run.of else []
    lines = [*rest, *run.provenance]
    return html.Details([html.Summary([*mark, first]), html.Ul([html.Li(line) for line in lines])])


def panels(figure: go.Figure) -> int:
    """How many grids stand side by side in a figure."""
    return sum(trace.type == "heatmap" for trace in figure.data)


def frames(state: Shown, count: int) -> list[dict[str, Any]]:
    """A frame around the chosen head in every panel."""
    pair = state.pair
    if pair is None:
        return []
    layer, head = pair
    box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5, "type": "rect"}
    return [
        {**box, "xref": f"x{suffix}", "yref": f"y{suffix}", "line": {"color": colour, "width": width}}
        for suffix in ["", "2", "3"][:count]
        for colour, width in (("white", 5), (INK, 2.5))
    ]
