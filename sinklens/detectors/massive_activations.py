"""Massive activations: a few residual entries that are thousands of times larger than the median."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, Metric, frame_of
from sinklens.detectors.massive_activations_verdict import describe_massive
from sinklens.detectors.massive_channels import (
    CHANNEL_COLUMNS,
    EPISODE_COLUMNS,
    PRESENCE,
    ChannelPresence,
    episodes,
)
from sinklens.detectors.registry import register
from sinklens.errors import InputError

ABSOLUTE = 100.0
RATIO = 1000.0
TABLES = ("massive", "layers", "massive_channels", "massive_episodes")
COLUMNS = (
    "sequence", "layer", "position", "token", "channel", "value", "median", "ratio", "absolute", "relative",
)  # fmt: skip
LAYER_COLUMNS = (
    "layer", "max_abs", "median_abs", "max_over_median", "top_position", "top_token", "top_channel",
    "n_massive_absolute", "n_massive_ratio",
)  # fmt: skip

METRIC = Metric(
    "massive_activation",
    2,
    "Entry h_tj of the residual stream after a layer with |h_tj| > 100 (absolute criterion) or "
    "|h_tj| > 1000 x median |h| over all tokens and channels of that layer and sequence (ratio criterion); both "
    "strict, reported separately because the first depends on the scale of the model. The median of an even count is "
    "the lower middle. An episode is a maximal run of consecutive layers after which a kind of entry (position 0 or "
    "later, channel) is massive in at least half of the sequences; it is everywhere, not token-specific, where half of "
    "the tokens after position 0 or more meet the criterion in that channel after one of its layers (an entry at "
    "position 0 that is 10 times their mean magnitude excepted). A token is flagged where an entry is massive and "
    "above 10 times its channel's median over the tokens.",
    "Sun et al. 2024, arXiv 2402.17762; Owen et al. 2025, arXiv 2503.22329",
)


class MassiveMasks(NamedTuple):
    """Which entries meet each criterion."""

    absolute: Bool[Tensor, "*batch pos d_model"]
    relative: Bool[Tensor, "*batch pos d_model"]


def massive_masks(hidden: Any, absolute: float = ABSOLUTE, ratio: float = RATIO) -> MassiveMasks:
    """Both criteria for every entry of one layer's residual stream.

    Args:
        hidden: ``[..., pos, d_model]``; leading axes are sequences, each with its own median.
        absolute: Bound on ``|h|``; an entry equal to it is not massive.
        ratio: Bound on ``|h| / median``; an entry equal to it is not massive.

    Raises:
        InputError: Fewer than two axes, or nothing in them.

    Example:
        >>> h = torch.full((4, 8), 0.2)
        >>> h[0, 3] = -500.0
        >>> masks = massive_masks(h)
        >>> masks.absolute.nonzero().tolist(), masks.relative.nonzero().tolist()
        ([[0, 3]], [[0, 3]])
    """
    values = hidden if isinstance(hidden, Tensor) else torch.as_tensor(np.asarray(hidden))
    if values.ndim < 2 or values.shape[-1] * values.shape[-2] == 0:
        raise InputError(f"Expected hidden states [..., pos, d_model], got shape {tuple(values.shape)}.")
    magnitude = (values if values.dtype == torch.float64 else values.float()).abs()
    # fp64, or rounding of the product would decide about entries that equal the bound
    median = magnitude.flatten(-2).median(-1).values.double()[..., None, None]
    return MassiveMasks(magnitude > absolute, magnitude > ratio * median)


@register
class MassiveActivationDetector(Detector):
    """Entries of the residual stream that are huge beside the typical one: how large, at which token, in which channel.

    Tables: ``massive``, the top entries per sequence and layer: ``sequence, layer, position, token, channel, value,
    median, ratio, absolute, relative``. ``layers``: ``max_abs`` and ``median_abs`` (means over sequences),
    ``max_over_median``, the most common place of the largest entry (``top_position, top_token, top_channel``), and the
    mean number of massive *tokens* per sequence by each criterion (``n_massive_absolute, n_massive_ratio``).
    ``massive_channels``, per layer, criterion, bucket (``start`` = position 0, ``others``) and channel with a massive
    entry: ``n_sequences`` that have one, of ``n_of``; ``n_tokens``; ``token_share`` of the tokens after position 0 that
    meet the criterion in this channel; signed mean ``value`` and largest ``peak``; ``contrast``, their mean size over
    the mean size of the other tokens in the channel. All entries count, not the top ones alone. ``massive_episodes``:
    when each kind of entry lives, see :func:`~sinklens.detectors.massive_channels.episodes`.

    Args:
        absolute: Absolute bound.
        ratio: Bound relative to the median.
        presence: Share of sequences that must have a kind of entry after a layer for it to be in an episode.
    """

    name = "massive_activations"
    metrics = (METRIC,)
    needs = ("hidden",)
    by_default = True
    rank = 50

    def __init__(self, absolute: float = ABSOLUTE, ratio: float = RATIO, presence: float = PRESENCE) -> None:
        self.absolute, self.ratio, self.presence = absolute, ratio, presence
        self._presence = ChannelPresence(absolute, ratio)
        self._entries: list[dict[str, np.ndarray]] = []  # columns: frames made for every layer would take longer
        self._summaries: list[dict[str, Any]] = []

    def update(self, record: LayerRecord) -> None:
        """Take one layer; -1 is the embedding output."""
        if record.residual is None:
            return
        if record.hidden is None:
            raise InputError("Massive activations are counted in the residual stream; pass the detector to capture().")
        self._presence.update(record, record.hidden)
        r = record.residual
        median = r.median.cpu().double()
        value, position = r.top_value.cpu().double(), r.top_position.cpu()
        batch, k = value.shape
        sequence = torch.arange(batch)[:, None].expand(-1, k) + record.first_sequence
        ratio = value.abs() / median[:, None].where(median[:, None] > 0, torch.nan)
        places = zip(sequence.ravel().tolist(), position.ravel().tolist(), strict=True)
        tokens = [record.batch.tokens[s - record.first_sequence][p] if p >= 0 else "" for s, p in places]
        columns = {
            "sequence": sequence.ravel().numpy(),
            "layer": np.full(batch * k, record.layer),
            "position": position.ravel().numpy(),
            "token": np.array(tokens, dtype=object),
            "channel": r.top_channel.cpu().ravel().numpy(),
            "value": value.ravel().numpy(),
            "median": median.repeat_interleave(k).numpy(),
            "ratio": ratio.ravel().numpy(),
        }
        there = columns["position"] >= 0
        self._entries.append({name: values[there] for name, values in columns.items()})
        token_max = r.token_max.cpu().nan_to_num()
        self._summaries.append(
            {
                "layer": record.layer,
                "max_abs": value[:, 0].abs().numpy(),
                "median_abs": median.numpy(),
                "top_position": position[:, 0].numpy(),
                "top_token": columns["token"][::k],
                "top_channel": r.top_channel.cpu()[:, 0].numpy(),
                "n_massive_absolute": (token_max > self.absolute).sum(1).numpy(),
                "n_massive_ratio": (token_max > self.ratio * median[:, None]).sum(1).numpy(),
            }
        )

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other sequences."""
        self.check_settings(other)
        self._presence.merge(other._presence)
        self._entries += other._entries
        self._summaries += other._summaries

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables, in the order of layers and sequences."""
        if not self._entries:
            empty = (COLUMNS, LAYER_COLUMNS, CHANNEL_COLUMNS, EPISODE_COLUMNS)
            return dict(zip(TABLES, (pd.DataFrame(columns=[*columns]) for columns in empty), strict=True))
        table = frame_of(self._entries)
        table["absolute"] = table["value"].abs() > self.absolute
        table["relative"] = table["value"].abs() > self.ratio * table["median"]
        table = table.sort_values(["sequence", "layer"], kind="stable", ignore_index=True)
        summary = frame_of(self._summaries)
        summary["max_over_median"] = summary["max_abs"] / summary["median_abs"].replace(0, np.nan)
        means = ["max_abs", "median_abs", "max_over_median", "n_massive_absolute", "n_massive_ratio"]
        layers = summary.groupby("layer", as_index=False)[means].mean()
        place = ["top_position", "top_token", "top_channel"]
        counts = summary.groupby(["layer", *place]).size().rename("count").reset_index()
        common = counts.loc[counts.groupby("layer")["count"].idxmax(), ["layer", *place]]
        layers = layers.merge(common, on="layer")[[*LAYER_COLUMNS]]
        channels = self._presence.channels()
        found = (table, layers, channels, episodes(channels, self.presence))
        return dict(zip(TABLES, found, strict=True))

    def verdict(self, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> list[str]:
        """Which channels are massive, after which layers."""
        return describe_massive(tables["layers"], tables["massive_episodes"]) if "massive_episodes" in tables else []
