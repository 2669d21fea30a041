"""One self-contained HTML report of a census."""

from pathlib import Path
from typing import TYPE_CHECKING

from sinklens.app.page import document
from sinklens.app.report import write_page
from sinklens.app.sections import SECTIONS, Downloads, header
from sinklens.errors import ResultError

if TYPE_CHECKING:
    from sinklens.studies.census.result import Census


def write_census_report(census: "Census", path: Path) -> Path:
    """Write a census as one HTML file that opens offline; see :meth:`~sinklens.results.Result.report`.

    Of a table with more than 100,000 rows the page holds a part and says which. What the scan's detectors did not
    measure is called "not measured", what the model does not have "not applicable"; neither is ever 0.

    Raises:
        ResultError: when the census lacks a table or the file cannot be written.
    """
    return write_page(render_report(census), path)


def render_report(census: "Census") -> str:
    """Return the report's HTML; see `write_census_report`.

    Raises:
        ResultError: when the census lacks a table.
    """
    missing = [name for name in census.needs if name not in census.tables]
    if missing:
        raise ResultError(
            f"A report needs the tables {', '.join(census.needs)}, but this census lacks {', '.join(missing)}; "
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
