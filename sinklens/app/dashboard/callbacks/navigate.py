"""Every choice on the page becomes a new state, and the state goes into the address and every control."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.figures.layer_maps import head_at
from sinklens.app.dashboard.methods import Field, methods
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import ROLES
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import SinkLensError
from sinklens.interventions.heads import parse_head

CONTROLS = (
    "run", "compare", "score", "of", "head", "sequence", "token", "log", "colours", "look", "method", "table",
)  # fmt: skip
CLICKS = (
    "grid.clickData", "pair.clickData", "map.clickData", "map-b.clickData", "layer.clickData", "positions.clickData",
    "token-heads.clickData", "strip-pick.data", "line-pick.data", "head-step.data", "arrival.data",
    "head-before.n_clicks", "head-after.n_clicks", "text-before.n_clicks", "text-after.n_clicks", "whole.n_clicks",
)  # fmt: skip
PATTERNS = {"field": "value", "use": "n_clicks", "trial": "n_clicks"}
"""Parts of which there are several, by the key of their id; each id is ``{key: name}``."""
KEYS = ("grid", "head", "positions", "token", "text", "all", "form")


def register(app: Dash, bench: Bench) -> None:
    """Connect the callback; it is the only one that writes the state."""
    inputs = {"url": Input("url", "search")}
    inputs |= {name: Input(name, "value") for name in CONTROLS}
    inputs |= {name: Input(*_ids(name), allow_optional=True) for name in CLICKS}
    inputs |= {f"all-{key}": Input({key: ALL}, prop) for key, prop in PATTERNS.items()}
    outputs = {"search": Output("url", "search"), "state": Output("state", "data"), "lists": Output("lists", "data")}
    outputs |= {f"{name}-key": Output(f"{name}-key", "data") for name in KEYS}
    outputs |= {name: Output(name, "value") for name in CONTROLS}
    outputs |= {
        f"{name}-options": Output(name, "options") for name in ("run", "compare", "score", "of", "head", "table")
    }
    before = {name: State(name, "data") for name in ("state", "lists", *(f"{key}-key" for key in KEYS))}
    before["search"] = State("url", "search")

    @app.callback(output=outputs, inputs={"values": inputs, "before": before})
    def navigate(values: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        happened = {each["prop_id"]: each["value"] for each in ctx.triggered} if ctx.triggered else {}
        if before["state"] is None or not happened or "url.search" in happened:
            state = Shown.from_query(values["url"])
        else:
            state = Shown.from_mapping(before["state"])
            for name in sorted(happened):
                state = changed(bench, state, name, values | {name: happened[name]})
        fresh = describe(bench, state)
        # only what has changed is sent: drawing a part of the page again, or a list of 1,024 heads, takes its time
        same = {name for name, value in before.items() if fresh.get(name) == value}
        same |= {name for name in CONTROLS if values[name] == fresh[name]}
        if before["lists"] == fresh["lists"]:
            same |= {name for name in outputs if name.endswith("-options")}
        return {name: no_update if name in same else fresh[name] for name in outputs}


def changed(bench: Bench, state: Shown, prop: str, values: dict[str, Any]) -> Shown:
    """The state after one control or click.

    Args:
        bench: What is opened.
        state: Before.
        prop: What happened, such as ``"grid.clickData"`` or ``"run.value"``.
        values: Values of all controls and clicks.
    """
    name, _, kind = prop.rpartition(".")
    value = values.get(name if kind == "value" and name in CONTROLS else prop)
    if prop.startswith("{"):
        return _patterned(bench, state, name, value)
    if kind == "value" and name in CONTROLS:
        return _control(bench, state, name, value)
    if prop == "arrival.data":
        brought: dict[str, Any] = value or {}
        known = {key: brought[key] for key in ("run", "compare", "sequence", "token", "region") if key in brought}
        return state.change(**known) if known else state
    if prop in ("grid.clickData", "pair.clickData", "token-heads.clickData"):
        point = _point(value)
        return state if point is None else state.change(head=f"L{point[1]}H{point[0]}")
    if prop == "layer.clickData":
        return _layer_click(bench, state, _point(value))
    if prop in ("map.clickData", "map-b.clickData"):
        point = _point(value)
        cell = _cell(bench, state)
        return state if point is None else state.change(token=point[0] * cell, role="key")
    if prop == "positions.clickData":
        point = _point(value)
        return state if point is None or not _has_positions(bench, state) else state.change(token=point[0])
    if prop in ("strip-pick.data", "line-pick.data") and isinstance(value, dict):
        at, role = value.get("position"), value.get("role")
        if not isinstance(at, int):
            return state
        return state.change(token=max(0, at), role=role if role in ROLES else state.role)
    if prop == "head-step.data" and isinstance(value, dict):
        return _step(bench, state, value.get("layers"), value.get("heads"))
    if prop == "whole.n_clicks":
        return state.change(region="")
    if prop in ("head-before.n_clicks", "head-after.n_clicks"):
        return _neighbour(bench, state, -1 if "before" in prop else 1)
    if prop in ("text-before.n_clicks", "text-after.n_clicks"):
        count = _texts(bench, state)
        after = state.sequence + (-1 if "before" in prop else 1)
        return _control(bench, state, "sequence", after % count) if count else state
    return state


def _control(bench: Bench, state: Shown, name: str, value: Any) -> Shown:
    if name == "log":
        return state.change(log=bool(value))
    if name == "run":
        return state.change(run=value or "", token=None, sequence=0, table="")
    if name in ("sequence", "token"):
        number = int(value) if isinstance(value, int | float) and 0 <= value < 10_000_000 else None
        if name == "token":
            return state.change(token=number)
        # the numbers follow the text that is chosen
        moved = (number or 0) != state.sequence
        return state.change(sequence=number or 0, **({"of": "text", "token": None} if moved else {}))
    if name == "method":
        known = {field.name for field in methods()[value].fields} if value in methods() else set()
        kept = {field: text for field, text in state.fields.items() if field in known}
        return state.change(method=value if known else "", fields=kept)
    merged = Shown.from_mapping({**state.to_mapping(), name: value or ""})
    return state.change(**{name: getattr(merged, name)})


def _patterned(bench: Bench, state: Shown, name: str, value: Any) -> Shown:
    """A field of the form, a button that fills one, or a trial of the history."""
    try:
        (key, which), *_ = json.loads(name).items()
    except (ValueError, AttributeError):
        return state
    known = {field.name: field for field in methods()[state.method].fields} if state.method in methods() else {}
    if key == "field" and which in known:
        text = str(value if value is not None else "")[:400]
        rest = {field: typed for field, typed in state.fields.items() if field != which}
        return state.change(fields=rest if text.strip() in ("", known[which].default) else {**rest, which: text})
    if key == "use" and value and which in known:
        return state.change(fields={**state.fields, which: _used(bench, state, known[which])})
    trial = next((each for each in bench.trials if each.live == which), None)
    if key == "trial" and value and trial is not None:
        return state.change(run=trial.base, compare=trial.live)
    return state


def _used(bench: Bench, state: Shown, field: Field) -> str:
    """What a button puts into a field: the chosen head, its KV head, the chosen token, or its largest channel."""
    typed, run, pair = state.fields.get(field.name, ""), _open(bench, state.run), state.pair
    if field.kind in ("heads", "kv_heads") and pair is not None and run is not None:
        name = state.head
        if field.kind == "kv_heads":
            group = max(1, int(run.model.get("n_heads") or 1) // int(run.model.get("n_kv_heads") or 1))
            name = f"L{pair[0]}KV{pair[1] // group}"
        held = [part.strip() for part in typed.split(",") if part.strip() not in ("", "all")]
        return ",".join([*held, *([] if name in held else [name])])
    if field.kind == "keys" and state.token is not None:
        return str(state.token)
    if field.kind == "entries" and isinstance(run, CensusRun) and state.token is not None:
        rows = run.massive(state.sequence, state.token)
        rows = rows[rows["layer"] >= 0] if len(rows) else rows
        if len(rows):
            first = rows.iloc[int(rows["value"].abs().to_numpy().argmax())]
            same = rows[rows["channel"] == first["channel"]]
            return f"{int(same['layer'].min())}:{state.token}:{int(first['channel'])}"
    return typed


@dataclass(frozen=True)
class _Opened:
    """The result shown and the one beside it, ``None`` where there is none or it cannot be opened."""

    run: Run | None
    other: Run | None


def completed(bench: Bench, state: Shown) -> Shown:
    """The state with what nobody has chosen yet: the first result, its strongest head, and the key that head reads."""
    if not state.run:
        state = state.change(run=bench.first())
    run = _open(bench, state.run)
    if run is None:
        return state
    if state.head not in _heads(run):
        try:
            strongest = run.at(state.text).strongest()
        except SinkLensError:
            strongest = run.strongest()
        state = state.change(head="" if strongest is None else f"L{strongest[0]}H{strongest[1]}")
    if not isinstance(run, CensusRun) or state.token is not None or state.pair is None:
        return state
    try:
        one = run.at(state.sequence)
        key = one.strongest_key(*state.pair)
    except SinkLensError:
        key = run.strongest_key(*state.pair)
    length = run.lengths[state.sequence] if state.sequence < len(run.lengths) else 0
    return state.change(token=key) if key is not None and key < length else state


def describe(bench: Bench, state: Shown) -> dict[str, Any]:
    """Everything that the callback writes for a state: address, controls, and what each part depends on."""
    choices = bench.choices()
    state = completed(bench, state)
    opened = _Opened(_open(bench, state.run), _open(bench, state.compare))
    run = opened.run
    try:
        scores = run.at(state.text).scores if run is not None else ()
    except SinkLensError:
        scores = run.scores if run is not None else ()
    names = {score.name for score in scores}
    score = state.score if state.score in names else (scores[0].name if scores else "")
    options = [{"label": label, "value": name} for name, label in choices]
    heads = _heads(run)
    tables = [] if run is None else [*run.drawings, *(f"table {name}" for name in run.tables.names), "settings"]
    head = state.head if state.head in heads else ""
    has_tokens = isinstance(run, CensusRun) or isinstance(opened.other, CensusRun)
    token = state.token if has_tokens else None
    both = {"run": state.run, "compare": state.compare}
    text = {"of": state.of, "sequence": state.sequence}
    of = _of_options(run, state)
    return {
        "search": state.to_query(),
        "state": state.to_mapping(),
        "lists": hashlib.sha1(repr((choices, state.run, tables, of, scores)).encode()).hexdigest(),
        "grid-key": {**both, "score": score, "text": state.text},
        "head-key": {**both, **text, "head": head, "look": state.look, "log": state.log, "region": state.region},
        "positions-key": {**both, **text, "head": head},
        "text-key": {
            "run": state.run,
            "head": head,
            "sequence": state.sequence,
            "colours": state.colours,
            "page": (token or 0) // 4096,
        },
        "token-key": {"run": state.run, "sequence": state.sequence, "token": token, "role": state.role},
        "all-key": {"run": state.run, "table": state.table},
        "form-key": {"method": state.method, "fields": dict(state.fields), "trials": len(bench.trials)},
        "run": state.run or None,
        "compare": state.compare or None,
        "score": score or None,
        "of": state.of,
        "head": head or None,
        "sequence": state.sequence,
        "token": token,
        "log": ["log"] if state.log else [],
        "colours": state.colours,
        "look": state.look,
        "method": state.method or None,
        "table": state.table or None,
        "run-options": options,
        "compare-options": [option for option in options if option["value"] != state.run],
        "score-options": [{"label": each.label, "value": each.name} for each in scores],
        "of-options": of,
        "head-options": heads,
        "table-options": tables,
    }


def _of_options(run: Run | None, state: Shown) -> list[dict[str, str]]:
    """The choice between means and one text, for a census of several."""
    if not isinstance(run, CensusRun) or len(run.lengths) < 2:
        return []
    return [
        {"label": f"mean over {len(run.lengths)} texts", "value": "texts"},
        {"label": f"text {state.sequence}", "value": "text"},
    ]


def _open(bench: Bench, name: str) -> Run | None:
    """A result, ``None`` when it cannot be opened: the grid then says why."""
    try:
        run = bench.run(name) if name else None
        _ = run and run.scores  # a damaged table of heads shows here
        return run
    except SinkLensError:
        return None


def _heads(run: Run | None) -> list[str]:
    if run is None or not run.scores:
        return []
    shape = run.values(run.scores[0].name).shape
    return [f"L{layer}H{head}" for layer in range(shape[0]) for head in range(shape[1])]


def _neighbour(bench: Bench, state: Shown, step: int) -> Shown:
    heads = _heads(_open(bench, state.run))
    if not heads:
        return state
    place = heads.index(state.head) + step if state.head in heads else 0
    return state.change(head=heads[place % len(heads)])


def _step(bench: Bench, state: Shown, layers: Any, heads: Any) -> Shown:
    """The head so many layers below and heads to the right, kept within the model."""
    run, pair = _open(bench, state.run), state.pair
    names = _heads(run)
    if pair is None or not names or not isinstance(layers, int) or not isinstance(heads, int):
        return state
    last = parse_head(names[-1])
    where = [min(max(at + by, 0), most) for at, by, most in zip(pair, (layers, heads), last, strict=True)]
    return state.change(head=f"L{where[0]}H{where[1]}")


def _layer_click(bench: Bench, state: Shown, point: tuple[int, int] | None) -> Shown:
    run, pair = _open(bench, state.run), state.pair
    if point is None or pair is None or not isinstance(run, CensusRun):
        return state
    count = int(run.model.get("n_heads") or 1 + pair[1])
    kept = next((each for head in range(count) if (each := run.map(state.sequence, pair[0], head))), None)
    head = None if kept is None else head_at(*point, count, len(kept.values))
    return state if head is None else state.change(head=f"L{pair[0]}H{head}", look="map")


def _texts(bench: Bench, state: Shown) -> int:
    run = _open(bench, state.run)
    return len(run.lengths) if isinstance(run, CensusRun) else 0


def _cell(bench: Bench, state: Shown) -> int:
    """Tokens in a cell of the map on the screen; 1 for exact rows."""
    run, pair = _open(bench, state.run), state.pair
    if not isinstance(run, CensusRun) or pair is None or state.region:
        return 1
    kept = run.map(state.sequence, *pair)
    return kept.cell if kept is not None else 1


def _has_positions(bench: Bench, state: Shown) -> bool:
    return isinstance(_open(bench, state.run), CensusRun)


def _ids(name: str) -> tuple[str, str]:
    """Component and property; graphs are on the page only while they show something."""
    component, _, prop = name.partition(".")
    return component, prop


def _point(click: Any) -> tuple[int, int] | None:
    """Column and row of a clicked point."""
    try:
        point = click["points"][0]
        x, y = round(float(point["x"])), round(float(point.get("y", 0)))
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return (x, y) if x >= 0 else None
