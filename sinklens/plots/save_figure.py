"""Figures to files: HTML always, pictures where a browser is found, and the table and provenance beside them."""

import html
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sinklens.errors import InputError, MissingExtraError
from sinklens.plots.print_layout import DPI, INCHES, PIXELS, PrintWidth, for_print
from sinklens.plots.style import CONFIG
from sinklens.results.files import write_atomically

PICTURES: Final = ("png", "svg", "pdf")
WIDTH: Final = 1000


@dataclass(frozen=True)
class Picture:
    """A picture to be made.

    Attributes:
        fig: Figure.
        format: "png", "svg" or "pdf".
        width: Layout pixels; the figure's own when None, and 1000 when it has none.
        height: Layout pixels; the figure's own when None.
        scale: Image pixels per layout pixel.
    """

    fig: go.Figure
    format: str
    width: int | None = None
    height: int | None = None
    scale: float = 2.0


def render(pictures: Sequence[Picture]) -> list[bytes]:
    """Draw all pictures with one browser; nothing is fetched from anywhere, and `$x$` in a token stays text.

    Raises:
        MissingExtraError: without kaleido, or without a Chrome or Chromium that it can drive.
    """
    if not pictures:
        return []
    wanted = ", ".join(sorted({picture.format.upper() for picture in pictures}))
    if importlib.util.find_spec("kaleido") is None:
        raise MissingExtraError(f"{wanted} needs kaleido, which is not installed: pip install 'sinklens[export]'.")
    import kaleido
    from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError

    with tempfile.TemporaryDirectory(prefix="sinklens-") as folder:
        files = [Path(folder) / f"{index}.{picture.format}" for index, picture in enumerate(pictures)]
        jobs = [_job(picture, file) for picture, file in zip(pictures, files, strict=True)]
        try:
            # kaleido would load MathJax from the network
            kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"mathjax": False})
        except ChromeNotFoundError as error:
            raise MissingExtraError(
                f"{wanted} needs Chrome or Chromium, and there is none: install one (plotly_get_chrome fetches one)."
            ) from error
        except (BrowserFailedError, BrowserClosedError) as error:
            raise MissingExtraError(f"{wanted} needs a working Chrome or Chromium; the one found failed.") from error
        return [file.read_bytes() for file in files]


def _job(picture: Picture, file: Path) -> dict[str, object]:
    layout = picture.fig.layout
    options = {
        "format": picture.format,
        "width": picture.width or layout.width or WIDTH,
        "height": picture.height or layout.height or 500,
        "scale": picture.scale,
    }
    return {"fig": picture.fig, "path": str(file), "opts": options}


_LIBRARY: Final = "plotly.min.js"
_OTHER_PICTURES: Final = ("jpg", "jpeg", "webp", "gif", "eps", "tif", "tiff")


class Tabular(Protocol):
    """A result that turns into a table, as all of sinklens' results do."""

    def to_dataframe(self) -> pd.DataFrame:
        """The table."""


