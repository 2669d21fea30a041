"""Token-specific massive entries of every layer, collected layer by layer."""

from typing import Any

import pandas as pd
import torch

from sinklens.capture.record import LayerRecord
from sinklens.detectors.massive_activations import massive_masks
from sinklens.detectors.massive_channels import CONTRAST, EVERYWHERE

SPECIFIC = 5.0
ENTRY_COLUMNS = ("sequence", "layer", "position", "token", "dim", "value", "median", "bound")


class EntryFinder:
    """A consumer of layer records that keeps the massive entries which belong to single tokens.

    An entry counts if it meets both criteria and is more than five times its channel's median magnitude over the tokens
    of the sequence; more than ten times where half of the tokens or more meet the criteria in that channel. A channel
    that is large at every token carries no massive activation of one of them.

    Attributes:
        rows: One tuple of :data:`ENTRY_COLUMNS` for each entry.
        rest: Per layer, the largest magnitude of every channel among all other entries.
        bounds: Per layer, what the criteria asked in the sequence where they asked least.
        largest: Ratio, value and layer of the entry that is the most medians large.
    """

    needs = ("hidden",)

    def __init__(self, absolute: float, ratio: float) -> None:
        self.absolute, self.ratio = absolute, ratio
        self.rows: list[tuple[Any, ...]] = []
        self.rest: dict[int, torch.Tensor] = {}
        self.bounds: dict[int, float] = {}
        self.largest = (0.0, 0.0, 0)

    def statistics(self, batch: Any) -> list[Any]:
        """None: attention is not looked at."""
        return []

    def update(self, record: LayerRecord) -> None:
        """Take one layer; the embedding's output is no layer."""
        if record.layer < 0 or record.hidden is None or record.residual is None:
            return
        layer = record.layer
        for row, length in enumerate(record.batch.lengths.tolist()):
            states = record.hidden[row, :length].float()
            median = float(record.residual.median[row])
            bound = max(self.absolute, self.ratio * median)
            self.bounds[layer] = min(bound, self.bounds.get(layer, bound))
            top = float(record.residual.top_value[row, 0])
            if median > 0 and abs(top) / median > self.largest[0]:
                self.largest = (abs(top) / median, top, layer)
            magnitude = states.abs()
            masks = massive_masks(states, self.absolute, self.ratio)
            found = masks.absolute & masks.relative
            columns = found.any(0).nonzero().flatten()
            if len(columns) and length > 2:  # one or two tokens have no others to compare with
                chosen = magnitude[:, columns]
                usual = chosen.median(0).values
                few = found[:, columns].double().mean(0) < EVERYWHERE
                found[:, columns] &= torch.where(few, chosen > SPECIFIC * usual, chosen > CONTRAST * usual)
            most = magnitude.masked_fill(found, 0).amax(0).cpu()
            self.rest[layer] = torch.maximum(most, self.rest.get(layer, most))
            for position, dim in found.nonzero().tolist():
                token = record.batch.tokens[row][position]
                value = float(states[position, dim])
                self.rows.append((record.first_sequence + row, layer, position, token, dim, value, median, bound))

    def entries(self) -> pd.DataFrame:
        """The entries as a table."""
        return pd.DataFrame(self.rows, columns=[*ENTRY_COLUMNS]).sort_values(
            ["sequence", "layer", "position", "dim"], ignore_index=True
        )
