"""Massive activations to their source: tables, and what they say."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklens.results.result import Result
from sinklens.wording import several

FORMAT = "sinklens-massive-sources"
SHOWN = 3


@dataclass(frozen=True)
class MassiveSources(
    Result,
    format=FORMAT,
    title="Massive activations to their source",
    newest=1,
    needs=("sources", "writers", "weights", "effects"),
    header=("settings", "metrics"),
):
    """Which layers and weights wrote the massive activations of a model, and what they are worth.

    Attributes:
        meta: Model, tokens, settings, definitions, warnings.
        tables: See the properties.
    """

    @property
    def sources(self) -> pd.DataFrame:
        """One row per channel and episode, the largest first.

        Columns: channel, episode (a channel may live twice), appears, leaves_after, peak_layer (layers); n_tokens,
        n_sequences, token (the most frequent); value (signed mean at the peak) with value_low and value_high; gap (the
        largest difference between the value and the sum of its writers); writer (the largest share of the value's sign)
        with writer_share; weight (the one with the largest share of an MLP's write; missing where the writer is no MLP
        or its weights cannot be read) with weight_value, activation (of its neuron, mean), weight_share and
        weight_of_writer (its share over the writer's).
        """
        return self.tables["sources"]

    @property
    def writers(self) -> pd.DataFrame:
        """One row per channel, episode and writer: share of the value at the peak, with low and high over sequences."""
        return self.tables["writers"]

    @property
    def weights(self) -> pd.DataFrame:
        """Ten largest weights of each episode's writer: channel, episode, rank, weight, value, activation, share."""
        return self.tables["weights"]

    @property
    def effects(self) -> pd.DataFrame:
        """One row per set of weights put to zero.

        Columns: tested (weights of ``sources``; several are put to zero together as well), kind (named; random: as many
        others of the same matrices; large: the largest other weights of the same rows), draw, weights, peak (largest
        magnitude of the channels at the tokens), peak_kept (its share of what it is otherwise), delta_loss with low and
        high (nats a token, over sequences), sink_heads and sink_heads_before at position 0.
        """
        return self.tables["effects"]

    @property
    def verdict(self) -> list[str]:
        """What was found, the largest first."""
        return source_words(self.sources, self.effects)


def source_words(sources: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """Each of the largest episodes, and what the model is without its weight."""
    if sources.empty:
        return ["There is no massive activation to trace."]
    out = [_source(row) for row in sources.head(SHOWN).itertuples()]
    named = effects[effects["kind"] == "named"]
    for row in named.itertuples():
        others = effects[(effects["tested"] == row.tested) & (effects["kind"] != "named")]
        out.append(_effect(row, others))
    return out


def _source(row: Any) -> str:
    alone = row.appears == row.leaves_after
    layers = f"layer {row.appears}" if alone else f"layers {row.appears} to {row.leaves_after}"
    text = (
        f"Channel {row.channel} is massive after {layers} (at {several(row.n_tokens, 'token')} "
        f"of {several(row.n_sequences, 'sequence')}, most often {row.token!r}); of its value {row.value:+.4g} after "
        f"layer {row.peak_layer}, {row.writer} wrote {row.writer_share:+.4g}"
    )
    if isinstance(row.weight, str):
        plain = row.weight_value * row.activation
        normed = abs(row.weight_share - plain) > 0.01 * abs(row.weight_share)
        text += (
            f", and of that {row.weight} = {row.weight_value:.3g} times an activation of {row.activation:.4g}"
            + (f", made {row.weight_share / plain:.3g} times as large by the norm behind the MLP," if normed else "")
            + f" makes {100 * row.weight_of_writer:.0f} %"
        )
    return f"{text}."


def _effect(row: Any, others: pd.DataFrame) -> str:
    count = row.weights.count("[")
    text = (
        f"Without {row.tested} {'the value' if count == 1 else 'their values'} "
        f"{'keeps' if count == 1 else 'keep'} {100 * row.peak_kept:.0f} % and the loss changes by "
        f"{row.delta_loss:+z.3f} nats a token; {several(row.sink_heads, 'head')} "
        f"{'sinks' if row.sink_heads == 1 else 'sink'} on position 0, and {row.sink_heads_before} did before"
    )
    if len(others):
        text += (
            f". {several(len(others), 'control')} (as many other weights of the same matrix) change the loss by at "
            f"most {others['delta_loss'].abs().max():.3f} and keep at least {100 * others['peak_kept'].min():.0f} % "
            f"of it"
        )
    return f"{text}."
