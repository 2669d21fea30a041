"""Rules that number what they keep anew, beside loops that rotate every query and key themselves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinklens.attention import AttentionEngine
from sinklens.errors import UnsupportedArchitectureError
from sinklens.policies import Policy
from sinklens.policies.long_heads import LongHeads
from sinklens.policies.token_select import TokenSelect
from tests.families import boot, random_ids
from tests.interventions.invariants import decoded
from tests.policies.naive import Layer, best, softmax
from tests.policies.rules import POS
from tests.policies.test_invariants import holds_its_scope, under
from tests.policies.test_oracle import layers_under

Array = np.ndarray
RULES: dict[str, Policy] = {
    "token_select": TokenSelect(4, 1, 3, chunk=8, renumber=True),
    "token_select, row by row": TokenSelect(4, 1, 3, chunk=1, renumber=True),
    "long_heads": LongHeads(4, 4, renumber=True),
}


def rotate(x: Array, by: float, theta: float) -> Array:
    """One vector, its first half against its second."""
    half = len(x) // 2
    angle = by / theta ** (np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)))


def before(x: Array, theta: float) -> Array:
    """``[head pos d]`` before the rotary embedding."""
    return np.array([[rotate(row, -t, theta) for t, row in enumerate(head)] for head in x])


def token_select(x: Layer, theta: float, chunk: int) -> Callable[[int, int], list[int]]:
    q, k = before(x.q, theta), before(x.k, theta)

    def rule(_: int, t: int) -> list[int]:
        start = t // chunk * chunk
        rows = range(start, min(start + chunk, x.T))
        among = range(1, max(1, start - 3))
        if len(among) <= 4:
            return [*range(t + 1)]
        votes = np.zeros(len(among))
        for h in range(x.H):
            mean = rotate(q[h, rows].mean(0), 3, theta) * x.q.shape[-1] ** 0.5
            votes += softmax(np.array([mean @ k[h, i] for i in among]))
        chosen = best(dict(zip(among, votes.tolist(), strict=True)), 4)
        return sorted({0, *chosen, *range(max(0, start - 3), t + 1)})

    return rule


def long_heads(x: Layer, theta: float) -> Callable[[int, int], list[int]]:
    q, k, d = before(x.q, theta), before(x.k, theta), x.q.shape[-1]
    keys: dict[tuple[int, int], Array] = {}
    for h in range(x.H):
        for c in range(x.T // 4):
            own = range(4 * c, 4 * c + 4)
            near_q, near_k = ([rotate(y[h, i], i % 4, theta) for i in own] for y in (q, k))
            reads = [softmax(np.array([a @ b for b in near_k])) @ x.v[h, own] for a in near_q]
            weights = softmax(np.array([np.mean(reads, 0) @ b for b in near_k]) / d**0.5)
            keys[h, c] = weights @ np.array(near_k)

    def rule(h: int, t: int) -> list[int]:
        own = t // 4
        always = {0, own, max(own - 1, 0)}
        fit = {c: float(q[h, t] @ keys[h, c]) for c in range(own) if c not in always}
        return sorted(i for c in {*best(fit, 1), *always} for i in range(4 * c, 4 * c + 4) if i <= t)

    return rule


def numbered_anew(x: Layer, rule: Callable[[int, int], list[int]], theta: float) -> Array:
    """Weights when what a row reads stands at 0, 1, 2 ... and the row itself at the last of them."""
    q, k, found = before(x.q, theta), before(x.k, theta), np.zeros_like(x.p)
    for h in range(x.H):
        for t in range(x.T):
            read = rule(h, t)
            mine = rotate(q[h, t], len(read) - 1, theta)
            found[h, t, read] = softmax(np.array([mine @ rotate(k[h, i], n, theta) for n, i in enumerate(read)]))
    return found


@pytest.mark.parametrize("name", RULES)
def test_kept_keys_are_read_at_their_places_among_each_other(name: str, zoo: Path) -> None:
    bridge = boot("llama", zoo)
    config: Any = bridge.original_model.config
    theta = float(config.rope_parameters["rope_theta"])
    calls, maps = layers_under(bridge, RULES[name], random_ids(1, POS))
    for layer, found in zip(calls, maps, strict=True):
        if name == "long_heads":
            rule = long_heads(layer, theta)
        else:
            rule = token_select(layer, theta, 1 if "row" in name else 8)
        expected = numbered_anew(layer, rule, theta)
        np.testing.assert_allclose(found[:, :POS, :POS], expected, atol=2e-5, err_msg=f"layer {layer.number}")
        assert np.abs(expected - layer.keeping(rule)).max() > 1e-2  # the new places matter


@pytest.mark.parametrize("name", RULES)
def test_a_large_budget_changes_no_bit_and_the_scope_holds(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    with AttentionEngine(bridge):
        plain = bridge(ids)
    large: Any = {"k": POS} if isinstance(RULES[name], TokenSelect) else {"chunks": POS}
    assert torch.equal(under(bridge, replace(RULES[name], **large), ids), plain)
    assert RULES[name].scope == ("block" if name == "token_select" else "causal")
    assert holds_its_scope(RULES[name], bridge)


@pytest.mark.parametrize("name", ["token_select, row by row", "long_heads"])
def test_decoding_with_a_cache_is_one_pass(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    torch.testing.assert_close(decoded(bridge, RULES[name], ids), under(bridge, RULES[name], ids), atol=1e-4, rtol=0)


def test_a_model_without_rotary_embedding_is_refused_only_where_keys_are_turned(zoo: Path) -> None:
    bridge, ids = boot("gpt2", zoo), random_ids(pos=POS)
    assert torch.isfinite(under(bridge, LongHeads(4, 4), ids)).all()
    with pytest.raises(UnsupportedArchitectureError, match="cannot be given other positions"):
        under(bridge, RULES["long_heads"], ids)
