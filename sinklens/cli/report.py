"""`sinklens report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What another command saved with --out.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it. Default: DIR/report.html.")
    ] = None,
) -> None:
    """Write the self-contained HTML report of a saved result again.

    For example:

      sinklens report runs/demo

      sinklens report runs/demo --out demo.html
    """
    from sinklens.cli.reports import write_report_of

    typer.echo(f"Report: {write_report_of(directory, out or directory / 'report.html')}")
