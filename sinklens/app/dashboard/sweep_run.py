"""A sweep in the dashboard: effects of ablating every head, with intervals and controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens.app.dashboard.run import Fact, Run, Score
from sinklens.app.dashboard.stored import Tables
from sinklens.app.drawings import Drawing
from sinklens.errors import ResultError
from sinklens.plots.ablation_heatmap import ablation_heatmap
from sinklens.plots.axes import light_grid
from sinklens.plots.cumulative_curve import cumulative_curve
from sinklens.plots.effects import EFFECTS, EffectMetric, with_interval
from sinklens.plots.style import CATEGORICAL, MUTED, TEMPLATE, empty_figure, escaped, float32, number
from sinklens.studies.ablation.result import Sweep


@dataclass
class SweepRun(Run):
    """Effects of taking heads away, one grid for each intervention and effect."""

    beside_height = 350

    def _find_scores(self) -> tuple[Score, ...]:
        heads = self._heads()
        return tuple(
            Score(f"{label}/{metric}", f"{effect.short} · {label}", effect.note)
            for label in self.interventions
            for metric, effect in EFFECTS.items()
            if heads.loc[heads["intervention"] == label, metric].notna().any()
        )

    @property
    def interventions(self) -> list[str]:
        """Labels of the interventions, in order."""
        return [str(label) for label in self.meta.get("interventions") or {}]

    def _heads(self) -> pd.DataFrame:
        table = self.tables.frame("summary")
        heads = table[table["kind"] == "head"].sort_values("exact", ascending=False, kind="stable")
        return heads.drop_duplicates(["intervention", "layer", "head"])

    def _score_column(self, score: str) -> tuple[pd.DataFrame, str]:
        label, metric = _parts(score)
        heads = self._heads()
        return heads[heads["intervention"] == label], metric

    def _draw_grid(self, score: str) -> go.Figure:
        label, metric = _parts(score)
        table = self.tables.frame("summary")
        return ablation_heatmap(table, metric=metric, intervention=label, n_layers=self.model.get("n_layers"))

    def table_for_grid(self) -> pd.DataFrame:
        """The summary."""
        return self.tables.frame("summary")

    def facts(self, layer: int, head: int) -> list[Fact]:
        """The head's effects with 95 % intervals, beside those of the other heads of its layer."""
        heads, out = self._heads(), []
        for label in self.interventions:
            rows = heads[heads["intervention"] == label]
            own = rows[(rows["layer"] == layer) & (rows["head"] == head)].to_dict("records")
            others = rows[(rows["layer"] == layer) & (rows["head"] != head)]
            if not own:
                out.append(Fact(label, "not ablated"))
            for record in own:
                how = "" if record["exact"] else ", estimated"
                for metric, effect in EFFECTS.items():
                    if pd.isna(record[metric]):
                        continue
                    beside = ""
                    if len(others) and others[metric].notna().any():
                        mean, sd = float(others[metric].mean()), float(others[metric].std())
                        beside = f"other heads of layer {layer}: {number(mean)} ± {number(sd)}"
                    out.append(Fact(f"{effect.short} ({label}{how})", with_interval(record, metric), beside))
        return out

    def beside(self, head: str) -> str:
        """The head by sequence."""
        return f"{head} by sequence"

    def head_figure(self, layer: int, head: int, token: int | None, other: Run | None = None) -> go.Figure:
        """The change of the loss on every sequence."""
        effects = self.tables.frame("effects")
        rows = effects[(effects["kind"] == "head") & (effects["layer"] == layer) & (effects["head"] == head)]
        rows = rows.dropna(subset=["delta_loss"])
        if rows.empty:
            return empty_figure("By sequence", "This head was not ablated alone in this sweep.")
        fig = go.Figure(layout={"template": TEMPLATE, "height": 390, "margin": {"l": 64, "r": 16, "t": 30, "b": 48}})
        for i, (label, part) in enumerate(rows.groupby("intervention", sort=False)):
            fig.add_trace(
                go.Scatter(
                    x=np.sort(part["delta_loss"].to_numpy(float)).astype(np.float32),
                    y=float32((np.arange(len(part)) + 0.5) / len(part)),
                    name=escaped(str(label)),
                    mode="lines+markers",
                    line={"shape": "hv", "color": CATEGORICAL[i % len(CATEGORICAL)], "width": 1.6},
                    marker={"size": 5},
                    hovertemplate="%{x:.4g} nats<br>%{y:.0%} of sequences below<extra></extra>",
                )
            )
        fig.add_vline(x=0, line={"color": MUTED, "width": 1})
        fig.update_layout(
            xaxis={"title": {"text": "Δ loss of a sequence (nats per token)"}} | light_grid(),
            yaxis={"title": {"text": "share of sequences"}, "range": [0, 1], "tickformat": ".0%"} | light_grid(),
            showlegend=True,
            legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        )
        return fig


def sweep_run(name: str, label: str, meta: Mapping[str, Any], tables: Tables) -> Run:
    """A sweep from its parts.

    Raises:
        ResultError: One of its two tables is missing.
    """
    missing = [table for table in ("effects", "summary") if table not in tables.names]
    if missing:
        raise ResultError(f"This sweep is damaged: it has no table {missing[0]}; sweep again.")
    drawings = {f"Top k heads · {each}": _curve(str(each)) for each in meta.get("interventions") or {}}
    return SweepRun(name, label, Sweep.format, meta, tables, drawings=drawings)


def _curve(label: str) -> Drawing:
    def drawing(sweep: Sweep) -> go.Figure:
        return cumulative_curve(sweep.tables["summary"], intervention=label)

    return drawing


def _parts(score: str) -> tuple[str, EffectMetric]:
    label, _, metric = score.rpartition("/")
    return label, metric  # type: ignore[return-value]
