"""`sinklens ablate`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.progress import FirstPartDone, listening
from sinklens.cli.texts import read_text
from sinklens.errors import InputError

METRICS = {"loss": "delta_loss", "kl": "kl", "top1": "top1_agreement", "logit_diff": "delta_logit_diff"}
HEADS, WAYS, TEXTS, RUNNING = "Which heads", "What is done to them", "Texts", "Running"


def ablate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ],
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="all|L5H1,...",
            help="Heads, each changed by itself. Default: all; none with --group or a --ranking file.",
            rich_help_panel=HEADS,
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="NAME=L5H1,...|FILE[:ROLE]",
            help="Heads changed together, or those with a role (default: NAME) in a head-roles.json of sinklens roles; "
            "repeat for more.",
            rich_help_panel=HEADS,
        ),
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            metavar="own|FILE[:COLUMN]",
            help="Change the first k heads together, for several k: by this sweep's own per-head result, or by a table "
            "with layer, head and a score (a list of names; head-roles.json; the --out of a scan, of roles or of "
            "another sweep). :-COLUMN = lowest first.",
            rich_help_panel=HEADS,
        ),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(metavar="K,...", help="Those k. Default: 1,2,4,... to half of all heads.", rich_help_panel=HEADS),
    ] = None,
    controls: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Random sets of the same size and layers, for every group, top k and head named with --heads.",
            rich_help_panel=HEADS,
        ),
    ] = 10,
    how: Annotated[
        list[str] | None,
        typer.Option(
            "--how",
            metavar="zero|mean|resample|uniform",
            help="Output 0; its mean over the texts; its output on another of the texts; even attention. Repeat or "
            "join with commas. Default: zero.",
            rich_help_panel=WAYS,
        ),
    ] = None,
    gamma: Annotated[
        list[float] | None,
        typer.Option(
            "--gamma", metavar="G", help="Scale attention to position 0 by G (ZeroTuning).", rich_help_panel=WAYS
        ),
    ] = None,
    intervention: Annotated[
        list[Path] | None,
        typer.Option(
            "--intervention", metavar="FILE.json", help="Any other, as its to_json() wrote it.", rich_help_panel=WAYS
        ),
    ] = None,
    approx: Annotated[
        bool,
        typer.Option(
            "--approx",
            help="Estimate single heads by attribution patching (one forward, one backward) and say how well that "
            "ranks them.",
            rich_help_panel=WAYS,
        ),
    ] = False,
    sample: Annotated[
        int, typer.Option(metavar="N", help="Heads run exactly beside --approx.", rich_help_panel=WAYS)
    ] = 16,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE|-",
            help="UTF-8 text file, or - for standard input; repeat for more. Without it: a built-in corpus that fits "
            "the model, 100 sequences of 64 tokens.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Right and wrong answers for logit differences: columns correct and wrong (one token each), text or "
            "sequence, position (default: the last token).",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Prepend a BOS: auto does what the model's tokenizer does.",
            rich_help_panel=TEXTS,
        ),
    ] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", help="Tokens per sequence, BOS included.", rich_help_panel=TEXTS),
    ] = None,
    max_sequences: Annotated[
        int,
        typer.Option("--max-sequences", metavar="N", help="Use at most this many sequences.", rich_help_panel=TEXTS),
    ] = 100,
    metric: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="Shown, of loss, kl, top1, logit_diff; the first one orders the heads, by size. All are saved.",
            rich_help_panel=RUNNING,
        ),
    ] = "loss,kl,top1",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Work and save here; without it only print.", rich_help_panel=RUNNING),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            help="Go on from the finished parts in DIR, or throw away what an other or unfinished sweep left there.",
            rich_help_panel=RUNNING,
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, time its first part, save nothing.", rich_help_panel=RUNNING),
    ] = False,
    executor: Annotated[
        str,
        typer.Option(
            metavar="serial|processes:N|tcp://HOST:PORT",
            help="This process, N local ones, or the scheduler of a Dask cluster.",
            rich_help_panel=RUNNING,
        ),
    ] = "serial",
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda, cuda:N; cuda:{i} = one GPU per process.", rich_help_panel=RUNNING),
    ] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequences per part. Default: what fits.", rich_help_panel=RUNNING),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of texts, controls, sample and bootstrap.", rich_help_panel=RUNNING)] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    """Ablate heads and measure what that does to the predictions.

    Every head by itself, named groups, or the first k of a ranking against random heads.

    Loss, KL, top-1 agreement and logit differences on every text, with intervals.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens ablate bb-3l --out runs/heads

      sinklens ablate path/to/llama --text book.txt --max-tokens 256 --how mean --ranking own --out runs/top

      sinklens ablate path/to/llama --group induction=L5H1,L5H5,L6H9 --how zero,uniform --answers ioi.csv

      sinklens ablate path/to/llama --approx --executor processes:4 --out runs/quick
    """
    from sinklens.studies.ablation.question import OWN

    shown = _metrics(metric)
    options: dict[str, Any] = {
        "heads": () if heads == "none" else heads,
        "groups": _groups(group),
        "top": _numbers(top),
        "controls": controls,
        "rank_by": shown[0],
        "approx": sample if approx else 0,
        "batch_size": batch,
        "seed": seed,
        "executor": executor,
        "loading": {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code},
        "restart": not resume,
    }
    if out is not None:
        from sinklens.results import RunFolder
        from sinklens.studies.ablation.result import FORMAT, WORK

        RunFolder(out, FORMAT, WORK).check()  # before the work, not after it
    if ranking is not None and ranking != OWN:
        from sinklens.studies.ablation.ranking_file import read_ranking

        options["ranking"] = read_ranking(ranking)
    else:
        options["ranking"] = ranking
    options["interventions"] = _interventions(how, gamma, intervention)
    words = {"bos": bos, "max_tokens": max_tokens, "max_sequences": max_sequences, "seed": seed, "text": text}
    try:
        result = _run(model, words | {"answers": answers}, options | {"out": None if dry_run else out}, dry_run)
    except KeyboardInterrupt:
        kept = (
            "nothing was saved" if out is None or dry_run else f"finished parts are in {out}; the same command goes on"
        )
        typer.echo(f"Interrupted; {kept}.", err=True)
        raise typer.Exit(130) from None
    if result is not None:
        saved = ""
        if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the report
            from sinklens.app import write_sweep_report

            saved = f"Report: {write_sweep_report(result, out / 'report.html')}\n"
        _print(result, shown)
        typer.echo(f"{saved}Tables: {out}" if out is not None else "Nothing was saved; add --out DIR for tables.")
        typer.echo(f"Took {result.meta['seconds']:.1f} s.")


def _metrics(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in METRICS]
    if unknown or not chosen:
        raise InputError(f"Unknown metric {', '.join(unknown) or '(none)'}; expected some of {', '.join(METRICS)}.")
    return [METRICS[name] for name in dict.fromkeys(chosen)]


def _groups(texts: list[str] | None) -> dict[str, object]:
    from sinklens.studies.head_roles import role_heads

    found: dict[str, object] = {}
    for text in texts or []:
        name, equals, heads = text.partition("=")
        if not equals or name.strip() in found:
            raise InputError(f"A group is written NAME=L5H1,L3H2, each name once; got {text!r}.")
        found[name.strip()] = role_heads(heads, name.strip()) or heads
    return found


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--top takes numbers such as 1,2,4; got {text!r}.") from None


def _interventions(how: list[str] | None, gammas: list[float] | None, files: list[Path] | None) -> list[Any]:
    from sinklens.interventions import Intervention, ScaleKeys

    ways = [way.strip() for words in how or [] for way in words.split(",")]
    found: list[Any] = [*ways, *(ScaleKeys(keys=(0,), gamma=gamma) for gamma in gammas or [])]
    for path in files or []:
        try:
            found.append(Intervention.from_json(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The intervention {path} cannot be read: {error}.") from error
    return found or ["zero"]


def _run(model: str, words: dict[str, Any], options: dict[str, Any], dry_run: bool) -> Any:
    """Load the model, tokenize, and sweep with a progress bar on standard error; None after a dry run."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(f"Loading {model} ..."):
        from sinklens.models import load
        from sinklens.passes.sequences import choose_sequences, first_sequences
        from sinklens.studies import sweep
        from sinklens.studies.ablation.answers_file import AnswerTable
        from sinklens.studies.ablation.executors import check_executor, loading_here

        check_executor(options["executor"])
        table = None if words["answers"] is None else AnswerTable.read(words["answers"])
        texts = [read_text(name) for name in words["text"]] if words["text"] else None
        source = ", ".join(words["text"]) if words["text"] else None
        if table is not None and table.texts is not None:
            if texts is not None:
                raise InputError("The answers file brings its own texts; leave --text away, or its column text.")
            texts, source = table.texts, str(table.path)
        bridge = load(model, **loading_here(options["executor"], options["loading"]))
    limits = {name: words[name] for name in ("bos", "max_tokens", "max_sequences", "seed")}
    own = table is not None and table.texts is not None
    by_number = table is not None and texts is not None  # answers name sequences by their number
    counted = {"max_sequences": sys.maxsize} if by_number else {}
    batch, source = choose_sequences(bridge, texts, split=not own, source=source, **limits | counted)
    if by_number and not own:
        batch = first_sequences(batch, words["max_sequences"])
    if own and batch.dropped:
        raise InputError(f"{words['answers']} has texts longer than --max-tokens; their answers would come too early.")
    chosen = None if table is None else table.answers(bridge, batch)
    interventions = options.pop("interventions")
    with listening(console, dry_run) as listeners:
        try:
            return sweep(bridge, interventions, tokens=batch, answers=chosen, source=source, **options, **listeners)
        except FirstPartDone:
            return None


