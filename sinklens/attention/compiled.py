"""Causal softmax and the sums that statistics read, compiled: a row goes through everything while it is in cache.

Separate operations read a block once for every sum, and two threads of them share the interpreter's lock. Here SIMD
code that numba makes at first use (a few seconds, kept in ``__pycache__`` for later runs) takes each row through all of
them without that lock. Without numba, :mod:`sinklens.attention.kernel` measures with torch; the tests compare both.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from llvmlite import ir
    from numba import config, njit, types
    from numba.core.compiler_lock import global_compiler_lock
    from numba.extending import intrinsic
except (ImportError, OSError):  # not installed, not for this numpy, or its library does not load
    njit = None
else:
    if config.DISABLE_JIT:  # for debugging: plain Python would take minutes, and knows no intrinsics
        njit = None

if njit is not None and hasattr(os, "register_at_fork"):
    # a child forked while another thread compiles would wait for that thread, which it does not have, for ever
    os.register_at_fork(
        before=global_compiler_lock.__enter__,
        after_in_parent=lambda: global_compiler_lock.__exit__(None, None, None),
        after_in_child=lambda: global_compiler_lock.__exit__(None, None, None),
    )


def available() -> bool:
    """Whether numba is there and may compile."""
    return njit is not None


class _Kept:
    """A function whose machine code is kept in a file; compiled anew where that cannot be written, or is damaged.

    A disk may fill up, a folder become read-only and a file be cut short after this module was imported; numba raises
    whatever it met there, before the function runs.
    """

    def __init__(self, kept: Any, fresh: Any) -> None:
        self._run, self._fresh = kept, fresh

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._run(*arguments)
        except Exception:
            self._run = self._fresh  # whose own complaint, if it has one too, is the caller's
            return self._run(*arguments)


def jit(*relaxed: str, cached: bool = False) -> Callable[[Any], Any]:
    """Compile at first use; ``relaxed`` names what may be done to the order and sign of floating point numbers."""

    def decorate(function: Any) -> Any:
        if njit is None:
            return function
        fresh = njit(fastmath=set(relaxed), nogil=True)(function)
        if not cached:
            return fresh
        try:
            return _Kept(njit(fastmath=set(relaxed), nogil=True, cache=True)(function), fresh)
        except RuntimeError:  # no folder to keep it in
            return fresh

    return decorate


if njit is not None:

    @intrinsic  # type: ignore[untyped-decorator]
    def _as_float(context: Any, bits: Any) -> Any:
        """The fp32 number with these bits."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], ir.FloatType())

        return types.float32(types.int32), code


F = np.float32
LOG2_E, LN2_HIGH, LN2_LOW = F(1.44269504088896341), F(0.693359375), F(-2.12194440e-4)
P0, P1, P2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
P3, P4, P5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
ZERO, ONE, LOWEST, BIAS, MANTISSA = F(0), F(1), F(-87), np.int32(127), np.int32(23)


