"""One self-contained HTML report of a census."""

from pathlib import Path
from typing import Final

from sinklens.app.page import document
from sinklens.app.sections import SECTIONS, CensusLike, Downloads, header
from sinklens.errors import ResultError
from sinklens.plots.export import write_atomically

_TABLES: Final = ("sinks", "heads", "eps_sweep", "layers", "tokens", "massive", "profile")


def write_report(census: CensusLike, path: str | Path) -> Path:
    """Write a census as one HTML file that opens offline: verdict, figures, tables, definitions, provenance.

    plotly.js is inlined once (about 5 MB), every table is inside as CSV, and a content security policy
    forbids the page any request. Everything that came from a model or a text is escaped. The file appears
    under its name only when it is complete; a file that was there before is replaced. Of a table with more
    than 200,000 rows the page holds a part and says which.

    Args:
        census: What a scan returned.
        path: File to write; missing folders are made.

    Returns:
        The path written.

    Raises:
        ResultError: when the census lacks a table or the file cannot be written.
    """
    page = render_report(census).encode("utf-8", "backslashreplace")
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"Expected a folder at {target.parent}, but {error.strerror or error}.") from error
    return write_atomically(target, page)


def render_report(census: CensusLike) -> str:
    """Return the report's HTML; see `write_report`.

    Raises:
        ResultError: when the census lacks a table.
    """
    missing = [name for name in _TABLES if name not in census.tables]
    if missing:
        raise ResultError(
            f"A report needs the tables {', '.join(_TABLES)}, but this census lacks {', '.join(missing)}; "
            "scan the model again."
        )
    downloads = Downloads(census.tables)
    bodies = [(anchor, label, write(census, downloads)) for anchor, label, write in SECTIONS]
    title = f"{census.meta['model']['name']}: sinklens report"
    return document(title, header(census), bodies, downloads.data())
