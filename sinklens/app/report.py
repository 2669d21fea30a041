"""One self-contained HTML report of a census."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sinklens.app.page import document
from sinklens.app.sections import SECTIONS, Downloads, header
from sinklens.errors import ResultError
from sinklens.results.files import write_atomically

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census

_TABLES: Final = ("layers", "tokens", "profile")
"""What every scan leaves, whatever its detectors."""


def write_report(census: "Census", path: str | Path) -> Path:
    """Write a census as one HTML file that opens offline: verdict, figures, tables, definitions, provenance.

    plotly.js is inlined once (about 5 MB), every table is inside as CSV, and a content security policy
    forbids the page any request. Everything that came from a model or a text is escaped. The file appears
    under its name only when it is complete; a file that was there before is replaced. Of a table with more
    than 100,000 rows the page holds a part and says which. What the scan's detectors did not measure is
    called "not measured", what the model does not have "not applicable"; neither is ever 0.

    Args:
        census: What a scan returned.
        path: File to write; missing folders are made.

    Returns:
        The path written.

    Raises:
        ResultError: when the census lacks a table or the file cannot be written.
    """
    return write_page(render_report(census), Path(path))


def write_page(page: str, target: Path) -> Path:
    """Write a page under its name once it is complete; missing folders are made.

    Raises:
        ResultError: when the file cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"Expected a folder at {target.parent}, but {error.strerror or error}.") from error
    return write_atomically(target, page.encode("utf-8", "backslashreplace"))


def render_report(census: "Census") -> str:
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
    sections = [
        (section.anchor, section.label, section.html(census, downloads))
        for section in SECTIONS
        if section.shown(census)
    ]
    title = f"{census.meta['model']['name']}: sinklens report"
    return document(title, header(census), sections, downloads.data())
