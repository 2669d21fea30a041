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
    import inspect

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.cli import printing
    from sinklens.errors import InputError
    from sinklens.policies import policies as known

    if name is not None:
        found = known().get(name)
        if found is None:
            raise InputError(f"Unknown policy {name!r}; there are {', '.join(known())}.")
        printing.say(inspect.cleandoc(found.__doc__ or ""))
        printing.say(f"\nScope: {found.scope}. Group: {found.group}. Source: {found.source}.")
        return
    table = Table(title="Policies: which earlier tokens a head may still read", show_lines=True)
    for column in ("policy", "scope", "group", "what a row reads", "source"):
        table.add_column(column, overflow="fold")
    for kind in known().values():
        gist = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        table.add_row(kind.name, kind.scope, kind.group, escape(gist), escape(kind.source))
    Console().print(table)
    printing.say("scope: what a choice depends on; group: within what the kept keys are the same.")
