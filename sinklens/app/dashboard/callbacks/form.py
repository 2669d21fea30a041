"""The form of the chosen intervention, made of its fields, and the history of what was tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.methods import Field, methods
from sinklens.app.dashboard.state import State as Shown
from sinklens.app.dashboard.trying import Trial, history_json
from sinklens.plots.style import number

BUTTONS = {"heads": "chosen head", "kv_heads": "its KV head", "keys": "chosen token", "entries": "its largest channel"}


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks."""

    @app.callback(
        Output("form", "children"),
        Output("computing", "open"),
        Input("form-key", "data"),
        State({"field": ALL}, "value"),
        State({"field": ALL}, "id"),
        State("form-method", "data"),
        State("computing", "open"),
        prevent_initial_call=True,
    )
    def show_form(
        key: dict[str, Any], values: list[Any], ids: list[dict[str, str]], drawn: str | None, opened: bool
    ) -> tuple[Any, ...]:
        state = Shown.from_mapping(key)
        there = {each["field"]: value for each, value in zip(ids, values, strict=True)}
        chosen = methods().get(state.method)
        if chosen is None:
            return [_drawn("")], opened
        same = drawn == state.method and all(
            str(there.get(field.name) or "").strip() in _equal(field, state.fields) for field in chosen.fields
        )
        return no_update if same else form_of(state.method, state.fields), True

    @app.callback(
        Output("history", "children"),
        Output("history", "hidden"),
        Input("arrival", "data"),
        Input("grid-key", "data"),
        prevent_initial_call=True,
    )
    def show_history(_arrival: Any, key: dict[str, Any] | None) -> tuple[Any, bool]:
        compared = (key or {}).get("compare", "")
        return history_of(bench.trials, compared), not bench.trials

    @app.callback(
        Output("download", "data", allow_duplicate=True),
        Input({"export": ALL}, "n_clicks"),
        State("state", "data"),
        prevent_initial_call=True,
    )
    def export(clicks: list[int | None], shown: dict[str, Any]) -> Any:
        button = ctx.triggered_id
        if not any(clicks) or not isinstance(button, dict):
            return no_update
        if button["export"] == "json":
            return {"content": history_json(bench.trials), "filename": "sinklens-trials.json"}
        return {"content": exported_python(bench.trials), "filename": "sinklens_trials.py"}


def form_of(name: str, typed: Mapping[str, str]) -> list[Any]:
    """Controls of an intervention, one a field.

    Args:
        name: Of the method.
        typed: What its fields hold already.
    """
    chosen = methods()[name]
    says = [html.P(chosen.says.replace("``", ""), className="note")]
    if chosen.looks_ahead:
        says.append(html.P(f"{chosen.looks_ahead}: no loss of it means anything.", className="note"))
    rows = [_row(field, typed.get(field.name, "") or field.default) for field in chosen.fields]
    return [_drawn(name), *says, html.Div(rows, className="fields")]


def _drawn(name: str) -> dcc.Store:
    return dcc.Store(id="form-method", data=name)


def _equal(field: Field, typed: Mapping[str, str]) -> tuple[str, ...]:
    """Texts of a control that mean what is typed already."""
    held = typed.get(field.name, "").strip()
    return (held,) if held else (field.default, "")


def _row(field: Field, value: str) -> html.Div:
    identity = {"field": field.name}
    control: Any
    if field.options:
        control = dcc.Dropdown(list(field.options), value or None, id=identity, clearable=field.optional and not value)
    else:
        holder = {"heads": "all, or L0H1,L2H3", "kv_heads": "all, or L0KV1", "keys": "0, or 0,5,10-12"}
        holder |= {
            "weights": "model.layers.2.mlp.down_proj.weight[507, 1081]",
            "entries": "layer:position:channel",
            "json": "JSON",
        }
        control = dcc.Input(
            id=identity, type="text", value=value, placeholder=holder.get(field.kind, field.kind), debounce=True,
            maxLength=400, autoComplete="off",
        )  # fmt: skip
    button = []
    if field.kind in BUTTONS:
        button = [html.Button(BUTTONS[field.kind], id={"use": field.name}, type="button", className="small")]
    label = html.Label([html.Span(field.name), control], className="labelled", title=field.help)
    return html.Div([label, *button], className="tools")


def history_of(trials: Sequence[Trial], compared: str) -> list[Any]:
    """What was tried, the newest first, each beside its controls; the shown one's three lines of Python below."""
    if not trials:
        return []
    heads = ["tried", "Δ loss, nats", "random controls: mean ± sd", "rank", "KL", "same first choice", "on", ""]
    body = []
    for trial in reversed(trials):
        controls = "none"
        if trial.mean is not None:
            spread = "" if trial.sd is None else f" ± {trial.sd:.3f}"
            controls = f"{trial.mean:+z.3f}{spread} ({len(trial.controls)} of as many other {trial.kind})"
        cells = [
            html.Th(trial.label, scope="row"),
            html.Td(_signed(trial.delta)),
            html.Td(controls),
            html.Td("n/a" if trial.rank is None else f"{trial.rank:g} of {len(trial.controls) + 1}"),
            html.Td(number(trial.kl)),
            html.Td("n/a" if trial.top1 is None else f"{trial.top1:.0%}"),
            html.Td(trial.tokens[:60]),
            html.Td(html.Button("show", id={"trial": trial.live}, type="button", className="small")),
        ]
        body.append(html.Tr(cells, className="shown" if trial.live == compared else ""))
    table = html.Table([html.Thead(html.Tr([html.Th(name) for name in heads])), html.Tbody(body)])
    shown = next((trial for trial in trials if trial.live == compared), trials[-1])
    bar = [
        html.H2("What was tried"),
        html.Span(className="spring"),
        html.Button("JSON", id={"export": "json"}, type="button", className="small", title="save the history as JSON"),
        html.Button("Python", id={"export": "py"}, type="button", className="small", title="save it as Python"),
    ]
    code = html.Pre(html.Code(shown.python), id="python")
    title = html.H3(f"Repeat {shown.label} in Python")
    return [html.Div(bar, className="bar"), html.Div(table, className="scroll"), title, code]


def exported_python(trials: Sequence[Trial]) -> str:
    """Three lines for each, under a line that names it."""
    return "\n\n".join(f"# {trial.label} on {trial.tokens}\n{trial.python}" for trial in trials) + "\n"


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+z.3f}"
