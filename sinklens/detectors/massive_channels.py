"""Which channels hold massive activations after which blocks: presence by layer, and the episodes it makes."""

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.errors import InputError

PRESENCE = 0.5
EVERYWHERE = 0.5
CONTRAST = 10.0
CRITERIA = ("absolute", "relative")
BUCKETS = ("start", "others")
CHANNEL_COLUMNS = (
    "layer", "criterion", "bucket", "channel", "n_sequences", "n_of", "n_tokens", "token_share", "value", "peak",
    "contrast",
)  # fmt: skip
EPISODE_COLUMNS = (
    "criterion", "bucket", "channel", "episode", "appears", "leaves_after", "n_sequences", "n_sequences_least", "n_of",
    "peak", "peak_layer", "value", "token_share", "contrast", "everywhere",
)  # fmt: skip
_SUMS = ("n_sequences", "n_tokens", "value", "size", "peak")


class ChannelPresence:
    """Counts, per layer, criterion, bucket (position 0, other positions) and channel, where an entry is massive.

    All entries are counted, however many there are. Memory: O(d_model) per layer, whatever the number of sequences.

    Args:
        absolute: Bound on ``|h|``.
        ratio: Bound in medians of the sequence.
    """

    def __init__(self, absolute: float, ratio: float) -> None:
        self.bounds = (absolute, ratio)
        self.sums: dict[int, Tensor] = {}  # layer -> [criterion, bucket, _SUMS, channel], fp64
        self.others: dict[int, Tensor] = {}  # layer -> sum of |h| over the tokens after position 0, by channel
        self.counts: dict[
            int, tuple[int, int, int]
        ] = {}  # sequences, those with a second token, tokens after the first

    def update(self, record: LayerRecord, hidden: Float[Tensor, "batch pos d_model"]) -> None:
        """Take one layer of some sequences."""
        if record.residual is None:
            return
        layer, width = record.layer, hidden.shape[-1]
        if layer not in self.sums:
            self.sums[layer] = torch.zeros(len(CRITERIA), len(BUCKETS), len(_SUMS), width, dtype=torch.float64)
            self.others[layer] = torch.zeros(width, dtype=torch.float64)
            self.counts[layer] = (0, 0, 0)
        real, lengths = record.real.to(hidden.device), record.batch.lengths
        sequences, longer, tokens = self.counts[layer]
        sequences, longer = sequences + int((lengths > 0).sum()), longer + int((lengths > 1).sum())
        self.counts[layer] = sequences, longer, tokens + int((lengths - 1).clamp(min=0).sum())
        later = hidden[:, 1:] if bool(real.all()) else hidden[:, 1:].masked_fill(~real[:, 1:, None], 0)
        # fp64, because the massive entries are subtracted again and would take the digits of the rest with them
        self.others[layer] += torch.linalg.vector_norm(later, ord=1, dim=(0, 1), dtype=torch.float64).cpu()
        largest = record.residual.token_max.to(hidden.device).masked_fill(~real, -1)
        relative = [self.bounds[1] * median for median in record.residual.median.tolist()]
        for criterion, bounds in enumerate(([self.bounds[0]] * len(relative), relative)):
            above = torch.tensor([fp32_bound(bound) for bound in bounds], device=hidden.device)
            # a token whose largest entry is not massive has none: most of them end here
            rows, places = (largest > above[:, None]).nonzero(as_tuple=True)
            if len(rows):
                self._count(self.sums[layer][criterion], hidden[rows, places].float(), rows, places, above[rows])

    @staticmethod
    def _count(sums: Tensor, states: Tensor, rows: Tensor, places: Tensor, above: Tensor) -> None:
        massive = states.abs() > above[:, None]
        for bucket, members in enumerate((places == 0, places > 0)):
            met = massive[members]
            if not len(met):
                continue
            values = states[members].masked_fill(~met, 0)
            by_row = torch.zeros(int(rows.max()) + 1, met.shape[1], device=met.device)
            having = by_row.index_add_(0, rows[members], met.float()) > 0
            totals = (values.sum(0, dtype=torch.float64), values.abs().sum(0, dtype=torch.float64))
            sums[bucket, :4] += torch.stack([having.sum(0).double(), met.sum(0).double(), *totals]).cpu()
            sums[bucket, 4] = torch.maximum(sums[bucket, 4], values.abs().amax(0).double().cpu())

    def merge(self, other: Self) -> None:
        """Add what was counted in other sequences."""
        if self.bounds != other.bounds:
            raise InputError("Counts of massive activations with different bounds cannot be merged.")
        for layer, theirs in other.sums.items():
            if layer not in self.sums:
                self.sums[layer], self.others[layer] = theirs.clone(), other.others[layer].clone()
                self.counts[layer] = other.counts[layer]
                continue
            peak = torch.maximum(self.sums[layer][:, :, 4], theirs[:, :, 4])
            self.sums[layer] = self.sums[layer] + theirs
            self.sums[layer][:, :, 4] = peak
            self.others[layer] = self.others[layer] + other.others[layer]
            mine, more = self.counts[layer], other.counts[layer]
            self.counts[layer] = (mine[0] + more[0], mine[1] + more[1], mine[2] + more[2])

    def channels(self) -> pd.DataFrame:
        """One row per layer, criterion, bucket and channel with a massive entry in some sequence."""
        rows = [row for layer in sorted(self.sums) for row in self._rows(layer)]
        return pd.DataFrame(rows, columns=[*CHANNEL_COLUMNS])

    def _rows(self, layer: int) -> Iterator[tuple[Any, ...]]:
        sequences, longer, tokens = self.counts[layer]
        for c, criterion in enumerate(CRITERIA):
            met = self.sums[layer][c, 1, 1]
            share = (met / tokens).tolist() if tokens else [math.nan] * met.shape[0]
            for b, bucket in enumerate(BUCKETS):
                n_sequences, n_tokens, value, size, peak = self.sums[layer][c, b]
                # beside position 0 stand all later tokens; beside massive later tokens, those that are not
                rest = tokens - met if bucket == "others" else torch.full_like(met, tokens)
                usual = self.others[layer] - (size if bucket == "others" else 0)
                contrast = (size / n_tokens) / (usual / rest)
                for channel in n_sequences.nonzero().flatten().tolist():
                    ratio = float(contrast[channel]) if rest[channel] > 0 else math.nan
                    yield (
                        layer, criterion, bucket, channel, int(n_sequences[channel]),
                        longer if bucket == "others" else sequences, int(n_tokens[channel]), share[channel],
                        float(value[channel] / n_tokens[channel]), float(peak[channel]), ratio,
                    )  # fmt: skip


