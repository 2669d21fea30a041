"""Sequences of one length together, so that no forward pass holds padding."""

from collections import defaultdict
from collections.abc import Iterator

from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch


def equal_lengths(batch: TokenBatch, batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences to run together: all of one length, at most ``batch_size``, short ones first.

    Causal attention never sees right padding, but a change that looks at a whole sequence (what a key receives from
    all queries, a mean over positions) would. Without padding there is nothing to get wrong.

    Raises:
        InputError: ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    by_length = defaultdict(list)
    for index, length in enumerate(batch.lengths.tolist()):
        by_length[length].append(index)
    for length in sorted(by_length):
        indices = by_length[length]
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