@jit("contract")
def exp(x: Any) -> Any:
    """``exp(x)`` for x <= 0 within 2e-7 of itself, 0 below -87: Cephes' ``expf`` without a branch."""
    n = np.rint(max(x, LOWEST) * LOG2_E)
    r = max(x, LOWEST) - n * LN2_HIGH - n * LN2_LOW
    value = (((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5) * (r * r) + r + ONE
    scaled = value * _as_float(np.int32((np.int32(n) + BIAS) << MANTISSA))
    return ZERO if x < LOWEST else scaled + (x - x)  # NaN stays NaN


@jit("nnan", "nsz")
def _largest(scores: Any) -> Any:
    largest = F(-np.inf)
    for j in range(len(scores)):
        largest = max(largest, scores[j])
    return largest


@jit("reassoc", "nsz", "contract")
def _lean(scores: Any, leaned: Any, lean: Any) -> Any:
    """Add the scores to their columns' sums, and return their own sum."""
    total = ZERO
    for j in range(len(scores)):
        total += scores[j]
        leaned[j] += lean * scores[j]
    return total


@jit("reassoc", "nsz", "contract")
def _weigh(scores: Any, back: Any, top: Any) -> Any:
    """Make scores into weights that are not normalised yet; their sum, and their sums with scores and distances."""
    total, with_scores, with_distances = ZERO, ZERO, ZERO
    for j in range(len(scores)):
        score = scores[j]
        weight = exp(score - top)
        scores[j] = weight
        total += weight
        with_scores += weight * score
        with_distances += weight * back[j]
    return total, with_scores, with_distances


@jit("contract")
def _normalise(weights: Any, received: Any, factor: Any, counts: Any) -> None:
    for j in range(len(weights)):
        weight = weights[j] * factor
        weights[j] = weight
        received[j] += counts * weight


@jit("nnan", "nsz")
def _highest(weights: Any, highest: Any) -> None:
    for j in range(len(weights)):
        highest[j] = max(highest[j], weights[j])


@jit(cached=True)
def causal_block(
    block: Any,
    own: int,
    first_row: int,
    n_heads: int,
    weight: Any,
    lean: Any,
    back: Any,
    received: Any,
    leaned: Any,
    by_row: Any,
) -> None:
    """Make a block of scores into attention weights in place, 0 after each row's own key, and collect sums.

    Args:
        block: fp32 scores ``[sequence head, q_pos, k_pos]``.
        own: Column of the first row's own position.
        first_row: Its number among all rows.
        n_heads: Heads of each sequence in the block.
        weight: ``[sequence q_pos]``, what each row counts in what keys receive.
        lean: ``[sequence q_pos]``, what it counts in the columns' sums of scores.
        back: Distances from a row's own key back, downwards to 0 at its end.
        received: fp32 ``[sequence head k_pos]``, added to: ``sum_i w_i p_ij``.
        leaned: The same for ``sum_i l_i s_ij``.
        by_row: ``[5 sequence head q_pos]`` of the block's rows: log of the softmax denominator, ``sum_j p_ij s_ij``,
            ``sum_j p_ij (i - j)``, ``sum_j s_ij``, and the largest weight.
    """
    n_blocks, n_rows, _ = block.shape
    for index in range(n_blocks):
        sequence = index // n_heads
        got, sums = received[index], leaned[index]
        for row in range(n_rows):
            end = own + row + 1
            scores = block[index, row, :end]
            block[index, row, end:] = ZERO
            top = _largest(scores)
            by_row[3, index, row] = _lean(scores, sums, lean[sequence, first_row + row])
            total, with_scores, with_distances = _weigh(scores, back[len(back) - end :], top)
            factor = ONE / total
            _normalise(scores, got, factor, weight[sequence, first_row + row])
            by_row[0, index, row] = top + math.log(total)
            by_row[1, index, row] = with_scores * factor
            by_row[2, index, row] = with_distances * factor
            by_row[4, index, row] = factor  # of the score that was subtracted: exp(0) is exactly 1


@jit("nnan", "nsz")
def _first(weights: Any, wanted: Any) -> int:
    """Where the first weight of this size is; 0 if there is none."""
    for start in range(0, len(weights), 64):
        stop, found = min(start + 64, len(weights)), 0
        for j in range(start, stop):
            found += weights[j] >= wanted
        if found:
            for j in range(start, stop):
                if weights[j] >= wanted:
                    return j
    return 0


@jit(cached=True)
def first_block(block: Any, own: int, wanted: Any, key: Any) -> None:
    """The first key of each row that has a weight (0 in a row of NaN).

    Args:
        block: Attention weights ``[head q_pos k_pos]``.
        own: Column of the first row's own position.
        wanted: That weight, ``[head q_pos]``.
        key: The same of integers, filled.
    """
    n_heads, n_rows, _ = block.shape
    for head in range(n_heads):
        for row in range(n_rows):
            one = wanted[head, row]
            key[head, row] = 0 if math.isnan(one) else _first(block[head, row, : own + row + 1], one)


@jit(cached=True)
def set_block(block: Any, own: int, n_heads: int, members: Any, ends: Any, mass: Any) -> None:
    """What each row gives to a set of keys.

    Args:
        block: Attention weights ``[sequence head, q_pos, k_pos]``.
        own: Column of the first row's own position.
        n_heads: Heads of each sequence in the block.
        members: The keys of the first sequence's set in rising order, then those of the second's, and so on.
        ends: Where each sequence's keys end.
        mass: ``[sequence head, q_pos]``, filled.
    """
    n_blocks, n_rows, _ = block.shape
    for index in range(n_blocks):
        sequence = index // n_heads
        start = ends[sequence - 1] if sequence else 0
        for row in range(n_rows):
            total = ZERO
            for place in range(start, ends[sequence]):
                if members[place] > own + row:
                    break
                total += block[index, row, members[place]]
            mass[index, row] = total


@jit(cached=True)
def pooled_block(block: Any, first_row: int, cell: int, weight: Any, maps: Any) -> None:
    """Largest weight in each ``cell x cell`` of some heads, rows without weight left out.

    Args:
        block: Attention weights of one sequence ``[head q_pos k_pos]``.
        first_row: Number of the first row among all.
        cell: Rows and keys that share a cell.
        weight: ``[q_pos]`` of all rows.
        maps: ``[head q_cell k_cell]``, raised where a weight is larger.
    """
    n_heads, n_rows, n_keys = block.shape
    highest = np.empty(n_keys, np.float32)
    for head in range(n_heads):
        highest[:] = ZERO
        for row in range(n_rows):
            number = first_row + row
            if weight[number] > 0:
                _highest(block[head, row], highest)
            if (number + 1) % cell == 0 or row == n_rows - 1:
                cells = maps[head, number // cell]
                for key in range(n_keys):
                    cells[key // cell] = max(cells[key // cell], highest[key])
                highest[:] = ZERO
