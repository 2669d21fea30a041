"""Where the sink went: sink heads by position before and under an intervention, in the passes that run anyway."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from torch import Tensor

from sinklens.attention import ReceivedMass, Statistic
from sinklens.capture.record import LayerRecord
from sinklens.detectors.sinks import EPS, SINK_HEAD_RATE, SINK_HEAD_RATIO, SinkDetector, shortest_length
from sinklens.detectors.wording import listed, several
from sinklens.models.tokens import TokenBatch

COLUMNS: Final = (
    "intervention", "position", "n_sink_heads_before", "n_sink_heads", "n_heads", "importance_before", "importance",
)  # fmt: skip
CLEAN: Final = ""
"""Name of the model as it is."""


class SinkTally:
    """Counts sink heads under each of several interventions.

    A hidden or weakened sink often comes back at another token: then the loss says little about what sinks are for,
    because the model still has one. Sequences too short for the threshold (fewer than 10 tokens) are left out.

    Args:
        eps: Threshold of the sink rate.

    Cost: one product of the pattern with a vector for each block of attention, O(heads pos) memory per layer.
    """

    def __init__(self, eps: float = EPS) -> None:
        self.eps = eps
        self._detectors: dict[str, SinkDetector] = {}

    def watching(self, name: str, part: TokenBatch) -> dict[str, Any]:
        """What to open an engine or an intervention with, so that its next pass on ``part`` is counted.

        Args:
            name: Of the intervention; :data:`CLEAN` for the model as it is.
            part: The sequences of the pass.
        """
        if part.ids.shape[1] < shortest_length(self.eps):
            return {}
        detector = self._detectors.setdefault(name, SinkDetector(self.eps))

        def take(layer: int, value: Tensor, statistics: list[Statistic]) -> None:
            found = {key: tensor.cpu() for each in statistics for key, tensor in each.compute().items()}
            detector.update(LayerRecord(layer, part, 0, "fast", found, None, None))

        return {"statistics": [ReceivedMass], "on_layer": take, "real": part.real}

    def table(self, interventions: Sequence[str]) -> pd.DataFrame:
        """One row per intervention and position that is a sink before or under it.

        Columns: ``n_sink_heads_before`` and ``n_sink_heads`` (heads whose strongest key it is, with the census' rule:
        a rate of at least 0.5 and twice the null), ``n_heads``, ``importance_before`` and ``importance`` (the largest
        of any head at that position). Position 0 always has a row; without attention or long enough sequences there
        is none.
        """
        after = {name: self._detectors[name].tables() for name in interventions if name in self._detectors}
        if CLEAN not in self._detectors:
            return pd.DataFrame(columns=[*COLUMNS])
        return sinks_after(self._detectors[CLEAN].tables(), after)


def sinks_after(before: Mapping[str, pd.DataFrame], after: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """The table of :meth:`SinkTally.table`, from a sink detector's tables of the model as it is and of each change."""
    clean, frames = _by_position(before), []
    counts = ["n_sink_heads_before", "n_sink_heads"]
    for name, found in after.items():
        both = pd.concat([clean.add_suffix("_before"), _by_position(found)], axis=1).sort_index()
        both = both.rename_axis("position").reset_index()
        both[counts] = both[counts].fillna(0).astype(int)
        shown = both[both[counts].sum(axis=1).gt(0) | both["position"].eq(0)]
        frames.append(shown.assign(intervention=name, n_heads=len(before["sink_heads"]))[[*COLUMNS]])
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS])


def _by_position(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Sink heads and largest importance by position."""
    heads = found["sink_heads"]
    if heads.empty:
        return pd.DataFrame(columns=["n_sink_heads", "importance"], index=pd.Index([], name="position"))
    sinks = heads[(heads["sink_rate"] >= SINK_HEAD_RATE) & (heads["ratio"] >= SINK_HEAD_RATIO)]
    out = found["sinks"].groupby("position")[["importance"]].max()
    out["n_sink_heads"] = sinks.groupby("position").size().reindex(out.index, fill_value=0)
    return out


def sink_columns(table: pd.DataFrame, interventions: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """For each intervention: sink heads before and after, and the position with most of them (``None`` without)."""
    out: dict[str, Mapping[str, Any]] = {}
    for name in interventions:
        rows = table[table["intervention"] == name]
        row: dict[str, Any] = {}
        for suffix in ("_before", ""):
            count = rows.set_index("position")[f"n_sink_heads{suffix}"].sort_index()
            row[f"n_sink_heads{suffix}"] = int(count.sum()) if len(rows) else None
            most = int(count.astype(int).to_numpy().argmax()) if len(rows) and count.sum() else None
            row[f"sink_position{suffix}"] = None if most is None else count.index.tolist()[most]
        out[name] = row
    return out


MOST = 4
"""Positions that are named; the rest is counted."""


def describe_sinks_after(table: pd.DataFrame) -> list[str]:
    """One sentence per intervention: sink heads by position before and after it, and what became of the sink."""
    out = []
    for name, rows in table.groupby("intervention", sort=False):
        before, after = _counts(rows, "n_sink_heads_before"), _counts(rows, "n_sink_heads")
        heads = int(rows["n_heads"].iloc[0])
        out.append(
            f"Under {name}: {before.sum()} of {several(heads, 'head')} sink before{_places(before)}, {after.sum()} "
            f"after{_places(after)}; {_fate(before, after)}."
        )
    return out


def _counts(rows: pd.DataFrame, column: str) -> pd.Series:
    """Sink heads by position, the most first."""
    ordered = rows[rows[column] > 0].sort_values([column, "position"], ascending=[False, True])
    return ordered.set_index("position")[column].astype(int)


def _places(counts: pd.Series) -> str:
    if counts.empty:
        return ""
    named = [f"position {position}: {count}" for position, count in counts.head(MOST).items()]
    rest = counts.iloc[MOST:]
    return f" ({', '.join(named)}{f', others: {rest.sum()}' if len(rest) else ''})"


def _fate(before: pd.Series, after: pd.Series) -> str:
    """By the positions that most sink heads have; several may share the first place."""
    if before.empty:
        return "there was no sink" if after.empty else "a sink has come up"
    if after.empty:
        return "no fixed position is a sink any more (of all later queries, those it hides the position from included)"
    old, new = (counts[counts == counts.max()].index.tolist() for counts in (before, after))
    if set(old) & set(new):
        return f"position {listed(str(each) for each in old if each in new)} still has the most"
    return f"the sink moved from position {listed(map(str, old))} to position {listed(map(str, new))}"
