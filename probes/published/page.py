"""The tables of the study as CSV rows and as a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from published.claim import PublishedClaim
from published.study import CLAIMS, Cell
from published.untested import UNTESTED
from published.verdict import RULE, verdict
from sinklens.evidence.bootstrap import Interval

COLUMNS = (
    "claim", "kind", "source", "model", "figure", "role", "value", "low", "high", "n", "test", "verdict", "reason",
    "sizes",
)  # fmt: skip
ENDED = "Not measured: the model was missing, or the run was ended before."
KINDS = {"phenomena": "Sinks, drains, peaks, massive activations", "heads": "Heads"}


def table(cells: Iterable[Cell], models: Sequence[str], claims: Sequence[str]) -> pd.DataFrame:
    """One row per claim, model and figure; a cell without figures has one row that says why."""
    found = {(cell.claim, cell.model): cell for cell in cells}
    rows: list[dict[str, Any]] = []
    for key in claims:
        claim = CLAIMS[key]
        for model in models:
            cell = found.get((key, model))
            own = {"claim": key, "kind": claim.kind, "source": claim.source, "model": model}
            own["verdict"] = "not measured" if cell is None else verdict(claim, cell.figures)
            own["reason"] = ENDED if cell is None else cell.reason
            own["sizes"] = "" if cell is None else "quick" if cell.quick else "full"
            figures: Mapping[str, Interval] = {} if cell is None else cell.figures
            for name, each in figures.items():
                test = next((str(test).removeprefix(": ") for test in claim.tests if test.figure == name), "")
                role = "tested" if test else "control"
                numbers = {"value": each.value, "low": each.low, "high": each.high, "n": each.n}
                rows.append(own | {"figure": name, "role": role, "test": test} | numbers)
            if not figures:
                rows.append(own | {"figure": "", "role": "", "test": ""})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def page(results: pd.DataFrame, models: Mapping[str, str], header: Sequence[str]) -> str:
    """The whole page.

    Args:
        results: What :func:`table` returns.
        models: Short name of each model, and a sentence about it.
        header: Paragraphs said first.
    """
    verdicts = results.drop_duplicates(["claim", "model"]).set_index(["claim", "model"])["verdict"]
    keys = [*dict.fromkeys(results["claim"])]
    parts = ["# Published claims, held against real models", *header]
    parts.append("\n".join(f"- `{name}`: {about}" for name, about in models.items()))
    parts += ["## How claims are judged", RULE, "## All claims", _tally(verdicts, keys, models)]
    rows = []
    for key in keys:
        marks = [_short(str(verdicts[key, model])) for model in models]
        rows.append([f"[{key}](#{key})", CLAIMS[key].source.split(",")[0], CLAIMS[key].says, *marks])
    parts.append(_grid(["claim", "paper", "in plain words", *models], rows))
    for kind, title in KINDS.items():
        own = [key for key in keys if CLAIMS[key].kind == kind]
        parts += [f"## {title}"] if own else []
        parts += [_section(CLAIMS[key], results[results["claim"] == key]) for key in own]
    parts += ["## Claims that nothing here can test", _grid(["paper", "claim", "reported", "why not"], UNTESTED)]
    return "\n\n".join(parts) + "\n"


def _tally(verdicts: "pd.Series[str]", keys: Sequence[str], models: Mapping[str, str]) -> str:
    rows = []
    for model in models:
        counts = pd.Series([verdicts[key, model] for key in keys]).value_counts()
        rows.append([model, *(str(counts.get(name, 0)) for name in _SHORT)])
    return _grid(["of the claims below", *_SHORT], rows)


_SHORT = {
    "reproduced": "**yes**",
    "differs": "differs",
    "not reproduced": "**no**",
    "not testable here": "n/a",
    "not measured": "-",
}


def _short(name: str) -> str:
    return _SHORT[name]


def _section(claim: PublishedClaim, own: pd.DataFrame) -> str:
    figures = "; ".join(f"*{name}*: {meaning}" for name, meaning in claim.figures.items())
    rows = []
    for model, part in own.groupby("model", sort=False):
        first = part.iloc[0]
        if not first["figure"]:
            rows.append([str(model), first["reason"], *[""] * len(claim.figures), f"**{first['verdict']}**"])
            continue
        by_name = {str(row["figure"]): row for row in part.to_dict("records")}
        cells = [number(by_name[name]) if name in by_name else "-" for name in claim.figures]
        few = " (quick)" if first["sizes"] == "quick" else ""
        rows.append([str(model), *cells, f"{first['n']:.0f}{few}", f"**{first['verdict']}**"])
    return "\n\n".join(
        [
            f"### {claim.key}",
            f"{claim.says} ({claim.source})",
            f"Paper: {claim.reported}.",
            f"Here: {figures}. Rule: {'; '.join(rule(test) for test in claim.tests)}. Call: `{claim.call}`.",
            _grid(["model", *claim.figures, "n", "verdict"], rows),
        ]
    )


def rule(test: Any) -> str:
    """A test in words.

    >>> from published.claim import at_most
    >>> rule(at_most("rate", 0.05, 0.3))
    'rate <= 0.05 (the opposite: >= 0.3)'
    """
    other = {">=": "<=", "<=": ">="}[test.relation]
    return f"{test.figure} {test.relation} {test.holds:g} (the opposite: {other} {test.fails:g})"


def number(row: Mapping[Any, Any]) -> str:
    """A figure with its interval, three digits.

    >>> number({"value": 0.5, "low": 0.41234, "high": 0.6}), number({"value": 3.0, "low": math.nan, "high": math.nan})
    ('0.5 [0.412, 0.6]', '3')
    """
    if math.isnan(row["value"]):
        return "-"
    value = f"{row['value']:.3g}"
    return value if math.isnan(row["low"]) else f"{value} [{row['low']:.3g}, {row['high']:.3g}]"


def _grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = [*header]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
