"""Heads that are at work on one kind of text or token and dormant on another, with the evidence."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.interventions.heads import head_name
from sinklens.results.result import Result

FORMAT = "sinklens-active-dormant"
TABLES = ("heads", "contrasts", "agreement", "by_sequence")


@dataclass(frozen=True)
class ActiveDormant(Result, format=FORMAT, title="Active and dormant heads", newest=1, needs=TABLES):
    """Heads that are active on one kind of text or token and dormant on another, with the evidence.

    :meth:`to_dataframe` gives one row per head, domain and token class.

    Columns: layer, head, domain, class, n_sequences, n_queries; ``mass`` with its ``null``; ``norm``,
    ``norm_ratio``, ``own_ratio``; ``clean_loss`` and ``delta`` (its rise without the head, in nats) with
    ``delta_low`` and ``delta_high``, ``delta_layer``, the mean rise of the layer's other heads, as a control, and
    ``effect_bound``, the rise from which an effect matters there (see :class:`Thresholds`);
    the state by each criterion ``by_mass, by_norm, by_own_norm, by_ablation`` (missing where not applicable);
    ``label`` and the ``evidence`` for it in words. See :func:`~sinklens.detectors.active_dormant.head_label`.

    Attributes:
        meta: Model, tokens with BOS provenance, domains, classes, thresholds, definitions.
        tables: By name, see the properties.
    """

    def contrasts(self) -> pd.DataFrame:
        """One row per head and pair of domains (same class) or classes (same domain).

        ``mass_difference`` and ``delta_difference``, first minus second, with 95 % bootstrap intervals (``_low``,
        ``_high``; ``paired`` by sequence for two classes of one domain); ``active_dormant``: labelled active on one and
        dormant on the other, and both intervals exclude no difference.
        """
        return self.tables["contrasts"].copy()

    def agreement(self) -> pd.DataFrame:
        """How often two criteria agree; see :func:`~sinklens.detectors.active_dormant.agreement`."""
        return self.tables["agreement"].copy()

    def by_sequence(self) -> pd.DataFrame:
        """Mass, norm and rise of the loss of every head, domain, class and sequence."""
        return self.tables["by_sequence"].copy()

    @property
    def verdict(self) -> list[str]:
        """Which heads are active here and dormant there, in sentences; an honest negative when none is shown to be."""
        return active_dormant_sentences(self.tables["heads"], self.tables["contrasts"])


def active_dormant_sentences(heads: pd.DataFrame, contrasts: pd.DataFrame) -> list[str]:
    """Which heads are active here and dormant there, with the evidence; an honest negative when none is shown to be.

    Args:
        heads: One row per head, domain and class, with label and evidence.
        contrasts: One row per head and comparison.
    """
    labels = "labels: " + ", ".join(f"{count} {label}" for label, count in heads["label"].value_counts().items())
    if contrasts.empty:
        return [f"No head is compared: there is one domain and one token class only; {labels}."]
    told = {
        tuple(row[:4]): (str(row[4]), str(row[5]))
        for row in heads[["layer", "head", "domain", "class", "label", "evidence"]].to_numpy().tolist()
    }
    sentences, undecided = [], 0
    for row in contrasts.to_dict("records"):
        head = (row["layer"], row["head"])
        ends = [(row["domain"], row["class"]), (row["other_domain"], row["other_class"])]
        states = [told[*head, *end][0] for end in ends]
        if row["active_dormant"]:
            if states[0] == "dormant":
                ends.reverse()
            active, dormant = (f"{_group(*end)} ({told[*head, *end][1]})" for end in ends)
            sentences.append(f"{head_name(head)} is active on {active} and dormant on {dormant}.")
        elif {*states} == {"active", "dormant"}:
            undecided += 1
    if sentences:
        return sentences
    none = f"In none of {len(contrasts)} comparisons is a head"
    if undecided:
        return [
            f"{none} shown to be active on one side and dormant on the other: {undecided} have these labels, but an "
            f"interval of the difference holds 0 or is missing; {labels}."
        ]
    return [f"{none} active on one side and dormant on the other; {labels}."]


def evidence(row: Any) -> str:
    """What the measurements say of a head on one domain and class; what is not there is not mentioned.

    Args:
        row: With fields mass, null, delta, delta_low, delta_high, norm_ratio, own_ratio.
    """
    parts = []
    if not math.isnan(row.mass):
        uniform = "" if math.isnan(row.null) else f", {row.null:.2f} if uniform"
        parts.append(f"{row.mass:.2f} of its attention on the sink{uniform}")
    if not math.isnan(row.delta):
        parts.append(f"zeroing it changes the loss by {change(row.delta, row.delta_low, row.delta_high)} nats")
    if not math.isnan(row.norm_ratio):
        parts.append(f"writes {row.norm_ratio:.2f} times the layer's mean head")
    if not math.isnan(row.own_ratio):
        parts.append(f"{row.own_ratio:.2f} times its own most")
    return "; ".join(parts) or "nothing was measured"


def change(value: float, low: float, high: float, decimals: int = 3) -> str:
    """A signed change with its interval; "n/a" without one, and never -0.

    >>> change(0.1234, 0.1, 0.2), change(-0.00001, float("nan"), float("nan"), 2), change(float("nan"), 0, 1)
    ('+0.123 [+0.100, +0.200]', '+0.00 (no interval)', 'n/a')
    """
    if math.isnan(value):
        return "n/a"
    middle = f"{value:+z.{decimals}f}"
    if math.isnan(low) or math.isnan(high):
        return f"{middle} (no interval)"
    return f"{middle} [{low:+z.{decimals}f}, {high:+z.{decimals}f}]"


def _group(domain: str, name: str) -> str:
    return domain if name == "all" else name if domain == "text" else f"{name} in {domain}"
