"""One self-contained HTML report of active and dormant heads."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sinklens.app.page import callout, document, facts, figure, html_table, text
from sinklens.app.report import write_page
from sinklens.app.sections.source import Downloads
from sinklens.plots.active_dormant import active_dormant as active_dormant_figure
from sinklens.plots.style import head_label, number
from sinklens.results.provenance import precision

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


def write_active_dormant_report(found: "ActiveDormant", path: str | Path) -> Path:
    """Write the result as one HTML file that opens offline: labels, evidence, contrasts and agreement of criteria.

    As :func:`~sinklens.app.report.write_report` does for a census: plotly.js is inlined once (about 5 MB), tables are
    inside as CSV, the page makes no request, and the file appears under its name only when it is complete.

    Args:
        found: What ``active_dormant`` returned.
        path: File to write; missing folders are made.

    Returns:
        The path written.

    Raises:
        ResultError: when the file cannot be written.
    """
    downloads = Downloads(found.tables)
    sections = [
        ("heads", "Heads", _heads(found)),
        ("contrasts", "Contrasts", _contrasts(found)),
        ("agreement", "Agreement", _agreement(found)),
        ("definitions", "Definitions", _definitions(found, downloads)),
    ]
    first, *rest = found.verdict
    name = found.meta["model"]["name"]
    head = (
        f'<p class="kind">sinklens active and dormant heads</p>\n<h1>{text(name)}</h1>\n'
        f'<p class="headline">{text(first)}</p>\n<ul class="verdict">'
        f"{''.join(f'<li>{text(sentence)}</li>' for sentence in rest)}</ul>"
    )
    return write_page(document(f"{name}: active and dormant heads", head, sections, downloads.data()), Path(path))


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
        found.tables["agreement"], columns, words=("criterion", "other"), formats={"agreement": ".2f", "kappa": "z.2f"}
    )
    return f"<h2>Do the criteria agree?</h2>\n<p>Kappa: agreement beyond chance.</p>\n{shown}"


def _definitions(found: "ActiveDormant", downloads: Downloads) -> str:
    meta = found.meta
    tokens, model = meta["tokens"], meta["model"]
    known = {
        "model": f"{model['architecture']}, {model['n_layers']} layers x {model['n_heads']} heads, {precision(model)}",
        "texts": f"{tokens['n_sequences']} sequences of {tokens['min_length']} to {tokens['max_length']} tokens; "
        f"{meta['source']}",
        "BOS": tokens["bos"]["statement"],
        "thresholds": ", ".join(
            f"{name} {value}" for name, value in meta["settings"]["thresholds"].items() if value is not None
        ),
        "effect that matters": effects_that_matter(found),
    }
    known |= {name: metric["definition"] for name, metric in meta["metrics"].items()}
    notes = callout([str(note) for note in meta["warnings"]], warning=True)
    return f"<h2>Definitions and provenance</h2>\n{notes}\n{facts(known)}\n{downloads.buttons()}"
