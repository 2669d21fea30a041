"""One look at residual states on a CPU, compiled: what would else be a pass over all of them for every sum.

Each function has a second form in torch, for other devices and precisions, for machines without numba, and as what the
tests compare with.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.attention import compiled
from sinklens.attention.compiled import jit
from sinklens.attention.visibility import cut
from sinklens.attention.workers import run_units

WORTH_THREADS = 1 << 18
"""Entries from which on threads take sequences side by side."""

_LOW, _HIGH = np.int32(10), np.int32(20)
_BINS, _REST, _SIGN = 2048, np.int32(1023), np.int32(0x7FFFFFFF)


def summary(
    states: Float[Tensor, "batch pos d_model"], real: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"], Float[Tensor, " batch"]]:
    """Norm and largest magnitude of every real token (NaN at padding), and each sequence's median magnitude.

    The median is of all entries of the real tokens, the lower middle one for an even count; NaN where a state has NaN.
    """
    if _compiles(states):
        mine = _array(states)
        norm, largest = np.full((2, *mine.shape[:2]), np.nan, np.float32)
        bits, there = np.empty(len(mine), np.int32), real.numpy()

        def look(some: slice) -> None:
            _summary(mine[some], mine[some].view(np.int32), there[some], norm[some], largest[some], bits[some])

        few = max(1, len(mine) // (2 * torch.get_num_threads()))
        run_units(look, cut(slice(0, len(mine)), few), parallel=mine.size >= WORTH_THREADS)
        median = bits.view(np.float32)
        return torch.from_numpy(norm), torch.from_numpy(largest), torch.from_numpy(median)
    norm = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32).masked_fill(~real, math.nan)
    magnitude = states.detach().float().abs()
    largest = magnitude.amax(-1)
    whole = bool(real.all())
    medians = torch.stack([lower_median(m if whole else m[r]) for m, r in zip(magnitude, real, strict=True)]).to(norm)
    broken = (largest.isnan() & real).any(1)
    return norm, largest.masked_fill(~real, math.nan), medians.masked_fill(broken, math.nan)


def along(
    states: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch pos"]:
    """Dot product of every state with its sequence's direction."""
    if _compiles(states):
        mine, one = _array(states), _array(direction)
        found = np.empty(mine.shape[:2], np.float32)
        _along(mine, one, found)
        return torch.from_numpy(found)
    twice = direction[..., None].expand(*direction.shape, 2)  # a product with one column is slow for many sequences
    product: Tensor = states @ twice
    return product[..., 0]


def column_sums(
    states: Float[Tensor, "batch pos d_model"], chosen: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " d_model"]:
    """``sum |h|`` over the chosen tokens by channel, summed in fp64: massive entries may be subtracted again."""
    if _compiles(states):
        mine = _array(states)
        sums = np.zeros(mine.shape[-1])
        _column_sums(mine, chosen.numpy(), sums)
        return torch.from_numpy(sums)
    total = torch.zeros(states.shape[-1], dtype=torch.float64)
    for some, part in zip(chosen.split(1024, 1), states.split(1024, 1), strict=True):
        kept = part.masked_fill(~some[..., None], 0).abs()  # NaN times nothing would be NaN
        wide = kept.cpu() if kept.device.type == "mps" else kept  # which has no fp64
        total += wide.sum((0, 1), dtype=torch.float64).cpu()
    return total


class Entries(NamedTuple):
    """Some entries of a residual stream, in the order of sequences, tokens and channels.

    Attributes:
        row: Sequence within the pass.
        place: Position in it.
        channel: Channel.
        value: The entry in fp32.
    """

    row: np.ndarray
    place: np.ndarray
    channel: np.ndarray
    value: np.ndarray


def entries_above(
    states: Float[Tensor, "batch pos d_model"],
    largest: Float[Tensor, "batch pos"],
    bound: Float[Tensor, " batch"],
) -> Entries:
    """All entries with a magnitude above their sequence's bound.

    Args:
        states: The residual stream.
        largest: Each token's largest magnitude, NaN at padding; a token at or below the bound is not looked at.
        bound: In fp32, strict.

    Cost: a look at the tokens that have one; memory about 30 bytes for each entry found.
    """
    limit = bound.cpu().numpy()
    rows, places = (largest.cpu().numpy() > limit[:, None]).nonzero()  # NaN is above nothing
    if _compiles(states):
        mine = _array(states)
        token, channel, value = _above(mine, rows, places, limit)
    else:
        large = states[rows, places].float().cpu().numpy()
        token, channel = (np.abs(large) > limit[rows, None]).nonzero()
        value = large[token, channel]
    return Entries(rows[token], places[token], channel, value)


