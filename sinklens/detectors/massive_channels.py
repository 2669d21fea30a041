"""Which channels hold massive activations after which layers: presence by layer, and the episodes it makes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.capture.look import column_sums, entries_above
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import medians
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
        real, lengths = record.real, record.batch.lengths
        sequences, longer, tokens = self.counts[layer]
        sequences, longer = sequences + int((lengths > 0).sum()), longer + int((lengths > 1).sum())
        self.counts[layer] = sequences, longer, tokens + int((lengths - 1).clamp(min=0).sum())
        later = real.clone()
        later[:, 0] = False
        self.others[layer] += column_sums(hidden, later.to(hidden.device))
        both = fp32_bounds(record.residual.median.cpu(), *self.bounds)
        entries = entries_above(hidden, record.residual.token_max, torch.minimum(*both))
        sums, size, first = self.sums[layer].numpy(), np.abs(entries.value), entries.place == 0
        taken = entries.row, entries.channel, entries.value, size
        for criterion, bound in enumerate(both):
            massive = size > bound.numpy()[entries.row]
            for bucket, members in enumerate((massive & first, massive & ~first)):
                if members.any():
                    self._count(sums[criterion, bucket], *(each[members] for each in taken))

    @staticmethod
    def _count(sums: np.ndarray, row: np.ndarray, channel: np.ndarray, value: np.ndarray, size: np.ndarray) -> None:
        """Add massive entries of one kind to the sums of their channels."""
        width = sums.shape[-1]
        having = np.zeros((int(row[-1]) + 1, width), bool)  # a sequence counts once; no sort, as there may be many
        having[row, channel] = True
        sums[0] += having.sum(0)
        for index, weights in ((1, None), (2, value), (3, size)):
            sums[index] += np.bincount(channel, weights, minlength=width)
        np.maximum.at(sums[4], channel, size)

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
        others = self.others[layer].numpy()
        for c, criterion in enumerate(CRITERIA):
            for b, bucket in enumerate(BUCKETS):
                sums = self.sums[layer][c, b].numpy()
                channels = sums[0].nonzero()[0]
                n_sequences, n_tokens, value, size, peak = sums[:, channels]
                met = self.sums[layer][c, 1, 1].numpy()[channels]
                # beside position 0 stand all later tokens; beside massive later tokens, those that are not
                rest = tokens - met if bucket == "others" else np.full_like(met, tokens)
                usual = others[channels] - (size if bucket == "others" else 0)
                with np.errstate(divide="ignore", invalid="ignore"):
                    contrast = np.where(rest > 0, (size / n_tokens) / (usual / rest), math.nan)
                    share = met / tokens if tokens else np.full_like(met, math.nan)
                n_of = longer if bucket == "others" else sequences
                for at, channel in enumerate(channels.tolist()):
                    yield (
                        layer, criterion, bucket, channel, int(n_sequences[at]), n_of, int(n_tokens[at]),
                        float(share[at]), float(value[at] / n_tokens[at]), float(peak[at]), float(contrast[at]),
                    )  # fmt: skip


def fp32_bound(bound: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The largest fp32 numbers that are not above ``bound``: an fp32 entry exceeds these where it exceeds the others.

    Comparing with ``bound`` itself would round it, and decide wrongly about entries that equal it.

    >>> fp32_bound(100.0).item(), fp32_bound(0.1).item() <= 0.1
    (100.0, True)
    """
    wide = torch.as_tensor(bound, dtype=torch.float64, device="cpu")  # fp64 is not everywhere
    rounded = wide.float()
    return torch.where(rounded.double() > wide, torch.nextafter(rounded, torch.tensor(-math.inf)), rounded)


