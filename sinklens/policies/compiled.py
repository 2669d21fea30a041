"""What rules do to every score, compiled: each row goes through it while it is in cache.

Torch's own operations, of which every rule is written, read a block of scores once for every step. Numba makes these
loops at first use; without it, on a GPU and in other dtypes the rules run on torch alone, which the tests compare.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinklens.attention import compiled
from sinklens.attention.compiled import exp, jit

F, WHOLE = np.float32, np.int32
HIDDEN, ZERO, ONE, E = F(-np.inf), F(0), F(1), F(math.e)
SIGN, OTHERS, LOWEST = WHOLE(31), WHOLE(0x7FFFFFFF), WHOLE(-0x80000000)


def takes(x: Tensor) -> bool:
    """Whether compiled code can read a tensor: numba is there, and it is fp32 on a CPU, without gradients."""
    return compiled.available() and x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad


@jit("reassoc")
def _at_least(keys: Any, limit: Any) -> Any:
    found = WHOLE(0)
    for j in range(len(keys)):
        found += WHOLE(keys[j] >= limit)
    return found


@jit("reassoc")
def _order(bits: Any, among: Any, keys: Any) -> Any:
    """Whole numbers in the order of the floats, the lowest for those not ``among``; how many there are."""
    there = WHOLE(0)
    for j in range(len(bits)):
        key = bits[j] ^ ((bits[j] >> SIGN) & OTHERS)
        keys[j] = key if among[j] else LOWEST
        there += WHOLE(among[j])
    return there


@jit(cached=True)
def largest(bits: Any, among: Any, count: int, taken: Any) -> None:
    """The ``count`` largest fp32 numbers of each row, the first ones of those that are equal.

    The number at the edge is found by halving the range of whole numbers that order floats: at most 32 passes over a
    row that is in cache, about 1 ns a number for rows of thousands.

    Args:
        bits: The numbers' bits, int32 ``[row key]``.
        among: Which may be taken at all, ``[row key]``.
        count: From 1.
        taken: ``[row key]``, filled.
    """
    keys = np.empty(bits.shape[1], np.int32)
    for row in range(bits.shape[0]):
        if _order(bits[row], among[row], keys) <= count:
            taken[row] = among[row]
            continue
        low, high, enough = np.int64(keys.min()), np.int64(keys.max()), np.int64(-1)
        while low < high and enough != count:
            middle = low + (high - low + 1) // 2
            found = _at_least(keys, WHOLE(middle))
            if found >= count:
                low, enough = middle, found
            else:
                high = middle - 1
        edge = WHOLE(low)
        for j in range(len(keys)):
            taken[row, j] = keys[j] >= edge
        if enough == count:
            continue
        left = count - (_at_least(keys, WHOLE(low + 1)) if low < OTHERS else 0)
        for j in range(len(keys)):
            if keys[j] == edge:
                taken[row, j] = left > 0
                left -= 1


@jit("reassoc", "nsz")
def _mean(scores: Any) -> Any:
    total, there = ZERO, WHOLE(0)
    for j in range(len(scores)):
        seen = scores[j] != HIDDEN
        total += scores[j] if seen else ZERO
        there += WHOLE(seen)
    return total / F(there) if there else HIDDEN


@jit("nnan", "nsz")
def _most(scores: Any) -> Any:
    top = HIDDEN
    for j in range(len(scores)):
        top = max(top, scores[j])
    return top


@jit(cached=True)
def block_scores(scores: Any, before: int, first: int, block: int, mean: bool, found: Any) -> None:
    """Mean or largest visible score of each block of keys, ``-inf`` where a row sees none of it.

    Args:
        scores: ``[head q_pos k_pos]``, ``-inf`` at hidden keys.
        before: Columns that stand before the text.
        first: Position of the column after them.
        block: Tokens in a block, counted from position 0.
        mean: Or the largest.
        found: ``[head q_pos k_block]``, filled.
    """
    heads, rows, columns = scores.shape
    for head in range(heads):
        for row in range(rows):
            for number in range(found.shape[2]):
                start = before + max(number * block - first, 0)
                stop = before + max((number + 1) * block - first, 0)
                part = scores[head, row, start : min(columns, stop)]
                found[head, row, number] = _mean(part) if mean else _most(part)


@jit("reassoc")
def _cut(scores: Any, kept: Any, out: Any) -> Any:
    """Hide what is not kept; how many keys were seen, and how many are left."""
    seen, left = WHOLE(0), WHOLE(0)
    for j in range(len(scores)):
        there = scores[j] != HIDDEN
        seen += WHOLE(there)
        left += WHOLE(there & kept[j])
        out[j] = scores[j] if kept[j] else HIDDEN
    return seen, left


@jit(cached=True)
def hide(scores: Any, kept: Any, out: Any, empty: Any) -> None:
    """Scores with ``-inf`` where a key is not kept.

    Args:
        scores: ``[head q_pos k_pos]``.
        kept: The same of booleans, or with one head for all.
        out: The same as the scores, filled; it may be they.
        empty: ``[head q_pos]``, filled: rows that saw keys and have none left.
    """
    shared = kept.shape[0] == 1
    for head in range(scores.shape[0]):
        for row in range(scores.shape[1]):
            seen, left = _cut(scores[head, row], kept[0 if shared else head, row], out[head, row])
            empty[head, row] = seen > 0 and left == 0


@jit("reassoc", "nsz", "contract")
def _dot(a: Any, b: Any) -> Any:
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@jit("reassoc", "nsz", "contract")
def _weights(scores: Any, weights: Any) -> None:
    """Softmax of a row that sees a key."""
    top, total = _most(scores), ZERO
    for j in range(len(scores)):
        weights[j] = exp(scores[j] - top)
        total += weights[j]
    for j in range(len(scores)):
        weights[j] /= total


@jit()
def _unit(key: Any, unit: Any) -> None:
    norm = max(math.sqrt(_dot(key, key)), F(1e-12))
    for j in range(len(key)):
        unit[j] = key[j] / norm


@jit(cached=True)
def merging_cache(
    scores: Any,
    query: Any,
    keys: Any,
    rows: Any,
    first: int,
    cap: float,
    sizes: Any,
    pace: float,
    live: Any,
    key: Any,
    unit: Any,
    sums: Any,
    merged: Any,
    gain: Any,
    free: Any,
    owner: Any,
    weight: Any,
    mean: Any,
    count: int,
    found: Any,
) -> int:
    """Some rows of :class:`~sinklens.policies.d2o.D2O`, which says what is done; its state is changed in place.

    Args:
        scores: ``[head q_pos k_pos]``.
        query: Scaled, ``[head q_pos d_head]``.
        keys: ``[head k_pos d_head]``.
        rows: Position of each query, negative before the text.
        first: Position of the first column.
        cap: The model's soft cap, 0 without one.
        sizes: First, heavy and recent keys.
        pace: Weight of the newest likeness in the moving average.
        live: Position of each slot's token, ``[head slot]``, -1 where it is empty.
        key: Keys of the slots.
        unit: The same with length 1.
        sums: Attention that each slot got.
        merged: Whether it stands for several tokens.
        gain: Logarithm of what its tokens' weights were multiplied by.
        free: Next slot of each head.
        owner: Slot of each token so far, ``[head position]``.
        weight: Logarithm of its weight there, without the slot's gain.
        mean: Moving average of each head, NaN before the first.
        count: Tokens so far.
        found: ``[head q_pos k_pos]``, filled where a token stands in a slot.

    Returns:
        Tokens after these rows.
    """
    heads, n_rows, columns = scores.shape
    sinks, heavy, recent = sizes
    size, start, so_far = heavy + recent, max(first, 0), count
    slots, weights = np.empty(size + 1, np.float32), np.empty(size + 1, np.float32)
    for head in range(heads):
        so_far = count
        for row in range(n_rows):
            position = rows[row]
            if position < 0:
                continue
            at = free[head]
            live[head, at], sums[head, at], merged[head, at], gain[head, at] = position, ZERO, False, ZERO
            key[head, at] = keys[head, position - first]
            _unit(key[head, at], unit[head, at])
            owner[head, position] = at
            so_far += 1
            for slot in range(size + 1):
                if live[head, slot] < 0:
                    slots[slot] = HIDDEN
                elif merged[head, slot]:
                    product = _dot(key[head, slot], query[head, row])
                    slots[slot] = product if cap == 0 else F(cap * math.tanh(product / cap))
                else:
                    slots[slot] = scores[head, row, min(max(live[head, slot] - first, 0), columns - 1)]
            _weights(slots, weights)
            for slot in range(size + 1):
                sums[head, slot] += weights[slot]
                slots[slot] += gain[head, slot]
            for token in range(start, position + 1):
                if owner[head, token] <= size:
                    found[head, row, token - first] = slots[owner[head, token]] + weight[head, token]
            if so_far <= size:
                free[head] = so_far
                continue
            out, least = -1, F(np.inf)
            for slot in range(size + 1):
                place = live[head, slot]
                safe = place > position - recent or (place < sinks and sinks <= heavy)
                if not safe and (out < 0 or sums[head, slot] < least):
                    out, least = slot, sums[head, slot]
            free[head] = out
            into, best = -1, HIDDEN
            for slot in range(size + 1):
                like = _dot(unit[head, slot], unit[head, out])
                if slot != out and like > best:
                    into, best = slot, like
            mean[head] = best if math.isnan(mean[head]) else F(pace) * best + F(1 - pace) * mean[head]
            change, place = ZERO, size + 1
            if best >= mean[head]:
                share, place = F(math.exp(best) / (math.exp(best) + E)), into
                for j in range(key.shape[2]):
                    key[head, into, j] = (ONE - share) * key[head, into, j] + share * key[head, out, j]
                _unit(key[head, into], unit[head, into])
                merged[head, into] = True
                gain[head, into] += F(math.log(ONE - share))
                change = gain[head, out] + F(math.log(share)) - gain[head, into]
            for token in range(position + 1):
                if owner[head, token] == out:
                    owner[head, token] = place
                    weight[head, token] += change
    return so_far
