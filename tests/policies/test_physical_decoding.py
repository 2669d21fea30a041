"""Rules that evict, beside a decoder that really drops keys and values, token by token.

The decoder shares nothing with sinklens: plain transformers, one new token a pass, no cache of its own, an attention
function that keeps per query head a list of (position, key, value) and forgets what the rule's few lines forget.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from sinklens.policies import Policy
from sinklens.policies.h2o import H2O
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.snap_kv import SnapKV
from sinklens.policies.streaming_llm import StreamingLLM
from sinklens.policies.tova import TOVA
from tests.families import boot, boot_hf, random_ids

POS, PROMPT = 40, 22


class Cache:
    """What one layer holds: per head its live tokens, with a sum of attention each."""

    def __init__(self, heads: int) -> None:
        self.live: list[list[dict[str, Any]]] = [[] for _ in range(heads)]
        self.rows: list[list[dict[int, float]]] = [[] for _ in range(heads)]  # attention of every step


Forget = Callable[[Cache, int], None]


def forget_h2o(cache: Cache, t: int) -> None:
    for live in cache.live:
        while len(live) > 4 + 4:
            old = [token for token in live if token["at"] <= t - 4]
            live.remove(min(old, key=lambda token: token["sum"]))


def forget_tova(cache: Cache, t: int) -> None:
    while len(cache.live[0]) > 8:
        means = [sum(head[i]["last"] for head in cache.live) for i in range(len(cache.live[0]))]
        worst = means.index(min(means))
        for live in cache.live:
            del live[worst]


def forget_window(cache: Cache, t: int) -> None:
    for live in cache.live:
        live[:] = [token for token in live if token["at"] < 2 or token["at"] > t - 6]


def forget_snap(cache: Cache, t: int) -> None:
    if t != PROMPT - 1:
        return
    for live, rows in zip(cache.live, cache.rows, strict=True):
        votes = [sum(row.get(at, 0.0) for row in rows[-4:]) for at in range(PROMPT - 4)]
        votes = [0.0, *votes, 0.0]
        pooled = [sum(votes[i : i + 3]) / 3 for i in range(PROMPT - 4)]
        chosen = sorted(range(PROMPT - 4), key=lambda at: -pooled[at])[:6]
        live[:] = [token for token in live if token["at"] in chosen or token["at"] >= PROMPT - 4]


def turn(x: Tensor, by: int, base: float) -> Tensor:
    """Rotary embedding turned further, by complex numbers."""
    half = x.shape[-1] // 2
    angle = by * base ** (-torch.arange(half, dtype=torch.float64) / half)
    numbers = torch.complex(x[:half].double(), x[half:].double()) * torch.polar(torch.ones(half).double(), angle)
    return torch.cat((numbers.real, numbers.imag)).float()


def decode(zoo: Path, name: str, ids: Tensor, forget: Forget, renumber: bool) -> Tensor:
    """Logits of every token, with physically small caches."""
    model: Any = boot_hf(name, zoo)
    caches: dict[int, Cache] = {}
    step = {"t": 0}
    base = float(model.config.rope_parameters["rope_theta"])

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        cache = caches.setdefault(module.layer_idx, Cache(heads))
        out = torch.zeros(1, 1, heads, value.shape[-1])
        for head in range(heads):
            live = cache.live[head]
            live.append({"at": step["t"], "k": key[0, head // group, 0], "v": value[0, head // group, 0], "sum": 0.0})
            scores = []
            for slot, token in enumerate(live):
                k = turn(token["k"], slot - token["at"], base) if renumber else token["k"]
                q = turn(query[0, head, 0], len(live) - 1 - step["t"], base) if renumber else query[0, head, 0]
                scores.append(float(q @ k) * scaling)
            weights = [math.exp(score - max(scores)) for score in scores]
            weights = [weight / sum(weights) for weight in weights]
            cache.rows[head].append({token["at"]: w for token, w in zip(live, weights, strict=True)})
            for token, weight in zip(live, weights, strict=True):
                token["sum"] += weight
                token["last"] = weight
                out[0, 0, head] += weight * token["v"]
        forget(cache, step["t"])
        return out, None

    AttentionInterface.register("physical", attention)
    before = model.config._attn_implementation
    model.set_attn_implementation("physical")
    try:
        found = []
        for t in range(ids.shape[1]):
            step["t"] = t
            out = model(ids[:, t : t + 1], position_ids=torch.tensor([[t]]), use_cache=False)
            found.append(out.logits)
    finally:
        model.set_attn_implementation(before)
    return torch.cat(found, 1)


RULES: dict[str, tuple[Policy, Forget, bool]] = {
    "full": (SinkWindow(0, POS), lambda cache, t: None, False),
    "h2o": (H2O(4, 4), forget_h2o, False),
    "tova": (TOVA(8), forget_tova, False),
    "window": (SinkWindow(2, 6, evict_after=True), forget_window, False),
    "streaming": (StreamingLLM(2, 6), forget_window, True),
    "snap": (SnapKV(10, window=4, pool=3, prompt=PROMPT), forget_snap, False),
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", RULES)
def test_one_pass_equals_a_decoder_that_drops_keys_for_good(name: str, family: str, zoo: Path) -> None:
    policy, forget, renumber = RULES[name]
    ids = random_ids(1, POS)
    bridge = boot(family, zoo)
    with policy(bridge):
        found = bridge(ids)
    expected = decode(zoo, family, ids, forget, renumber)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if name != "full":
        assert float((found - bridge(ids)).abs().max()) > 1e-2


def test_numbering_the_cache_anew_is_not_the_plain_window(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    with StreamingLLM(2, 6)(bridge):
        near = bridge(ids)
    with SinkWindow(2, 6, evict_after=True)(bridge):
        far = bridge(ids)
    assert float((near - far).abs().max()) > 1e-2
    assert torch.allclose(near[:, :9], far[:, :9], atol=1e-6)  # nothing has been dropped yet
