"""`sinklens policies`."""

from typing import Annotated

import typer


def policies(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Explain this one: its rule and fields.")] = None,
) -> None:
    """List the KV-cache and sparse-attention rules, or explain one.

    For example:

      sinklens policies

      sinklens policies h2o
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.cli import listed, printing
    from sinklens.errors import InputError

    known = listed.policies()
    if name is not None:
        if name not in known:
            raise InputError(f"Unknown policy {name!r}; there are {', '.join(known)}.")
        of = known[name].constants
        printing.say(known[name].doc)
        printing.say(f"\nScope: {of['scope']}. Group: {of['group']}. Source: {of['source']}.")
        return
    table = Table(title="Policies: which earlier tokens a head may still read", show_lines=True)
    for column in ("policy", "scope", "group", "what a row reads", "source"):
        table.add_column(column, overflow="fold")
    for policy, kind in known.items():
        gist = " ".join(kind.doc.split("\n\n")[0].split())
        of = kind.constants
        table.add_row(policy, of["scope"], of["group"], escape(gist), escape(of["source"]))
    Console().print(table)
    printing.say("scope: what a choice depends on; group: within what the kept keys are the same.")
