"""One self-contained HTML report of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sinklens.app.page import callout, document, facts, figure, html_table, text
from sinklens.app.report import write_page
from sinklens.app.sections.source import Downloads
from sinklens.plots.ablation_heatmap import ablation_heatmap
from sinklens.plots.before_after import before_after
from sinklens.plots.cumulative_curve import cumulative_curve
from sinklens.results.provenance import precision
from sinklens.studies.ablation.result import largest_effects

if TYPE_CHECKING:
    from sinklens.studies.ablation.result import Sweep


def write_sweep_report(sweep: "Sweep", path: str | Path) -> Path:
    """Write a sweep as one HTML file that opens offline: what was found, figures, tables and definitions.

    As :func:`~sinklens.app.report.write_report` does for a census: plotly.js is inlined once (about 5 MB), tables are
    inside as CSV, the page makes no request, and the file appears under its name only when it is complete.

    Args:
        sweep: What a sweep returned.
        path: File to write; missing folders are made.

    Returns:
        The path written.

    Raises:
        ResultError: when the file cannot be written.
    """
    meta, summary = sweep.meta, sweep.tables["summary"]
    downloads = Downloads({"summary": summary, "effects": sweep.tables["effects"]})
    labels = list(meta["interventions"])
    sections = [
        (f"way{place}", label, _intervention(sweep, summary, label, place)) for place, label in enumerate(labels)
    ]
    sections.append(("definitions", "Definitions", _definitions(sweep, downloads)))
    model = meta["model"]["name"]
    first, *rest = sweep.verdict or ["Nothing was measured."]
    head = (
        f'<p class="kind">sinklens sweep of head ablations</p>\n<h1>{text(model)}</h1>\n'
        f'<p class="headline">{text(first)}</p>\n<ul class="verdict">'
        f"{''.join(f'<li>{text(sentence)}</li>' for sentence in rest)}</ul>"
    )
    return write_page(document(f"{model}: sinklens sweep", head, sections, downloads.data()), Path(path))


def _intervention(sweep: "Sweep", summary: pd.DataFrame, label: str, place: int) -> str:
    """Figures and table of one intervention; a figure that has nothing to draw is left out."""
    rows = summary[summary["intervention"] == label]
    kinds = set(rows["kind"])
    parts = [f"<h2>{text(label)}</h2>"]
    if "head" in kinds:
        n_layers = int(sweep.meta["model"]["n_layers"])
        parts.append(figure(ablation_heatmap(summary, intervention=label, n_layers=n_layers), f"heads{place}"))
    if "top" in kinds:
        parts.append(figure(cumulative_curve(summary, intervention=label), f"top{place}"))
    tested = rows[rows["kind"].isin(["group", "top"])]
    if len(tested):
        parts.append(figure(before_after(tested), f"tested{place}"))
    ranking = sweep.ranking(label)
    singles = largest_effects(ranking, "delta_loss").head(20)
    columns = {"variant": "head", "delta_loss": "Δ loss", "delta_loss_low": "low", "delta_loss_high": "high"}
    columns |= {"kl": "KL", "kl_low": "low", "kl_high": "high"}
    columns |= {"top1_agreement": "top-1 agreement", "top1_agreement_low": "low", "top1_agreement_high": "high"}
    columns |= {"n_sequences": "sequences"}
    if len(singles):
        caption = (
            f"{len(singles)} of {len(ranking)} heads, the largest change of the loss by size first; low and high are "
            "95 % intervals over sequences"
        )
        parts.append(html_table(singles, columns, caption=caption, words=("variant",)))
    return "\n".join(parts)


def _definitions(sweep: "Sweep", downloads: Downloads) -> str:
    meta = sweep.meta
    tokens, model = meta["tokens"], meta["model"]
    known = {
        "model": f"{model['architecture']}, {model['n_layers']} layers x {model['n_heads']} heads, {precision(model)}",
        "texts": f"{tokens['n_sequences']} sequences of {tokens['min_length']} to {tokens['max_length']} tokens, "
        f"{tokens['source']}",
        "BOS": tokens["bos"]["statement"],
    }
    known |= {name: metric["definition"] for name, metric in meta["metrics"].items()}
    notes = callout([str(note) for note in meta["warnings"]], warning=True)
    return f"<h2>Definitions and provenance</h2>\n{notes}\n{facts(known)}\n{downloads.buttons()}"
