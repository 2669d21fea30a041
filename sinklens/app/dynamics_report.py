"""One self-contained HTML report of a series of checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING

from sinklens.app.page import callout, figure, html_table, text
from sinklens.app.report import write_report
from sinklens.plots.dynamics import dynamics as dynamics_figure
from sinklens.plots.step_heatmap import step_heatmap

if TYPE_CHECKING:
    from sinklens.studies.dynamics.result import Dynamics

_COLUMNS = {
    "step": "step",
    "domain": "domain",
    "importance_first": "attention to position 0",
    "null_first": "if uniform",
    "sink_rate_first": "sink rate",
    "n_sink_heads": "heads with a sink",
    "delta_logit": "logit margin",
    "drain": "|v| drain",
    "drain_wo": "|W_O v| drain",
    "max_over_median": "max / median",
    "resid_ratio": "residual norm ratio",
    "loss": "loss",
    "loss_low": "low",
    "loss_high": "high",
}


def write_dynamics_report(dynamics: "Dynamics", path: Path) -> Path:
    """Write a series of checkpoints: what grew when, figures, tables and definitions."""
    settings = dynamics.meta["settings"]
    sections = [
        ("training", "Training", _training(dynamics)),
        ("heads", "Heads", _heads(dynamics)),
        ("layers", "Layers", _layers(dynamics)),
    ]
    known = {
        "checkpoints": "all on the same tokens",
        "head with a sink": f"sink rate of position 0 (eps {settings['eps']}) of at least "
        f"{settings['sink_head_rate']}, and importance of at least {settings['sink_head_ratio']} times that of uniform "
        "attention",
        "loss": "mean -log p of the next token in nats, by sequence and then over sequences, with a 95 % interval",
    }
    return write_report(dynamics, path, sections, known)


def _training(dynamics: "Dynamics") -> str:
    steps = dynamics.tables["steps"]
    parts = ["<h2>Through training</h2>", figure(dynamics_figure(steps, dynamics.tables["heads"]), "training")]
    for place, domain in enumerate(dynamics.domains[1:]):
        fig = dynamics_figure(steps, dynamics.tables["heads"], domain=domain)
        shown = figure(fig, f"training{place}")
        parts.append(f"<details><summary>On {text(domain)} alone</summary>{shown}</details>")
    parts.append(html_table(steps, _COLUMNS, caption="Every checkpoint", words=("domain",)))
    missing = dynamics.tables["checkpoints"]
    reasons = missing.loc[~missing["measured"].astype(bool)]
    parts.append(
        callout([f"{row['name']} is missing: {row['reason']}" for row in reasons.to_dict("records")], warning=True)
    )
    return "\n".join(parts)


def _heads(dynamics: "Dynamics") -> str:
    heads, domain = dynamics.tables["heads"], dynamics.domains[0]
    if heads.empty:
        return '<h2>Head by head</h2>\n<p class="na">Not applicable: no layer of this model has attention.</p>'
    shown = [
        figure(step_heatmap(heads, value, domain=domain), f"heads-{value}")
        for value in ("importance_first", "drain_wo")
    ]
    margin = figure(step_heatmap(heads, "delta_logit", domain=domain), "heads-delta_logit")
    return f"<h2>Head by head</h2>\n{''.join(shown)}<details><summary>Logit margin</summary>{margin}</details>"


def _layers(dynamics: "Dynamics") -> str:
    layers, domain = dynamics.tables["layers"], dynamics.domains[0]
    shown = [
        figure(step_heatmap(layers, value, domain=domain), f"layers-{value}")
        for value in ("max_over_median", "resid_ratio")
    ]
    return f"<h2>Layer by layer</h2>\n{''.join(shown)}"
