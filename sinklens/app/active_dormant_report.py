"""One self-contained HTML report of active and dormant heads."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sinklens.app.page import figure, html_table
from sinklens.app.report import write_report
from sinklens.plots.active_dormant import active_dormant as active_dormant_figure
from sinklens.plots.style import head_label, number

if TYPE_CHECKING:
    from sinklens.studies.active_dormant.result import ActiveDormant

_CONTRASTS = {
    "name": "head",
    "one": "on",
    "other": "against",
    "mass_difference": "sink mass",
    "mass_difference_low": "low",
    "mass_difference_high": "high",
    "delta_difference": "loss without it",
    "delta_difference_low": "low",
    "delta_difference_high": "high",
    "active_dormant": "active / dormant",
}
_SHOWN = 20


def write_active_dormant_report(found: "ActiveDormant", path: Path) -> Path:
    """Write active and dormant heads: labels, evidence, contrasts and agreement of criteria."""
    sections = [
        ("heads", "Heads", _heads(found)),
        ("contrasts", "Contrasts", _contrasts(found)),
        ("agreement", "Agreement", _agreement(found)),
    ]
    thresholds = found.meta["settings"]["thresholds"]
    known = {
        "source": found.meta["source"],
        "thresholds": ", ".join(f"{name} {value}" for name, value in thresholds.items() if value is not None),
        "effect that matters": effects_that_matter(found),
    }
    return write_report(found, path, sections, known)


def _heads(found: "ActiveDormant") -> str:
    table = found.tables["heads"]
    body = [
        "<h2>Head by head</h2>\n<p>Active: removing the head costs loss and it does not rest on the sink. Dormant: it "
        "rests on the sink and its removal costs nothing. Loaded sink: it rests there and is needed all the same.</p>",
        figure(active_dormant_figure(table), "heads-figure"),
    ]
    named = table.assign(name=[head_label(row["layer"], row["head"]) for row in table.to_dict("records")])
    columns = {"name": "head", "domain": "domain", "class": "class", "label": "label", "evidence": "evidence"}
    listing = html_table(named, columns, words=("name", "domain", "class", "label", "evidence"))
    body.append(f"<details><summary>All labels with their evidence</summary>{listing}</details>")
    return "\n".join(body)


def _contrasts(found: "ActiveDormant") -> str:
    table = found.tables["contrasts"]
    heading = "<h2>Between domains and token classes</h2>"
    if table.empty:
        return f'{heading}\n<p class="na">Not applicable: there is one domain and one token class only.</p>'
    rows = strongest_contrasts(table, _SHOWN)
    shown = rows.assign(
        name=[head_label(row["layer"], row["head"]) for row in rows.to_dict("records")],
        one=[f"{row['domain']}: {row['class']}" for row in rows.to_dict("records")],
        other=[f"{row['other_domain']}: {row['other_class']}" for row in rows.to_dict("records")],
    )
    caption = f"{len(shown)} of {len(table)} comparisons, active / dormant ones first, then by the difference in loss"
    formats = {name: "+.3f" for name in _CONTRASTS if "difference" in name}
    note = "<p>First minus second, with 95 % bootstrap intervals over sequences, each by itself.</p>"
    listing = html_table(shown, _CONTRASTS, caption=caption, words=("name", "one", "other"), formats=formats)
    return f"{heading}\n{note}\n{listing}"


def strongest_contrasts(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Active-dormant comparisons first, then those with the largest difference of the loss without the head."""
    size = table["delta_difference"].abs()
    order = table.assign(size=size, found=table["active_dormant"].astype(bool))
    return order.sort_values(["found", "size"], ascending=False, kind="stable").head(count)


def effects_that_matter(found: "ActiveDormant") -> str:
    """The rise of the loss from which an effect counts, by domain: ``0.044 nats (prose), 0.057 nats (code)``."""
    thresholds, table = found.meta["settings"]["thresholds"], found.tables["heads"]
    if "effect_bound" not in table.columns or thresholds["effect"] is not None:  # older results have a fixed one
        return f"{thresholds['effect']:g} nats"
    bounds = table.groupby("domain", sort=False)["effect_bound"].first()
    listed = ", ".join(f"{number(bound)} nats ({domain})" for domain, bound in bounds.items())
    return f"{listed}, {thresholds['spread']:g} of the standard deviation of the loss between sequences,"


def _agreement(found: "ActiveDormant") -> str:
    columns = {"criterion": "criterion", "other": "other", "n": "both decide", "agreement": "agree", "kappa": "kappa"}
    shown = html_table(
        found.tables["agreement"], columns, words=("criterion", "other"), formats={"agreement": ".2f", "kappa": ".2f"}
    )
    return f"<h2>Do the criteria agree?</h2>\n<p>Kappa: agreement beyond chance.</p>\n{shown}"
