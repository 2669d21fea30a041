"""`sinklens needle`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.texts import read_text
from sinklens.errors import InputError

NEEDLE, CHANGES, RUNNING = "Needles", "Before and after a change", "Running"


def needle(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            metavar="random|passkey|json|natural",
            help="Random tokens after a key (any model); words after 'the third passkey to the vault'; a sentence "
            "under a random JSON key; a sentence with a question.",
            rich_help_panel=NEEDLE,
        ),
    ] = "random",
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Prompt lengths in tokens. Default: the longest that fits (at most 2,048), and 1/2, 1/4, 1/8 of it.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    depths: Annotated[
        str,
        typer.Option(
            metavar="D,...", help="Where in the haystack, 0 = its start, 1 = its end.", rich_help_panel=NEEDLE
        ),
    ] = "0,0.25,0.5,0.75,1",
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Prompts of each length and depth.", rich_help_panel=NEEDLE)
    ] = 10,
    size: Annotated[
        int,
        typer.Option(metavar="K", help="Tokens of a random needle, words of a passkey.", rich_help_panel=NEEDLE),
    ] = 8,
    shots: Annotated[
        int,
        typer.Option(metavar="N", help="Entries shown again before the question, for json.", rich_help_panel=NEEDLE),
    ] = 3,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="FILE|-", help="The haystack. Default: an excerpt of Shakespeare.", rich_help_panel=NEEDLE
        ),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(
            "--needle",
            metavar="SENTENCE",
            help="A natural needle of your own; needs the next two.",
            rich_help_panel=NEEDLE,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is asked about it.", rich_help_panel=NEEDLE)
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="The answer, as it stands in the needle.", rich_help_panel=NEEDLE),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            metavar="plain|chat", help="Plain text, or the tokenizer's chat template.", rich_help_panel=NEEDLE
        ),
    ] = "plain",
    bos: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Prepend a BOS: auto does what the model's tokenizer does.",
            rich_help_panel=NEEDLE,
        ),
    ] = "auto",
    ablate: Annotated[
        str | None,
        typer.Option(
            metavar="L1H0,...|top:K",
            help="Run everything again with these heads ablated; top:K takes the K strongest retrieval heads found.",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    how: Annotated[
        str,
        typer.Option(
            metavar="uniform|zero",
            help="Even attention (what papers on retrieval heads call masking), or output 0.",
            rich_help_panel=CHANGES,
        ),
    ] = "uniform",
    intervention: Annotated[
        list[Path] | None,
        typer.Option(
            "--intervention",
            metavar="FILE.json",
            help="Run everything again under any other, as its to_json() wrote it; repeat for more.",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            metavar="N", help="Decode N tokens of every prompt too, with ROUGE-1 recall; slow.", rich_help_panel=RUNNING
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Work and save here; without it only print.", rich_help_panel=RUNNING),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            help="Go on in DIR, or throw away what another test left there.",
            rich_help_panel=RUNNING,
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.", rich_help_panel=RUNNING)] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of needles, haystacks and bootstrap.", rich_help_panel=RUNNING)] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    """Hide a needle in a haystack at many lengths and depths, see whether the model finds it and which heads copy it.

    One teacher-forced pass per prompt: exact match is that of greedy decoding, and every head's retrieval score (how
    much of the answer it attends to while the model copies it) comes from the same pass.

    Interrupted? Give the same command again: it goes on where it stopped.

    For example:

      sinklens needle induction-2l --lengths 64,128,256

      sinklens needle path/to/llama --kind natural --lengths 1000,2000,4000 --out runs/needle

      sinklens needle path/to/llama --kind passkey --ablate top:10 --out runs/masked

      sinklens needle path/to/llama --kind natural --needle "The red key lies under the third stone." --question "Where
      does the red key lie?" --answer "under the third stone" --text book.txt
    """
    from rich.console import Console

    console = Console(stderr=True)
    words = {
        "lengths": _numbers(lengths, int, "--lengths", "64,128"),
        "depths": _numbers(depths, float, "--depths", "0,0.5,1"),
        "questions": _own_question(own, question, answer, kind),
        "text": None if text is None else read_text(text),
        "source": text,
        "repeats": repeats,
        "size": size,
        "shots": shots,
        "template": template,
        "bos": bos,
        "seed": seed,
    }
    _check_ablation(ablate, how)
    if out is not None:
        from sinklens.experiments.needles.parts import check_folder

        check_folder(out)  # before the work, not after it
    with console.status(f"Loading {model} ..."):
        from sinklens.experiments.needles import make_needles
        from sinklens.models import load

        bridge = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        needles = make_needles(bridge, kind, **words)  # type: ignore[arg-type]
    changes = _changes(intervention)
    options = {"generate": generate, "seed": seed, "out": out, "restart": not resume}
    try:
        result = _run(console, bridge, needles, changes, ablate, how, options)
    except KeyboardInterrupt:
        kept = "nothing was saved" if out is None else f"finished prompts are in {out}; the same command goes on"
        typer.echo(f"Interrupted; {kept}.", err=True)
        raise typer.Exit(130) from None
    saved = "Nothing was saved; add --out DIR for tables and the figure."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the figure
        saved = _save(result, out)
    _print(result)
    typer.echo(saved)


def _numbers(text: str | None, kind: Any, option: str, example: str) -> Any:
    if text is None:
        return None
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers such as {example}; got {text!r}.") from None


def _own_question(needle: str | None, question: str | None, answer: str | None, kind: str) -> Any:
    given = [part for part in (needle, question, answer) if part is not None]
    if not given:
        return None
    if len(given) < 3 or kind != "natural":
        raise InputError("A needle of your own takes --kind natural and all of --needle, --question and --answer.")
    from sinklens.experiments.needles import Question

    return [Question.about(*given)]


def _check_ablation(ablate: str | None, how: str) -> None:
    if how not in ("uniform", "zero"):
        raise InputError(f"--how is uniform or zero, got {how!r}; other ways go through --intervention FILE.json.")
    if ablate is not None and ablate.startswith("top:") and not ablate[4:].isdecimal():
        raise InputError(f"--ablate top:K takes a number of heads, such as top:5; got {ablate!r}.")


def _changes(files: list[Path] | None) -> dict[str, Any]:
    from sinklens.interventions import Intervention

    found: dict[str, Any] = {}
    for path in files or []:
        try:
            found[path.stem] = Intervention.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The intervention {path} cannot be read: {error}.") from error
    return found


def _run(
    console: Any, bridge: Any, needles: Any, changes: dict[str, Any], ablate: str | None, how: str, options: Any
) -> Any:
    """The test with a progress bar on standard error; with top:K the heads are found first."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from sinklens.experiments.needles import needle_grid, retrieval_scores
    from sinklens.interventions import AblateHeads

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        if ablate is not None and ablate.startswith("top:"):
            task = bar.add_task("Finding retrieval heads", total=len(needles))
            found = retrieval_scores(bridge, needles, on_done=lambda n: bar.advance(task, n))
            heads = _strongest(found, int(ablate[4:]))
            changes = {f"top {len(heads)} {how}": AblateHeads(heads, how), **changes}  # type: ignore[arg-type]
        elif ablate is not None:
            change = AblateHeads(ablate, how)  # type: ignore[arg-type]
            changes = {f"{ablate} {how}": change, **changes}
        again = bar.add_task("Reading needles", total=len(needles) * (1 + len(changes)))
        return needle_grid(bridge, needles, interventions=changes, on_done=lambda n: bar.advance(again, n), **options)


