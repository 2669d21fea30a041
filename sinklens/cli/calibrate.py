"""`sinklens calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.progress import listening
from sinklens.errors import InputError

PROMPTS, METHOD, RUNNING = "Prompts", "What is chosen", "Running"


class _Plan:
    """What the bar needs to know: runs of a prompt."""

    def __init__(self, work: float, kept: int, text: str) -> None:
        self.work, self.work_done, self.kept, self.text = work, 0.0, kept, text

    def __str__(self) -> str:
        kept = f" {self.kept} sets of answers are there from before." if self.kept else ""
        return f"{self.text}; at most {self.work:,.0f} prompts are answered.{kept}"


def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ] = "tiny-llama",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Labelled texts: columns text and label. Without it: which of four words comes next in Shakespeare.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    text_column: Annotated[
        str, typer.Option("--text-column", metavar="NAME", help="Column with the texts.", rich_help_panel=PROMPTS)
    ] = "text",
    label_column: Annotated[
        str, typer.Option("--label-column", metavar="NAME", help="Column with the labels.", rich_help_panel=PROMPTS)
    ] = "label",
    template: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What the model reads; {text} is where the text goes, \\n a line break. The answer is its next token.",
            rich_help_panel=PROMPTS,
        ),
    ] = "{text}",
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer",
            metavar="LABEL=TOKEN|TOKEN",
            help="Tokens that count as a label, as in 'pos= good| great'; repeat for more labels. Default: the label "
            "with a space before it, and without.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    max_prompts: Annotated[
        int | None,
        typer.Option(
            "--max-prompts", metavar="N", help="Use at most this many, drawn with the seed.", rich_help_panel=PROMPTS
        ),
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Prepend a BOS: auto does what the model's tokenizer does.",
            rich_help_panel=PROMPTS,
        ),
    ] = "auto",
    method: Annotated[
        str,
        typer.Option(
            metavar="gamma|act|FILE.json",
            help="gamma: heads and factor of attention to position 0 (ZeroTuning). act: heads whose later sinks are "
            "weakened (ACT). A file: heads of that intervention, as its to_json() wrote it.",
            rich_help_panel=METHOD,
        ),
    ] = "gamma",
    gammas: Annotated[
        str | None,
        typer.Option(metavar="G,...", help="Factors to try with gamma. Default: 0.1 to 4.", rich_help_panel=METHOD),
    ] = None,
    per: Annotated[
        str,
        typer.Option(
            metavar="head|index",
            help="With gamma: try every head, or one head index in all layers at a time (fewer runs).",
            rich_help_panel=METHOD,
        ),
    ] = "head",
    heads: Annotated[
        str | None,
        typer.Option(metavar="L5H1,...", help="Candidates. Default: all heads.", rich_help_panel=METHOD),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            metavar="accuracy|entropy",
            help="Better means more right answers, or a surer next token (needs no labels to choose).",
            rich_help_panel=METHOD,
        ),
    ] = "accuracy",
    share: Annotated[
        float, typer.Option(help="Of the prompts that are chosen on; the rest is reported on.", rich_help_panel=METHOD)
    ] = 0.5,
    controls: Annotated[
        int, typer.Option(metavar="N", help="Random sets of as many heads beside.", rich_help_panel=METHOD)
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Work and save here: tables, report.html and, where there is a browser, calibration.png.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            help="Go on from the answers in DIR, or throw away what another or unfinished run left there.",
            rich_help_panel=RUNNING,
        ),
    ] = True,
    batch: Annotated[int, typer.Option(metavar="N", help="Prompts in one pass.", rich_help_panel=RUNNING)] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.", rich_help_panel=RUNNING)] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the split, the random heads and the intervals.", rich_help_panel=RUNNING)
    ] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    r"""Choose heads and strength of an intervention on labelled prompts, and report it on others.

    One part of the prompts is chosen on, the other reported on, beside random heads: accuracy, the share of valid
    answers (the next token is one of the labels), and accuracy among those. A gain of form alone is called that.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens calibrate tiny-llama --out runs/calibrated

      sinklens calibrate DIR --data films.csv --template '{text}\nMood:' --answer 'pos= good| great' --answer 'neg= bad'

      sinklens calibrate tiny-llama --objective entropy --max-prompts 60

      sinklens calibrate path/to/llama --data films.csv --method act --max-prompts 200 --out runs/act

      sinklens calibrate path/to/llama --per index --gammas 0.5,1.5,2,4 --out runs/gamma
    """
    from rich.console import Console

    from sinklens.studies.calibration.labelled_csv import LabelledTexts
    from sinklens.studies.calibration.run import Calibrating

    labelled = LabelledTexts.read(data, text=text_column, label=label_column).some(_positive(max_prompts), seed)
    answers = _answers(answer)
    settings = Calibrating.ask(
        method=method,
        gammas=_numbers(gammas),
        per=per,
        heads=heads,
        objective=objective,
        share=share,
        controls=controls,
        batch_size=batch,
        seed=seed,
    )
    if out is not None:
        settings.check(out)  # before the work, not after it
    console = Console(stderr=True)
    with console.status(f"Loading {model} ..."):
        from sinklens.models import load

        bridge = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        wanted = template.replace("\\n", "\n")
        task = labelled.task(bridge, template=wanted, answers=answers, bos=bos)  # type: ignore[arg-type]
    try:
        with listening(console, False, "Answering prompts") as listeners:

            def planned(work: float, kept: int) -> None:
                text = f"{len(task)} prompts with {len(labelled.names)} labels from {labelled.source}"
                listeners["on_plan"](_Plan(work, kept, text))

            source, worked = labelled.source, listeners["on_work"]
            result = settings.run(bridge, task, source, out=out, restart=not resume, on_plan=planned, on_work=worked)
    except KeyboardInterrupt:
        kept = "nothing was saved" if out is None else f"finished answers are in {out}; the same command goes on"
        typer.echo(f"Interrupted; {kept}.", err=True)
        raise typer.Exit(130) from None
    saved = "Nothing was saved; add --out DIR for tables, figure and report."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the report
        saved = _save(result, out)
    _print(result)
    typer.echo(saved)


def _positive(count: int | None) -> int | None:
    if count is not None and count < 4:
        raise InputError(f"--max-prompts must be at least 4, two for each side of the split; got {count}.")
    return count


def _answers(given: list[str] | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in given or []:
        label, equals, tokens = each.partition("=")
        if not equals or not label or not tokens or label in found:
            raise InputError(
                f"An answer is written LABEL=TOKEN|TOKEN, each label once, as in 'pos= good'; got {each!r}."
            )
        found[label] = tokens.split("|")
    return found


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--gammas takes numbers such as 0.5,1.5,2; got {text!r}.") from None


def _save(result: Any, out: Path) -> str:
    import warnings

    from sinklens.app import write_calibration_report
    from sinklens.plots import calibration as calibration_figure
    from sinklens.plots import save_figure

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save_figure(calibration_figure(result.report()), out / "calibration.png", result.report(), width=900)
    for warning in caught:  # no browser, no picture
        typer.echo(f"Note: {warning.message}", err=True)
    return f"Report: {write_calibration_report(result, out / 'report.html')}\nTables: {out}"


def _print(result: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.results.provenance import precision

    console = Console()
    meta = result.meta
    tokens, model = meta["tokens"], meta["model"]
    console.print(
        f"[bold]{escape(model['name'])}[/bold]: {model['architecture']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {precision(model)}; {tokens['n_sequences']} prompts of {tokens['min_length']} to "
        f"{tokens['max_length']} tokens from {escape(tokens['source'])}, {len(meta['split']['search'])} chosen on. "
        f"{escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    console.print(f"- {escape(result.verdict)}", highlight=False)
    if result.intervention is not None:
        chosen = ",".join(result.heads[:12]) + (f" and {len(result.heads) - 12} more" if len(result.heads) > 12 else "")
        gamma = meta["chosen"].get("gamma")
        console.print(f"- Chosen: {chosen}{'' if gamma is None else f', gamma {gamma:g}'}.", highlight=False)
    table = Table(
        title="On held-out prompts",
        caption="shares with 95 % intervals over prompts; change: of accuracy, paired over prompts",
    )
    for column in ("variant", "accuracy", "valid answers", "accuracy among valid", "change"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    report = result.report()
    for row in report[(report["variant"] != "tuned") | (report["heads"] != "")].to_dict("records"):
        names = ("accuracy", "valid_rate", "accuracy_given_valid")
        change = "" if row["variant"] == "unchanged" else _cell(row, "accuracy_gain", "+z.3f")
        table.add_row(row["variant"], *(_cell(row, name, ".3f") for name in names), change)
    console.print(table)


def _cell(row: dict[str, Any], name: str, spec: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value != value:
        return "n/a"
    return f"{value:{spec}}" if low != low else f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"
