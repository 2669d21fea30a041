"""One sequence's residual stream, token by channel, for the few channels that grow largest in each layer."""

from typing import Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from sinklens.capture.look import lower_median
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector, frame_of
from sinklens.detectors.registry import register
from sinklens.errors import InputError

COLUMNS = ("sequence", "layer", "position", "token", "channel", "value", "median")


def strongest_channels(hidden: Float[Tensor, "pos d_model"], k: int) -> Int[Tensor, " k"]:
    """The ``k`` channels whose largest ``|h|`` over tokens is largest, largest first.

    Example:
        >>> import torch
        >>> strongest_channels(torch.tensor([[1.0, -9.0, 2.0], [3.0, 0.0, 2.0]]), 2).tolist()
        [1, 0]
    """
    return hidden.abs().amax(0).topk(min(k, hidden.shape[-1])).indices


@register
class ChannelProfileDetector(Detector):
    """One sequence, token by token, in the few channels where its residual stream is largest: a spike is massive.

    Table ``channel_profile``, one row per layer, channel and position: ``value`` is the signed entry of the residual
    stream after the layer (-1: before the first), ``median`` the layer's median ``|h|`` over all tokens and channels of
    the sequence. Channels of a layer come by the size of their largest entry, largest first.

    Args:
        sequence: Which sequence of the run, from 0.
        k: Channels kept in each layer.
        limit: Tokens kept; of a longer sequence the first ones, and all numbers are about these.

    Raises:
        InputError: A negative sequence, or fewer than one channel or token.

    Cost: O(layers limit k) numbers.
    """

    name = "channel_profile"
    needs = ("hidden",)
    by_default = True

    def __init__(self, sequence: int = 0, k: int = 8, limit: int = 1024) -> None:
        if sequence < 0 or k < 1 or limit < 1:
            raise InputError(
                f"Expected a sequence from 0 on, at least one channel and one token, got {sequence}, {k} and {limit}."
            )
        self.sequence, self.k, self.limit = sequence, k, limit
        self._tokens: list[str] = []
        self._layers: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}  # channels, [channel pos], median

    def update(self, record: LayerRecord) -> None:
        """Take one layer of one batch; only the chosen sequence is looked at."""
        row = self.sequence - record.first_sequence
        if record.hidden is None or not 0 <= row < len(record.batch):
            return
        length = int(record.batch.lengths[row])
        whole = length <= self.limit
        self._tokens = list(record.batch.tokens[row][: self.limit])
        hidden = record.hidden[row, : len(self._tokens)].detach().float()
        channels = strongest_channels(hidden, self.k)
        # the lower middle, as everywhere here
        known = record.residual.median[row] if whole and record.residual is not None else lower_median(hidden.abs())
        self._layers[record.layer] = channels.cpu().numpy(), hidden[:, channels].T.cpu().numpy(), float(known)

    def merge(self, other: Self) -> None:
        """Take the chosen sequence from another detector, if that one saw it."""
        self.check_settings(other)
        self._tokens = self._tokens or other._tokens
        self._layers = {**other._layers, **self._layers}

    def tables(self) -> dict[str, pd.DataFrame]:
        """All layers, in order; an empty table when the sequence was never seen."""
        length, tokens = len(self._tokens), np.array(self._tokens, dtype=object)
        parts = [
            {
                "sequence": self.sequence,
                "layer": layer,
                "position": np.tile(np.arange(length), len(channels)),
                "token": np.tile(tokens, len(channels)),
                "channel": np.repeat(channels, length),
                "value": values.ravel(),
                "median": median,
            }
            for layer, (channels, values, median) in sorted(self._layers.items())
        ]
        return {"channel_profile": frame_of(parts, COLUMNS, spend=True)}