def _strongest(scores: Any, count: int) -> list[tuple[int, int]]:
    frame = scores.frame.dropna(subset=["retrieval"])
    frame = frame[frame["retrieval"] > 0].sort_values(["retrieval", "layer", "head"], ascending=[False, True, True])
    if frame.empty or count < 1:
        raise InputError(
            "There is no retrieval head to ablate: no head copied anything in a prompt that the model answers. Name "
            "heads with --ablate L1H0,..., or use easier needles."
        )
    return list(frame.head(count)[["layer", "head"]].itertuples(index=False, name=None))


def _save(result: Any, out: Path) -> str:
    from sinklens.plots import save_figure
    from sinklens.plots.needle_grid import needle_grid as figure

    grid = result.grid.to_dataframe()
    names = result.variants[1:] or [None]
    for number, name in enumerate(names):
        path = out / f"needle_grid{'' if number == 0 else f'-{number + 1}'}.html"
        save_figure(figure(grid, variant=name), path, grid, provenance=result.meta)
    return f"Figure: {out / 'needle_grid.html'}\nTables: {out}"


def _print(result: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sinklens.experiments.provenance import precision

    console = Console()
    meta = result.meta
    model, needles, tokens = meta["model"], meta["needles"], meta["tokens"]
    console.print(
        f"[bold]{escape(model['name'])}[/bold]: {model['architecture']}, {model['n_layers']} layers x "
        f"{model['n_heads']} heads, {precision(model)}; {tokens['n_sequences']} {needles['kind']} needles in "
        f"{escape(needles['source'])}. {escape(tokens['bos']['statement'])}",
        highlight=False,
    )
    grid = result.grid.to_dataframe()
    for name in result.variants:
        shown = grid[grid["variant"] == name]
        table = Table(
            title=f"{escape(name)}: exact match by length (tokens) and depth",
            caption=f"{int(shown['n'].min())} prompts per cell; in brackets the answer's log-probability per token",
        )
        table.add_column("depth", justify="right")
        for length in needles["lengths"]:
            table.add_column(f"{length:,}", justify="right")
        for depth in needles["depths"]:
            cells = shown[shown["depth"] == depth].set_index("length")
            row = [escape(f"{cells.loc[n, 'exact']:.2f} [{cells.loc[n, 'log_prob']:z.2f}]") for n in needles["lengths"]]
            table.add_row(f"{depth:.0%}", *row)
        console.print(table)
    for row in result.summary().to_dict("records"):
        console.print(f"- {escape(_sentence(row))}", highlight=False)
    _print_heads(console, result)
    for warning in meta["warnings"]:
        console.print(f"Note: {escape(warning)}", highlight=False)


def _sentence(row: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{row[name]:.2f}" + ("" if low != low else f" [{low:.2f}, {high:.2f}]")

    text = f"{row['variant']}: exact match {shown('exact')} over {row['n']} prompts, "
    text += f"log-probability {shown('log_prob')}"
    if row["delta_exact"] == row["delta_exact"]:
        text += f"; change of exact match {shown('delta_exact')}"
    return text + "."


def _print_heads(console: Any, result: Any) -> None:
    from rich.table import Table

    if result.meta["heads"] is None:
        return
    scores = result.heads
    found = result.retrieval_heads()
    n_kept, n_heads = scores.meta["n_kept"], len(scores.frame)
    if not n_kept:
        console.print("- " + scores.meta["warnings"][-1], highlight=False, markup=False)
        return
    null = scores.frame["retrieval_null"].iloc[0]
    console.print(
        f"- {len(found)} of {n_heads} heads are retrieval heads (score of at least 0.1 over the {n_kept} prompts that "
        f"the model answers; an even draw of keys would score {null:.4f}).",
        highlight=False,
    )
    if len(found):
        table = Table(title="Retrieval heads")
        for column in ("head", "score", "event form", "activation frequency", "band"):
            table.add_column(column, justify="right")
        for row in found.head(20).to_dict("records"):
            numbers = [f"{row[name]:.3f}" for name in ("retrieval", "retrieval_event", "activation_frequency")]
            table.add_row(f"L{row['layer']}H{row['head']}", *numbers, row["retrieval_band"])
        console.print(table)
