"""The dashboard as a Dash app."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklens.errors import MissingExtraError, SinkLensError

if TYPE_CHECKING:
    from dash import Dash

    from sinklens.app.dashboard.bench import Bench

_LOG = logging.getLogger("sinklens.dashboard")
_BENCH = "SINKLENS_BENCH"
# plotly.js first: Dash would ask for it only when it meets the first graph, and the browser would wait for it then
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}
<script src="_dash-component-suites/plotly/package_data/plotly.min.js"></script></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def build_app(
    source: Any = None, *, models: Sequence[Any] = (), device: str = "auto", hosts: Sequence[str] = ()
) -> "Dash":
    """Make the dashboard for a folder of results, a model, or a result in memory; nothing is served yet.

    Args:
        source: A folder of results, one saved result, a model's name or folder, a loaded bridge, a result in memory,
            or ``None`` for the built-in models.
        models: More models that the page may compute with, by name, by path or loaded; it can ask for no other.
        device: Where models are put.
        hosts: More names that the page may be asked for under, besides 127.0.0.1 and localhost.

    Returns:
        A :class:`dash.Dash`; ``app.server`` is its Flask server.

    Raises:
        MissingExtraError: Dash is not installed.
        ResultError: The folder holds no result.
    """
    require_dash()
    from dash import Dash

    from sinklens.app.dashboard.bench import open_source
    from sinklens.app.dashboard.callbacks import compute, everything, form, grid, head, navigate, save, text, token
    from sinklens.app.dashboard.layout import layout
    from sinklens.app.dashboard.security import guard

    bench = open_source(source, models=models, device=device)
    app = Dash(
        "sinklens",
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        include_pages_meta=False,
        index_string=_PAGE,
        title="sinklens",
        update_title="",
        add_log_handler=False,
        enable_mcp=False,
        suppress_callback_exceptions=True,  # graphs come and go
        on_error=_tell,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    computing = not bench.choices()
    app.layout = layout(bench.models.names, computing=computing)
    for part in (navigate, grid, head, text, token, compute, form, everything, save):
        part.register(app, bench)
    guard(app.server, app.csp_hashes(), hosts)
    app.server.config[_BENCH] = bench
    return app


def bench_of(app: "Dash") -> "Bench":
    """What an app works on."""
    bench: Bench = app.server.config[_BENCH]
    return bench


def require_dash() -> None:
    """Stop with one sentence when Dash is not installed.

    Raises:
        MissingExtraError: It is not.
    """
    try:
        import dash  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("The dashboard needs Dash: pip install 'sinklens[dashboard]'.") from error


def _tell(error: Exception) -> None:
    """Show an error on the page, which lives on; what it was drawing stays as it was."""
    from dash import set_props

    if isinstance(error, SinkLensError):
        sentence = str(error)
    else:
        _LOG.error("A part of the page failed: %s: %s", type(error).__name__, str(error)[:200])
        _LOG.debug("It failed here", exc_info=error)
        sentence = (
            f"Something failed here: {type(error).__name__}: {str(error)[:200]}. The rest of the page still works."
        )
    set_props("message", {"children": sentence})
