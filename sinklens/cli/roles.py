"""`sinklens roles`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sinklens.cli.texts import read_text
from sinklens.errors import InputError

MEASURED, COMPARED, TEXTS, RUNNING = "What is measured", "What is compared", "Texts", "Running"
SHOWN = 24
_HEAD, _CELL = 10, 10
"""Characters that the first column and each further one take in the table."""


def roles(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Built-in name (see 'sinklens models'), Hugging Face directory, or hub id. Without it only files are "
            "compared.",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Some of retrieval,pattern,sinks,text,task_kv (the default: all of these) and the slow ones: "
            "streaming,importance,active_dormant. 'all' = every one, 'none' = only files.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="[NAME=]FILE",
            help="Scores of this model that others published: Retrieval_Head's head_score .json, DuoAttention's "
            "full_attention_heads.tsv, or a head-roles.json of sinklens. Repeat for more.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Query heads of a layer, where only gates of KV heads are given and no model.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Compare the K highest of every two scores. Default: as many as the smaller labelled set has.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    causal: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE[:K]",
            help="Also mask the K highest heads by this score (default: its labelled heads) and 10 random sets of as "
            "many others, in three ways, on needles and on plain text. For example retrieval.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE|-",
            help="UTF-8 text file, or - for standard input; repeat for more. Without it: a built-in corpus that fits "
            "the model.",
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
        typer.Option("--max-tokens", metavar="N", help="Tokens per text, BOS included.", rich_help_panel=TEXTS),
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option("--max-sequences", metavar="N", help="Use at most this many texts.", rich_help_panel=TEXTS),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save tables, roles.html and head-roles.json here; an interrupted run goes on from what is there.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Replace what another run left in DIR.", rich_help_panel=RUNNING),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.", rich_help_panel=RUNNING)] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: as the checkpoint is stored.", rich_help_panel=RUNNING
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of texts, needles, controls and bootstrap.", rich_help_panel=RUNNING)] = 0,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run modelling code that comes with the checkpoint.", rich_help_panel=RUNNING
        ),
    ] = False,
) -> None:
    """Find each head's roles by several published criteria, and where the criteria agree.

    Scores and labels of every head, Jaccard index and rank correlation of every two criteria with chance beside them.

    With --out also head-roles.json, which sinklens ablate reads (--ranking FILE:SCORE, --group NAME=FILE:ROLE).

    For example:

      sinklens roles induction-2l --out runs/roles

      sinklens roles induction-2l --scores retrieval,pattern,streaming --causal retrieval

      sinklens roles --import llama-2-7b-80k.json --import full_attention_heads.tsv --out runs/published

      sinklens roles path/to/llama --scores sinks --import llama.json --text book.txt --max-tokens 256
    """
    from sinklens.results import RunFolder
    from sinklens.studies.head_roles import CRITERIA, USUAL
    from sinklens.studies.head_roles.result import FORMAT, WORK

    if out is not None:
        RunFolder(out, FORMAT, WORK).check()  # before the work, not after it
    names = _names(scores, USUAL, [*CRITERIA]) if model is not None else []
    if model is None and (scores is not None or causal is not None or text):
        raise InputError("Name a MODEL to measure something on it; without one only files (--import) are compared.")
    if model is None and not given:
        raise InputError("Name a MODEL, or files with --import; see sinklens roles --help.")
    words: dict[str, Any] = {"texts": [read_text(name) for name in text] if text else None, "bos": bos}
    words |= {"max_tokens": max_tokens, "max_sequences": max_sequences}
    loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    options = {"scores": names, "top": top, "seed": seed, "out": out, "restart": restart}
    try:
        found, check = _run(model, loading, words, options, given or [], heads, causal)
    except KeyboardInterrupt:
        kept = "nothing was saved" if out is None else f"finished criteria are in {out}; the same command goes on"
        typer.echo(f"Interrupted; {kept}.", err=True)
        raise typer.Exit(130) from None
    saved = "Nothing was saved; add --out DIR for tables, figure and head-roles.json."
    if out is not None:  # before anything is printed: a closed pipe (| head) must not cost the result
        saved = _save(found, check, out, model is None)
    _print(found, check)
    typer.echo(saved)


def _names(scores: str | None, usual: tuple[str, ...], every: list[str]) -> list[str]:
    if scores is None:
        return [*usual]
    if scores.strip() in ("all", "none"):
        return every if scores.strip() == "all" else []
    return [name.strip() for name in scores.split(",") if name.strip()]


def _run(
    model: str | None,
    loading: dict[str, Any],
    words: dict[str, Any],
    options: dict[str, Any],
    files: list[str],
    n_heads: int | None,
    causal: str | None,
) -> tuple[Any, Any]:
    """Load, measure and compare with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sinklens.studies.head_roles import CRITERIA, Roles, read_all
    from sinklens.studies.head_roles import roles as run

    console = Console(stderr=True)
    if model is None:
        given = read_all(files, n_heads=n_heads)
        name = {"name": ", ".join(given)}
        return Roles.of(given, model=name, top=options["top"], seed=options["seed"]), None
    with console.status(f"Loading {model} ..."):
        from sinklens.models import load

        bridge = load(model, **loading)
        n_kv_heads = int(getattr(bridge.cfg, "n_key_value_heads", None) or bridge.cfg.n_heads)
        given = read_all(files, sizes=(len(bridge.blocks), int(bridge.cfg.n_heads), n_kv_heads))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Measuring", total=None)

        def begins(name: str, number: int, total: int) -> None:
            about = f"{name}: {CRITERIA[name].about}"
            bar.update(task, description=f"{number + 1} of {total}, {about}", completed=0, total=None)
            if not console.is_terminal:
                console.print(f"{number + 1} of {total}, {about}", markup=False, highlight=False, soft_wrap=True)

        def worked(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def compared(done: int, total: int) -> None:
            bar.update(task, description="Comparing criteria", completed=done, total=total)

        def masked(done: int, total: int) -> None:
            bar.update(task, description="Masking sets of heads", completed=done, total=total)

        found = run(bridge, given=given, on_criterion=begins, on_work=worked, on_pair=compared, **words, **options)
        check = None
        if causal is not None:
            from sinklens.studies.causal_check.run import causal_check

            ranking, size = _tested(found, causal)
            texts = {name: value for name, value in words.items() if value is not None}
            check = causal_check(bridge, ranking, top=[size], seed=options["seed"], on_done=masked, **texts)
    return found, check


def _tested(found: Any, causal: str) -> tuple[list[Any], int]:
    """The ranking that ``SCORE[:K]`` names, and how many of its heads are masked."""
    score, colon, size = causal.partition(":")
    ranking = found.ranking(score)
    if colon:
        if not size.isdecimal():
            raise InputError(f"--causal takes SCORE or SCORE:K, such as retrieval:10; got {causal!r}.")
        return ranking, int(size)
    criteria = found.criteria().set_index("criterion")
    count = criteria.loc[score, "n_labelled"]
    if not count == count or not count:
        raise InputError(f"No head is labelled by {score}; say how many to mask, as in --causal {score}:4.")
    return ranking, int(count)


def _save(found: Any, check: Any, out: Path, only_files: bool) -> str:
    from sinklens.plots import head_roles, retrieval_join, save_figure

    if only_files:
        found.save(out)
    roles_file = found.head_roles().write(out / "head-roles.json")
    fig = head_roles(found.to_dataframe(), found.criteria(), found.agreement())
    save_figure(fig, out / "roles.html", found.agreement())
    join = found.retrieval_join()
    if join is not None:
        save_figure(retrieval_join(join.heads), out / "retrieval_join.html", join.heads)
    lines = [f"Figure: {out / 'roles.html'}", f"Head roles: {roles_file}", f"Tables: {out}"]
    if check is not None:
        check.save(out / "causal")
        lines.insert(2, f"Causal check: {out / 'causal'}")
    return "\n".join(lines)


def _print(found: Any, check: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    model = found.meta["model"]
    console.print(
        f"[bold]{escape(str(model['name']))}[/bold]: {model['n_layers']} layers x {model['n_heads']} heads, "
        f"{model['n_kv_heads']} KV heads a layer.",
        highlight=False,
    )
    for sentence in found.verdict + (check.verdict if check is not None else []):
        console.print(f"- {escape(sentence)}", highlight=False)
    console.print(_table(found, Table, escape, console.width))
    join = found.retrieval_join()
    if join is not None:
        console.print(_join_table(join, Table))
    for warning in found.meta["warnings"] + (check.meta["warnings"] if check is not None else []):
        console.print(f"Note: {escape(str(warning))}", highlight=False)


def _join_table(join: Any, table_class: Any) -> Any:
    """The strongest retrieval heads with their ranks by the other scores."""
    from sinklens.studies.head_roles.retrieval_join import strongest

    rows = strongest(join)
    table = table_class(
        title=f"Retrieval heads among sink and induction heads ({min(SHOWN, len(rows))} of {len(join.heads)})",
        caption="in brackets the rank among all heads, ties at their mean rank",
    )
    table.add_column("head")
    for name in join.scores:
        table.add_column(name, justify="right")
    for row in rows.head(SHOWN).to_dict("records"):
        cells = [f"{row[name]:.2f} ({row[f'rank_{name}']:g})" for name in join.scores]
        table.add_row(f"L{row['layer']}H{row['head']}", *cells)
    return table


def _table(found: Any, table_class: Any, escape: Any, width: int) -> Any:
    """The heads with the most roles, and as many criteria as fit: those that label heads first."""
    heads, criteria = found.to_dataframe(), found.criteria()
    roles = [str(role) for role in criteria["role"].dropna()]
    counts = sum((heads[f"is_{role}"].fillna(False).astype(int) for role in roles), start=0 * heads["layer"])
    order = heads.assign(_count=counts).sort_values(["_count", "layer", "head"], ascending=[False, True, True])
    role_of = dict(zip(criteria["criterion"], criteria["role"], strict=True))
    every = sorted((str(name) for name in role_of), key=lambda name: not isinstance(role_of[name], str))
    named = every[: max(1, (width - _HEAD) // _CELL)]
    caption = "* = labelled by the score's rule; n/a = not applicable"
    if len(named) < len(every):
        caption += f"; no room for {', '.join(every[len(named) :])}: see roles.csv (--out)"
    table = table_class(
        title=f"Heads with the most roles ({min(SHOWN, len(order))} of {len(order)})", caption=escape(caption)
    )
    table.add_column("head")
    for name in named:
        table.add_column(escape(name), justify="right", overflow="fold", min_width=_CELL - 3)
    for row in order.head(SHOWN).to_dict("records"):
        cells = []
        for name in named:
            value, role = float(row[name]), role_of[name]
            mark = "*" if isinstance(role, str) and row[f"is_{role}"] is True else ""
            shown = f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
            cells.append("n/a" if value != value else f"{shown}{mark}")
        table.add_row(f"L{row['layer']}H{row['head']}", *cells)
    return table
