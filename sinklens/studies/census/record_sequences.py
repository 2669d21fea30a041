"""What a pass keeps of every head on each text, for :mod:`~sinklens.studies.census.by_sequence`."""

from collections.abc import MutableMapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sinklens.attention import Distance, Entropy, ReceivedMass, StatisticFactory, TopKey
from sinklens.capture.finite import NonFinite
from sinklens.capture.record import LayerRecord
from sinklens.detectors.sinks import sequence_importance
from sinklens.models.tokens import TokenBatch
from sinklens.studies.census.by_sequence import BY_HEAD, BY_TOKEN, NO_KEY, PREFIX

MOST_BYTES: Final = 128 * 2**20
"""What is kept at most; of more texts the first are kept, and the header says how many."""


class RecordSequences:
    """Consumer of a pass that keeps every head's numbers on each text, for as many texts as :data:`MOST_BYTES` holds.

    Args:
        batch: All tokens of the pass.
        layers: Of the model.
        heads: Of a layer.
    """

    def __init__(self, batch: TokenBatch, layers: int, heads: int) -> None:
        self.layers = layers
        self.kept = sequences_kept(batch.lengths.tolist(), layers, heads)
        self.ends = np.cumsum([0, *batch.lengths.tolist()[: self.kept]])
        self._found: dict[str, dict[int, np.ndarray]] = {name: {} for name in (*BY_TOKEN, *BY_HEAD)}

    def statistics(self, batch: TokenBatch) -> Sequence[StatisticFactory]:
        """What a scan takes anyway, and the strongest key of each query."""
        return [ReceivedMass, Entropy, Distance, TopKey] if self.kept else []

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch."""
        rows = range(min(len(record.batch), self.kept - record.first_sequence))
        if not rows:
            return
        attention, residual, values = record.attention, record.residual, record.values
        found: dict[str, Tensor | None] = {"resid_norm": None if residual is None else residual.norm[:, None]}
        if "mass" in attention:
            alpha, reached = sequence_importance(record)
            queries = (record.batch.lengths[:, None] - torch.arange(reached.shape[1])).clamp(min=1)
            found |= {"importance": alpha, "null": (attention["null_mass"] / queries.to(alpha.device))[:, None]}
            found |= {"top_key": attention.get("top_key"), "top_weight": attention.get("top_weight")}
            found |= {name: attention[name].nanmean(-1) for name in BY_HEAD if name in attention}
        if values is not None:
            found |= {"value_norm": values.value, "output_norm": values.output}
        for name, tensor in found.items():
            if tensor is not None:
                self._keep(name, record, tensor.cpu(), rows)

    def _keep(self, name: str, record: LayerRecord, values: Tensor, rows: range) -> None:
        """Put ``[batch head pos]`` (or ``[batch head]``) where the texts' tokens lie."""
        kind: Any = np.uint32 if name == "top_key" else np.float32
        by_token = name in BY_TOKEN
        shape = (int(self.ends[-1]) if by_token else self.kept, values.shape[1])
        into = self._found[name].setdefault(record.layer, np.full(shape, _missing(name), kind))
        for row in rows:
            sequence = record.first_sequence + row
            if not by_token:
                into[sequence] = values[row].numpy()
                continue
            start, stop = int(self.ends[sequence]), int(self.ends[sequence + 1])
            part = values[row, :, : stop - start].T.numpy()
            into[start:stop] = np.where(part < 0, NO_KEY, part) if name == "top_key" else part

    def arrays(self, nonfinite: NonFinite | None = None) -> dict[str, np.ndarray]:
        """By name with :data:`PREFIX`: ``[token layer head]``, the tokens of all kept texts one after the other.

        Args:
            nonfinite: What of the pass was NaN or infinite: these heads and layers have no numbers.
        """
        out: dict[str, np.ndarray] = {}
        if not self._found["importance"]:
            return out
        for name, by_layer in self._found.items():
            if by_layer:
                first = -1 if name == "resid_norm" else 0
                out[name] = _stacked(name, by_layer, range(first, self.layers))
        out["null"], out["resid_norm"] = out["null"][..., 0], out["resid_norm"][..., 0]
        for layer, head in sorted(nonfinite.heads) if nonfinite else ():
            for name in set(out) - {"null", "resid_norm"}:
                own = head // (out["importance"].shape[2] // out[name].shape[2])
                out[name][:, layer, own] = _missing(name)
        for layer in nonfinite.layers if nonfinite else ():
            out["resid_norm"][:, layer + 1] = np.nan
        return {f"{PREFIX}{name}": values for name, values in out.items()}


def sequences_kept(lengths: Sequence[int], layers: int, heads: int) -> int:
    """How many texts, from the first, fit into :data:`MOST_BYTES`.

    >>> sequences_kept([64] * 100, 30, 9), sequences_kept([4096] * 100, 32, 32)
    (100, 1)
    """
    each = 4 * layers * (5 * heads + 2)  # importance, two norms, key and weight; null and residual norm
    return int((np.cumsum([int(length) * each for length in lengths]) <= MOST_BYTES).sum())


def _stacked(name: str, by_layer: MutableMapping[int, np.ndarray], layers: range) -> np.ndarray:
    """Layers side by side, missing ones and heads that a layer does not have as missing."""
    example = next(iter(by_layer.values()))
    width = max(each.shape[1] for each in by_layer.values())
    out = np.full((len(example), len(layers), width), _missing(name), example.dtype)
    for index, layer in enumerate(layers):
        if layer in by_layer:
            found = by_layer.pop(layer)  # no second copy of all layers
            out[:, index, : found.shape[1]] = found
    return out


def _missing(name: str) -> Any:
    return NO_KEY if name == "top_key" else np.nan
