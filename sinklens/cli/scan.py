"""`sinklens scan` and `sinklens report`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sinklens.cli.texts import read_texts


class ScanCommand(TyperCommand):
    """Its help names the detectors that are installed; they are looked up when it is asked for, and not before."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill in the help of ``--detectors`` and print."""
        from sinklens.detectors.registry import all_detectors, default_detectors

        usual, known = default_detectors(), all_detectors()
        others = ", ".join(name for name in known if name not in usual)
        option: Any = next(each for each in self.params if each.name == "detectors")
        option.help = f"Some of {', '.join(usual)} (the default: all of these), {others}."
        super().format_help(ctx, formatter)


def scan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ] = "tiny-llama",
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="[DOMAIN=]FILE|-",
            help="UTF-8 text file, or - for standard input; repeat for more. With domains (code=a.py, prose=b.txt) "
            "heads are compared between them. Without it: a built-in corpus that fits the model, 100 sequences of 64 "
            "tokens.",
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
        int, typer.Option("--max-sequences", metavar="N", help="Use at most this many sequences (of each domain).")
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
            help="Names of detectors.",
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

      sinklens scan --out runs/demo

      sinklens scan bb-3l --out runs/bb

      sinklens scan path/to/llama --text book.txt --max-tokens 64 --dtype bfloat16 --out runs/llama

      sinklens scan path/to/llama --text prose=book.txt --text code=script.py --max-tokens 64

      cat notes.txt | sinklens scan path/to/llama --text - --bos no
    """
    from sinklens.results.tables import check_writable
    from sinklens.studies.census.result import FORMAT

    if out is not None:
        check_writable(out, FORMAT)  # before the work, not after it
    texts = read_texts(text) if text else None
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


def report(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What 'sinklens scan', 'ablate', 'active-dormant' or 'dynamics' saved."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it. Default: DIR/report.html.")
    ] = None,
) -> None:
    """Write the self-contained HTML report of a saved scan, sweep or other result again."""
    from sinklens.cli.reports import write_report_of

    typer.echo(f"Report: {write_report_of(directory, out or directory / 'report.html')}")


def _run_scan(model: str, loading: dict[str, Any], options: dict[str, Any]) -> Any:
    """Load and scan with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with console.status(f"Loading {model} ..."):
        from sinklens.models import load
        from sinklens.studies import scan as run

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

    from sinklens.results.provenance import precision
    from sinklens.studies.census.result import strongest_heads

    console = Console()
    meta = census.meta
    tokens = meta["tokens"]
    console.print(
        f"[bold]{escape(meta['model']['name'])}[/bold]: {meta['model']['architecture']}, "
        f"{meta['model']['n_layers']} layers x {meta['model']['n_heads']} heads, {precision(meta['model'])} on "
        f"{meta['model']['device']}; {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens from {escape(tokens['source'])}. {escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    for sentence in census.verdict:
        console.print(f"- {escape(sentence)}", highlight=False)
    if "heads" in census.tables and len(census.tables["heads"]):
        shown = strongest_heads(census.tables["heads"])
        table = Table(
            title="Heads with the most attention on one key",
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
