"""Extreme tokens of a corpus: a mask, and the channels and thresholds of every layer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from sinklens.results.result import Result
from sinklens.wording import are, several

FORMAT, WORK = "sinklens-extreme-tokens", "search for extreme tokens"


@dataclass(frozen=True)
class ExtremeTokens(
    Result,
    format=FORMAT,
    title="Extreme tokens of a corpus",
    newest=1,
    needs=("tokens", "channels", "entries"),
    header=("settings", "spec"),
):
    """Which tokens hold massive entries, and in which channels of which layers.

    Attributes:
        meta: Model, tokens, settings, seconds.
        tables: ``tokens`` and ``channels``, see the properties; ``entries``, one row per massive entry: sequence,
            position, token_id, token, layer, channel, value, median.
        arrays: ``mask`` and ``lengths``; saved as safetensors, so that other code reads them without sinklens.
    """

    @property
    def mask(self) -> Bool[np.ndarray, "sequence pos"]:
        """True at extreme tokens; False at padding."""
        return self.arrays["mask"]

    @property
    def lengths(self) -> Int[np.ndarray, " sequence"]:
        """Tokens of each sequence."""
        return self.arrays["lengths"]

    @property
    def tokens(self) -> pd.DataFrame:
        """One row per extreme token.

        Columns: sequence, position, token_id, token, first_layer, last_layer, n_entries; channel and layer of its
        largest entry, with value and ratio (in medians of the sequence after that layer).
        """
        return self.tables["tokens"]

    @property
    def channels(self) -> pd.DataFrame:
        """One row per layer and channel.

        Columns: n_tokens, n_sequences, token_share (of all tokens), value (signed mean), peak, and threshold, the
        smallest magnitude that counted there.
        """
        return self.tables["channels"]

    @classmethod
    def needed_arrays(cls, meta: Mapping[str, Any]) -> Collection[str]:
        """The mask and the lengths."""
        return ["mask", "lengths"]

    def channels_of(self, layer: int) -> list[int]:
        """Channels that are massive after a layer at some token, the one at most tokens first."""
        mine = self.channels[self.channels["layer"] == layer]
        ordered = mine.sort_values(["n_tokens", "channel"], ascending=[False, True])
        return [int(channel) for channel in ordered["channel"]]

    @property
    def verdict(self) -> list[str]:
        """How many tokens, where, in which channels."""
        return extreme_words(self.tokens, self.channels, int(self.meta["n_tokens"]), len(self.lengths))


def extreme_words(tokens: pd.DataFrame, channels: pd.DataFrame, n_tokens: int, n_sequences: int) -> list[str]:
    """How many tokens are extreme, how many of them stand first, which words and channels they are."""
    if tokens.empty:
        return [f"None of {several(n_tokens, 'token')} in {several(n_sequences, 'sequence')} is extreme."]
    first = int((tokens["position"] == 0).sum())
    out = [
        f"{len(tokens):,} of {several(n_tokens, 'token')} ({100 * len(tokens) / n_tokens:.2f} %) {are(len(tokens))} "
        f"extreme, {first:,} of them at position 0 of {several(n_sequences, 'sequence')}."
    ]
    later = tokens[tokens["position"] > 0]["token"].value_counts()
    if len(later):
        name = min(later[later == later.max()].index)
        out.append(f"After position 0 the most frequent is {name!r} ({int(later.max()):,} of {int(later.sum()):,}).")
    held = channels.groupby("channel")["n_tokens"].max().sort_values(ascending=False, kind="stable")
    named = ", ".join(str(channel) for channel in held.index[:5])
    out.append(
        f"Their entries lie in {several(len(held), 'channel')} ({named}{', ...' if len(held) > 5 else ''}) after "
        f"{several(channels['layer'].nunique(), 'layer')}."
    )
    return out


def assemble(entries: pd.DataFrame, n_tokens: int) -> dict[str, pd.DataFrame]:
    """The tables from one row per massive entry."""
    entries = entries.sort_values(["sequence", "position", "layer", "channel"], ignore_index=True)
    size = entries["value"].abs()
    ordered = entries.assign(size=size).sort_values(["sequence", "position", "size"], ascending=[True, True, False])
    key = ["sequence", "position"]
    top = ordered.drop_duplicates(key).set_index(key)
    spans = entries.groupby(key).agg(
        first_layer=("layer", "min"), last_layer=("layer", "max"), n_entries=("layer", "size")
    )
    tokens = top[["token_id", "token"]].join(spans).join(top[["channel", "layer", "value"]])
    tokens["ratio"] = top["size"] / top["median"]
    grouped = entries.assign(size=size).groupby(["layer", "channel"])
    channels = grouped.agg(
        n_tokens=("position", "size"),
        n_sequences=("sequence", "nunique"),
        value=("value", "mean"),
        peak=("size", "max"),
        threshold=("size", "min"),
    ).reset_index()
    channels.insert(4, "token_share", channels["n_tokens"] / max(1, n_tokens))
    return {"tokens": tokens.reset_index(), "channels": channels, "entries": entries}
