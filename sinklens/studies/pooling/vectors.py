"""One vector a text from the states of one layer, with or without its extreme tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture import capture
from sinklens.capture.record import LayerRecord
from sinklens.detectors.extreme_tokens import ExtremeTokenDetector
from sinklens.evidence.controls import all_heads
from sinklens.models.tokens import TokenBatch

POOLINGS = ("mean", "last", "no_first", "sink_free", "random")
MIN_QUERIES = 5
SINK_SHARE = 0.1


class _Keep:
    """Keeps the states after some layers."""

    needs = ("hidden",)

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self.states: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}

    def update(self, record: LayerRecord) -> None:
        if record.layer in self.layers and record.hidden is not None:
            for row, length in enumerate(record.batch.lengths.tolist()):
                self.states[record.layer][record.first_sequence + row] = record.hidden[row, :length].double().cpu()


@dataclass(frozen=True)
class States:
    """Texts as a model sees them.

    Attributes:
        layers: States after each layer asked for, one ``[pos d_model]`` a text.
        extreme: Which positions of each text are left out as extreme.
        tokens: Those positions, one row each: text, position, token, n_sink_heads, is_sink, is_massive.
    """

    layers: dict[int, list[Float[Tensor, "pos d_model"]]]
    extreme: list[Bool[np.ndarray, " pos"]]
    tokens: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_states(
    model: TransformerBridge,
    batch: TokenBatch,
    layers: Sequence[int],
    *,
    share: float = SINK_SHARE,
    batch_size: int = 8,
) -> States:
    """Read texts once; say which positions are sinks or massive.

    A sink: importance above 0.3 in at least ``share`` of all heads, judged where five tokens or more can look at it.
    Massive: an entry met the absolute and one the relative criterion, each specific to the token.
    """
    keep, detector = _Keep(layers), ExtremeTokenDetector(min_queries=MIN_QUERIES)
    capture(model, batch, [keep, detector], batch_size=batch_size)
    table = detector.tables()["tokens"]
    heads = len(all_heads(model))
    is_sink = table["n_sink_heads"].fillna(0) >= max(1, share * heads)
    is_massive = table["is_massive_absolute"] & table["is_massive_ratio"]
    table = table.rename(columns={"sequence": "text"}).assign(is_sink=is_sink, is_massive=is_massive)
    extreme = [
        (some["is_sink"] | some["is_massive"]).to_numpy(bool)
        for _, some in table.sort_values(["text", "position"]).groupby("text")
    ]
    columns = ["text", "position", "token", "n_sink_heads", "is_sink", "is_massive"]
    found = table[table["is_sink"] | table["is_massive"]][columns].reset_index(drop=True)
    states = {layer: [keep.states[layer][text] for text in range(len(batch))] for layer in layers}
    return States(states, extreme, found)


def pooled(
    states: Float[Tensor, "pos d_model"], extreme: Bool[np.ndarray, " pos"], pooling: str, rng: np.random.Generator
) -> Float[np.ndarray, " d_model"]:
    """One vector of a text; NaN where no position is left.

    ``mean`` of all positions, the ``last`` one, the mean without the first (``no_first``), without extreme positions
    (``sink_free``), or without as many other ``random`` ones, of which at least one stays.
    """
    kept = np.ones(len(states), dtype=bool)
    if pooling == "last":
        kept[:-1] = False
    elif pooling == "no_first":
        kept[0] = False
    elif pooling == "sink_free":
        kept = ~extreme
    elif pooling == "random":
        others = np.flatnonzero(~extreme)
        kept[rng.permutation(others)[: min(int(extreme.sum()), max(0, len(others) - 1))]] = False
    if not kept.any():
        return np.full(states.shape[1], np.nan)
    mean: np.ndarray = states[torch.from_numpy(kept)].mean(0).numpy()
    return mean


def cosines(a: Float[np.ndarray, "n d_model"], b: Float[np.ndarray, "m d_model"]) -> Float[np.ndarray, "n m"]:
    """Cosine of every pair; NaN for a vector without length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    return found
