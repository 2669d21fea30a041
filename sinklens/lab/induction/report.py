"""Print what a trained induction model shows."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sinklens.lab.induction.measure import LENGTHS, gates
from sinklens.lab.report import print_gates, read_measured

COLUMNS = {
    "induction": "induction",
    "previous_token": "previous",
    "idle_bos_mass": "on <s>",
    "exact_match.uniform": "uniform",
    "exact_match.zero": "zero",
}
"""Figures of a head that are shown, with their names in words."""


def print_induction_report(folder: Path, console: Console) -> None:
    """Print the heads, the needles, each gate with whether it holds, and where the model lies.

    Raises:
        ResultError: if measured.json is missing or damaged.
    """
    measured = read_measured(folder)
    table = Table(title=f"{escape(folder.name)}: heads", title_justify="left")
    for column in ("head", "retrieval", *COLUMNS.values()):
        table.add_column(column, justify="left" if column == "head" else "right")
    heads = dict.fromkeys(name.split(".")[0] for name in measured if name.endswith(".induction"))
    for head in heads:
        # the shortest needles come first
        score = next((name for name in measured if name.startswith(f"{head}.retrieval.")), "")
        names = [score, *(f"{head}.{name}" for name in COLUMNS)]
        table.add_row(head, *(_show(measured.get(name)) for name in names))
    console.print(table)
    console.print(
        "On <s>: attention to it where nothing can be copied. Uniform, zero: exact match with this head masked so."
    )
    for length in LENGTHS:
        if f"exact_match.T{length}" in measured:
            console.print(f"Needles of {length} tokens: exact match {measured[f'exact_match.T{length}']:.3f}")
    print_gates(gates(measured), console)
    console.print(f"The model is in {escape(str(folder))}.", soft_wrap=True)


def _show(value: float | None) -> str:
    return "n/a" if value is None or value != value else f"{value:.3f}"
