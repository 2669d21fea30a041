"""The page: its parts and their names; what is in them is filled in by the callbacks."""

from pathlib import Path
from typing import Any, Final

from dash import dcc, html

from sinklens.app.dashboard.compute import MAX_CHARACTERS, MAX_TOKENS
from sinklens.app.dashboard.graphs import place
from sinklens.app.dashboard.methods import methods

_TOKENS: Final[Any] = {"aria-label": "tokens of the sequence"}


def layout(models: list[str], *, computing: bool) -> html.Div:
    """The whole page.

    Args:
        models: What the page may compute with.
        computing: Whether the part that computes is open at first.
    """
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            *(dcc.Store(id=name) for name in ("state", "lists", "strip-data", "strip-pick", "strip-drawn", "marked")),
            *(
                dcc.Store(id=name)
                for name in ("lines-data", "lines-drawn", "line-pick", "head-step", "positions-later", "token-later")
            ),
            *(dcc.Store(id=f"{name}-key") for name in ("grid", "head", "positions", "token", "text", "all", "form")),
            dcc.Store(id="arrival"),
            dcc.Store(id="image"),
            dcc.Interval(id="tick", interval=400, disabled=False),
            dcc.Download(id="download"),
            _header(),
            html.Main(
                [
                    html.Div(id="message", role="alert", className="message"),
                    html.Div(id="headline", className="headline"),
                    html.Div([_grid(), _head(), _text()], id="panels", className="panels"),
                    html.Div([_positions(), _token()], className="pair"),
                    _compute(models, computing),
                    html.Section(id="history", className="card", hidden=True),
                    _everything(),
                ]
            ),
        ],
        className="page",
    )


def _header() -> html.Header:
    return html.Header(
        [
            html.Strong("sinklens", className="brand"),
            _labelled("Result", dcc.Dropdown(id="run", clearable=False, placeholder="no result yet"), "wide"),
            _labelled("Compare with", dcc.Dropdown(id="compare", placeholder="nothing"), "wide"),
            _labelled("Score", dcc.Dropdown(id="score", clearable=False), "wide"),
            html.Div(
                [
                    html.Span(id="busy-title"),
                    html.Progress(id="busy-bar", max="1"),
                    html.Button("Cancel", id="cancel", type="button", className="small"),
                ],
                id="busy",
                className="busy",
                hidden=True,
                role="status",
            ),
        ]
    )


def _grid() -> html.Section:
    keys: Any = {"aria-label": "layers and heads: arrow keys move the chosen head", "tabIndex": "0"}
    return _card(
        "grid",
        "Layers × heads",
        [html.P(id="grid-note", className="note"), html.Div(place("grid"), id="grid-keys", role="group", **keys)],
        [
            html.Span(id="grid-of", className="of"),
            _options("of", [], "texts", "numbers of"),
        ],
    )


def _head() -> html.Section:
    looks = [
        {"label": "map", "value": "map"},
        {"label": "layer", "value": "layer"},
        {"label": "lines", "value": "lines"},
    ]
    tools = [
        _options("look", looks, "map", "attention as"),
        dcc.Checklist([{"label": "log colours", "value": "log"}], [], id="log", className="inline"),
        html.Button("Compute this text's maps", id="maps", type="button", hidden=True),
        html.Button("Exact rows", id="exact", type="button", hidden=True, title="of the zoom, or of the chosen token"),
        html.Button("Whole map", id="whole", type="button", hidden=True),
    ]
    maps = html.Div(
        [
            html.P(id="map-note", className="note"),
            html.Div(
                [
                    html.Div([html.B(id="map-name"), place("map")]),
                    html.Div([html.B(id="map-b-name"), place("map-b")]),
                ],
                className="maps",
            ),
            html.Div(id="lines", className="lines"),
        ]
    )
    live: Any = {"aria-live": "polite"}
    return _card(
        "head",
        "Head",
        [
            html.Div(tools, className="tools"),
            html.Div([maps, html.Div(id="head-facts", className="facts", **live)], className="head-body"),
        ],
        [
            html.Span(id="head-of", className="of"),
            html.Button(
                "◂",
                id="head-before",
                type="button",
                title="previous head",
                className="small",
                **_named("previous head"),
            ),
            _unseen("head", dcc.Dropdown(id="head", placeholder="none", className="pick", clearable=False)),
            html.Button(
                "▸", id="head-after", type="button", title="next head", className="small", **_named("next head")
            ),
        ],
    )


def _text() -> html.Section:
    colours = [{"label": "this head", "value": "head"}, {"label": "all heads", "value": "all"}]
    number = dcc.Input(id="sequence", type="number", min=0, step=1, value=0, debounce=True, className="number")
    return _card(
        "text",
        "Text",
        [
            html.Div(id="strip-legend", className="note"),
            html.Div(id="strip", className="strip", role="listbox", **_TOKENS),
        ],
        [
            html.Span(id="text-of", className="of"),
            html.Button(
                "◂",
                id="text-before",
                type="button",
                title="previous text",
                className="small",
                **_named("previous text"),
            ),
            _unseen("number of the text", number),
            html.Button(
                "▸", id="text-after", type="button", title="next text", className="small", **_named("next text")
            ),
            _options("colours", colours, "head", "colours"),
        ],
        save=False,
    )


