"""When a score makes a head a retrieval head, an induction head, ...: thresholds, each with its source."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.errors import InputError


@dataclass(frozen=True)
class Rule:
    """From a score to a label.

    Exactly one of ``at_least``, ``share`` and ``evidence`` decides. A head whose score is NaN has no label.

    Attributes:
        role: Name of the label.
        score: The score's name.
        source: Where the threshold comes from.
        at_least: Labelled when the score is at least this.
        share: Labelled when the score is at least its quantile ``1 - share`` over all heads (KV heads for a score of
            KV heads; linear interpolation as in ``numpy.quantile``). All heads that tie with the quantile are
            labelled, so it may be more than this share.
        evidence: Labelled when this column beside the score says so.
        says: What it must say; empty = be true.
    """

    role: str
    score: str
    source: str
    at_least: float | None = None
    share: float | None = None
    evidence: str | None = None
    says: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [self.at_least, self.share, self.evidence].count(None) != 2:
            raise InputError(f"The rule for {self.role!r} needs exactly one of at_least, share and evidence.")
        if self.share is not None and not 0 < self.share < 1:
            raise InputError(f"The share of {self.role} heads must lie between 0 and 1, got {self.share}.")

    @property
    def text(self) -> str:
        """In words.

        >>> RULES["retrieval"].text
        'retrieval >= 0.1'
        """
        if self.at_least is not None:
            return f"{self.score} >= {self.at_least:g}"
        if self.share is not None:
            return f"{self.score} in the top {100 * self.share:.3g} %, ties included"
        return f"{self.evidence} is {' or '.join(self.says) or 'true'}"

    def cut(self, scores: Float[np.ndarray, " head"]) -> float:
        """The score that a labelled head has at least; NaN when evidence decides or no score is known."""
        known = scores[~np.isnan(scores)]
        if self.at_least is not None:
            return self.at_least
        if self.share is None or not len(known):
            return float("nan")
        return float(np.quantile(known, 1 - self.share))

    def labels(self, frame: pd.DataFrame, cut: float) -> pd.Series:
        """Whether each head has the label: nullable booleans, missing where the score is.

        Args:
            frame: One row per head with the columns ``score`` and ``evidence``.
            cut: What :meth:`cut` found.
        """
        scores = frame[self.score].to_numpy(dtype=np.float64, na_value=np.nan)
        unknown = np.isnan(scores)
        if self.evidence is None:
            found = scores >= cut
        else:
            said = frame[self.evidence]
            unknown |= said.isna().to_numpy()
            found = (said.isin(self.says) if self.says else said.fillna(False).astype(bool)).to_numpy(dtype=bool)
        return pd.Series(found, index=frame.index).astype("boolean").mask(unknown)


WU = "Wu et al. 2025, arXiv 2404.15574"
XIAO = "Xiao et al. 2025, arXiv 2410.10819"
TANG = "Tang et al. 2025, arXiv 2407.15891"
ARENA = "convention of the ARENA exercises on TransformerLens; no paper fixes a line"

RULES = {
    rule.score: rule
    for rule in (
        Rule("retrieval", "retrieval", WU, at_least=0.1),
        Rule("duo", "streaming_gate", f"{XIAO}: as many full-attention KV heads as it deploys", share=0.5),
        Rule("induction", "induction", ARENA, at_least=0.4),
        Rule("previous_token", "previous_token", ARENA, at_least=0.4),
        Rule("duplicate_token", "duplicate_token", ARENA, at_least=0.4),
        Rule("echo", "echo", f"{TANG}: top 1 % of KV heads", evidence="razor", says=("echo", "both")),
        Rule(
            "razor",
            "razor_induction",
            f"{TANG}: top 14 % of KV heads by induction and top 1 % by echo",
            evidence="razor",
            says=("induction", "echo", "both"),
        ),
        Rule("sink", "importance", "sinklens: sink rate >= 0.5 and twice the uniform null", evidence="is_sink"),
        Rule("dormant", "sink_mass", "Guo et al. 2024, arXiv 2410.13835", evidence="label", says=("dormant",)),
        Rule("needed", "zero_ablation", "its 95 % interval lies above 0", evidence="by_ablation", says=("active",)),
        Rule(
            "heterogeneous",
            "written_offset",
            "He et al. 2025, arXiv 2501.15113: the farthest heads of each layer and the closest one",
            evidence="written_heterogeneous",
        ),
        Rule(
            "global",
            "distance_without_sink",
            "Li et al. 2025, arXiv 2510.13554: top 30 % by mean distance",
            evidence="span_without_sink",
            says=("global",),
        ),
    )
}
"""The rule of each score, unless the caller names another. A score without a rule is ranked, not labelled."""


def choose_rules(given: Iterable[Rule], *, shared: bool) -> dict[str, Rule]:
    """The usual rules, those of the caller in the place of theirs for the same score.

    Args:
        given: Rules of the caller.
        shared: Whether heads share KV heads: DuoAttention then deploys half of the gates, and a quarter otherwise.

    >>> choose_rules([], shared=False)["streaming_gate"].text
    'streaming_gate in the top 25 %, ties included'
    """
    usual = RULES if shared else RULES | {"streaming_gate": replace(RULES["streaming_gate"], share=0.25)}
    return usual | {rule.score: rule for rule in given}
