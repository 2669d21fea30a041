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
    from sinklens.results.result import open_result

    typer.echo(f"Report: {open_result(directory).report(out or directory / 'report.html')}")
