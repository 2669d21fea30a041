"""The emergence table for readers: the papers' claims beside the figures, then every condition."""

import math
from collections.abc import Iterable

import pandas as pd

from sinklens.lab.emergence.table import FIGURES
from sinklens.results.markdown import markdown_rows

COLUMNS = {
    "loss_backcopy": "backcopy loss",
    "excess_bigram": "bigram excess",
    "mass_first_bigram": "first, dormant",
    "mass_first_backcopy": "first, trigger",
    "missing_mass_bigram": "nothing, dormant",
    "sink_rate_first": "sink rate",
    "margin_bigram": "margin",
    "drain_first": "drain",
    "resid_ratio": "resid ratio",
    "resid_growth": "resid growth",
    "output_norm_bigram": "written, dormant",
    "output_norm_backcopy": "written, trigger",
}
"""The figures that the condensed table shows, with short names."""


def markdown(summary: pd.DataFrame, verdicts: pd.DataFrame, header: str = "") -> str:
    """Return the table of conditions and the one of claims as Markdown.

    Args:
        summary: what ``summarise`` returns.
        verdicts: what ``judge`` returns.
        header: said first: how and when the table was made.
    """
    counts = verdicts["verdict"].value_counts()
    tally = ", ".join(f"{counts[name]} {name}" for name in counts.index)
    legend = "; ".join(f"*{short}*: {FIGURES[name]}" for name, short in COLUMNS.items())
    parts = [
        "# What grows a sink",
        *([header] if header else []),
        "## The papers' claims",
        f"Of {len(verdicts)} claims: {tally}. *Reproduced*: every test holds in every seed. *Not reproduced*: the "
        "first test's opposite holds in every seed. *Differs*: anything between. Reported figures are the papers' own, "
        "mostly of models a thousand times larger; measured ones are means with 95 % intervals over seeds.",
        _claims(verdicts),
        "## Every condition",
        "Means over seeds, the smallest and largest seed in brackets. An asterisk marks proxy scores: row sums are "
        f"free there, and the figure is a share of the row's sum. A dash: not applicable. {legend}.",
        _conditions(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _claims(verdicts: pd.DataFrame) -> str:
    names = ("source", "claim", "reported", "measured", "test", "verdict")
    rows = (
        (r["source"], r["statement"], r["reported"], r["measured"], r["test"], f"**{r['verdict']}**")
        for r in verdicts.to_dict("records")
    )
    return _table(names, rows)


def _conditions(summary: pd.DataFrame) -> str:
    rows = []
    for name, part in summary.groupby("condition", sort=False):
        by_figure = {str(record["figure"]): record for record in part.to_dict("records")}
        row = [str(name)]
        for figure in COLUMNS:
            if figure not in by_figure:
                row.append("-")
                continue
            record = by_figure[figure]
            star = "*" if record["reading"] == "proxy" else ""
            values = [float(value) for value in str(record["values"]).split(";")]
            spread = f" ({_number(min(values))}-{_number(max(values))})" if len(values) > 1 else ""
            row.append(f"{_number(float(record['mean']))}{star}{spread}")
        rows.append(row)
    return _table(("condition", *COLUMNS.values()), rows)


def _number(value: float) -> str:
    """Two significant digits, plain.

    >>> _number(0.01234), _number(123.4), _number(-0.00001), _number(9.96)
    ('0.012', '123', '0', '10')
    """
    if math.isnan(value):
        return "-"
    if abs(value) < 5e-4:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(float(f"{value:.2g}")))))
    return f"{value:.{digits}f}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A bar in a cell would end it."""
    return markdown_rows(header, ([cell.replace("|", "\\|") for cell in row] for row in rows))
