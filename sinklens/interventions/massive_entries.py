"""Where a model's massive activations appear, as a rule that sets them, and the control beside it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.detectors.massive_activations import ABSOLUTE, RATIO, MassiveActivationDetector, massive_masks
from sinklens.errors import InputError
from sinklens.interventions.entries import Entry, MassiveRule, Where, check_where, layers_of, parse_where
from sinklens.interventions.residual import Stream, residual_streams
from sinklens.interventions.set_activations import chosen_entries
from sinklens.models.tokens import Ids, TokenBatch, as_batch

COLUMNS = ("sequence", "position", "bucket", "token", "dim", "value", "median", "ratio")


@dataclass(frozen=True)
class MassiveEntries:
    """The massive activations of a reference text at the layer where they appear.

    Attributes:
        layer: The block after which most sequences have their first ones (the lowest in a tie).
        layers: For each block, how many sequences have their first ones there.
        dims: Their channels at ``layer``, the most frequent first.
        above: A bound on the magnitude that all of them pass: the criteria as they stood in the sequence where they
            asked least.
        n_sequences: Sequences that were looked at; those without any are in none of ``layers``.
        table: One row per entry at ``layer``: ``sequence, position, bucket`` ("start" is position 0, "others" the
            rest), ``token, dim, value, median`` (of ``|h|`` over the whole sequence), ``ratio``.
    """

    layer: int
    layers: dict[int, int]
    dims: tuple[int, ...]
    above: float
    n_sequences: int
    table: pd.DataFrame

    def rule(self) -> MassiveRule:
        """The rule that means these entries in any text: what ``SetActivations(where=...)`` takes."""
        return MassiveRule(self.layer, self.dims, self.above)

    def to_dataframe(self) -> pd.DataFrame:
        """The entries."""
        return self.table


@torch.no_grad()
def massive_entries(
    model: TransformerBridge, batch: TokenBatch | Ids, *, absolute: float = ABSOLUTE, ratio: float = RATIO
) -> MassiveEntries:
    """Find the massive activations at the layer where they first appear, with the detector's criteria.

    An entry is massive with ``|h| > absolute`` and ``|h| > ratio * median |h|``, both strict. The first criterion
    depends on the model's scale, and small models never reach 100: ``absolute=0`` (or ``ratio=0``) leaves one out.
    Where a text's first massive layer is differs from text to text, hence the mode. Entries that appear only in a
    later layer are not in the result, as in the studies; a second rule for that layer can be added with ``+``.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`; state whether they begin with a BOS, some models have
            massive activations only then.
        absolute: Bound on ``|h|``.
        ratio: Bound on ``|h|`` in medians of the sequence.

    Raises:
        InputError: Both criteria are left out, or no entry of any sequence meets them; the sentence names the largest.

    Cost: two forward passes of the batch.

    Source: Owen et al. (2025), arXiv 2503.22329 (criteria strict, layer by majority).
    """
    batch = as_batch(model, batch)
    if absolute <= 0 and ratio <= 0:
        raise InputError("absolute and ratio cannot both be left out; give at least one bound above 0.")
    detector = MassiveActivationDetector(absolute, ratio)
    capture(model, batch, [detector], statistics=lambda rows, first: [], top_k=1)
    tops = detector.compute().table
    tops = tops[tops["layer"] >= 0]
    firsts = tops[tops["absolute"] & tops["relative"]].groupby("sequence")["layer"].min()
    layers = dict(sorted(Counter(firsts.tolist()).items()))
    if not layers:
        largest = tops.sort_values("ratio").iloc[-1]
        raise InputError(
            f"No massive activation: no entry has |h| > {absolute:g} and |h| > {ratio:g} x median. The largest is "
            f"{largest['value']:.4g} after block {largest['layer']}, {largest['ratio']:.4g} x median; lower a bound, "
            "or report that there is none."
        )
    layer = max(layers, key=lambda at: layers[at])
    rows: list[tuple[Any, ...]] = []
    bounds: list[float] = []
    for sequence, hidden in _sequences(model, batch, layer):
        median = float(hidden.abs().median())
        bounds.append(max(absolute, ratio * median))
        masks = massive_masks(hidden, absolute, ratio)
        for position, dim in (masks.absolute & masks.relative).nonzero().tolist():
            value, bucket = float(hidden[position, dim]), "others" if position else "start"
            token = batch.tokens[sequence][position]
            rows.append((sequence, position, bucket, token, dim, value, median, abs(value) / median))
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    dims = tuple(dim for dim, _ in Counter(table["dim"].tolist()).most_common())
    return MassiveEntries(layer, layers, dims, min(bounds), len(batch), table)


@torch.no_grad()
def control_entries(model: TransformerBridge, batch: TokenBatch | Ids, where: Any, *, draw: int = 0) -> Where:
    """As many entries of median size, in the same layer and at the same tokens: the control of ``where``.

    The channels whose mean magnitude over the tokens concerned is closest to the median of ``|h|`` (over all tokens
    and channels of a sequence, then the mean over sequences) take the place of those in ``where``. For a rule each of
    its channels gets one stand-in, which is set wherever the channel itself is large, so the number of entries is the
    same in every text.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`, on which sizes are measured.
        where: What is to be controlled: named entries, or a rule without ``instead``.
        draw: 0 takes the channels closest to the median, 1 the next ones, and so on: draws share no entry.

    Returns:
        Named entries for named entries, a rule for a rule.

    Raises:
        InputError: A rule that is large nowhere in the reference, a position that no sequence reaches, or more draws
            than there are channels.

    Cost: one forward pass of the batch.

    Source: Sun et al. (2024), arXiv 2402.17762, section 3: zeroing as many entries of median magnitude.
    """
    batch = as_batch(model, batch)
    where = parse_where(where)
    check_where(model, where)
    if isinstance(where, MassiveRule) and where.instead is not None:
        raise InputError("where is a control already; give the rule it was made from, and another draw.")
    if draw < 0:
        raise InputError(f"draw must be at least 0, got {draw}.")
    sizes, medians = _Means(), _Means()
    for stream in residual_streams(model, batch, layers_of(where)):
        for hidden, real in zip(stream.hidden, stream.real, strict=True):
            medians.add(stream.layer, hidden[real].double().abs().median()[None])
        for key, chosen in _groups(where, stream).items():
            sizes.add(key, stream.hidden[chosen].double().abs())
    if isinstance(where, MassiveRule):
        instead = _closest(sizes, medians, where.layer, where.layer, where.dims, len(where.dims), draw)
        return MassiveRule(where.layer, where.dims, where.above, instead)
    found: list[Entry] = []
    for layer, position in dict.fromkeys((layer, position) for layer, position, _ in where):
        taken = [dim for at, _, dim in where if at == layer]
        count = sum((at, place) == (layer, position) for at, place, _ in where)
        channels = _closest(sizes, medians, (layer, position), layer, taken, count, draw)
        found += [(layer, position, dim) for dim in channels]
    return tuple(found)


class _Means:
    """Means over tokens, by key."""

    def __init__(self) -> None:
        self.totals: dict[Any, Tensor | float] = defaultdict(float)
        self.counts: dict[Any, int] = defaultdict(int)

    def add(self, key: Any, values: Tensor) -> None:
        self.totals[key] += values.sum(0)
        self.counts[key] += len(values)

    def of(self, key: Any) -> Tensor:
        return torch.as_tensor(self.totals[key]) / self.counts[key]


def _groups(where: Where, stream: Stream) -> dict[Any, Tensor]:
    """Which tokens ``where`` touches in a layer: all together for a rule, position by position for named entries."""
    entries = chosen_entries(where, stream.layer, stream.hidden, stream.positions)
    if isinstance(where, MassiveRule):
        return {where.layer: torch.stack([chosen for _, _, chosen in entries]).any(0)}
    return {(stream.layer, where[n][1]): chosen for n, _, chosen in entries}


def _closest(
    sizes: _Means, medians: _Means, key: Any, layer: int, taken: Sequence[int], count: int, draw: int
) -> tuple[int, ...]:
    """``count`` channels closest to the median in size, none of them ``taken``."""
    if sizes.counts[key] == 0:
        raise InputError("The entries of where do not occur in the reference text; give one in which they do.")
    distance = (sizes.of(key) - medians.of(layer)).abs()
    order = [dim for dim in distance.argsort(stable=True).tolist() if dim not in set(taken)]
    chosen = order[draw * count : (draw + 1) * count]
    if len(chosen) < count:
        raise InputError(f"Draw {draw} needs {count} more channels than the {len(order)} that there are.")
    return tuple(chosen)


def _sequences(model: TransformerBridge, batch: TokenBatch, layer: int) -> Iterator[tuple[int, Tensor]]:
    """Number and residual stream ``[pos d_model]`` of each sequence, padding left out."""
    for stream in residual_streams(model, batch, [layer]):
        for row, (hidden, real) in enumerate(zip(stream.hidden, stream.real, strict=True)):
            yield stream.first + row, hidden[real].float()
