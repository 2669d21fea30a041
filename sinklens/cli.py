"""The command line: thin commands over the Python API. Errors are one sentence and exit status 2."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.errors import InputError, SinkLensError

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
) -> None:
    """Options of the whole program; typer shows the app's own help instead of this line."""


@app.command()
def scan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE|-",
            help="UTF-8 text file, or - for standard input; repeat for more. Without it: a built-in corpus that fits "
            "the model, 100 sequences of 64 tokens.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save tables, header and report.html here; without it only print."),
    ] = None,
    bos: Annotated[
        str, typer.Option(metavar="auto|yes|no", help="Prepend a BOS: auto does what the model's tokenizer does.")
    ] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Tokens per sequence, BOS included. Longer texts are cut into several sequences. Default: the "
            "model's context. Published sink rates use 64.",
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", metavar="N", help="Use at most this many sequences.")
    ] = 100,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequences per forward pass. Default: what fits the memory."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as the checkpoint is stored.")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="Spread the model over GPUs: auto or balanced.")
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Some of sinks,value_drains,massive_activations,residual_peaks. Default: all.",
        ),
    ] = None,
    eps: Annotated[float, typer.Option(help="Threshold of the sink rate.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Which sequences of the built-in corpus are drawn.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Scan a model for extreme tokens: all detectors on one pass.

    Prints what was found, and with --out saves Parquet tables, a JSON header and one self-contained report.html.

    For example:

      sinklens scan bb-3l --out runs/bb

      sinklens scan path/to/llama --text book.txt --max-tokens 64 --dtype bfloat16 --out runs/llama

      cat notes.txt | sinklens scan path/to/llama --text - --bos no
    """
    from sinklens.tables import check_writable

    if out is not None:
        check_writable(out)  # before the work, not after it
    texts = [_read_text(name) for name in text] if text else None
    names = [name.strip() for name in detectors.split(",") if name.strip()] if detectors is not None else None
    census = _run_scan(
        model,
        {"device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code},
        {
            "texts": texts,
            "bos": bos,
            "max_tokens": max_tokens,
            "split": True,
            "max_sequences": max_sequences,
            "batch_size": batch,
            "eps": eps,
            "seed": seed,
            "source": ", ".join(text) if text else None,
        }
        | ({"detectors": names} if names is not None else {}),
    )
    saved = ["Nothing was saved; add --out DIR for tables and a report."]
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the result
        census.save(out)
        saved = [f"Report: {census.report(out / 'report.html')}", f"Tables: {out}"]
    _print_census(census)
    for line in saved:
        typer.echo(line)
    typer.echo(f"Took {census.meta['seconds']:.1f} s.")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What 'sinklens scan --out DIR' saved.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it. Default: DIR/report.html.")
    ] = None,
) -> None:
    """Write the self-contained HTML report of a saved scan again."""
    from sinklens.experiments import Census

    path = Census.load(directory).report(out or directory / "report.html")
    typer.echo(f"Report: {path}")


@app.command()
def models() -> None:
    """List the built-in models: size, what they show, how they were trained."""
    from rich.console import Console
    from rich.table import Table

    from sinklens.models.builtin import builtin_models

    table = Table(title="Built-in models", show_lines=True)
    for column in ("name", "size", "what it shows", "how it was trained"):
        table.add_column(column, overflow="fold")
    for model in builtin_models().values():
        bytes_on_disk = sum(file.stat().st_size for file in model.path.iterdir() if file.is_file())
        size = f"{model.recipe['parameters']:,} parameters\n{bytes_on_disk / 1e6:.1f} MB"
        table.add_row(model.name, size, model.shows, _how_trained(model))
    Console().print(table)


def _how_trained(model: Any) -> str:
    recipe, measured = model.recipe, model.measured
    gist = ", ".join(
        f"{name.removeprefix('L0.').replace('_', ' ')} {measured[name]:.3g}"
        for name in ("backcopy_loss", "bigram_loss")
        if name in measured
    )
    return f"{recipe['command']}\n{recipe['seconds'] / 60:.0f} min on {recipe['device']}; {gist}"


def _run_scan(model: str, loading: dict[str, Any], options: dict[str, Any]) -> Any:
    """Load and scan with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with console.status(f"Loading {model} ..."):
        from sinklens.experiments import scan as run
        from sinklens.models import load

        bridge = load(model, **loading)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Scanning layers", total=None)

        def planned(plan: Any, total: int) -> None:
            console.print(str(plan), highlight=False)
            progress.update(task, total=total)

        return run(bridge, **options, on_plan=planned, on_layer=lambda done: progress.update(task, advance=done))


def _print_census(census: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.experiments.census import strongest_heads

    console = Console()
    meta = census.meta
    tokens = meta["tokens"]
    console.print(
        f"[bold]{escape(meta['model']['name'])}[/bold]: {meta['model']['architecture']}, "
        f"{meta['model']['n_layers']} layers x {meta['model']['n_heads']} heads, {meta['model']['dtype']} on "
        f"{meta['model']['device']}; {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens from {escape(tokens['source'])}. {escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    for sentence in census.verdict:
        console.print(f"- {escape(sentence)}", highlight=False)
    if "heads" in census.tables and len(census.tables["heads"]):
        shown = strongest_heads(census.tables["heads"])
        table = Table(
            title="Strongest key of each head",
            caption="rate: share of sequences with importance alpha above eps; null: uniform attention; |v|, |W_O v|: "
            "norm over the other tokens'",
        )
        for column in shown.columns:
            table.add_column(escape(column), justify="left" if column == "head" else "right")
        for row in shown.itertuples(index=False):
            table.add_row(*("n/a" if v != v else f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
        console.print(table)
    for warning in meta["warnings"]:
        console.print(f"Note: {escape(warning)}", highlight=False)
    for line in tokens["skipped"][:5]:
        console.print(f"Skipped {escape(line)}", highlight=False)


def _read_text(name: str) -> str:
    """A text file or standard input, refused with a sentence when it is missing, binary or empty."""
    label = "standard input" if name == "-" else name
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"There is no text file {name}; check the path given to --text.") from error
    except OSError as error:
        raise InputError(f"Cannot read {name}: {error.strerror}; --text takes a text file or -.") from error
    if b"\0" in raw:
        raise InputError(f"{label} is a binary file; --text takes UTF-8 text.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{label} is not UTF-8 text (byte {error.start}: {error.reason}); convert it, or name another file."
        ) from error
    if not text.strip():
        raise InputError(f"{label} is empty; expected some text.")
    return text


def _mount_lab() -> None:
    from sinklens.lab.commands import app as lab

    app.add_typer(lab, name="lab")


_mount_lab()


def main() -> None:
    """Entry point: sinklens' own errors and interruptions end in one sentence instead of a traceback."""
    try:
        app()
    except SinkLensError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was saved.", err=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None


if __name__ == "__main__":
    main()
