"""Why heads sink: the margin's parts, what is left of the sink without them, and what the sink does."""

from dataclasses import dataclass

import pandas as pd

from sinklens.results.result import Result
from sinklens.studies.sink_causes.sentences import cause_words

FORMAT = "sinklens-sink-causes"


@dataclass(frozen=True)
class SinkCauses(
    Result,
    format=FORMAT,
    title="Why heads sink",
    newest=1,
    needs=("heads", "channels", "components", "bands", "pairs", "donors"),
    header=("settings", "metrics"),
):
    """What makes some heads attend to one key, and what that attention does.

    Attributes:
        meta: Model, tokens, settings, definitions, warnings.
        tables: See the properties; shares of a margin are in logits.
    """

    @property
    def heads(self) -> pd.DataFrame:
        """One row per head, the strongest sink first.

        Columns: layer, head, kv_head, name; importance of the key with its null; margin (mean logits by which the head
        prefers the key) with margin_low and margin_high; n_sequences; gap (largest difference between the margin and a
        sum of its parts); channel (residual channel of the keys with the largest share) with channel_share,
        channel_share_low and channel_share_high, and one_lost, the share of the attention that goes without it alone;
        n_channels, channels and channels_share: the fewest channels, the largest first, without which at least half
        goes (32 where that is not enough); bias (of keys);
        common_scale (the margin if the norm divided the sink as it divides other tokens); component (who wrote most of
        the keys' share) with component_share; band (pair of rotated dims with the largest share) with band_wavelength
        (tokens a turn) and band_share, and still_share (dims that do not turn); mass (mean attention to the key),
        mass_without (the same with these channels' shares taken out of the head's keys) and mass_lost, the share of it
        that goes, with mass_lost_low and mass_lost_high; n_random, random_lost, random_lost_sd, random_lost_most and p
        for random sets of as many channels; kind (no-op, broadcast, mixed; missing without an event), n_events,
        value_ratio and stable_rank (medians over events).
        """
        return self.tables["heads"]

    @property
    def channels(self) -> pd.DataFrame:
        """One row per head, side (key or query) and residual channel; channel -1 is all biases: share, low, high.

        ``low`` and ``high`` are given for the ten largest of each head and side.
        """
        return self.tables["channels"]

    @property
    def components(self) -> pd.DataFrame:
        """One row per head, side and component that wrote to the residual stream before it: share, low, high."""
        return self.tables["components"]

    @property
    def bands(self) -> pd.DataFrame:
        """One row per head and pair of rotated dims, band -1 for dims that do not turn: wavelength, share."""
        return self.tables["bands"]

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per head, query_part and key_part (the named channel, all others, biases): share."""
        return self.tables["pairs"]

    @property
    def donors(self) -> pd.DataFrame:
        """One row per KV head of these heads, edit of the sink's value and place: what the edit costs.

        Columns: layer, kv_head, heads, edit (zero, ordinary: the mean of ordinary tokens, donor: the same position of
        another text), place (sink, or control: other positions), position, delta_loss with its interval, kl.
        """
        return self.tables["donors"]

    @property
    def verdict(self) -> list[str]:
        """Why each head looks there, in sentences, the strongest first."""
        return cause_words(self.heads, self.donors, self.meta)