def fp32_bound(bound: float) -> float:
    """The largest fp32 number that is not above ``bound``: an fp32 entry exceeds the one where it exceeds the other.

    Comparing with ``bound`` itself would round it, and decide wrongly about entries that equal it.

    >>> fp32_bound(100.0), fp32_bound(0.1) <= 0.1
    (100.0, True)
    """
    with np.errstate(over="ignore"):
        rounded = np.float32(bound)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > bound else rounded)


def specific_tokens(
    states: Float[Tensor, "pos d_model"], largest: Float[Tensor, " pos"], bound: float
) -> Bool[Tensor, " pos"]:
    """Which tokens have an entry above ``bound`` that is also more than ten times its channel's median over the tokens.

    A channel that is large at every token marks none of them.

    Args:
        states: One sequence's residual stream.
        largest: The largest magnitude of each token; one at or below the bound is not looked at.
        bound: On ``|h|``, strict.

    Cost: O(pos) for each channel with an entry above ``bound``.

    Example:
        >>> h = torch.ones(5, 3)
        >>> h[2, 0], h[:, 1] = 500.0, 400.0
        >>> specific_tokens(h, h.amax(1), 100.0).nonzero().tolist()
        [[2]]
    """
    bound = fp32_bound(bound)
    found = largest > bound
    places = found.nonzero().flatten()
    if len(places):
        large = states[places].float().abs()
        columns = (large > bound).any(0).nonzero().flatten()
        usual = states[:, columns].float().abs().median(0).values
        found[places] = ((large[:, columns] > bound) & (large[:, columns] > CONTRAST * usual)).any(1)
    return found


def episodes(channels: pd.DataFrame, presence: float = PRESENCE) -> pd.DataFrame:
    """Maximal runs of consecutive blocks in which a kind of entry is massive in enough sequences.

    A kind is a bucket (``start`` = position 0, ``others``) and a channel, under one criterion. One kind may have
    several episodes: it appears, leaves and comes back.

    Args:
        channels: What :meth:`ChannelPresence.channels` gives.
        presence: Share of the sequences that have it after a block, at least.

    Returns:
        One row per episode, the largest entries first in each criterion. ``episode`` counts a kind's episodes from 0;
        ``n_sequences`` and ``n_sequences_least`` are the most and the fewest sequences that have it after a block of
        the episode, ``n_of`` those that could; ``peak`` is the largest ``|h|``, after block ``peak_layer``; ``value``
        the signed mean there; ``token_share`` the largest share of the tokens after position 0 that meet the criterion
        in this channel; ``contrast`` the size over that of the other tokens in the same channel (median over blocks).
        ``everywhere``: the share reaches a half, so it is the channel that is large (an outlier or "rogue" dimension),
        not the token; but not at position 0 where its contrast is 10 or more.

    Raises:
        InputError: ``presence`` is not above 0 and at most 1.
    """
    if not 0 < presence <= 1:
        raise InputError(f"presence must be above 0 and at most 1, got {presence!r}.")
    blocks = channels[channels["layer"] >= 0]
    here = blocks[blocks["n_sequences"] >= presence * blocks["n_of"]]
    rows = []
    group: Any  # the key of a group, untyped in pandas
    for group, members in here.groupby(["criterion", "bucket", "channel"], sort=True):
        criterion, bucket, channel = group
        kind = members.sort_values("layer")
        run = (kind["layer"].diff() != 1).cumsum()
        for number, (_, part) in enumerate(kind.groupby(run)):
            top = part.sort_values(["peak", "layer"], ascending=[False, True]).iloc[0]
            share, contrast = part["token_share"].max(), part["contrast"].median()
            rows.append(
                (
                    criterion, bucket, int(channel), number, int(part["layer"].min()), int(part["layer"].max()),
                    int(part["n_sequences"].max()), int(part["n_sequences"].min()), int(part["n_of"].max()),
                    float(top["peak"]), int(top["layer"]), float(top["value"]), float(share), float(contrast),
                    bool(share >= EVERYWHERE and not (bucket == "start" and contrast >= CONTRAST)),
                )
            )  # fmt: skip
    found = pd.DataFrame(rows, columns=[*EPISODE_COLUMNS]).astype({"everywhere": bool})
    # by size of the kind's largest episode; its episodes stay together, in the order of the blocks
    keys = ["criterion", "bucket", "channel"]
    found["size"] = found.groupby(keys)["peak"].transform("max")
    ordered = found.sort_values(["criterion", "size", *keys[1:], "episode"], ascending=[True, False, True, True, True])
    return ordered.drop(columns="size").reset_index(drop=True)
