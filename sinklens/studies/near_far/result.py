"""What near keys alone, or far keys alone, cost."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.evidence.bootstrap import MIN_PAIRS
from sinklens.evidence.controls import compare_with_controls
from sinklens.results.result import Result
from sinklens.wording import changed, several

FORMAT = "sinklens-near-far"
COST_COLUMNS = ("kind", "draw", "heads", "sees", "loss", "cost", "low", "high")


@dataclass(frozen=True)
class NearFar(
    Result,
    format=FORMAT,
    title="Near and far keys",
    newest=1,
    needs=("costs",),
    header=("settings",),
):
    """Rise of the loss when some heads see only near keys and when they see only far ones, beside random heads.

    Attributes:
        meta: Model, tokens, settings.
        tables: ``costs``.
    """

    @property
    def costs(self) -> pd.DataFrame:
        """One row per set and way.

        Columns: kind (tested, random), draw, heads, sees (near, far), loss (mean, nats), cost (its rise) with low
        and high over sequences.
        """
        return self.tables["costs"]

    @property
    def verdict(self) -> list[str]:
        """What each way costs, beside random heads of the same layers, and which of the two costs more."""
        return near_far_words(self.costs, self.meta["settings"])


def near_far_words(costs: pd.DataFrame, settings: dict[str, Any]) -> list[str]:
    """A sentence for each way, then which costs more."""
    tested = costs[costs["kind"] == "tested"].set_index("sees")
    seen = {
        "near": f"only the last {several(settings['window'], 'key')} and the first {settings['sinks']}",
        "far": f"only keys {settings['window']} or more back and the first {settings['sinks']}",
    }
    out = []
    for sees, words in seen.items():
        row: Any = tested.loc[sees]
        others = costs[(costs["kind"] == "random") & (costs["sees"] == sees)]["cost"]
        text = f"{row['heads']} seeing {words}: the loss changes by "
        text += changed(row["cost"], row["low"], row["high"], 4, " nats")
        if len(others):
            beside = compare_with_controls(float(row["cost"]), others.tolist())
            text += f"; as many random heads {changed(beside.mean, digits=4)} (p = {beside.p:.2g} of {beside.n} sets)"
        out.append(f"{text}.")
    less, more = tested["cost"].sort_values(kind="stable").index
    if tested["low"].loc[more] > max(0.0, tested["high"].loc[less]):
        out.append(f"It loses more by seeing {more} keys alone than {less} ones: what it needs is {less}.")
    elif tested["low"].isna().any():
        out.append(f"Which of the two costs more is not judged: an interval needs {several(MIN_PAIRS, 'sequence')}.")
    else:
        out.append("That one of the two costs more is not shown.")
    return out