def _print(result: Any, metrics: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.results.provenance import precision
    from sinklens.studies.ablation.result import short_table

    console = Console()
    meta = result.meta
    tokens = meta["tokens"]
    console.print(
        f"[bold]{escape(meta['model']['name'])}[/bold]: {meta['model']['architecture']}, {meta['model']['n_layers']} "
        f"layers x {meta['model']['n_heads']} heads, {precision(meta['model'])}; {tokens['n_sequences']} sequences of "
        f"{tokens['min_length']} to {tokens['max_length']} tokens from {escape(tokens['source'])}. "
        f"{escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    for sentence in result.verdict:
        console.print(f"- {escape(sentence)}", highlight=False)
    for label in meta["interventions"]:
        shown = short_table(result, label, metrics=metrics)
        table = Table(
            title=f"{escape(label)}: largest effects by size, and tested sets",
            caption=_caption(metrics),
        )
        for column in shown.columns:
            table.add_column(escape(column), justify="left" if column == "variant" else "right")
        for row in shown.itertuples(index=False):
            table.add_row(*(escape(str(value)) for value in row))
        console.print(table)
    for warning in meta["warnings"]:
        console.print(f"Note: {escape(warning)}", highlight=False)


def _caption(metrics: list[str]) -> str:
    """What the columns are; the first one orders the heads."""
    what = {
        "delta_loss": "delta loss: changed minus clean, nats",
        "kl": "KL: from the clean predictions, nats",
        "top1_agreement": "top-1: share of the clean first choices kept",
        "delta_logit_diff": "delta logit diff: changed minus clean",
    }
    listed = "; ".join(what[metric] for metric in metrics)
    return f"means over sequences [95 % interval; none for fewer than 5 sequences]. {listed}"
