"""Serving the dashboard: on this machine alone, or inside a notebook."""

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from sinklens.app.dashboard.build import bench_of, build_app
from sinklens.errors import InputError, SinkLensError

ADDRESS = "127.0.0.1"
PORT = 8050
PAUSE = 2.0
"""Seconds after which what nobody has asked for yet is got ready."""


def serve(
    source: Any = None,
    *,
    models: Sequence[Any] = (),
    device: str = "auto",
    port: int = PORT,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the dashboard at 127.0.0.1 until it is interrupted.

    Args:
        source: As for :func:`build_app`.
        models: As for :func:`build_app`.
        device: As for :func:`build_app`.
        port: Where to listen; 0 takes any free one.
        on_ready: Called with the address once it answers.

    Raises:
        InputError: The port is taken.
        MissingExtraError: Dash is not installed.
        ResultError: The folder holds no result.
    """
    app = build_app(source, models=models, device=device)
    server = make_server(app, port)
    first = bench_of(app).first()
    _warm_up(app, first)
    if on_ready is not None:
        on_ready(f"http://{ADDRESS}:{server.port}/")
    later = threading.Timer(PAUSE, _warm_comparison, (app, first))
    later.daemon = True
    later.start()
    try:
        server.serve_forever()
    finally:
        later.cancel()
        server.server_close()


def make_server(app: Any, port: int = 0) -> Any:
    """A threaded server for an app at 127.0.0.1, bound and not yet answering; ``server.port`` is where.

    Raises:
        InputError: The port is taken.
    """
    from werkzeug.serving import make_server as bind

    check_port(port)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for every request
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise InputError(
                f"Port {port} is taken ({error.strerror}); choose another with --port, or --port 0 for a free one."
            ) from error
    return bind(ADDRESS, port, app.server, threaded=True)


def check_port(port: int) -> None:
    """Refuse what is no port.

    Raises:
        InputError: It is none.
    """
    if not 0 <= port < 65536:
        raise InputError(f"A port is a number from 0 to 65535, got {port}.")


def show(
    source: Any = None,
    *,
    models: Sequence[Any] = (),
    device: str = "auto",
    jupyter_mode: Literal["inline", "external", "jupyterlab", "tab"] = "inline",
    height: int = 900,
    port: int = PORT,
) -> None:
    """Show the dashboard inside a notebook.

    ::

        from sinklens.app.dashboard import show

        show(census)

    Args:
        source: As for :func:`build_app`: also a result in memory, or a loaded model.
        models: As for :func:`build_app`.
        device: As for :func:`build_app`.
        jupyter_mode: ``"inline"`` under the cell, ``"jupyterlab"`` in a tab of JupyterLab, ``"tab"`` in one of the
            browser, ``"external"`` as a link.
        height: Pixels, for ``"inline"``.
        port: Where to listen.
    """
    app = build_app(source, models=models, device=device)
    app.run(host=ADDRESS, port=port, jupyter_mode=jupyter_mode, jupyter_height=height, debug=False)


def _warm_up(app: Any, name: str) -> None:
    """Do once what the first request would have to wait for; a damaged result is reported when it is asked for."""
    client = app.server.test_client()
    for path in ("/", "/_dash-layout", "/_dash-dependencies"):
        client.get(path, headers={"Host": ADDRESS})
    with suppress(SinkLensError):
        run = bench_of(app).run(name) if name else None
        if run is not None and run.scores:
            run.grid(run.scores[0].name).to_plotly_json()


def _warm_comparison(app: Any, name: str) -> None:
    """Compare the first result with the next one, or with itself: the first comparison a user asks for waits for none.

    It reads two small tables of the other result, and nothing by position.
    """
    from sinklens.app.dashboard.callbacks.grid import grid_view, headline
    from sinklens.app.dashboard.callbacks.navigate import describe
    from sinklens.app.dashboard.state import State

    bench = bench_of(app)
    with suppress(SinkLensError):
        other = next((each for each, _ in bench.choices() if each != name), name)
        key = describe(bench, State(run=name, compare=other))["grid-key"]
        grid_view(bench, key)[0].to_plotly_json()
        headline(bench, key)
