"""Print what a trained variant shows."""

import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sinklens.lab.report import read_measured
from sinklens.lab.variants.capture import reading_of
from sinklens.lab.variants.publish import load_variant

FIGURES = {
    "mass_first_bigram": "attention to position 0, dormant queries",
    "mass_first_backcopy": "attention to position 0, trigger queries",
    "amount_first_bigram": "weight used on position 0, dormant queries",
    "missing_mass_bigram": "weight on no token, dormant queries",
    "missing_mass_backcopy": "weight on no token, trigger queries",
    "gate_bigram": "output gate, dormant queries",
    "gate_backcopy": "output gate, trigger queries",
    "importance_first": "importance of position 0",
    "sink_rate_first": "share of sequences with importance > 0.3",
    "margin_bigram": "logit margin of position 0, dormant queries",
    "drain_first": "norm of W_O v at position 0 / mean of the others",
    "resid_ratio": "residual norm at position 0 / mean of the others",
    "resid_growth": "residual norm at position 0 / untrained",
    "no_attention_backcopy": "backcopy loss, this attention zeroed",
    "no_attention_bigram_rise": "rise of the bigram loss, this attention zeroed",
}
"""Figures per layer, with their names in words."""


def print_variant(folder: Path, console: Console) -> None:
    """Print the figures by layer, the losses, and how attention was read."""
    model, settings = load_variant(folder)
    if settings.task == "backcopy":
        measured = read_measured(folder)
        layers = range(settings.layers)
        title = f"{escape(folder.name)}: {settings.attention}, mean over heads"
        table = Table(title=title, title_justify="left")
        table.add_column("figure")
        for layer in layers:
            table.add_column(f"L{layer}", justify="right")
        for name, words in FIGURES.items():
            values = [measured.get(f"L{layer}.{name}", math.nan) for layer in layers]
            if not all(math.isnan(value) for value in values):
                table.add_row(words, *("n/a" if math.isnan(value) else f"{value:.3f}" for value in values))
        console.print(table)
        console.print(
            f"Backcopy loss {measured['loss_backcopy']:.4f} (best: 0); "
            f"bigram loss {measured['loss_bigram']:.4f}, {measured['excess_bigram']:.4f} above the best."
        )
        if reading_of(settings.attention) == "proxy":
            console.print("Rows sum to anything: attention and importance are proxy scores, shares of the row's sum.")
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"The decoder ({count:,} parameters) is in {escape(str(folder))}.", soft_wrap=True)
