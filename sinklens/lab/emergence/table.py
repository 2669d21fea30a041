"""The emergence table: every condition with every seed, resumable, and its means with intervals over seeds."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from sinklens.errors import InputError
from sinklens.lab.emergence.cell import Cell, cell_path, run_cell
from sinklens.lab.emergence.conditions import CONDITIONS, Condition
from sinklens.lab.variants.capture import reading_of
from sinklens.results.progress import SILENT, Progress, Share

FIGURES: dict[str, str] = {
    "loss_backcopy": "backcopy loss, nats",
    "excess_bigram": "bigram loss above the best, nats",
    "mass_first_bigram": "attention to position 0, dormant queries",
    "mass_first_backcopy": "attention to position 0, trigger queries",
    "amount_first_bigram": "weight used on position 0, dormant queries",
    "mass_triggers_bigram": "attention to trigger tokens, dormant queries",
    "missing_mass_bigram": "weight on no token, dormant queries",
    "missing_mass_backcopy": "weight on no token, trigger queries",
    "gate_bigram": "output gate, dormant queries",
    "gate_backcopy": "output gate, trigger queries",
    "importance_first": "importance of position 0",
    "sink_rate_first": "sink rate of position 0 at 0.3",
    "importance_strongest": "importance of the strongest position",
    "importance_next4": "importance of positions 1 to 4 together",
    "margin_bigram": "logit margin of position 0, dormant queries",
    "drain_first": "value norm at position 0 / others",
    "resid_ratio": "residual norm at position 0 / others, after layer 0",
    "resid_growth": "residual norm at position 0 / untrained, after layer 0",
    "output_norm_bigram": "norm written by the head, dormant queries",
    "output_norm_backcopy": "norm written by the head, trigger queries",
    "no_attention_backcopy": "backcopy loss, attention zeroed",
    "no_attention_bigram_rise": "rise of the bigram loss, attention zeroed",
    "sink_layer": "layer these figures are of",
}
"""Figures of the table in words; those of a layer are of the layer with most attention to position 0."""


def run_table(
    folder: Path, conditions: Iterable[Condition], seeds: Sequence[int], *, progress: Progress = SILENT
) -> list[Cell]:
    """Train and measure every cell that ``folder`` does not hold yet, seeds in the outer loop.

    Raises:
        InputError: if there is nothing to do, or a loss stops being finite.
        ResultError: if a cell's file is damaged or of other settings, or cannot be written.
    """
    jobs = [(condition, seed) for seed in seeds for condition in conditions]
    if not jobs:
        raise InputError("At least one condition and one seed are needed.")
    missing = [job for job in jobs if not cell_path(folder, *job).exists()]
    progress.begin(
        "Training", sum(_work(*job) for job in missing), f"{len(missing)} of {len(jobs)} models are trained."
    )
    cells = []
    for condition, seed in jobs:
        share = Share(progress, _work(condition, seed) if (condition, seed) in missing else 0.0)
        if share.left:
            progress.step(f"{condition.name}, seed {seed}")
        cells.append(run_cell(folder, condition, seed, progress=share))
        share.finish()
    return cells


def summarise(cells: Iterable[Cell], level: float = 0.95) -> pd.DataFrame:
    """Return means with intervals over seeds, one row for each condition and figure.

    The interval is Student's t for a normal mean, cut off where the figure cannot be (:func:`interval`); with 3 seeds
    it is wide, 2.5 standard deviations to either side at 95 %. Columns: condition, group, attention, reading
    ("weights", or "proxy" where row sums are free), figure, mean, low, high, n, values (by seed). Figures that do not
    apply are left out.

    Example:
        >>> ends = {0: {"loss_backcopy": 1.0, "sink_layer": 0}, 1: {"loss_backcopy": 3.0, "sink_layer": 0}}
        >>> cells = [Cell("softmax", seed, {"attention": "softmax"}, end, 1.0) for seed, end in ends.items()]
        >>> row = summarise(cells).iloc[0]
        >>> float(row["mean"]), round(float(row["high"]), 1), row["values"]
        (2.0, 14.7, '1;3')
    """
    rows = []
    by_condition: dict[str, list[Cell]] = {}
    for cell in cells:
        by_condition.setdefault(cell.condition, []).append(cell)
    for name, group in by_condition.items():
        group.sort(key=lambda cell: cell.seed)
        attention = group[0].settings["attention"]
        for figure in FIGURES:
            values = np.array([cell.figure(figure) for cell in group])
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            low, high = interval(values, level, *reach(figure))
            rows.append(
                {
                    "condition": name,
                    "group": CONDITIONS[name].group if name in CONDITIONS else "",
                    "attention": attention,
                    "reading": reading_of(attention) if figure.startswith(("mass_", "importance", "sink_rate")) else "",
                    "figure": figure,
                    "mean": values.mean(),
                    "low": low,
                    "high": high,
                    "n": len(values),
                    "values": ";".join(f"{value:.4g}" for value in values),
                }
            )
    return pd.DataFrame(rows)


def interval(
    values: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    level: float = 0.95,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> tuple[float, float]:
    """Return Student's t interval of the mean, cut off at ``lowest`` and ``highest``; NaN for a single value.

    Example:
        >>> [round(bound, 2) for bound in interval(np.array([1.0, 2.0, 3.0]))]
        [-0.48, 4.48]
    """
    if len(values) < 2:
        return math.nan, math.nan
    half = float(student.ppf((1 + level) / 2, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return max(lowest, float(values.mean() - half)), min(highest, float(values.mean() + half))


def reach(figure: str) -> tuple[float, float]:
    """Return the values that a figure can take at most: shares lie between 0 and 1, norms and losses above 0.

    Example:
        >>> reach("sink_rate_first"), reach("drain_first"), reach("margin_bigram")
        ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    if figure.startswith(("mass_", "missing_", "gate_", "importance_", "sink_rate")):
        return 0.0, 1.0
    return (-math.inf if figure.startswith(("margin", "excess")) or figure.endswith("rise") else 0.0), math.inf


def _work(condition: Condition, seed: int) -> float:
    settings = condition.settings(seed)
    return float(settings.steps * settings.layers * settings.batch * settings.seq_len)
