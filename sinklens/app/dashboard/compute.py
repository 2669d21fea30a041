"""What the dashboard computes: a census of a text, the same under an intervention, and pieces of attention maps."""

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import PooledMap, StatisticFactory
from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.statistics import Statistic
from sinklens.capture import LayerRecord, capture
from sinklens.errors import InputError, SinkLensError
from sinklens.interventions import Intervention
from sinklens.models.architecture import context_length
from sinklens.models.tokens import BosChoice, TokenBatch, tokenize
from sinklens.results.progress import Progress
from sinklens.studies.census.joins import Example
from sinklens.studies.census.result import AttentionMap, Census
from sinklens.studies.census.run import scan

MAX_CHARACTERS: Final = 100_000
MAX_TOKENS: Final = 4096
MAX_TOTAL: Final = 16_384
"""Tokens of all sequences together when the tokens of a shown result are run again."""


def token_limit(model: TransformerBridge) -> int:
    """Longest text in tokens: the model's context, at most 4,096."""
    return min(context_length(model) or MAX_TOKENS, MAX_TOKENS)


def text_tokens(model: TransformerBridge, text: str, bos: BosChoice) -> tuple[TokenBatch | None, str]:
    """Tokens of a typed text and what to call it; ``None`` for an empty text, which stands for a built-in sample.

    Raises:
        InputError: The text is longer than the limit; nothing is cut silently.
    """
    if not text.strip():
        return None, ""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The text has {len(text):,} characters; the dashboard takes up to {MAX_CHARACTERS:,}.")
    limit = token_limit(model)
    batch = tokenize(model, [text], bos=bos, max_tokens=context_length(model))
    length = int(batch.lengths.max()) + batch.dropped
    if length > limit:
        raise InputError(f"The text has {length:,} tokens; the dashboard takes up to {limit:,} with this model.")
    shown = " ".join(text.split())
    return batch, f"the text {shown[:40] + '…' if len(shown) > 40 else shown!r}"


def live_census(
    model: TransformerBridge,
    progress: Progress,
    *,
    tokens: TokenBatch | Sequence[Sequence[int]] | None,
    bos: BosChoice = "auto",
    source: str = "",
    eps: float = 0.3,
    intervention: Intervention | None = None,
) -> Census:
    """A census with the attention maps of all heads; stops between layers when it is cancelled.

    Args:
        model: The bridge.
        progress: Told of every layer.
        tokens: Sequences; ``None`` for one of the built-in corpus.
        bos: For the built-in corpus.
        source: What to call the tokens.
        eps: Threshold of the sink rate.
        intervention: Measured under it.
    """
    every = 2 * int(model.cfg.n_layers) * int(model.cfg.n_heads)  # a census keeps half of the places for sink heads
    return scan(
        model,
        tokens=tokens,
        bos=bos,
        max_sequences=1 if tokens is None else None,
        maps=every,
        eps=eps,
        source=source or None,
        intervention=intervention,
        progress=progress,
    )


def sequence_maps(
    model: TransformerBridge, row: TokenBatch, intervention: Intervention | None, progress: Progress
) -> dict[tuple[int, int], AttentionMap]:
    """Maps of all heads on one sequence, pooled to at most 128 cells a side."""
    example = Example()

    def statistics(rows: TokenBatch, start: int) -> list[StatisticFactory]:
        from sinklens.attention import ReceivedMass

        return [ReceivedMass, partial(PooledMap, sequences=(0,))]

    capture(model, row, [example], statistics=statistics, intervention=intervention, progress=progress)
    length, tokens = int(row.lengths[0]), list(row.tokens[0])
    return {
        (layer, head): AttentionMap(layer, head, values, example.cell, length, tokens, "")
        for (layer, head), values in example.maps.items()
    }


def exact_window(
    model: TransformerBridge,
    row: TokenBatch,
    head: tuple[int, int],
    region: tuple[int, int, int, int],
    intervention: Intervention | None,
    progress: Progress,
) -> np.ndarray:
    """Exact attention weights of one head for some queries and keys, ``[q_pos k_pos]`` with NaN at hidden keys."""
    found: list[torch.Tensor] = []

    class Keep:
        def update(self, record: LayerRecord) -> None:
            if record.layer == head[0] and "window" in record.attention:
                found.append(record.attention["window"])
                raise _Enough

    factory = partial(MapWindow, layer=head[0], head=head[1], region=region)
    with contextlib.suppress(_Enough):
        capture(
            model,
            row,
            [Keep()],
            statistics=lambda rows, start: [factory],
            intervention=intervention,
            progress=progress,
        )
    if not found:
        raise InputError(f"Layer {head[0]} has no softmax attention: there are no rows to show.")
    return found[0].numpy()


class _Enough(SinkLensError):
    """Later layers are not needed."""


class MapWindow(Statistic):
    """Attention weights of chosen queries on chosen keys of one head, of the first sequence.

    Unlike :class:`~sinklens.attention.maps.FullMap` it keeps only the rectangle, so that it works at any length.

    Args:
        shape: Of the layer's call.
        layer: The one that is kept; others keep nothing.
        head: Query head.
        region: First query, end of queries, first key, end of keys.
    """

    _sums = ("values", "seen")

    def __init__(self, shape: AttentionShape, *, layer: int, head: int, region: tuple[int, int, int, int]) -> None:
        super().__init__(shape)
        self.wanted = shape.layer == layer and head < shape.heads
        self.head = head
        q0, q1, k0, k1 = region
        self.queries = range(min(q0, shape.q_pos), min(q1, shape.q_pos))
        self.keys = range(min(k0, shape.k_pos), min(k1, shape.k_pos))
        size = (len(self.queries), len(self.keys)) if self.wanted else (0, 0)
        self.values, self.seen = shape.zeros(*size), shape.zeros(*size)

    def update(self, block: Block) -> None:
        """Copy what of the block lies in the rectangle."""
        if not self.wanted or block.sequence != 0 or not block.heads.start <= self.head < block.heads.stop:
            return
        q0, q1 = max(block.rows.start, self.queries.start), min(block.rows.stop, self.queries.stop)
        k0, k1 = max(block.keys.start, self.keys.start), min(block.keys.stop, self.keys.stop)
        if q0 >= q1 or k0 >= k1:
            return
        here = (_moved(q0, q1, self.queries.start), _moved(k0, k1, self.keys.start))
        there = (_moved(q0, q1, block.rows.start), _moved(k0, k1, block.keys.start))
        self.values[here] = block.pattern[self.head - block.heads.start][there]
        self.seen[here] = block.visible_keys[there].float()

    def compute(self) -> dict[str, Tensor]:
        """``window [q_pos k_pos]``, NaN where the mask hides the key; nothing for other layers."""
        return {"window": self.values.masked_fill(self.seen == 0, math.nan)} if self.wanted else {}


def _moved(first: int, end: int, by: int) -> slice:
    return slice(first - by, end - by)
