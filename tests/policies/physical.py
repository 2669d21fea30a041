"""A decoder that really drops keys and values, token by token; it shares nothing with sinklens.

Plain transformers, one new token a pass, no cache of its own: an attention function keeps, per query head, the keys and
values that are left, and forgets what a rule's few lines forget. Several rules decode side by side, one a sequence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface


@dataclass
class Head:
    """What one query head of one layer holds: ``at`` (positions), ``k``, ``v``, ``sum`` and ``last`` of attention."""

    at: Tensor
    k: Tensor
    v: Tensor
    sum: Tensor
    last: Tensor

    def keep(self, which: Tensor) -> None:
        """Forget all others."""
        for name in ("at", "k", "v", "sum", "last"):
            setattr(self, name, getattr(self, name)[which])

    def drop(self, slot: int) -> None:
        self.keep(torch.arange(len(self.at)) != slot)


class Cache:
    """Heads of a layer, and what a rule notes for itself."""

    def __init__(self, layer: int, n_layers: int, heads: int, k: Tensor, v: Tensor) -> None:
        self.layer, self.n_layers = layer, n_layers
        self.heads = [
            Head(torch.zeros(0, dtype=torch.long), k[0, :0], v[0, :0], *[torch.zeros(0)] * 2) for _ in range(heads)
        ]
        self.rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(heads)]  # positions and attention, all steps
        self.notes: dict[Any, Any] = {}


Forget = Callable[[Cache, int], None]


def forget_nothing(cache: Cache, t: int) -> None:
    """Full attention."""


def _least(head: Head, score: Tensor, t: int, recent: int, sinks: int = 0) -> int:
    return int(score.masked_fill((head.at > t - recent) | (head.at < sinks), math.inf).argmin())


def h2o(heavy: int, recent: int) -> Forget:
    def forget(cache: Cache, t: int) -> None:
        for head in cache.heads:
            if len(head.at) > heavy + recent:
                head.drop(_least(head, head.sum, t, recent))

    return forget


def tova(budget: int) -> Forget:
    def forget(cache: Cache, t: int) -> None:
        if len(cache.heads[0].at) > budget:
            worst = int(torch.stack([head.last for head in cache.heads]).mean(0).argmin())
            for head in cache.heads:
                head.drop(worst)

    return forget


def keyformer(heavy: int, recent: int) -> Forget:
    """Temperature 1 to 2 by .01 a token; noise as the rule draws it, by seed 0 and position, over its slots."""

    def forget(cache: Cache, t: int) -> None:
        size, n = heavy + recent + 1, len(cache.heads)
        if not cache.notes:
            cache.notes = {"slot": [[] for _ in range(n)], "sum": torch.zeros(n, size), "free": [0] * n}
        uniform = torch.rand(n, size, generator=torch.Generator().manual_seed(t)).clamp(1e-9, 1 - 1e-7)
        gumbel = -(-uniform.log()).log()
        for h, head in enumerate(cache.heads):
            slots, sums = cache.notes["slot"][h], cache.notes["sum"][h]
            slots.append(cache.notes["free"][h])
            sums[slots[-1]] = 0
            weights = torch.full((size,), 1e-30)
            weights[slots] = head.last.clamp(min=1e-30)
            sums += torch.softmax((weights.log() + gumbel[h]) / min(1 + 0.01 * t, 2), -1)
            if len(slots) <= heavy + recent:
                cache.notes["free"][h] = len(slots)
                continue
            out = _least(head, sums[slots], t, recent)
            cache.notes["free"][h] = slots.pop(out)
            head.drop(out)

    return forget


def window(sinks: int, recent: int, layers: dict[int, set[int]] | None = None) -> Forget:
    """First and recent tokens; heads that ``layers`` names keep everything."""

    def forget(cache: Cache, t: int) -> None:
        for number, head in enumerate(cache.heads):
            if layers is None or number not in layers.get(cache.layer, ()):
                head.keep((head.at < sinks) | (head.at > t - recent))

    return forget


def windows(sizes: dict[tuple[int, int], tuple[int, int]]) -> Forget:
    """First and recent tokens by layer and head; the others keep everything."""

    def forget(cache: Cache, t: int) -> None:
        for number, head in enumerate(cache.heads):
            sinks, recent = sizes.get((cache.layer, number), (0, t + 1))
            head.keep((head.at < sinks) | (head.at > t - recent))

    return forget


def stripes(block: int, local: int, stride: int, kv_heads: int) -> Forget:
    """Blocks near the next row and every so many others, from another one on for each KV head."""

    def forget(cache: Cache, t: int) -> None:
        for number, head in enumerate(cache.heads):
            own = head.at // block + number * kv_heads // len(cache.heads) * max(1, stride // kv_heads)
            head.keep(((t + 1) // block - head.at // block < local) | (own % stride == 0))

    return forget


def _votes(cache: Cache, h: int, voters: int, pool: int) -> Tensor:
    """Attention of the last rows to every position, averaged over neighbours, and not averaged."""
    rows = cache.rows[h][-voters:]
    votes = torch.zeros(int(rows[-1][0].max()) + 1)
    for at, weight in rows:
        votes[at] += weight
    half = pool // 2
    padded = torch.cat((torch.zeros(half), votes, torch.zeros(half)))
    return torch.stack((padded.unfold(0, pool, 1).mean(-1), votes))


def snap(prompt: int, capacity: int, voters: int, pool: int) -> Forget:
    def forget(cache: Cache, t: int) -> None:
        for h, head in enumerate(cache.heads) if t == prompt - 1 else ():
            old = prompt - voters
            raw = _votes(cache, h, voters, pool)[1].masked_fill(torch.arange(prompt) >= old, 0)
            half = pool // 2
            pooled = torch.cat((torch.zeros(half), raw, torch.zeros(half))).unfold(0, pool, 1).mean(-1)
            chosen = pooled[:old].topk(min(old, capacity - voters)).indices
            head.keep(torch.isin(head.at, chosen) | (head.at >= old))

    return forget


def task(
    prompt: int, middle: int, sinks: int, recent: int, least: int, strongest: int, voters: int, pool: int
) -> Forget:
    def forget(cache: Cache, t: int) -> None:
        if t != prompt - 1:
            return
        votes = [_votes(cache, h, voters, pool) for h in range(len(cache.heads))]
        vectors = []
        for (_, raw), head in zip(votes, cache.heads, strict=True):
            mean = raw / voters
            top = mean.topk(min(strongest, prompt)).indices
            vectors.append((mean[top, None] * head.v[top]).sum(0))
        away = torch.stack([v - torch.stack(vectors).mean(0) for v in vectors]).norm(dim=-1)
        first = 0.25 * len(vectors)
        count = int(first - (first - least) / max(1, cache.n_layers - 1) * cache.layer + 0.5)
        whole = {*away.topk(count).indices.tolist(), int(away.argmin())}
        for h, head in enumerate(cache.heads):
            if h not in whole:
                between = votes[h][0].clone()
                between[:sinks], between[prompt - recent :] = -math.inf, -math.inf
                chosen = between.topk(middle).indices
                head.keep(torch.isin(head.at, chosen) | (head.at < sinks) | (head.at >= prompt - recent))

    return forget


def d2o(heavy: int, recent: int, sinks: int, dense_first: int = 0) -> Forget:
    def forget(cache: Cache, t: int) -> None:
        if cache.layer < dense_first or (dense_first and cache.layer == cache.n_layers - 1):
            return
        for h, head in enumerate(cache.heads):
            if len(head.at) <= heavy + recent:
                continue
            out = _least(head, head.sum, t, recent, sinks)
            others = torch.cosine_similarity(head.k, head.k[out][None], dim=-1)
            others[out] = -math.inf
            u, c = float(others.max()), int(others.argmax())
            mean = cache.notes[h] = u if h not in cache.notes else 0.5 * u + 0.5 * cache.notes[h]
            if u >= mean:
                a, b = math.e / (math.e + math.exp(u)), math.exp(u) / (math.e + math.exp(u))
                head.k[c], head.v[c] = a * head.k[c] + b * head.k[out], a * head.v[c] + b * head.v[out]
            head.drop(out)

    return forget


def turn(x: Tensor, by: Tensor, base: float) -> Tensor:
    """Rotary embedding turned further, by complex numbers."""
    half = x.shape[-1] // 2
    angle = by.double()[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    numbers = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((numbers.real, numbers.imag), -1).float()


def decode(model: Any, ids: Tensor, rules: list[tuple[Forget, bool]]) -> Tensor:
    """Logits of every token under every rule, ``[rule pos vocabulary]``, with physically small caches.

    Args:
        model: A plain transformers model.
        ids: One text, ``[1 pos]``.
        rules: What each forgets after a step, and whether it numbers its cache anew.
    """
    caches: dict[int, list[Cache]] = {}
    step = {"t": 0}
    base = float(model.config.rope_parameters["rope_theta"])
    n_layers = int(model.config.num_hidden_layers)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        heads, group, t = query.shape[1], query.shape[1] // key.shape[1], step["t"]
        out = torch.zeros(len(rules), 1, heads, value.shape[-1])
        if module.layer_idx not in caches:
            caches[module.layer_idx] = [Cache(module.layer_idx, n_layers, heads, key[0, 0], value[0, 0]) for _ in rules]
        for which, ((forget, renumber), cache) in enumerate(zip(rules, caches[module.layer_idx], strict=True)):
            for h, head in enumerate(cache.heads):
                k, v = key[which, h // group], value[which, h // group]
                head.at = torch.cat((head.at, torch.tensor([t])))
                head.k, head.v = torch.cat((head.k, k)), torch.cat((head.v, v))
                head.sum = torch.cat((head.sum, torch.zeros(1)))
                keys, q = head.k, query[which, h]
                if renumber:
                    slots = torch.arange(len(head.at))
                    keys, q = turn(keys, slots - head.at, base), turn(q, slots[-1:] - t, base)
                head.last = torch.softmax((keys @ q[0]) * scaling, -1)
                head.sum = head.sum + head.last
                out[which, 0, h] = head.last @ head.v
                cache.rows[h].append((head.at, head.last))
            forget(cache, t)
        return out, None

    AttentionInterface.register("physical", attention)
    before = model.config._attn_implementation
    model.set_attn_implementation("physical")
    try:
        found = []
        for t in range(ids.shape[1]):
            step["t"] = t
            new = ids[:, t : t + 1].expand(len(rules), -1)
            found.append(model(new, position_ids=torch.full((len(rules), 1), t), use_cache=False).logits)
    finally:
        model.set_attn_implementation(before)
    return torch.cat(found, 1)
