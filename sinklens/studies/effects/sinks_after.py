"""Where the sink went: sink heads by position before and under an intervention, in the passes that run anyway."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from torch import Tensor

from sinklens.attention import ReceivedMass, Statistic
from sinklens.capture.record import LayerRecord
from sinklens.detectors.sinks import EPS, SINK_HEAD_RATE, SINK_HEAD_RATIO, SinkDetector, shortest_length
from sinklens.models.tokens import TokenBatch
from sinklens.studies.effects.sink_columns import COLUMNS

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

        Predictions of these passes are compared, so counting has no say in how attention is computed.

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

        return {"statistics": [ReceivedMass], "on_layer": take, "real": part.real, "compared": True}

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
