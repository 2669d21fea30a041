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
        medians = record.residual.median.tolist()
        for row, length in enumerate(record.batch.lengths.tolist()):
            if length == 0:
                continue
            states = hidden[row, :length]
            sequences, longer, tokens = self.counts[layer]
            self.counts[layer] = (sequences + 1, longer + (length > 1), tokens + length - 1)
            # fp64, because the massive entries are subtracted again and would take the digits of the rest with them
            self.others[layer] += torch.linalg.vector_norm(states[1:], ord=1, dim=0, dtype=torch.float64).cpu()
            largest = record.residual.token_max[row, :length].to(states.device)
            for criterion, bound in enumerate((self.bounds[0], self.bounds[1] * medians[row])):
                # a token whose largest entry is not massive has none: most layers end here
                tokens_with = (largest > fp32_bound(bound)).nonzero().flatten()
                if len(tokens_with):
                    self._count(self.sums[layer][criterion], states[tokens_with].float(), tokens_with, bound)

    @staticmethod
    def _count(sums: Tensor, states: Tensor, tokens: Tensor, bound: float) -> None:
        massive = states.abs() > fp32_bound(bound)
        for bucket, members in enumerate((tokens == 0, tokens > 0)):
            met = massive[members]
            if not len(met):
                continue
            values = states[members].double().where(met, torch.zeros((), dtype=torch.float64, device=states.device))
            found = (met.any(0).double(), met.double().sum(0), values.sum(0), values.abs().sum(0))
            sums[bucket, :4] += torch.stack(found).cpu()
            sums[bucket, 4] = torch.maximum(sums[bucket, 4], values.abs().amax(0).cpu())

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


def token_specific(states: Float[Tensor, "pos d_model"], bound: float) -> Bool[Tensor, "pos d_model"]:
    """Entries above ``bound`` that are also more than ten times their channel's median magnitude over the tokens.

    A channel that is large at every token marks none of them.

    Cost: O(pos) for each channel with an entry above ``bound``.

    Example:
        >>> h = torch.ones(5, 3)
        >>> h[2, 0], h[:, 1] = 500.0, 400.0
        >>> token_specific(h, 100.0).nonzero().tolist()
        [[2, 0]]
    """
    magnitude = states.float().abs()
    found = magnitude > fp32_bound(bound)
    columns = found.any(0).nonzero().flatten()
    if len(columns):
        chosen = magnitude[:, columns]
        found[:, columns] &= chosen > CONTRAST * chosen.median(0).values
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
