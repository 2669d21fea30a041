"""To compare what counts, ranks or chooses: another processor's rounding may turn a near tie, and nothing else.

A loss moves in its last bits from one machine to the next; whether a token is the likeliest, a head above a threshold
or first of a list moves by a whole unit where the two candidates are that close. So such results are compared with the
margin that decided each of them: results may differ only where the margin is within ``TIE``, or a stated tolerance.
"""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

TIE = 1e-4
"""Margin in the compared unit (nats, shares, norms) below which rounding may decide: ten times what it moves."""


def margin(scores: Tensor, chosen: Tensor | None = None) -> Tensor:
    """How far ``scores[..., chosen]`` (by default the largest) is from the best of the others, ``[...]``."""
    index = scores.argmax(-1) if chosen is None else chosen
    others = scores.double().scatter(-1, index[..., None], -torch.inf).amax(-1)
    return (scores.double().gather(-1, index[..., None])[..., 0] - others).abs()


def same_indicators(actual: Tensor, expected: Tensor, margins: Tensor, tolerance: float = TIE) -> None:
    """Equal wherever the margin that decides an entry is above the tolerance; NaN margins count as far apart."""
    assert actual.shape == expected.shape
    wrong = (actual != expected) & ~(margins.abs() <= tolerance)
    assert not bool(wrong.any()), (
        f"{int(wrong.sum())} of {wrong.numel()} differ and are no ties, first at {tuple(wrong.nonzero()[0].tolist())}"
    )


def same_shares(actual: Tensor, expected: Tensor, margins: Tensor, tolerance: float = TIE) -> None:
    """Shares ``[...]`` of indicators with margins ``[... n]`` differ by no more than the near ties can turn.

    NaN margins are entries that are not counted.
    """
    turned = (margins.abs() <= tolerance).sum(-1) / (~margins.isnan()).sum(-1)
    wrong = ~((actual - expected).abs() <= turned + 1e-6) & ~(actual.isnan() & expected.isnan())
    assert not bool(wrong.any()), f"{actual[wrong]} and {expected[wrong]}, where ties can turn {turned[wrong]}"


def same_choice(chosen: Tensor, scores: Tensor, tolerance: float = TIE) -> None:
    """``chosen`` ``[...]`` indexes the largest of ``scores`` ``[... n]``, or one as large within the tolerance."""
    short = scores.double().amax(-1) - scores.double().gather(-1, chosen[..., None])[..., 0]
    assert bool((short <= tolerance).all()), f"chosen entries are up to {float(short.max()):.3g} below the largest"


def same_ranks(ranks: Tensor, scores: Tensor, of: Tensor, tolerance: float = TIE) -> None:
    """``ranks`` ``[...]`` are 1 + how many of ``scores`` ``[... n]`` are above entry ``of``, up to near ties."""
    gap = scores.double() - scores.double().gather(-1, of[..., None])
    least, most = (1 + (gap > limit).sum(-1) for limit in (tolerance, -tolerance))
    most = most - 1  # the entry itself is never above itself
    wrong = (ranks < least) | (ranks > torch.maximum(least, most))
    assert not bool(wrong.any()), f"{ranks[wrong]}, not from {least[wrong]} to {most[wrong]}"


def same_figures(
    actual: Mapping[str, float], expected: Mapping[str, float], counted: Sequence[str], step: float = 0.02
) -> None:
    """Figures measured again: within a thousandth, or a few ties (``step``) where a name holds a ``counted`` word."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        allowed = step if any(word in name for word in counted) else 1e-3
        assert actual[name] == pytest.approx(value, rel=1e-3, abs=allowed, nan_ok=True), name


def in_order(scores: Tensor, tolerance: float = TIE) -> None:
    """``scores`` ``[n]``, as ranked, never rise by more than the tolerance."""
    rise = scores.double().diff()
    assert bool((rise <= tolerance).all()), f"a later entry is {float(rise.max()):.3g} above the one before it"
