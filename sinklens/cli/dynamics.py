"""`sinklens dynamics`."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.progress import listening
from sinklens.cli.texts import read_texts
from sinklens.errors import InputError

SHOWN = {
    "step": "step",
    "importance_first": "to 0",
    "n_sink_heads": "sinks",
    "delta_logit": "margin",
    "drain_wo": "drain",
    "max_over_median": "peak",
    "resid_ratio": "norm",
}


def dynamics(
    series: Annotated[
        list[str],
        typer.Argument(
            metavar="SERIES...",
            help="A directory of checkpoint folders (step-000125, checkpoint-500, ...), a built-in model with a series "
            "(tiny-llama), a hub id with revisions (ORG/MODEL@REV,REV), or several of [STEP=]DIR and "
            "[STEP=]ORG/MODEL@REV.",
        ),
    ],
    revisions: Annotated[
        str | None,
        typer.Option(
            metavar="REV,...", help="Revisions of a hub id; * and ? stand for what the hub has, as in 'step*000'."
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,...", help="Only these steps, as the names of the checkpoints tell them.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="[DOMAIN=]FILE|-",
            help="UTF-8 text file, or - for standard input; repeat for more, with domains to tell them apart. Without "
            "it: built-in prose and code, 100 sequences of 64 tokens each.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Work and save here: tables, dynamics.csv, report.html and, where there is a browser, dynamics.png.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            help="Go on from the finished checkpoints in DIR, or throw away what another or unfinished run left.",
        ),
    ] = True,
    bos: Annotated[
        str, typer.Option(metavar="auto|yes|no", help="Prepend a BOS: auto does what the model's tokenizer does.")
    ] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Tokens per sequence, BOS included.")
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", metavar="N", help="Use at most this many sequences of each domain.")
    ] = 100,
    eps: Annotated[float, typer.Option(help="Threshold of the sink rate.")] = 0.3,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per forward pass. Default: what fits the memory.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as the checkpoints are stored.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the built-in texts and the bootstrap.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the checkpoints.")
    ] = False,
) -> None:
    """Follow sinks, drains, residual peaks and loss through a model's checkpoints.

    All checkpoints see the same tokens. One that is damaged is listed as missing, and the others are measured.

    Interrupted? Give the same command again: it goes on with the next checkpoint. With more checkpoints, too.

    For example:

      sinklens dynamics tiny-llama --out runs/emergence

      sinklens dynamics path/to/training-output --text prose=book.txt --text code=script.py --max-tokens 256

      sinklens dynamics EleutherAI/pythia-160m --steps 0,512,1000,4000,143000 --out runs/pythia

      sinklens dynamics allenai/OLMo-1B --revisions 'step1000-*,step20000-*' --dtype bfloat16

      sinklens dynamics 0=runs/untrained 5000=runs/half 10000=runs/final
    """
    from rich.console import Console

    chosen = _numbers(steps)
    texts = read_texts(text) if text else None
    console = Console(stderr=True)
    with console.status("Reading the series ..."):
        from sinklens.studies.dynamics import find_series, measure_dynamics

        found = find_series(series, revisions=revisions, steps=chosen)
    options: dict[str, Any] = {
        "bos": bos,
        "max_tokens": max_tokens,
        "max_sequences": max_sequences,
        "eps": eps,
        "batch_size": batch,
        "seed": seed,
        "source": ", ".join(text) if text else None,
        "loading": {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
        "out": out,
        "restart": not resume,
    }
    try:
        with listening(console, False, "Measuring checkpoints") as listeners:
            del listeners["on_part"]
            result = measure_dynamics(found, texts, **options, **listeners)
    except KeyboardInterrupt:
        kept = "nothing was saved" if out is None else f"finished checkpoints are in {out}; the same command goes on"
        typer.echo(f"Interrupted; {kept}.", err=True)
        raise typer.Exit(130) from None
    saved = "Nothing was saved; add --out DIR for tables, figure and report."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the report
        saved = _save(result, out)
    _print(result)
    typer.echo(saved)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number.replace("_", "")) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--steps takes numbers such as 0,1000,2000; got {text!r}.") from None


def _save(result: Any, out: Path) -> str:
    from sinklens.app import write_dynamics_report
    from sinklens.plots import dynamics as dynamics_figure
    from sinklens.plots import save_figure

    figure = dynamics_figure(result.to_dataframe(), result.heads())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save_figure(figure, out / "dynamics.png", result, width=1250)
    for warning in caught:  # no browser, no picture
        typer.echo(f"Note: {warning.message}", err=True)
    report = write_dynamics_report(result, out / "report.html")
    return f"Report: {report}\nFigure: {out / 'dynamics.html'}\nTables: {out}"


def _print(result: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.results.provenance import precision

    console = Console()
    meta = result.meta
    tokens, model = meta["tokens"], meta["model"]
    console.print(
        f"[bold]{escape(meta['series']['name'])}[/bold]: {model['architecture']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {precision(model)}; {tokens['n_sequences']} sequences of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens, the same for every checkpoint, from {escape(tokens['source'])}. "
        f"{escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    for sentence in result.verdict:
        console.print(f"- {escape(sentence)}", highlight=False)
    steps = result.to_dataframe()
    domains = [name for name in result.domains if name != "all"]
    table = Table(
        title="By step, all domains together" if len(domains) > 1 else "By step",
        caption="to 0: attention to position 0, mean over heads; sinks: heads with a sink "
        "there; drain: its |W_O v| over the others'; peak: largest residual entry over the median; norm: residual "
        "norm over the others'; loss in nats",
    )
    for title in (*SHOWN.values(), *(f"loss {name}" if len(domains) > 1 else "loss" for name in domains)):
        table.add_column(escape(title), justify="right")
    losses = steps.pivot(index="step", columns="domain", values="loss")
    for row in steps[steps["domain"] == result.domains[0]].to_dict("records"):
        own = [_cell(float(losses.loc[row["step"], name])) for name in domains]
        table.add_row(*(_cell(row[name]) for name in SHOWN), *own)
    console.print(table)
    for warning in meta["warnings"]:
        console.print(f"Note: {escape(warning)}", highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "n/a" if value != value else f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
