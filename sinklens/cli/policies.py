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

    from sinklens.cli import printing
    from sinklens.errors import InputError
    from sinklens.policies import policies as known
    from sinklens.policies.registry import budgeted

    if name is not None:
        found = known().get(name)
        if found is None:
            raise InputError(f"Unknown policy {name!r}; there are {', '.join(known())}.")
        printing.say(inspect.cleandoc(found.__doc__ or ""))
        printing.say(f"\nScope: {found.scope}. Group: {found.group}. Source: {found.source}.")
        return
    rows = [
        [
            kind.name,
            kind.scope,
            kind.group,
            "keys" if budgeted(kind) else "own fields",
            _gist(kind.__doc__),
            kind.source,
        ]
        for kind in known().values()
    ]
    printing.say_table(
        ["policy", "scope", "group", "budget", "reads", "source"],
        rows,
        "Policies: which earlier tokens a head may still read",
        "scope: what a choice depends on; group: within what the kept keys are the same",
        left=["policy", "scope", "group", "budget", "reads", "source"],
        where="'sinklens policies NAME'",
    )


def _gist(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
