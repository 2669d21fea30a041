"""Life of a massive activation: what every layer's attention and MLP add to one entry of the residual stream."""

import math
from collections.abc import Sequence
from typing import Any, Final, Self

import pandas as pd
import torch
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, Metric
from sinklens.detectors.lifecycle_steps import PARTS, Step, steps
from sinklens.detectors.registry import register
from sinklens.errors import InputError, UnsupportedArchitectureError

METRIC = Metric(
    "entry_contribution",
    1,
    "For one entry (token t, channel j) and layer l: before_l + attention_l + mlp_l = after_l, where before and after "
    "are the residual stream at the entry and attention (or what stands in its place) and mlp are what the layer's "
    "two halves add to it, after any norm that follows them. The identity is checked in every layer.",
    "Sun et al. 2024, arXiv 2402.17762; step-up and step-down layers after Sun et al. 2026, arXiv 2603.05498",
)

__all__ = ["COLUMNS", "METRIC", "LifecycleDetector", "Step", "steps"]

COLUMNS = ("sequence", "layer", "position", "token", "channel", "before", "attention", "mlp", "after")
_ROUNDING: Final = 8.0
_FIRST: Final = 8
"""Sequences whose position 0 is traced when no entry was asked for."""
_First = tuple[int, int, str, dict[str, Tensor]]


@register
class LifecycleDetector(Detector):
    """Which layer writes a huge entry of the residual stream and which takes it away: large where a half adds much.

    Table ``lifecycle``, one row per sequence, entry and layer: ``before, attention, mlp, after``. A half that a layer
    does not have (no MLP in a state-space layer) is NaN. :func:`steps` names the writer and the canceller.

    Args:
        entries: Token positions and channels, from 0, such as those of ``plots.massive_table.strongest_activations``; a
            sequence that does not reach a position is left out there. Without them, as in a scan: position 0 of the
            first 8 sequences, in the channel where it grows largest over the layers; the table is empty where the
            halves are not known or do not add up.

    Raises:
        InputError: An empty list, or a negative number.

    Cost: O(entries) numbers per layer and sequence; without entries O(8 d_model) per layer.

    Example::

        traced = measure(model, batch, "lifecycle", entries=[(0, 447)]).tables["lifecycle"]
        writer, canceller = steps(traced)
    """

    name = "lifecycle"
    metrics = (METRIC,)
    needs = ("hidden",)
    wants = ("halves",)
    by_default = True

    def __init__(self, entries: Sequence[tuple[int, int]] | None = None) -> None:
        self.entries = None if entries is None else tuple(entries)
        if entries is not None and (not entries or min(min(entry) for entry in entries) < 0):
            raise InputError(f"Expected at least one entry (position, channel), both from 0; got {list(entries)}.")
        self._rows: list[tuple[Any, ...]] = []
        self._longest = 0
        self._firsts: list[_First] = []
        self._unsound = False

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch.

        Raises:
            InputError: There is no such channel.
            UnsupportedArchitectureError: Entries were asked for, and the halves of the layer are not known or do not
                add up to its output (a scaled or gated residual).
        """
        if record.layer < 0 or record.hidden is None:
            return
        if self.entries is None:
            self._keep_first(record)
            return
        if record.halves is None:
            raise UnsupportedArchitectureError(f"What the halves of layer {record.layer} write is not known.")
        self._longest = max(self._longest, int(record.batch.lengths.max()))
        self._refuse(record.hidden.shape[-1], 1, "channel")
        parts = record.halves | {"after": record.hidden}
        self._check(record, parts)
        names = ("before", *PARTS, "after")
        for position, channel in self.entries:
            for row in (record.batch.lengths > position).nonzero().flatten().tolist():
                numbers = (float(parts[name][row, position, channel]) if name in parts else math.nan for name in names)
                place = (record.first_sequence + row, record.layer, position, record.batch.tokens[row][position])
                self._rows.append((*place, channel, *numbers))

    def _keep_first(self, record: LayerRecord) -> None:
        """Position 0 of the first sequences, in all channels: which one grows largest is known after the last layer."""
        rows = [row for row in range(len(record.batch)) if record.first_sequence + row < _FIRST]
        if self._unsound or not rows:
            return
        if record.halves is None or record.hidden is None:
            self._unsound = True
            return
        # on the CPU at once: halves of a layer may lie on two devices, and one copy each serves all sequences
        parts = {
            name: part[rows, :1].float().cpu() for name, part in (record.halves | {"after": record.hidden}).items()
        }
        try:
            self._check(record, parts, torch.finfo(record.hidden.dtype).eps)
        except UnsupportedArchitectureError:
            self._unsound = True
            return
        for row in rows:
            place = (record.first_sequence + row, record.layer, record.batch.tokens[row][0])
            self._firsts.append((*place, {name: part[row, 0] for name, part in parts.items()}))

    def _first_rows(self) -> list[tuple[Any, ...]]:
        """The rows of position 0, in the channel of its largest entry."""
        if self._unsound or not self._firsts:
            return []
        largest = torch.stack([parts["after"].abs() for _, _, _, parts in self._firsts]).nan_to_num().amax(0)
        channel = int(largest.argmax())
        names = ("before", *PARTS, "after")
        return [
            (sequence, layer, 0, token, channel, *(float(parts[n][channel]) if n in parts else math.nan for n in names))
            for sequence, layer, token, parts in self._firsts
        ]

    def _refuse(self, limit: int, place: int, what: str) -> None:
        for entry in self.entries or ():
            if entry[place] >= limit:
                raise InputError(f"There is no entry {entry}: expected a {what} below {limit}.")

    def _check(self, record: LayerRecord, parts: dict[str, Tensor], eps: float | None = None) -> None:
        """Every entry of every token adds up, to the rounding of the model's own sums."""
        after = parts["after"]
        terms = [parts[name].float().to(after.device) for name in ("before", *PARTS) if name in parts]
        gap, scale = -after.float(), after.float().abs()
        for term in terms:
            gap, scale = gap + term, scale + term.abs()
        wrong = gap.abs() > _ROUNDING * (eps or torch.finfo(after.dtype).eps) * scale
        if bool(wrong.any()):
            raise UnsupportedArchitectureError(
                f"What attention and MLP add in layer {record.layer} does not make its output (off by up to "
                f"{float(gap.abs()[wrong].max()):.3g}): the layer scales, gates or edits its residual stream, so its "
                "contributions are not given."
            )

    def merge(self, other: Self) -> None:
        """Add what another detector of the same entries saw of other sequences."""
        self.check_settings(other)
        self._rows += other._rows
        self._firsts += other._firsts
        self._unsound = self._unsound or other._unsound
        self._longest = max(self._longest, other._longest)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table, by sequence, entry and layer.

        Raises:
            InputError: No sequence reaches the position of an entry.
        """
        if self._longest:
            self._refuse(self._longest, 0, "position")
        table = pd.DataFrame(self._rows or self._first_rows(), columns=[*COLUMNS])
        return {"lifecycle": table.sort_values(["sequence", "position", "channel", "layer"], ignore_index=True)}
