"""One self-contained HTML report of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sinklens.app.page import figure, html_table, text
from sinklens.app.report import write_report
from sinklens.plots.ablation_heatmap import ablation_heatmap
from sinklens.plots.before_after import before_after
from sinklens.plots.cumulative_curve import cumulative_curve
from sinklens.studies.ablation.result import largest_effects

if TYPE_CHECKING:
    from sinklens.studies.ablation.result import Sweep


def write_sweep_report(sweep: "Sweep", path: Path) -> Path:
    """Write a sweep: what was found, figures and tables of each intervention, and definitions."""
    summary = sweep.tables["summary"]
    sections = [
        (f"way{place}", label, _intervention(sweep, summary, label, place))
        for place, label in enumerate(sweep.meta["interventions"])
    ]
    return write_report(sweep, path, sections)


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
