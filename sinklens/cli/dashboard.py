"""`sinklens dashboard`."""

from pathlib import Path
from typing import Annotated

import typer

from sinklens.cli import options


def dashboard(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|MODEL]",
            help="A folder of saved results, one saved result, or a model: built-in name, Hugging Face directory, or "
            "hub id. Without it: the built-in models.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A model that the page may compute with, such as the one a saved scan was made of; repeat for more. "
            "The built-in ones are always there.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="Port at 127.0.0.1; 0 takes a free one.")] = 8050,
    device: options.Device = "auto",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Look at results interactively, from a model's overview to one head on one token.

    Serves a page to this machine alone (127.0.0.1): the layer x head grid of a result, a head's attention map beside
    its numbers and nulls, a token's residual norms and the heads that sink on it; two results side by side; and live
    measurements of a text under any intervention or policy, beside random controls of equal size. Stop it with Ctrl-C.

    For example:

      sinklens dashboard runs

      sinklens dashboard runs/llama --model path/to/llama

      sinklens dashboard tiny-llama
    """
    import webbrowser

    from sinklens.app.dashboard.serve import check_port, serve
    from sinklens.models.locate import locate

    check_port(port)
    for name in model or []:
        locate(name)
    check_source(source)

    def ready(address: str) -> None:
        typer.echo(f"Dashboard at {address} (Ctrl-C stops it)", err=True)
        if browser:
            webbrowser.open(address)

    try:
        serve(source, models=model or (), device=device, port=port, on_ready=ready)
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)


def check_source(source: str | None) -> None:
    """Refuse a place that holds neither results nor a model, before torch is loaded.

    Raises:
        SinkLensError: It is none, in a sentence.
    """
    from sinklens.app.dashboard.folder import ResultFolder, refuse_nowhere
    from sinklens.models.locate import locate

    if source is None:
        return
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        ResultFolder(path)
    else:
        refuse_nowhere(source)
        locate(source)