@dataclass(frozen=True)
class Saving:
    """A figure and what is to lie beside it; see :func:`save_figure` for the fields."""

    fig: go.Figure
    path: str | Path
    table: pd.DataFrame | Tabular | None = None
    provenance: Mapping[str, Any] | None = None
    formats: Sequence[str] = ()
    width: int | PrintWidth | None = None
    height: int | None = None
    scale: float = 2.0
    shared_js: bool = False
    stem: Path = field(init=False)
    pictures: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find out which files are wanted, before the first is written."""
        path = Path(self.path)
        suffix = path.suffix[1:].lower()
        known = suffix in (*PICTURES, "html", "csv")
        wrong = [name for name in self.formats if name.lower().lstrip(".") not in (*PICTURES, "html")]
        if suffix in _OTHER_PICTURES:
            wrong.append(path.suffix)
        if wrong or not path.name:
            raise InputError(
                f"A figure is saved as html, {', '.join(PICTURES)}, not as {', '.join(wrong) or 'nothing'}; "
                f"got {str(self.path)!r}."
            )
        if isinstance(self.width, str) and self.width not in PIXELS:
            raise InputError(f"width is a number of pixels, {' or '.join(map(repr, PIXELS))}, not {self.width!r}.")
        # a dot inside a name, as in model-1.5, is no suffix
        object.__setattr__(self, "stem", path.with_suffix("") if known else path)
        wanted = [suffix, *(name.lower().lstrip(".") for name in self.formats)]
        object.__setattr__(self, "pictures", tuple(dict.fromkeys(name for name in wanted if name in PICTURES)))

    def picture(self, kind: str) -> Picture:
        """What is to be drawn for "png", "svg" or "pdf"."""
        if not isinstance(self.width, str):
            return Picture(self.fig, kind, self.width, self.height, self.scale)
        pixels = PIXELS[self.width]
        dots = DPI if kind == "png" else 96  # a browser's page has 96 pixels to the inch
        return Picture(for_print(self.fig, self.width), kind, pixels, self.height, dots * INCHES[self.width] / pixels)

    def file(self, suffix: str) -> Path:
        """The file of this figure with a suffix such as "png"."""
        return self.stem.with_name(f"{self.stem.name}.{suffix}")


def save_figure(
    fig: go.Figure,
    path: str | Path,
    table: pd.DataFrame | Tabular | None = None,
    *,
    formats: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    width: int | PrintWidth | None = None,
    height: int | None = None,
    scale: float = 2.0,
    shared_js: bool = False,
) -> list[Path]:
    """Write a figure as HTML, as pictures where a Chrome or Chromium is found, and its table as CSV beside it.

    Every file is written completely or not at all. The upload button of Plotly's mode bar is off, and nothing in the
    HTML is fetched from the network.

    Args:
        fig: Figure.
        path: `x.png`, `x.svg` or `x.pdf` gives that picture and `x.html`; `x.html` or `x` the HTML alone.
        table: The numbers behind the figure (a DataFrame, or a result with `to_dataframe()`), written to `x.csv`.
        formats: More pictures: "png", "svg", "pdf".
        provenance: What the figure was made from (model, texts, settings, versions of the definitions), as JSON: in
            `x.json` and inside the HTML. The `meta` of sinklens' results is such a record.
        width: Width of pictures in layout pixels; the figure's own when None, and 1000 when it has none. Or for a paper
            ``"column"`` (3.35 inches) or ``"page"`` (7 inches): title and notes are wrapped to it, the smallest text is
            6.9 points high, colours can be told apart in grey, and a PNG has 300 dots per inch. The HTML is as ever.
        height: Height of pictures; the figure's own when None.
        scale: Image pixels per layout pixel; not used with a width for a paper.
        shared_js: Put plotly.js (5 MB) once beside the HTML files of a folder instead of into each of them.

    Returns:
        The files written.

    Raises:
        InputError: Another format or width than these, or a figure that does not fit a column.
        ResultError: A file cannot be written.

    Warns:
        UserWarning: A picture was asked for and there is no kaleido or no browser; everything else is written.
    """
    saving = Saving(fig, path, table, provenance, formats, width, height, scale, shared_js)
    return save_figures([saving], stacklevel=3)


def save_figures(figures: Sequence[Saving], *, stacklevel: int = 2) -> list[Path]:
    """Save many figures like :func:`save_figure`, with one browser for all pictures.

    Args:
        figures: What to save.
        stacklevel: Whose line a warning names.
    """
    wanted = [(one.file(kind), one.picture(kind)) for one in figures for kind in one.pictures]
    written: list[Path] = []
    for one in figures:
        written.append(write_atomically(one.file("html"), _page(one).encode("utf-8", "backslashreplace")))
        library = one.stem.parent / _LIBRARY
        if one.shared_js and not library.exists():
            written.append(write_atomically(library, get_plotlyjs().encode()))
        if one.table is not None:
            frame = one.table if isinstance(one.table, pd.DataFrame) else one.table.to_dataframe()
            text = frame.to_csv(index=False, lineterminator="\n")
            written.append(write_atomically(one.file("csv"), text.encode("utf-8", "backslashreplace")))
        if one.provenance is not None:
            written.append(write_atomically(one.file("json"), f"{_provenance(one, indent=1)}\n".encode()))
    try:
        drawn = render([picture for _, picture in wanted])
    except MissingExtraError as error:
        warnings.warn(f"{error} The HTML was written.", stacklevel=stacklevel)
        return written
    return written + [write_atomically(path, data) for (path, _), data in zip(wanted, drawn, strict=True)]


def _page(one: Saving) -> str:
    library: bool | str = "directory" if one.shared_js else True
    page: str = one.fig.to_html(include_plotlyjs=library, full_html=True, config={**CONFIG}, div_id="figure")
    title = html.unescape(str(one.fig.layout.title.text or one.stem.name).split("<br>")[0])
    charset = '<meta charset="utf-8" />'
    head = f"{charset}<title>{html.escape(title)}</title>"
    if one.provenance is not None:
        # such characters stand only inside JSON strings, where the escape means the same
        safe = _provenance(one).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        head += f'<script type="application/json" id="provenance">{safe}</script>'
    return page.replace(charset, head, 1)


def _provenance(one: Saving, indent: int | None = None) -> str:
    return json.dumps(one.provenance, indent=indent, default=str)
