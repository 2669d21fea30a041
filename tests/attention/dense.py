"""Dense attention and its statistics in fp64, vectorised: the reference where loops would take too long.

``test_dense.py`` holds the statistics to the oracle. Tensors are [batch head q_pos k_pos]; ``visible`` [batch
q_pos k_pos] is False in the rows of padding queries.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from sinklens.attention import (
    AttentionCall,
    AttentionShape,
    Distance,
    Entropy,
    FullMap,
    KeySetMass,
    MissingMass,
    PooledMap,
    ReceivedMass,
    Statistic,
    StatisticFactory,
    TopKey,
)
from sinklens.attention.delta_logit import DeltaLogit
from tests.pretend_cuda.aside import aside

NAN = math.nan


@aside()
def scores(call: AttentionCall) -> Tensor:
    """Scaled, soft-capped and biased scores of every query head, unmasked."""
    group = call.query.shape[1] // call.key.shape[1]
    key = call.key.double().repeat_interleave(group, 1)
    out = call.query.double() @ key.transpose(-1, -2) * call.scaling
    if call.soft_cap is not None:
        out = call.soft_cap * torch.tanh(out / call.soft_cap)
    return out if call.bias is None else out + call.bias.double()


@aside()
def pattern(scores: Tensor, visible: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax over the visible keys, and the learned sink that joins it; 0 in rows that see nothing."""
    hidden = scores.masked_fill(~visible if visible.ndim == 4 else ~visible[:, None], -math.inf)
    if sinks is not None:
        column = sinks.double()[None, :, None, None].expand(*hidden.shape[:3], 1)
        hidden = torch.cat([hidden, column], -1)
    return torch.softmax(hidden, -1).nan_to_num()[..., : scores.shape[-1]]


@aside()
def output(pattern: Tensor, value: Tensor) -> Tensor:
    """``pattern @ value`` with the KV heads repeated."""
    return pattern @ value.double().repeat_interleave(pattern.shape[1] // value.shape[1], 1)


@aside()
def causal(q_pos: int, k_pos: int, window: int | None = None, batch: int = 1) -> Tensor:
    """Query i of the last ``q_pos`` positions sees keys up to its own, at most ``window`` of them."""
    rows, keys = torch.arange(k_pos - q_pos, k_pos)[:, None], torch.arange(k_pos)
    near = rows - keys < (k_pos + 1 if window is None else window)
    return ((keys <= rows) & near).expand(batch, -1, -1)


def cell_of(k_pos: int) -> int:
    """Width of a display cell: the smallest power of two that needs at most 128 of them."""
    return next(1 << power for power in range(32) if -(-k_pos // (1 << power)) <= 128)


@aside()
def statistics(
    pattern: Tensor, scores: Tensor | None, visible: Tensor, sets: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Everything that the engine's statistics compute, under the same names."""
    _, _, q_pos, k_pos = pattern.shape
    real = visible.any(-1)[:, None]  # [batch 1 q_pos]
    n_visible = visible.sum(-1).double()
    p = pattern.double() * visible[:, None]
    total = p.sum(-1)
    share = (p / total[..., None]).nan_to_num()
    back = torch.arange(k_pos - q_pos, k_pos)[:, None] - torch.arange(k_pos)

    def of_rows(value: Tensor) -> Tensor:
        return value.masked_fill(~real, NAN)

    source = (p.log() if scores is None else scores.double()).masked_fill(~visible[:, None], 0)
    others = (n_visible - 1)[:, None, :, None]
    margin = source - (source.sum(-1, keepdim=True) - source) / others
    counts = visible & (n_visible > 1)[..., None]
    margin = margin.masked_fill(~counts[:, None], 0).sum(2) / counts.sum(1)[:, None]
    cell = cell_of(k_pos)
    pad = (0, -k_pos % cell, 0, -q_pos % cell)
    shown = torch.nn.functional.pad(p.masked_fill(~visible[:, None], -1), pad, value=-1)
    pooled = shown.unflatten(-1, (-1, cell)).unflatten(-3, (-1, cell)).amax((-3, -1))
    expected = {
        "mass": p.sum(2),
        "queries": visible.sum(1).double(),
        "null_mass": (visible / n_visible.clamp(min=1)[..., None]).sum(1),
        "entropy": of_rows(torch.special.entr(share).sum(-1)).masked_fill(total == 0, NAN),
        "entropy_null": of_rows(n_visible.clamp(min=1).log()[:, None])[:, 0],
        "distance": of_rows((share * back).sum(-1)).masked_fill(total == 0, NAN),
        "top_weight": of_rows(p.amax(-1)),
        "top_key": p.argmax(-1).masked_fill(~real | (total == 0), -1),
        "missing_mass": of_rows(1 - total),
        "delta_logit": margin,
        "pooled_map": pooled.masked_fill(pooled < 0, NAN),
        "full_map": p.masked_fill(~visible[:, None], NAN),
    }
    for name, keys in (sets or {}).items():
        expected[f"mass_{name}"] = of_rows((p * keys[:, None, None]).sum(-1))
    return expected


def factories(batch: int, sets: Mapping[str, Tensor] | None = None) -> list[StatisticFactory]:
    """All statistics of the engine, with every map."""
    plain: list[StatisticFactory] = [
        ReceivedMass,
        Entropy,
        Distance,
        TopKey,
        MissingMass,
        DeltaLogit,
        FullMap,
    ]
    plain.append(partial(PooledMap, sequences=range(batch)))
    return plain if sets is None else [*plain, partial(KeySetMass, sets=sets)]


def make(makers: Sequence[StatisticFactory], shape: AttentionShape) -> list[Statistic]:
    """Fresh accumulators for one call."""
    return [maker(shape) for maker in makers]


def computed(statistics: Sequence[Statistic]) -> dict[str, Tensor]:
    """All finished quantities of several statistics."""
    found: dict[str, Tensor] = {}
    for statistic in statistics:
        found |= statistic.compute()
    return found


def errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], visible: Tensor) -> dict[str, float]:
    """Largest deviation by name; infinite where one side is NaN and the other is not.

    Masses, margins and distances are large sums, so theirs are relative to ``1 + |expected|``. The strongest
    key is right when it holds the largest weight, whichever of two equal ones it is. Display rows of padding
    queries are not compared.
    """
    assert set(found) == set(expected)
    worst = {}
    for name, right in expected.items():
        value = found[name].cpu()
        assert value.shape == right.shape, (name, value.shape, right.shape)
        if name == "full_map":
            value = value.masked_fill(~visible.any(-1)[:, None, :, None], NAN)
        if name == "top_key":
            assert torch.equal(value == -1, right == -1)
            weights = expected["full_map"].nan_to_num()
            chosen, best = (weights.gather(-1, x.clamp(min=0)[..., None]) for x in (value, right))
            worst[name] = float((best - chosen).abs().max())
            continue
        if not torch.equal(value.isnan(), right.isnan()):
            worst[name] = math.inf
            continue
        gap = (value.double() - right).abs() / (1 + right.abs())
        worst[name] = float(gap.nan_to_num().max())
    return worst


def assert_right(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    visible: Tensor,
    limit: float,
    limits: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Every quantity is within ``limit`` (or its own limit); returns the deviations."""
    worst = errors(found, expected, visible)
    bad = {name: gap for name, gap in worst.items() if not gap <= (limits or {}).get(name, limit)}
    assert not bad, bad
    return worst
