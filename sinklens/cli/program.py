"""The program: its options and its commands."""

from typing import Annotated

import typer

from sinklens.cli.ablate import ablate
from sinklens.cli.active_dormant import active_dormant
from sinklens.cli.calibrate import calibrate
from sinklens.cli.conflict import conflict
from sinklens.cli.dashboard import dashboard
from sinklens.cli.dynamics import dynamics
from sinklens.cli.evaluate import evaluate
from sinklens.cli.extreme import extreme
from sinklens.cli.follow import follow
from sinklens.cli.inject import inject
from sinklens.cli.models import models
from sinklens.cli.near_far import near_far
from sinklens.cli.needle import needle
from sinklens.cli.paths import paths
from sinklens.cli.policies import policies
from sinklens.cli.policy import app as policy
from sinklens.cli.pool import pool
from sinklens.cli.rank import rank
from sinklens.cli.recall import recall
from sinklens.cli.report import report
from sinklens.cli.roles import roles
from sinklens.cli.scan import ScanCommand, scan
from sinklens.cli.span import span
from sinklens.cli.why import why
from sinklens.lab.commands import app as lab

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find attention sinks, value-state drains, residual peaks and massive activations in transformers.\n\n"
    "Try: [bold]sinklens scan bb-3l --out runs/demo[/bold]",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sinklens {version('sinklens')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, also after a command.", is_eager=True)
    ] = False,
) -> None:
    """Options of the whole program; typer shows the app's own help instead of this line."""


app.command(cls=ScanCommand)(scan)
for command in (
    report,
    ablate,
    active_dormant,
    calibrate,
    dashboard,
    dynamics,
    extreme,
    evaluate,
    follow,
    needle,
    policies,
    roles,
    why,
    rank,
    paths,
    conflict,
    recall,
    span,
    near_far,
    inject,
    pool,
    models,
):
    app.command()(command)
app.add_typer(policy, name="policy")
app.add_typer(lab, name="lab")
