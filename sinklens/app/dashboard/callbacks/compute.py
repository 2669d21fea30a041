"""Texts and interventions: start, progress, cancel, and what arrives."""

import base64
import binascii
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, no_update

from sinklens.app.dashboard.bench import Arrival, Bench
from sinklens.app.dashboard.compute import MAX_CHARACTERS
from sinklens.app.dashboard.state import State as Shown
from sinklens.errors import InputError
from sinklens.models.tokens import BosChoice


def register(app: Dash, bench: Bench) -> None:
    """Connect the callbacks."""

    @app.callback(
        Output("message", "children", allow_duplicate=True),
        Output("tick", "disabled", allow_duplicate=True),
        Input("compute", "n_clicks"),
        State("state", "data"),
        State("model", "value"),
        State("text", "value"),
        State("bos", "value"),
        State("tokens-of", "value"),
        prevent_initial_call=True,
    )
    def compute(_n: Any, shown: Any, model: str, text: str | None, bos: BosChoice, source: str) -> tuple[str, bool]:
        bench.compute(Shown.from_mapping(shown), model or "", text or "", bos, source == "shown")
        return "", False

    @app.callback(
        Output("busy", "hidden"),
        Output("busy-title", "children"),
        Output("busy-bar", "value"),
        Output("tick", "disabled"),
        Output("arrival", "data"),
        Output("message", "children", allow_duplicate=True),
        Output("compute", "disabled"),
        Input("tick", "n_intervals"),
        State("arrival", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def watch(_n: Any, before: dict[str, Any] | None) -> tuple[Any, ...]:
        return watched(bench, before)

    @app.callback(
        Output("busy-title", "children", allow_duplicate=True), Input("cancel", "n_clicks"), prevent_initial_call=True
    )
    def cancel(_n: Any) -> str:
        bench.worker.cancel()
        return bench.worker.status.title

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("sinklens", "typed"),
        Output("tokens-of", "value", allow_duplicate=True),
        Input("text", "value"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("text", "value"),
        Output("tokens-of", "value"),
        Input("upload", "contents"),
        State("upload", "filename"),
        prevent_initial_call=True,
    )
    def read(contents: str | None, name: str | None) -> tuple[Any, Any]:
        return (no_update, no_update) if contents is None else (uploaded(contents, name or "the file"), "text")


def watched(bench: Bench, before: dict[str, Any] | None) -> tuple[Any, ...]:
    """What the page shows of the worker; see the callback's outputs for the order.

    Args:
        bench: Its worker.
        before: What had arrived: the number of the computation, and the changes it brought.
    """
    status = bench.worker.status
    if status.busy:
        share = status.share
        title = status.title if share is None else f"{status.title} · {share:.0%}"
        return False, title, None if share is None else str(share), False, no_update, no_update, True
    # a page that is opened or loaded again does not jump to what was computed before it
    seen = status.number if before is None else before.get("number", 0)
    if status.number == seen:
        arrival = {"number": seen} if before is None else no_update
        return True, "", None, True, arrival, no_update, False
    changes = dict(status.result.changes) if isinstance(status.result, Arrival) and not status.error else {}
    return True, "", None, True, {"number": status.number, **changes}, status.error, False


def uploaded(contents: str, name: str) -> str:
    """Text of an uploaded file.

    Raises:
        InputError: It is too long, or no UTF-8 text.
    """
    try:
        raw = base64.b64decode(contents.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name[:80]} did not arrive whole; choose it again.") from None
    if len(raw) > 4 * MAX_CHARACTERS:
        raise InputError(
            f"{name[:80]} has {len(raw):,} bytes; the dashboard takes up to {MAX_CHARACTERS:,} characters."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name[:80]} is not a UTF-8 text; save it as one and choose it again.") from None
    if "\x00" in text:
        raise InputError(f"{name[:80]} holds binary data, not text.")
    return text
