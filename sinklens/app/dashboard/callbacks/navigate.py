"""Every choice on the page becomes a new state, and the state goes into the address and every control."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from dash import Dash, Input, Output, State, ctx, no_update

from sinklens.app.dashboard.bench import Bench
from sinklens.app.dashboard.census_run import CensusRun
from sinklens.app.dashboard.run import Run
from sinklens.app.dashboard.state import State as Shown
from sinklens.app.dashboard.state import gamma_of
from sinklens.errors import SinkLensError

CONTROLS = (
    "run", "compare", "score", "head", "sequence", "token", "log", "colours", "method", "heads", "keys", "gamma", "how",
    "table",
)  # fmt: skip
CLICKS = (
    "grid.clickData", "pair.clickData", "map.clickData", "map-b.clickData", "positions.clickData",
    "token-heads.clickData", "strip-pick.data", "arrival.data", "head-before.n_clicks", "head-after.n_clicks",
    "whole.n_clicks", "use-head.n_clicks", "use-token.n_clicks",
)  # fmt: skip


def register(app: Dash, bench: Bench) -> None:
    """Connect the callback; it is the only one that writes the state."""
    inputs = {"url": Input("url", "search")}
    inputs |= {name: Input(name, "value") for name in CONTROLS}
    inputs |= {name: Input(*_ids(name), allow_optional=True) for name in CLICKS}
    keys = ("grid", "head", "token", "text", "all")
    outputs = {"search": Output("url", "search"), "state": Output("state", "data"), "lists": Output("lists", "data")}
    outputs |= {f"{name}-key": Output(f"{name}-key", "data") for name in keys}
    outputs |= {name: Output(name, "value") for name in CONTROLS}
    outputs |= {f"{name}-options": Output(name, "options") for name in ("run", "compare", "score", "head", "table")}
    before = {name: State(name, "data") for name in ("state", "lists", *(f"{key}-key" for key in keys))}
    before["search"] = State("url", "search")

    @app.callback(output=outputs, inputs={"values": inputs, "before": before})
    def navigate(values: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        triggered = {each["prop_id"] for each in ctx.triggered} if ctx.triggered else set()
        if before["state"] is None or not triggered or "url.search" in triggered:
            state = Shown.from_query(values["url"])
        else:
            state = Shown.from_mapping(before["state"])
            for name in sorted(triggered):
                state = changed(bench, state, name, values)
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
    value = values.get(name if kind == "value" else prop)
    if kind == "value" and name in CONTROLS:
        return _control(state, name, value)
    if prop == "arrival.data":
        brought: dict[str, Any] = value or {}
        known = {key: brought[key] for key in ("run", "compare", "sequence", "token", "region") if key in brought}
        return state.change(**known) if known else state
    if prop in ("grid.clickData", "pair.clickData", "token-heads.clickData"):
        point = _point(value)
        return state if point is None else state.change(head=f"L{point[1]}H{point[0]}")
    if prop in ("map.clickData", "map-b.clickData"):
        point = _point(value)
        cell = _cell(bench, state)
        return state if point is None else state.change(token=point[0] * cell)
    if prop == "positions.clickData":
        point = _point(value)
        return state if point is None or not _has_positions(bench, state) else state.change(token=point[0])
    if prop == "strip-pick.data" and isinstance(value, dict) and isinstance(value.get("position"), int):
        return state.change(token=max(0, value["position"]))
    if prop == "whole.n_clicks":
        return state.change(region="")
    if prop == "use-head.n_clicks" and state.head:
        held = [part.strip() for part in state.heads.split(",") if part.strip() not in ("", "all")]
        return state.change(heads=",".join([*held, *([] if state.head in held else [state.head])]))
    if prop == "use-token.n_clicks" and state.token is not None:
        return state.change(keys=str(state.token))
    if prop in ("head-before.n_clicks", "head-after.n_clicks"):
        return _neighbour(bench, state, -1 if "before" in prop else 1)
    return state


def _control(state: Shown, name: str, value: Any) -> Shown:
    if name == "log":
        return state.change(log=bool(value))
    if name == "gamma":
        return state.change(gamma=gamma_of(value))
    if name == "run":
        return state.change(run=value or "", token=None, sequence=0, table="")
    if name in ("sequence", "token"):
        number = int(value) if isinstance(value, int | float) and value >= 0 else None
        return state.change(**{name: number if name == "token" else number or 0})
    merged = Shown.from_mapping({**state.to_mapping(), name: value or ""})
    return state.change(**{name: getattr(merged, name)})


@dataclass(frozen=True)
class _Opened:
    """The result shown and the one beside it, ``None`` where there is none or it cannot be opened."""

    run: Run | None
    other: Run | None


def describe(bench: Bench, state: Shown) -> dict[str, Any]:
    """Everything that the callback writes for a state: address, controls, and what each part depends on."""
    choices = bench.choices()
    if not state.run and choices:
        state = state.change(run=choices[0][0])
    opened = _Opened(_open(bench, state.run), _open(bench, state.compare))
    run = opened.run
    scores = run.scores if run is not None else ()
    names = {score.name for score in scores}
    score = state.score if state.score in names else (scores[0].name if scores else "")
    options = [{"label": label, "value": name} for name, label in choices]
    heads = _heads(run)
    tables = [] if run is None else [*run.drawings, *(f"table {name}" for name in run.tables.names), "settings"]
    head = state.head if state.head in heads else ""
    has_tokens = isinstance(run, CensusRun) or isinstance(opened.other, CensusRun)
    token = state.token if has_tokens else None
    return {
        "search": state.to_query(),
        "state": state.to_mapping(),
        "lists": hashlib.sha1(repr((choices, state.run, tables)).encode()).hexdigest(),
        "grid-key": {"run": state.run, "compare": state.compare, "score": score},
        "head-key": {
            "run": state.run,
            "compare": state.compare,
            "head": head,
            "sequence": state.sequence,
            "log": state.log,
            "region": state.region,
        },
        "text-key": {
            "run": state.run,
            "head": head,
            "sequence": state.sequence,
            "colours": state.colours,
            "page": (token or 0) // 4096,
        },
        "token-key": {"run": state.run, "compare": state.compare, "sequence": state.sequence, "token": token},
        "all-key": {"run": state.run, "table": state.table},
        "run": state.run or None,
        "compare": state.compare or None,
        "score": score or None,
        "head": head or None,
        "sequence": state.sequence,
        "token": token,
        "log": ["log"] if state.log else [],
        "colours": state.colours,
        "method": state.method,
        "heads": state.heads,
        "keys": state.keys,
        "gamma": round(math.log10(state.gamma), 4),
        "how": state.how,
        "table": state.table or None,
        "run-options": options,
        "compare-options": [option for option in options if option["value"] != state.run],
        "score-options": [{"label": each.label, "value": each.name} for each in scores],
        "head-options": heads,
        "table-options": tables,
    }


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
