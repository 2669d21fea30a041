"""`sinklens models`."""

from typing import Annotated, Any

import typer


def models(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Describe this one: a built-in name, directory, GGUF file or hub id."),
    ] = None,
) -> None:
    """List the built-in models, or describe any model: its layers, windows, BOS, precision and live hooks.

    For example:

      sinklens models

      sinklens models path/to/llama

      sinklens models model.gguf
    """
    if model is not None:
        _describe(model)
        return
    from rich.console import Console
    from rich.table import Table

    from sinklens.models.builtin import builtin_models

    table = Table(title="Built-in models", show_lines=True)
    for column in ("name", "size", "what it shows", "how it was trained"):
        table.add_column(column, overflow="fold")
    for known in builtin_models().values():
        bytes_on_disk = sum(file.stat().st_size for file in known.path.iterdir() if file.is_file())
        size = f"{known.recipe['parameters']:,} parameters\n{bytes_on_disk / 1e6:.1f} MB"
        table.add_row(known.name, size, known.shows, _how_trained(known))
    Console().print(table)


def _describe(name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from sinklens.models import load
    from sinklens.passes.describe import describe_model

    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, words in describe_model(load(name)).items():
        table.add_row(label, words)
    Console(highlight=False, markup=False).print(table)


def _how_trained(model: Any) -> str:
    recipe, measured = model.recipe, model.measured
    gist = ", ".join(
        f"{name.removeprefix('L0.').replace('_', ' ')} {measured[name]:.3g}"
        for name in ("backcopy_loss", "bigram_loss")
        if name in measured
    )
    return f"{recipe['command']}\n{recipe['seconds'] / 60:.0f} min on {recipe['device']}; {gist}"
