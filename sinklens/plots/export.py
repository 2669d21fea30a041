"""Figures to files: PNG through kaleido, or one HTML file that opens offline."""

import importlib.util
from pathlib import Path

import plotly.graph_objects as go

from sinklens.errors import MissingExtraError
from sinklens.files import write_atomically
from sinklens.plots.style import CONFIG

_INSTEAD = "or write HTML instead with sinklens.plots.export_html(fig, path)"


def export_png(
    fig: go.Figure,
    path: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: float = 2.0,
) -> Path:
    """Write a figure as PNG, atomically.

    Args:
        fig: Figure.
        path: Target; its folder must exist.
        width: Width in layout pixels; the figure's own when None, and 1000 when it has none.
        height: Height in layout pixels; the figure's own when None.
        scale: Image pixels per layout pixel.

    Returns:
        The path written.

    Raises:
        MissingExtraError: without kaleido, or without a Chrome or Chromium for it to drive.
        ResultError: when the file cannot be written.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise MissingExtraError(f"PNG export needs kaleido: pip install 'sinklens[export]', {_INSTEAD}.")
    from kaleido.errors import ChromeNotFoundError

    try:
        data: bytes = fig.to_image(
            format="png",
            width=width or fig.layout.width or 1000,
            height=height or fig.layout.height,
            scale=scale,
        )
    except RuntimeError as error:
        # Plotly rewraps kaleido's error, so that only its words tell it from others.
        if not isinstance(error, ChromeNotFoundError) and "Chrome" not in str(error):
            raise
        raise MissingExtraError(
            f"PNG export needs Chrome or Chromium: install one (plotly_get_chrome fetches one), {_INSTEAD}."
        ) from error
    return write_atomically(path, data)


def export_html(fig: go.Figure, path: str | Path) -> Path:
    """Write a figure as one self-contained HTML file (about 5 MB, plotly.js inside), atomically.

    Raises:
        ResultError: when the file cannot be written.
    """
    text: str = fig.to_html(include_plotlyjs=True, full_html=True, config=CONFIG)
    return write_atomically(path, text.encode("utf-8", "backslashreplace"))