def _positions() -> html.Section:
    return _card(
        "positions", "The head by position", [place("positions")], [html.Span(id="positions-of", className="of")]
    )


def _token() -> html.Section:
    live: Any = {"aria-live": "polite"}
    number = dcc.Input(id="token", type="number", min=0, step=1, debounce=True, className="number")
    return _card(
        "token",
        "Token",
        [
            html.Div(id="token-facts", className="note", **live),
            html.Div([place("token-norm"), place("token-heads")], className="halves"),
            html.Div(id="token-reads"),
            html.Div(id="token-massive"),
        ],
        [html.Span(id="token-of", className="of"), html.Label([html.Span("position "), number])],
    )


def _compute(models: list[str], opened: bool) -> html.Details:
    sources = [
        {"label": "the text below", "value": "text"},
        {"label": "the tokens of the result shown above", "value": "shown"},
    ]
    named = [{"label": Path(name).name, "value": name, "title": name} for name in models]
    text = [
        html.H3("On which tokens"),
        dcc.RadioItems(sources, "text" if opened else "shown", id="tokens-of", className="stack"),
        html.Div(
            [
                _labelled("Model", dcc.Dropdown(named, models[0], id="model", clearable=False)),
                _labelled("BOS", dcc.Dropdown(["auto", "yes", "no"], "auto", id="bos", clearable=False)),
                dcc.Upload(html.Button("Read a text file …", type="button"), id="upload"),
            ],
            className="tools",
        ),
        _unseen(
            "text to measure",
            dcc.Textarea(
                id="text",
                placeholder="Type or paste a text; leave it empty for a built-in sample.",
                className="text",
                spellCheck=False,
            ),
        ),
        html.P(
            f"At most the model's context, {MAX_TOKENS:,} tokens and {MAX_CHARACTERS:,} characters; a longer text is "
            "refused, not cut.",
            className="note",
        ),
    ]
    method = [
        html.H3("Under which intervention"),
        html.Div(
            [
                _labelled(
                    "Intervention or policy",
                    dcc.Dropdown(_methods(), None, id="method", placeholder="none: measure the text as it is"),
                    "method",
                ),
                html.Button("Compute", id="compute", type="button", className="primary"),
            ],
            className="tools",
        ),
        html.Div([dcc.Store(id="form-method")], id="form"),
    ]
    return html.Details(
        [
            html.Summary("Compute: a text, an intervention"),
            html.Div([html.Div(text), html.Div(method)], className="halves"),
        ],
        id="computing",
        open=opened,
        className="card",
    )


def _methods() -> list[dict[str, str]]:
    """What can be tried; a list that came later would lose what the address chose."""
    return [{"label": each.label, "value": name} for name, each in methods().items()]


def _everything() -> html.Details:
    return html.Details(
        [
            html.Summary("Everything in this result: figures, tables, settings"),
            html.Div(
                [
                    _unseen(
                        "figure or table", dcc.Dropdown(id="table", placeholder="choose a figure or a table"), "wide"
                    ),
                    *_savers("all"),
                ],
                className="tools",
            ),
            place("drawing"),
            html.Div(id="table-body", className="scroll"),
        ],
        id="everything",
        className="card",
    )


def _card(name: str, title: str, body: list[Any], tools: list[Any], *, save: bool = True) -> html.Section:
    return html.Section(
        [
            html.Div(
                [
                    html.H2(title, id=f"{name}-title"),
                    *tools,
                    html.Span(className="spring"),
                    *(_savers(name) if save else []),
                ],
                className="bar",
            ),
            *body,
        ],
        id=f"{name}-card",
        className="card",
    )


def _savers(name: str) -> list[html.Button]:
    """Buttons that save what a card shows."""
    titles = {"html": "save the figures as one HTML file", "csv": "save the table", "png": "save the figure as PNG"}
    return [
        html.Button(
            form.upper(), id={"save": name, "as": form}, type="button", className="small", title=title, **_named(title)
        )
        for form, title in titles.items()
    ]


def _labelled(label: str, component: Any, name: str = "") -> html.Label:
    return html.Label([html.Span(label), component], className=f"labelled {name}")


def _unseen(label: str, component: Any, name: str = "") -> html.Label:
    """A control whose label only those hear who do not see the page."""
    return html.Label([html.Span(label, className="unseen"), component], className=f"unlabelled {name}")


def _options(name: str, options: list[dict[str, str]], value: str, label: str) -> html.Div:
    """A row of choices."""
    items = dcc.RadioItems(options, value, id=name, inline=True, className="inline")
    return html.Div(items, role="group", **_named(label))


def _named(label: str) -> Any:
    return {"aria-label": label}
