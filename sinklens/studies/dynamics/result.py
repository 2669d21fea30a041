"""How sinks, drains, peaks and loss come about over a series of checkpoints."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.results.result import Result
from sinklens.studies.dynamics.role_growth import ROLE_COLUMNS, growth_sentences, role_growth, with_excess

ALL = "all"
"""All domains together."""

FORMAT, WORK = "sinklens-dynamics", "measurement"
PARTS = ("steps", "heads", "layers")
TABLES = (*PARTS, "checkpoints")


@dataclass(frozen=True)
class Dynamics(
    Result,
    format=FORMAT,
    title="Dynamics of checkpoints",
    newest=1,
    needs=TABLES,
    header=("spec", "settings", "series"),
):
    """What a series of checkpoints shows on the same tokens, by training step.

    :meth:`to_dataframe` gives one row per measured step and domain (``"all"``: all domains together).

    Columns: step, name; ``sink_rate_first`` (mean over heads of the share of sequences whose importance of position
    0 exceeds eps), ``sink_head_share`` and ``n_sink_heads`` of ``n_heads`` (rate at least 0.5 and importance at
    least twice the null), ``importance_first`` with ``null_first``, ``importance_first_max`` (strongest head);
    ``delta_logit``, ``drain`` (``|v|``) and ``drain_wo`` (``|W_O v|``), means over heads; ``resid_ratio`` (norm of
    position 0 over the others') and ``max_over_median``, the highest of any layer, with the layer in ``..._layer``;
    ``loss`` in nats with its 95 % interval over sequences (``loss_low``, ``loss_high``) and ``loss_uniform``, that
    of guessing; ``n_sequences``. NaN where not applicable.

    Attributes:
        meta: Series, model, tokens with BOS provenance, definitions, settings, warnings.
        tables: By name, see the methods.
    """

    def heads(self) -> pd.DataFrame:
        """One row per step, domain and head: importance and sink rate of position 0, logit margin, value norms."""
        return self.tables["heads"].copy()

    def layers(self) -> pd.DataFrame:
        """One row per step, domain and layer (-1 = before the first layer): sink rate, residual norms, max / median."""
        return self.tables["layers"].copy()

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: step, name, tokens trained on (where known), ``measured``, else the ``reason``."""
        return self.tables["checkpoints"].copy()

    def roles(self) -> pd.DataFrame:
        """One row per step, head and score: value, null, has_role, and excess over the head's value at the first step.

        Empty unless ``roles=`` named criteria.
        """
        return with_excess(self.tables.get("roles", pd.DataFrame(columns=["step", "name", *ROLE_COLUMNS])))

    def role_growth(self) -> pd.DataFrame:
        """One row per step and score: strongest heads, excess over the first step, specialisation, labelled heads.

        See :func:`~sinklens.studies.dynamics.role_growth.role_growth`.
        """
        return role_growth(self.roles())

    @property
    def domains(self) -> list[str]:
        """Domains of the tables; ``"all"`` first where there are several."""
        return list(dict.fromkeys(self.tables["steps"]["domain"]))

    @property
    def verdict(self) -> list[str]:
        """What grew when, in sentences; and which checkpoints are missing."""
        said = dynamics_sentences(self.tables["steps"], self.tables["checkpoints"], self.meta["settings"]["eps"])
        return said + (growth_sentences(self.role_growth()) if "roles" in self.tables else [])


_FIGURES = {
    "delta_logit": "The logit margin of position 0 over the other keys",
    "drain_wo": "The value drain (|W_O v| of position 0 over the others', mean of heads)",
    "resid_ratio": "The residual norm of position 0 over the others' (highest layer)",
    "max_over_median": "The largest residual entry over the median (highest layer)",
}


def dynamics_sentences(steps: pd.DataFrame, checkpoints: pd.DataFrame, eps: float) -> list[str]:
    """When sinks appear, how the figures beside them change from the first to the last step, and what is missing.

    Args:
        steps: One row per measured step and domain, the first domain is that of the sentences; the loss of each.
        checkpoints: One row per checkpoint, ``measured`` or with the ``reason``.
        eps: Threshold of the sink rate.
    """
    sentences = []
    if len(steps):
        first_domain = steps[steps["domain"] == steps["domain"].iloc[0]].sort_values("step", ignore_index=True)
        sentences.append(_sinks(first_domain, eps))
        sentences += [sentence for name, what in _FIGURES.items() for sentence in _change(first_domain, name, what)]
        several = steps[steps["domain"] != ALL].groupby("domain", sort=False)
        for domain, rows in several:
            named = "" if len(several) == 1 and domain == "text" else f" on {domain}"
            sentences += _loss(rows.sort_values("step", ignore_index=True), named)
    else:
        sentences.append("No checkpoint was measured.")
    for row in checkpoints[~checkpoints["measured"].astype(bool)].to_dict("records"):
        sentences.append(f"Missing: {row['name']}. {row['reason']}")
    return sentences


def _sinks(steps: pd.DataFrame, eps: float) -> str:
    known = steps[steps["importance_first"].notna() & steps["n_sink_heads"].notna()].reset_index(drop=True)
    if known.empty:
        return "Attention sinks are not applicable: no layer of this model has softmax attention."
    first, last = known.iloc[0], known.iloc[-1]
    found = known.index[known["n_sink_heads"] > 0]
    if not len(found):
        top = known.sort_values("importance_first_max", ascending=False, kind="stable").iloc[0]  # the first of equals
        return (
            f"No head has a sink at position 0 at {_of_steps(len(known))} (eps {eps}); the strongest gives it "
            f"{top['importance_first_max']:.2f} of its attention, at step {int(top['step']):,}."
        )
    when = int(known["step"].iloc[found[0]])
    since = f"A head with a sink at position 0 is there from the first step on that was measured, {when:,}"
    if found[0]:
        before = int(known["step"].iloc[found[0] - 1])
        since = f"The first head with a sink at position 0 appears between steps {before:,} and {when:,}"
    importance = f"{first['importance_first']:.3f} at step {int(first['step']):,}"
    if len(known) > 1:
        importance += f", {last['importance_first']:.3f} at step {int(last['step']):,}"
    null = "" if math.isnan(last["null_first"]) else f"; {last['null_first']:.3f} if attention were uniform"
    return (
        f"{since}; at step {int(last['step']):,} {int(last['n_sink_heads'])} of {int(last['n_heads'])} heads have one. "
        f"Mean importance of position 0: {importance}{null}."
    )


def _of_steps(count: int) -> str:
    return "the one step measured" if count == 1 else f"any of {count} steps"


def _change(steps: pd.DataFrame, column: str, what: str) -> list[str]:
    """A sentence about a figure at both ends of where it is known, none where it never is."""
    known = steps[steps[column].notna()]
    if known.empty:
        return []
    ends = [(f"{row[column]:.3g}", f"{int(row['step']):,}") for row in known.iloc[[0, -1]].to_dict("records")]
    if len(known) == 1:
        return [f"{what} is {ends[0][0]} at step {ends[0][1]}."]
    whole = len(known) == len(steps)
    places = ["", ""] if whole else [f" at step {step}" for _, step in ends]
    return [f"{what} goes from {ends[0][0]}{places[0]} to {ends[1][0]}{places[1]}."]


def _loss(steps: pd.DataFrame, named: str) -> list[str]:
    known = steps[steps["loss"].notna()]
    if known.empty:
        return []
    first, last = (_with_interval(row) for row in known.iloc[[0, -1]].to_dict("records"))
    return [f"Loss{named}: {first if len(known) == 1 else f'{first} to {last}'} nats per token."]


def _with_interval(row: dict[Any, Any]) -> str:
    low, high = row.get("loss_low", math.nan), row.get("loss_high", math.nan)
    return f"{row['loss']:.3g}" if math.isnan(low) or math.isnan(high) else f"{row['loss']:.3g} [{low:.3g}, {high:.3g}]"
