"""How sinks, drains, peaks and loss come about over a series of checkpoints."""

import math
from dataclasses import dataclass

import pandas as pd

from sinklens.experiments.dynamics.folder import FORMAT, FORMAT_VERSION
from sinklens.experiments.dynamics.measure import ALL
from sinklens.experiments.table_result import TableResult

TABLES = ("steps", "heads", "layers", "checkpoints")


@dataclass(frozen=True)
class Dynamics(TableResult, format=FORMAT, newest=FORMAT_VERSION, needs=TABLES, header=("spec", "settings", "series")):
    """What a series of checkpoints shows on the same tokens, by training step.

    Attributes:
        meta: Series, model, tokens with BOS provenance, definitions, settings, warnings.
        tables: By name, see the methods.
    """

    def to_dataframe(self) -> pd.DataFrame:
        """One row per measured step and domain (``"all"``: all domains together).

        Columns: step, name; ``sink_rate_first`` (mean over heads of the share of sequences whose importance of position
        0 exceeds eps), ``sink_head_share`` and ``n_sink_heads`` of ``n_heads`` (rate at least 0.5 and importance at
        least twice the null), ``importance_first`` with ``null_first``, ``importance_first_max`` (strongest head);
        ``delta_logit``, ``drain`` (``|v|``) and ``drain_wo`` (``|W_O v|``), means over heads; ``resid_ratio`` (norm of
        position 0 over the others') and ``max_over_median``, the highest of any block, with the block in ``..._layer``;
        ``loss`` in nats with its 95 % interval over sequences (``loss_low``, ``loss_high``) and ``loss_uniform``, that
        of guessing; ``n_sequences``. NaN where not applicable.
        """
        return self.tables["steps"].copy()

    def heads(self) -> pd.DataFrame:
        """One row per step, domain and head: importance and sink rate of position 0, logit margin, value norms."""
        return self.tables["heads"].copy()

    def layers(self) -> pd.DataFrame:
        """One row per step, domain and layer (-1 = before the first block): sink rate, residual norms, max / median."""
        return self.tables["layers"].copy()

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: step, name, tokens trained on (where known), ``measured``, else the ``reason``."""
        return self.tables["checkpoints"].copy()

    @property
    def domains(self) -> list[str]:
        """Domains of the tables; ``"all"`` first where there are several."""
        return list(dict.fromkeys(self.tables["steps"]["domain"]))

    @property
    def verdict(self) -> list[str]:
        """What grew when, in sentences; and which checkpoints are missing."""
        steps = self.tables["steps"]
        steps = steps[steps["domain"] == self.domains[0]].sort_values("step", ignore_index=True)
        first, last = steps.iloc[0], steps.iloc[-1]
        sentences = [
            _sinks(steps, self.meta["settings"]["eps"]),
            *_change(first, last, "delta_logit", "The logit margin of position 0 over the other keys"),
            *_change(
                first, last, "drain_wo", "The value drain (|W_O v| of position 0 over the others', mean of heads)"
            ),
            *_change(first, last, "resid_ratio", "The residual norm of position 0 over the others' (highest block)"),
            *_change(first, last, "max_over_median", "The largest residual entry over the median (highest block)"),
        ]
        several = self.tables["steps"][self.tables["steps"]["domain"] != ALL].groupby("domain", sort=False)
        for domain, rows in several:
            losses = rows.sort_values("step")["loss"]
            named = "" if len(several) == 1 and domain == "text" else f" on {domain}"
            sentences.append(f"Loss{named}: {losses.iloc[0]:.3g} to {losses.iloc[-1]:.3g} nats per token.")
        missing = self.tables["checkpoints"]
        for row in missing[~missing["measured"].astype(bool)].to_dict("records"):
            sentences.append(f"Missing: {row['name']}. {row['reason']}")
        return sentences


def _sinks(steps: pd.DataFrame, eps: float) -> str:
    if steps["importance_first"].isna().all():
        return "Attention sinks are not applicable: no block of this model has softmax attention."
    first, last = steps.iloc[0], steps.iloc[-1]
    found = steps[steps["n_sink_heads"] > 0]
    if found.empty:
        top = steps.sort_values("importance_first_max", na_position="first").iloc[-1]
        return (
            f"No head has a sink at position 0 at any of {len(steps)} steps (eps {eps}); the strongest gives it "
            f"{top['importance_first_max']:.2f} of its attention, at step {int(top['step']):,}."
        )
    when = int(found.iloc[0]["step"])
    before = steps[steps["step"] < when]
    since = f"by step {when:,}" if before.empty else f"between steps {int(before.iloc[-1]['step']):,} and {when:,}"
    return (
        f"The first head with a sink at position 0 appears {since}; at step {int(last['step']):,} "
        f"{int(last['n_sink_heads'])} of {int(last['n_heads'])} heads have one. Mean importance of position 0: "
        f"{first['importance_first']:.3f} at step {int(first['step']):,}, {last['importance_first']:.3f} at the end, "
        f"{last['null_first']:.3f} if attention were uniform."
    )


def _change(first: pd.Series, last: pd.Series, column: str, what: str) -> list[str]:
    """A sentence about a figure at both ends, none where it is not applicable."""
    if math.isnan(last[column]):
        return []
    return [f"{what} goes from {first[column]:.3g} to {last[column]:.3g}."]
