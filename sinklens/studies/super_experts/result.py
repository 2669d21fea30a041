"""Super experts of a mixture, by both rules, and the model without them."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-super-experts"


@dataclass(frozen=True)
class SuperExperts(
    Result,
    format=FORMAT,
    title="Super experts",
    newest=1,
    needs=("experts", "layers", "effects"),
    header=("settings", "metrics"),
):
    """Which experts make the massive activations of a mixture of experts.

    Attributes:
        meta: Model, tokens, settings, definitions; ``formation`` (layers), ``thresholds`` by rule.
        tables: See the properties.
    """

    @property
    def experts(self) -> pd.DataFrame:
        """One row per expert, the largest first.

        Columns: layer, expert (-1: the shared one), a (largest output), n_tokens (missing for shared experts); forms
        (the layer is one where massive activations form), is_super (paper's rule), is_super_code, and outlier (passes
        the paper's bounds in a layer where none form).
        """
        return self.tables["experts"]

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer, -1 before the first: max_abs of the residual stream, forms."""
        return self.tables["layers"]

    @property
    def effects(self) -> pd.DataFrame:
        """One row per pruned set.

        Columns: kind (super; random: as many others of any layer; layer: as many others of the same layers), draw,
        experts, delta_loss with low and high, max_abs (of any layer), max_abs_kept (over that of the model),
        sink_decay (mean over layers) with n_left_out heads.
        """
        return self.tables["effects"]

    @property
    def verdict(self) -> list[str]:
        """Which experts are super, and what pruning them does beside random ones."""
        return expert_words(self.experts, self.effects)


def expert_words(experts: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """The super experts by both rules, outliers, and the pruned sets."""
    paper, code = experts[experts["is_super"]], experts[experts["is_super_code"]]
    if paper.empty:
        text = f"None of {several(len(experts), 'expert')} is a super expert by the paper's rule"
    else:
        text = (
            f"{len(paper)} of {several(len(experts), 'expert')} "
            f"{'is a super expert' if len(paper) == 1 else 'are super experts'} by the paper's rule: {_names(paper)}"
        )
    same = set(_keys(paper)) == set(_keys(code))
    text += "; by its code's the same" if same else f"; by its code's: {_names(code) if len(code) else 'none'}"
    out = [f"{text}."]
    outliers = experts[experts["outlier"]]
    if len(outliers):
        out.append(f"Large, but where no massive activation forms: {_names(outliers)}.")
    pruned = effects[effects["kind"] == "super"]
    rows: list[Any] = [*pruned.itertuples()]
    for row in rows:
        text = (
            f"Pruned, the loss changes by {row.delta_loss:+z.3f} nats a token, the largest |h| keeps "
            f"{100 * row.max_abs_kept:.0f} %, and the sink decays by {row.sink_decay:z.2f}"
        )
        for kind, words in (("random", "of any layer"), ("layer", "of the same layers")):
            others = effects[effects["kind"] == kind]
            if len(others):
                text += (
                    f"; {several(len(others), 'random set')} of as many {words}: at most "
                    f"{others['delta_loss'].abs().max():.3f} nats, at least {100 * others['max_abs_kept'].min():.0f} "
                    f"% kept"
                )
        out.append(f"{text}.")
    return out


def _keys(table: pd.DataFrame) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in zip(table["layer"], table["expert"], strict=True)]


def _names(table: pd.DataFrame) -> str:
    rows = table.sort_values("a", ascending=False, kind="stable")
    named = [f"L{layer}E{expert}" if expert >= 0 else f"L{layer} shared" for layer, expert in _keys(rows)]
    values = [f"{name} ({a:.4g})" for name, a in zip(named, rows["a"], strict=True)]
    return ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")
