"""Mask the sink, see where it comes back, mask that too: until no position is a sink or a bound is reached."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import ReceivedMass
from sinklens.capture import capture
from sinklens.detectors.sinks import EPS, SINK_HEAD_RATE, SINK_HEAD_RATIO, SinkDetector, shortest_length
from sinklens.errors import InputError
from sinklens.interventions import MaskKeys
from sinklens.models.tokens import TokenBatch

COLUMNS = ("round", "n_masked", "position", "n_sink_heads", "n_heads")


@dataclass(frozen=True)
class FollowedSinks:
    """Which positions had to be masked.

    Attributes:
        intervention: A plain :class:`~sinklens.interventions.MaskKeys` of all positions found: it goes to JSON, adds to
            other interventions and holds in generation with a cache like any other.
        table: One row per round and position that was a sink in it: ``round`` (0 = nothing masked), ``n_masked``
            positions hidden in that round, ``n_sink_heads`` and ``n_heads``.
        n_left: Sink heads that are left under ``intervention``; 0 unless the bound was reached.
    """

    intervention: MaskKeys
    table: pd.DataFrame = field(repr=False)
    n_left: int


@checked
def follow_sinks(
    model: TransformerBridge, batch: TokenBatch, *, bound: int = 8, eps: float = EPS, batch_size: int = 8
) -> FollowedSinks:
    """Hide every position that is a sink, and those where it comes back, until none is left.

    Masking one key rarely takes the sink away: on SmolLM2 it moves from position 0 to position 1 and the loss hardly
    changes, which says nothing about what sinks are for. A round finds the sink heads as a census does (importance
    above ``eps`` in half of the sequences at the head's strongest key, and twice the null), masks their positions in
    all heads for all later rounds, and looks again. Positions are the same in all sequences, so a sink that stands at
    another place in each text is not followed.

    Args:
        model: The bridge; it is the same afterwards.
        batch: Sequences from :func:`sinklens.tokenize`, of at least 10 tokens for eps = 0.3.
        bound: Most positions to mask; positions with more sink heads come first.
        eps: Threshold of the sink rate.
        batch_size: Sequences in one forward pass.

    Raises:
        InputError: No position is a sink to begin with, a bound below 1, or no sequence long enough.

    Cost: one forward pass with one statistic of attention for each round, at most ``bound + 1``.
    """
    if bound < 1:
        raise InputError(f"bound must be at least 1 position, got {bound}.")
    usable = (batch.lengths >= shortest_length(eps)).nonzero().flatten().tolist()
    if not usable:
        raise InputError(f"Every sequence is shorter than the {shortest_length(eps)} tokens that eps={eps} needs.")
    batch = batch.rows(usable)
    masked: list[int] = []
    rows: list[tuple[int, int, int, int, int]] = []
    while True:
        detector = SinkDetector(eps)
        change = MaskKeys(tuple(masked)) if masked else None
        capture(model, batch, [detector], batch_size=batch_size, intervention=change, statistics=lambda *_: _MASS)
        found, n_heads = _sink_positions(detector.tables()["sink_heads"])
        number = rows[-1][0] + 1 if rows else 0
        rows += [(number, len(masked), position, count, n_heads) for position, count in found.items()]
        new = [position for position in found if position not in masked][: bound - len(masked)]
        if not new:
            break
        masked += new
    if not masked:
        raise InputError("No position is a sink on these sequences, so there is none to mask and to follow.")
    return FollowedSinks(MaskKeys(tuple(masked)), pd.DataFrame(rows, columns=[*COLUMNS]), sum(found.values()))


_MASS: Sequence[type[ReceivedMass]] = (ReceivedMass,)


def _sink_positions(heads: pd.DataFrame) -> tuple[dict[int, int], int]:
    """Sink heads by position, the most first, and the number of heads."""
    if heads.empty:
        return {}, 0
    sinks = heads[(heads["sink_rate"] >= SINK_HEAD_RATE) & (heads["ratio"] >= SINK_HEAD_RATIO)]
    counts = sinks["position"].astype(int).tolist()
    return {each: counts.count(each) for each in sorted(set(counts), key=lambda p: (-counts.count(p), p))}, len(heads)