def lower_median(values: Tensor) -> Tensor:
    """Median of all entries, the lower middle one for an even count, as torch.median; NaN for no entries.

    May reorder ``values``: on a CPU numpy's selection in place is ten times faster than torch's and needs no copy, but
    takes NaN for large.
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return values.flatten().median()
    flat = values.numpy().reshape(-1)
    middle = (flat.size - 1) // 2
    flat.partition(middle)
    return torch.tensor(float(flat[middle]))


def _compiles(states: Tensor) -> bool:
    on_cpu = states.device.type == "cpu" and states.element_size() <= 4
    return on_cpu and compiled.available() and not (states.requires_grad and torch.is_grad_enabled())


def _array(states: Tensor) -> Any:
    return states.detach().float().contiguous().numpy()


@jit("reassoc", "nsz", "contract")
def _squares(state: Any) -> Any:
    total = np.float32(0)
    for j in range(len(state)):
        total += state[j] * state[j]
    return total


@jit("nnan", "nsz")
def _top(state: Any) -> Any:
    largest = np.float32(0)
    for j in range(len(state)):
        largest = max(largest, abs(state[j]))
    return largest


@jit("reassoc", "nsz", "contract")
def _dot(state: Any, other: Any) -> Any:
    total = np.float32(0)
    for j in range(len(state)):
        total += state[j] * other[j]
    return total


@jit()
def _first_digits(bits: Any, counts: Any) -> None:
    """Count magnitudes by exponent and first digits: as whole numbers they have the order of their sizes."""
    whole = len(bits) // 4 * 4
    for j in range(0, whole, 4):  # tables of their own: neighbours of one size would wait for one another
        counts[0, (bits[j] & _SIGN) >> _HIGH] += 1
        counts[1, (bits[j + 1] & _SIGN) >> _HIGH] += 1
        counts[2, (bits[j + 2] & _SIGN) >> _HIGH] += 1
        counts[3, (bits[j + 3] & _SIGN) >> _HIGH] += 1
    for j in range(whole, len(bits)):
        counts[0, (bits[j] & _SIGN) >> _HIGH] += 1


@jit()
def _place(counts: Any, rank: int) -> Any:
    """The bin that holds the entry of this rank, and its rank in it."""
    for place in range(len(counts)):
        if rank < counts[place]:
            return place, rank
        rank -= counts[place]
    return 0, 0


@jit(cached=True)
def _summary(states: Any, bits: Any, real: Any, norm: Any, largest: Any, median: Any) -> None:
    """Fill in norms, largest magnitudes and the bits of the medians."""
    n_sequences, n_tokens, width = states.shape
    for sequence in range(n_sequences):
        counts, n_real, broken = np.zeros((4, _BINS), np.int64), 0, False
        for token in range(n_tokens):
            if real[sequence, token]:
                n_real += 1
                total = _squares(states[sequence, token])
                norm[sequence, token] = math.sqrt(total)
                largest[sequence, token] = np.float32(np.nan) if math.isnan(total) else _top(states[sequence, token])
                broken |= math.isnan(total)
                _first_digits(bits[sequence, token], counts)
        if broken or not n_real:
            median[sequence] = np.int32(0x7FC00000)  # NaN
            continue
        high, rank = _place(counts.sum(0), (n_real * width - 1) // 2)
        middle = np.zeros(1024, np.int64)
        for token in range(n_tokens):
            if real[sequence, token]:
                for j in range(width):
                    size = bits[sequence, token, j] & _SIGN
                    if size >> _HIGH == high:
                        middle[(size >> _LOW) & _REST] += 1
        mid, rank = _place(middle, rank)
        prefix, last = np.int32((high << 10) | mid), np.zeros(1024, np.int64)
        for token in range(n_tokens):
            if real[sequence, token]:
                for j in range(width):
                    size = bits[sequence, token, j] & _SIGN
                    if size >> _LOW == prefix:
                        last[size & _REST] += 1
        low, _ = _place(last, rank)
        median[sequence] = np.int32((prefix << 10) | low)


@jit(cached=True)
def _along(states: Any, direction: Any, found: Any) -> None:
    for sequence in range(states.shape[0]):
        for token in range(states.shape[1]):
            found[sequence, token] = _dot(states[sequence, token], direction[sequence])


@jit("nsz")
def _add(state: Any, sums: Any) -> None:
    for j in range(len(state)):
        sums[j] += abs(state[j])


@jit(cached=True)
def _column_sums(states: Any, chosen: Any, sums: Any) -> None:
    for sequence in range(states.shape[0]):
        for token in range(states.shape[1]):
            if chosen[sequence, token]:
                _add(states[sequence, token], sums)


@jit("nnan")
def _count(state: Any, bound: Any) -> int:
    found = 0
    for j in range(len(state)):
        found += abs(state[j]) > bound
    return found


@jit(cached=True)
def _above(states: Any, rows: Any, places: Any, bounds: Any) -> Any:
    """Number of the token, channel and value of every entry above its sequence's bound."""
    n_tokens, total = len(rows), 0
    for at in range(n_tokens):
        total += _count(states[rows[at], places[at]], bounds[rows[at]])
    token, channel = np.empty(total, np.int32), np.empty(total, np.int32)
    value, there = np.empty(total, np.float32), 0
    for at in range(n_tokens):
        state, bound = states[rows[at], places[at]], bounds[rows[at]]
        for j in range(len(state)):
            if abs(state[j]) > bound:
                token[there], channel[there], value[there] = at, j, state[j]
                there += 1
    return token, channel, value
