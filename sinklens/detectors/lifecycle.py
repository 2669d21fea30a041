"""Life of a massive activation: what every block's attention and MLP add to one entry of the residual stream."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import StatisticFactory
from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Metric
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.tokens import Ids, TokenBatch, as_batch

METRIC = Metric(
    "entry_contribution",
    1,
    "For one entry (token t, channel j) and block l: before_l + attention_l + mlp_l = after_l, where before and after "
    "are the residual stream at the entry and attention (or what stands in its place) and mlp are what the block's "
    "two halves add to it, after any norm that follows them. The identity is checked in every layer.",
    "Sun et al. 2024, arXiv 2402.17762; step-up and step-down blocks after Sun et al. 2026, arXiv 2603.05498",
)

COLUMNS = ("sequence", "layer", "position", "token", "channel", "before", "attention", "mlp", "after")
PARTS: Final = ("attention", "mlp")
_ROUNDING: Final = 8.0


class Step(NamedTuple):
    """The half of a block that changes an entry most in one direction.

    Attributes:
        layer: Block index.
        part: "attention" or "mlp".
        value: What it adds, signed.
        share: ``value`` over the entry's largest value: 1 means it writes all of it, -1 that it cancels all.
    """

    layer: int
    part: str
    value: float
    share: float


@dataclass(frozen=True)
class Lifecycle:
    """Contributions to some entries of the residual stream.

    Attributes:
        table: One row per sequence, entry and layer: ``before, attention, mlp, after``. A half that a block does not
            have (no MLP in a state-space block) is NaN.
    """

    table: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """The table."""
        return self.table


def steps(entry: pd.DataFrame) -> tuple[Step | None, Step | None]:
    """Which half-block writes an entry, and which one cancels it.

    With ``p`` the layer after which ``|after|`` is largest and ``s`` its sign there: the writer is the largest
    ``s * contribution`` up to layer ``p``, the canceller the most negative one after ``p``. ``None`` where there is
    none, such as a canceller of an entry that is largest after the last block.

    Args:
        entry: One row per layer with ``layer, attention, mlp, after`` (means over sequences, if there were several).

    Returns:
        ``(writer, canceller)``.

    Example:
        >>> table = pd.DataFrame({"layer": [0, 1, 2], "attention": [0.0, 1.0, 0.5], "mlp": [90.0, 9.0, -80.0]})
        >>> writer, canceller = steps(table.assign(after=[90.0, 100.0, 20.5]))
        >>> writer[:3], canceller[:3]
        ((0, 'mlp', 90.0), (2, 'mlp', -80.0))
    """
    ordered = entry.sort_values("layer")
    after = ordered["after"].to_numpy(dtype=float)
    if not len(after) or not np.nanmax(np.abs(after)):
        return None, None
    peak = int(np.nanargmax(np.abs(after)))
    found = [
        Step(int(layer), part, float(value), float(value) / float(after[peak]))
        for part in PARTS
        for layer, value in zip(ordered["layer"], ordered[part], strict=True)
        if not math.isnan(value)
    ]
    last = int(ordered["layer"].iloc[peak])
    writer = max((step for step in found if step.layer <= last and step.share > 0), key=_share, default=None)
    canceller = min((step for step in found if step.layer > last and step.share < 0), key=_share, default=None)
    return writer, canceller


def _share(step: Step) -> float:
    return step.share


class LifecycleDetector:
    """Reads the entries ``(position, channel)`` in every block. Cost: O(entries) numbers per layer and sequence.

    Args:
        entries: Token positions and channels, from 0; a sequence that does not reach a position is left out there.
    """

    needs = ("hidden", "halves")

    def __init__(self, entries: Sequence[tuple[int, int]]) -> None:
        self.entries = tuple(entries)
        self._rows: list[tuple[Any, ...]] = []

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """Attention is not looked at."""
        return []

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch.

        Raises:
            UnsupportedArchitectureError: The halves of the block do not add up to its output.
        """
        if record.halves is None or record.hidden is None:
            return
        parts = record.halves | {"after": record.hidden}
        self._check(record, parts)
        names = ("before", *PARTS, "after")
        for position, channel in self.entries:
            for row in (record.batch.lengths > position).nonzero().flatten().tolist():
                numbers = (float(parts[name][row, position, channel]) if name in parts else math.nan for name in names)
                place = (record.first_sequence + row, record.layer, position, record.batch.tokens[row][position])
                self._rows.append((*place, channel, *numbers))

    def _check(self, record: LayerRecord, parts: dict[str, Tensor]) -> None:
        """Every entry of every token adds up, to the rounding of the model's own sums."""
        after = parts["after"]
        terms = [parts[name].float() for name in ("before", *PARTS) if name in parts]
        gap, scale = -after.float(), after.float().abs()
        for term in terms:
            gap, scale = gap + term, scale + term.abs()
        wrong = gap.abs() > _ROUNDING * torch.finfo(after.dtype).eps * scale
        if bool(wrong.any()):
            raise UnsupportedArchitectureError(
                f"What attention and MLP add in block {record.layer} does not make its output (off by up to "
                f"{float(gap.abs()[wrong].max()):.3g}): the block scales, gates or edits its residual stream, so its "
                "contributions are not given."
            )

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences.

        Raises:
            InputError: It looked at other entries.
        """
        if self.entries != other.entries:
            raise InputError("Contributions to different entries cannot be merged.")
        self._rows += other._rows

    def compute(self) -> Lifecycle:
        """The table, by sequence, entry and layer."""
        table = pd.DataFrame(self._rows, columns=[*COLUMNS])
        return Lifecycle(table.sort_values(["sequence", "position", "channel", "layer"], ignore_index=True))


def trace_entries(
    model: TransformerBridge, batch: TokenBatch | Ids, entries: Sequence[tuple[int, int]], *, batch_size: int = 8
) -> Lifecycle:
    """Read what every half-block adds to some entries of the residual stream, for all sequences, in one pass.

    Args:
        model: The bridge; it is the same afterwards.
        batch: Tokens.
        entries: Token positions and channels, from 0, such as those of ``plots.massive_table.strongest_activations``.
        batch_size: Sequences per forward pass.

    Raises:
        InputError: No entries, or one that does not exist.
        UnsupportedArchitectureError: A block whose halves do not add up to its output (a scaled or gated residual).

    Cost: one forward pass; no T x T tensor on the fast path.

    Example::

        traced = trace_entries(model, batch, [(0, 447)])
        writer, canceller = steps(traced.table)
    """
    batch = as_batch(model, batch)
    longest, d_model = int(batch.lengths.max()), int(model.cfg.d_model)
    if not entries:
        raise InputError("trace_entries needs at least one entry (position, channel); see strongest_activations.")
    for position, channel in entries:
        if not (0 <= position < longest and 0 <= channel < d_model):
            raise InputError(
                f"There is no entry ({position}, {channel}): expected a position below {longest} and a channel below "
                f"{d_model}, both from 0."
            )
    detector = LifecycleDetector(entries)
    capture(model, batch, [detector], batch_size=batch_size)
    return detector.compute()
