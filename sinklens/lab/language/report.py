"""Print what a trained language model shows."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sinklens.errors import ResultError
from sinklens.lab.language.figures import LENGTHS, domains_of
from sinklens.lab.report import read_measured


def print_language_report(folder: Path, console: Console) -> None:
    """Print losses beside their baselines, sinks by domain and length, and where the model lies.

    Raises:
        ResultError: if measured.json or recipe.json is missing or damaged.
    """
    measured = read_measured(folder)
    try:
        settings = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["settings"]
        total = settings["layers"] * settings["heads"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"The settings of a trained model were expected in {folder}/recipe.json: {error!r}."
        ) from error
    losses = Table(title=f"{escape(folder.name)}: held-out loss, nats per token", title_justify="left")
    for column in ("domain", "model", "bigram", "unigram", "untrained"):
        losses.add_column(column, justify="left" if column == "domain" else "right")
    for name in domains_of(measured):
        figures = ("loss", "bigram_loss", "unigram_loss", "untrained_loss")
        losses.add_row(escape(name), *(f"{measured[f'{name}.{figure}']:.3f}" for figure in figures))
    console.print(losses)
    sinks = Table(title="attention to <s> on held-out text", title_justify="left")
    for column in ("text", "sink heads", "strongest alpha_0", "max/median", "sink heads untrained"):
        sinks.add_column(column, justify="left" if column == "text" else "right")
    for name in domains_of(measured):
        for length in LENGTHS:
            at = f"{name}.T{length}"
            if f"{at}.sink_heads" in measured:
                sinks.add_row(
                    f"{escape(name)}, {length} tokens",
                    f"{measured[f'{at}.sink_heads']:.0f} of {total}",
                    f"{measured[f'{at}.alpha_0']:.3f}",
                    f"{measured[f'{at}.max_over_median']:.1f}",
                    f"{measured[f'{at}.untrained_sink_heads']:.0f} of {total}",
                )
    console.print(sinks)
    console.print("A sink head has alpha_0 > 0.3 in at least half of the sequences.")
    console.print(f"The model is in {escape(str(folder))}.", soft_wrap=True)