def fp32_bounds(
    median: Float[Tensor, " batch"], absolute: float, ratio: float
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Both criteria's bounds for each sequence, see :func:`fp32_bound`."""
    wide = median.cpu().double()
    return fp32_bound(torch.full_like(wide, absolute)).to(median), fp32_bound(ratio * wide).to(median)


def specific_tokens(
    states: Float[Tensor, "batch pos d_model"],
    largest: Float[Tensor, "batch pos"],
    bounds: Sequence[Float[Tensor, " batch"]],
) -> list[Bool[Tensor, "batch pos"]]:
    """For each bound: tokens with an entry above it that is also more than ten times its channel's median over them.

    A channel that is large at every token marks none of them.

    Args:
        states: The residual stream.
        largest: The largest magnitude of each token; one at or below the bounds is not looked at. NaN at padding.
        bounds: On ``|h|`` of each sequence, strict, in fp32.

    Cost: O(pos) for each channel with an entry above a bound.

    Example:
        >>> h = torch.ones(1, 5, 3)
        >>> h[0, 2, 0], h[0, :, 1] = 500.0, 400.0
        >>> specific_tokens(h, h.amax(2), [torch.tensor([100.0])])[0].nonzero().tolist()
        [[0, 2]]
    """
    sizes, limits = largest.cpu().numpy(), [bound.cpu().numpy() for bound in bounds]
    entries = entries_above(states, largest, torch.from_numpy(np.min(limits, 0)))
    there = np.zeros((len(states), states.shape[-1]), bool)
    there[entries.row, entries.channel] = True
    row, channel = there.nonzero()
    of = (there.cumsum() - 1).reshape(there.shape)[entries.row, entries.channel]
    everyone = states[row, :, channel].float().abs().cpu().numpy()
    everyone[np.isnan(sizes[row])] = np.nan
    known = np.sort(everyone, 1)  # NaN last
    median = known[np.arange(len(row)), ((~np.isnan(everyone)).sum(1) - 1) // 2]
    size = np.abs(entries.value)
    special = size > np.float32(CONTRAST) * median[of]
    marked = [np.zeros(sizes.shape, bool) for _ in bounds]
    for found, limit in zip(marked, limits, strict=True):
        chosen = special & (size > limit[entries.row])
        found[entries.row[chosen], entries.place[chosen]] = True
    return [torch.from_numpy(found).to(largest.device) for found in marked]


def episodes(channels: pd.DataFrame, presence: float = PRESENCE) -> pd.DataFrame:
    """Maximal runs of consecutive layers in which a kind of entry is massive in enough sequences.

    A kind is a bucket (``start`` = position 0, ``others``) and a channel, under one criterion. One kind may have
    several episodes: it appears, leaves and comes back.

    Args:
        channels: What :meth:`ChannelPresence.channels` gives.
        presence: Share of the sequences that have it after a layer, at least.

    Returns:
        One row per episode, the largest entries first in each criterion. ``episode`` counts a kind's episodes from 0;
        ``n_sequences`` and ``n_sequences_least`` are the most and the fewest sequences that have it after a layer of
        the episode, ``n_of`` those that could; ``peak`` is the largest ``|h|``, after layer ``peak_layer``; ``value``
        the signed mean there; ``token_share`` the largest share of the tokens after position 0 that meet the criterion
        in this channel; ``contrast`` the size over that of the other tokens in the same channel (median over layers).
        ``everywhere``: the share reaches a half, so it is the channel that is large (an outlier or "rogue" dimension),
        not the token; but not at position 0 where its contrast is 10 or more.

    Raises:
        InputError: ``presence`` is not above 0 and at most 1.
    """
    if not 0 < presence <= 1:
        raise InputError(f"presence must be above 0 and at most 1, got {presence!r}.")
    blocks = channels[channels["layer"] >= 0]
    here = blocks[blocks["n_sequences"] >= presence * blocks["n_of"]]
    here = here.sort_values(["criterion", "bucket", "channel", "layer"])
    if here.empty:
        return pd.DataFrame(columns=[*EPISODE_COLUMNS]).astype({"everywhere": bool})
    row = {name: here[name].to_numpy() for name in CHANNEL_COLUMNS}
    another = np.ones(len(here), bool)  # kind than in the row before
    another[1:] = np.any([row[name][1:] != row[name][:-1] for name in ("criterion", "bucket", "channel")], 0)
    begins = another.copy()
    begins[1:] |= row["layer"][1:] != row["layer"][:-1] + 1
    starts, of = begins.nonzero()[0], begins.cumsum() - 1
    number = np.arange(len(starts))
    peak = np.maximum.reduceat(row["peak"], starts)
    top = (row["peak"] == peak[of]).nonzero()[0]
    top = top[np.unique(of[top], return_index=True)[1]]  # the first layer of the largest
    share, contrast = np.fmax.reduceat(row["token_share"], starts), medians(of, row["contrast"], len(starts))
    found = pd.DataFrame(
        {name: row[name][starts] for name in ("criterion", "bucket", "channel")}
        | {
            "episode": number - np.maximum.accumulate(np.where(another[starts], number, 0)),
            "appears": row["layer"][starts],
            "leaves_after": row["layer"][[*(starts[1:] - 1), -1]],
            "n_sequences": np.maximum.reduceat(row["n_sequences"], starts),
            "n_sequences_least": np.minimum.reduceat(row["n_sequences"], starts),
            "n_of": np.maximum.reduceat(row["n_of"], starts),
            "peak": peak,
            "peak_layer": row["layer"][top],
            "value": row["value"][top],
            "token_share": share,
            "contrast": contrast,
            "everywhere": (share >= EVERYWHERE) & ~((row["bucket"][starts] == "start") & (contrast >= CONTRAST)),
        }
    )
    # by size of the kind's largest episode; its episodes stay together, in the order of the layers
    keys = ["criterion", "bucket", "channel"]
    found["size"] = found.groupby(keys)["peak"].transform("max")
    ordered = found.sort_values(["criterion", "size", *keys[1:], "episode"], ascending=[True, False, True, True, True])
    return ordered.drop(columns="size").reset_index(drop=True)
