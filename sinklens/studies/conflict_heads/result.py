"""Which heads take which side when prompt and memory disagree, and the model without them."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.evidence.controls import compare_with_controls
from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-conflict-heads"


@dataclass(frozen=True)
class ConflictHeads(
    Result,
    format=FORMAT,
    title="Memory heads and context heads",
    newest=1,
    needs=("heads", "pruned"),
    header=("settings", "clean"),
):
    """Heads by the side they take between what a prompt says and what the model knows.

    Attributes:
        meta: Model, settings; ``clean`` holds the model's own logit difference on the prompts that were pruned on.
        tables: ``heads`` and ``pruned``.
    """

    @property
    def heads(self) -> pd.DataFrame:
        """One row per head, from the prompts that heads are chosen on.

        Columns: name, layer, head; context and memory (direct logit attribution of each answer less that of an
        unrelated one, or what that difference loses by a patched path, mean over prompts), conflict (context - memory)
        with low and high; side (``context`` where only that answer gains and the interval lies above 0, ``memory`` the
        other way round, else empty).
        """
        return self.tables["heads"]

    @property
    def pruned(self) -> pd.DataFrame:
        """One row per set and way, on the other prompts.

        Columns: way (zero, mean), kind (context, memory, random), draw, heads, logit_diff (context - memory), change
        with low and high, follows (share of prompts where the context's answer wins).
        """
        return self.tables["pruned"]

    @property
    def verdict(self) -> list[str]:
        """How many heads take a side, and what the model follows without them."""
        return conflict_words(self.heads, self.pruned, self.meta["clean"], self.meta["settings"].get("by", "direct"))


def conflict_words(heads: pd.DataFrame, pruned: pd.DataFrame, clean: dict[str, float], by: str = "direct") -> list[str]:
    """The sides, then each pruned set beside the random ones of its way."""
    out = []
    how = " by its patched path" if by == "path" else ""
    for side, end in (("context", False), ("memory", True)):
        some = heads[heads["side"] == side].sort_values("conflict", ascending=end, kind="stable")
        text = (
            f"{len(some)} of {several(len(heads), 'head')} {'argues' if len(some) == 1 else 'argue'} for the "
            f"{side}'s answer against the other"
        )
        if len(some):
            text += f", most of all {some.iloc[0]['name']} ({some.iloc[0]['conflict']:+z.2f} logits{how})"
        out.append(f"{text}.")
    rows: list[Any] = [*pruned[pruned["kind"] != "random"].itertuples()]
    for row in rows:
        others = pruned[(pruned["kind"] == "random") & (pruned["way"] == row.way)]
        sign = -1 if row.kind == "context" else 1
        text = (
            f"Without {row.heads} ({row.kind} heads, {row.way}) the context's answer leads by "
            f"{row.logit_diff:z.2f} instead of {clean['logit_diff']:z.2f} logits and wins in "
            f"{row.follows:.2f} instead of {clean['follows']:.2f} of the prompts (change {row.change:+z.2f}"
        )
        text += ")" if math.isnan(row.low) else f" [{row.low:+z.2f}, {row.high:+z.2f}])"
        if len(others):
            beside = compare_with_controls(sign * row.change, (sign * others["change"]).tolist())
            text += f"; as many random heads {sign * beside.mean:+z.2f}, p = {beside.p:.2g}"
        out.append(f"{text}.")
    return out
