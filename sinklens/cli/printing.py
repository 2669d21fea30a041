"""What commands print: a line about model and texts, sentences, tables, notes, and where everything was saved."""

import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sinklens.results.provenance import length_words, precision, shape_words


def say(text: str, mark: str = "") -> None:
    """A line of plain text, wrapped to the terminal."""
    Console().print(mark + text, markup=False, highlight=False)


def say_model(model: Mapping[str, Any], rest: str, name: str | None = None) -> None:
    """The first line: the model with its sizes and precision, and what it was measured on."""
    words = [str(model["architecture"])] if "architecture" in model else []
    words.append(shape_words(model))
    if "dtype" in model:
        words.append(precision(dict(model)) + (f" on {model['device']}" if "device" in model else ""))
    Console().print(
        f"[bold]{escape(str(name or model['name']))}[/bold]: {escape(', '.join(words))}; {escape(rest)}",
        highlight=False,
    )


def sequences(
    tokens: Mapping[str, Any], what: str = "sequence", *, where: str = " from", source: str | None = None
) -> str:
    """How many sequences, how long, where from, and what stands at their beginning."""
    return f"{length_words(tokens, what)}{where} {source or tokens['source']}. {tokens['bos']['statement']}"


def say_verdict(sentences: Iterable[str]) -> None:
    """What was found, a sentence each."""
    for sentence in sentences:
        say(sentence, "- ")


def say_notes(notes: Iterable[str]) -> None:
    """What the reader should know beside."""
    for note in notes:
        say(str(note), "Note: ")


def say_saved(lines: Iterable[str], seconds: float | None = None) -> None:
    """Where everything was saved, and how long it took."""
    found = list(lines) or ["Nothing was saved; add --out DIR for tables, figure and report."]
    for line in found + ([] if seconds is None else [f"Took {seconds:.1f} s."]):
        typer.echo(line)


def save_picture(figure: Any, path: Path, table: Any, *, width: int) -> None:
    """Save a figure with its table; without a browser there is no picture, which is said on standard error."""
    from sinklens.plots import save_figure

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save_figure(figure, path, table, width=width)
    for warning in caught:
        typer.echo(f"Note: {warning.message}", err=True)


def say_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str,
    caption: str = "",
    *,
    left: Collection[str] = (),
    where: str = "the tables (--out DIR)",
    of: int | None = None,
) -> None:
    """A table whose columns stay whole: those for which a terminal has no room are left out, by name, from the right.

    A table without rows is not printed.

    Args:
        columns: Names of the columns.
        rows: Values; floats are shown with three digits, missing ones as n/a.
        title: Above the table.
        caption: Below it.
        left: Columns of words.
        where: Where columns are that have no room.
        of: How many rows there are in all, where these may be only the first.
    """
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        return
    if of is not None and of > len(cells):
        title = f"{title} ({len(cells)} of {of:,})"
    widths = [max([len(name), *(len(row[at]) for row in cells)]) + 3 for at, name in enumerate(columns)]
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=max(console.width, 1 + sum(widths)))  # a file has room
    kept = 1
    while kept < len(columns) and 1 + sum(widths[: kept + 1]) <= console.width:
        kept += 1
    if kept < len(columns):
        missing = f"no room for {', '.join(columns[kept:])}: see {where}"
        caption = f"{caption}; {missing}" if caption else missing
    table = Table(title=escape(title), caption=escape(caption))
    for name in columns[:kept]:
        table.add_column(escape(name), justify="left" if name in left else "right")
    for row in cells:
        table.add_row(*map(escape, row[:kept]))
    console.print(table)


def say_rows(
    table: Any,
    names: Sequence[str] | Mapping[str, str],
    title: str,
    caption: str = "",
    *,
    left: Collection[str] = (),
    most: int | None = None,
    of: int | None = None,
) -> None:
    """Columns of a data frame as :func:`say_table` prints them.

    Args:
        table: The data frame.
        names: Its columns that are shown, or what is written over each.
        title: Above the table.
        caption: Below it.
        left: Columns of words.
        most: Only this many of the first rows.
        of: How many rows there are in all. Default: those of ``table``.
    """
    rows = [
        [row[name] for name in names] for row in table.head(len(table) if most is None else most).to_dict("records")
    ]
    shown = [*names.values()] if isinstance(names, Mapping) else names
    say_table(shown, rows, title, caption, left=left, of=len(table) if of is None else of)


def cell(value: object) -> str:
    """A value as tables show it.

    >>> cell(0.12345), cell(float("nan")), cell(1200), cell("L1H2")
    ('0.123', 'n/a', '1,200', 'L1H2')
    """
    if isinstance(value, float):
        return "n/a" if value != value else f"{value + 0.0:.3g}"  # + 0.0: never -0
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
