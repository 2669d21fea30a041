"""What the rules of ``tests/policies/rules.py`` read, said once more: loops over heads and rows in double precision.

Each function takes one layer's queries, keys, values and scores and gives the attention weights under the small
instance of its rule. Nothing of sinklens is used. Rules that drop keys step by step are in
``test_physical_decoding.py``.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

PROMPT = 22
Array = np.ndarray


@dataclass
class Layer:
    """One layer of one text: ``q`` (scaled) and ``k``, ``v`` per query head, ``[head pos d]``; KV heads."""

    q: Array
    k: Array
    v: Array
    kv_heads: int
    number: int = 0
    n_layers: int = 2

    def __post_init__(self) -> None:
        self.H, self.T = self.q.shape[:2]
        self.s = self.q @ self.k.swapaxes(1, 2)
        self.s[:, np.triu(np.ones((self.T, self.T), bool), 1)] = -np.inf
        self.p = softmax(self.s)
        self.group = self.H // self.kv_heads

    def keeping(self, rule: Callable[[int, int], Iterable[int]]) -> Array:
        """Weights when head h reads ``rule(h, t)`` at row t."""
        masked = np.full_like(self.s, -np.inf)
        for h in range(self.H):
            for t in range(self.T):
                for i in rule(h, t):
                    if i <= t:
                        masked[h, t, i] = self.s[h, t, i]
        return softmax(masked)


def softmax(x: Array) -> Array:
    top = x.max(-1, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)


def best(values: dict[int, float], n: int) -> list[int]:
    """The n keys with the largest values."""
    return sorted(values, key=lambda i: -values[i])[: max(n, 0)]


def covering(values: dict[int, float], share: float) -> list[int]:
    """The fewest keys that hold a share of all values."""
    found: list[int] = []
    total = sum(values.values())
    for i in sorted(values, key=lambda i: -values[i]):
        if sum(values[j] for j in found) >= share * total:
            break
        found.append(i)
    return found


def window(t: int, sinks: int, recent: int) -> list[int]:
    return [i for i in range(t + 1) if i < sinks or t - i < recent]


def block(b: int, size: int, t: int) -> list[int]:
    return [i for i in range(b * size, (b + 1) * size) if i <= t]


def top_k(x: Layer) -> Array:
    return x.keeping(lambda h, t: best({i: x.s[h, t, i] for i in range(t + 1)}, 7))


def coverage(x: Layer) -> Array:
    return x.keeping(lambda h, t: covering({i: x.p[h, t, i] for i in range(t + 1)}, 0.6))


def sink_window(x: Layer) -> Array:
    return x.keeping(lambda h, t: window(t, 2, 6))


def tri_shape(x: Layer) -> Array:
    return x.keeping(lambda h, t: range(t + 1) if t >= PROMPT - 4 else window(t, 2, 6))


def long_gen(x: Layer) -> Array:
    full = x.n_layers / 3 <= x.number < 2 * x.n_layers / 3
    return x.keeping(lambda h, t: range(t + 1) if full else window(t, 2, 6))


def moa(x: Layer) -> Array:
    sizes = {}
    for head in ("L0H0", "L0H1", "L1H2"):  # alpha 0, beta .1, N 40, smallest 1, steps of 4
        sizes[head] = math.ceil(max(min(0 + 0.1 * 40, 40), 1) / 4) * 4

    def rule(h: int, t: int) -> Iterable[int]:
        size = sizes.get(f"L{x.number}H{h}")
        return range(t + 1) if size is None else [i for i in range(t + 1) if i < min(size, 4) or t - i < size - 4]

    return x.keeping(rule)


def head_split(x: Layer) -> Array:
    full = {(0, 1), (1, 0)}
    return x.keeping(lambda h, t: range(t + 1) if (x.number, h) in full else window(t, 2, 6))


def razor(x: Layer) -> Array:
    found = head_split(x)
    for h, t in itertools.product(range(x.H), range(x.T)):
        own = window(t, 2, 6)
        gone = [i for i in range(t + 1) if i not in own]
        if (x.number, h) in {(0, 1), (1, 0)} or not gone:
            continue
        token = x.q[h, t] @ x.k[h, gone].mean(0) + math.log(len(gone))  # one token, counted as often
        weights = softmax(np.array([*x.s[h, t, own], token]))
        found[h, t, own], found[h, t, gone] = weights[:-1], weights[-1] / len(gone)
    return found


def power_attention(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        found = []
        for i in range(t + 1):
            d = t // 4 - i // 4
            if d < 2 or i < 4 or d & (d - 1) == 0:
                found.append(i)
        return found

    return x.keeping(rule)


def s2_attention(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        r, step = h // x.group, max(1, 4 // x.kv_heads)
        return [i for i in range(t + 1) if t // 4 - i // 4 < 2 or (i // 4 + r * step) % 4 == 0]

    return x.keeping(rule)


def block_top_k(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        means = {b: float(np.mean([x.s[h, t, i] for i in block(b, 4, t)])) for b in range(t // 4)}
        return [i for b in [*best(means, 2), t // 4] for i in block(b, 4, t)]

    return x.keeping(rule)


def long_heads(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        own = t // 4
        always = {0, own, max(own - 1, 0)}
        means = {b: float(np.mean([x.s[h, t, i] for i in block(b, 4, t)])) for b in range(own) if b not in always}
        return [i for b in [*best(means, 1), *always] for i in block(b, 4, t)]

    return x.keeping(rule)


def quest(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        bounds = {}
        for b in range(t // 4):
            keys = x.k[h, block(b, 4, t)]
            bounds[b] = sum(
                max(q * low, q * high) for q, low, high in zip(x.q[h, t], keys.min(0), keys.max(0), strict=True)
            )
            assert bounds[b] >= x.s[h, t, block(b, 4, t)].max() - 1e-9  # an upper bound on every score of the page
        return [i for b in [*best(bounds, 2), t // 4] for i in block(b, 4, t)]

    return x.keeping(rule)


def block_sparse(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        rows = [r for r in range(x.T) if r // 8 == t // 8]
        means = {}
        own = {r // 4 for r in rows}
        for b in range(x.T // 4 + 1):
            pairs = [x.s[h, r, i] for r in rows for i in block(b, 4, r)]
            if pairs and b not in own:
                means[b] = float(np.mean(pairs))
        return [i for b in [*best(means, 2), *own] for i in block(b, 4, t)]

    return x.keeping(rule)


def double_sparsity(x: Layer) -> Array:
    def rule(h: int, t: int) -> Iterable[int]:
        if t < 8:
            return range(t + 1)
        heat = np.abs(x.q[h, :8]).sum(0) * np.abs(x.k[h, :8]).sum(0)
        c = np.argsort(-heat)[:2]
        return best({i: float(x.q[h, t, c] @ x.k[h, i, c]) for i in range(t + 1)}, 6)

    return x.keeping(rule)


def token_select(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        always = window(t, 1, 3)
        votes = {i: x.p[:, t, i].sum() for i in range(t + 1) if i not in always}
        return [*always, *best(votes, 4)]

    return x.keeping(rule)


def alisa(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        sums = {i: x.p[h, max(0, t - 4) : t, i].sum() for i in range(t + 1) if t - i >= 4}
        return [*window(t, 0, 4), *best(sums, 4)]

    return x.keeping(rule)


def recycled(x: Layer) -> Array:
    def rule(h: int, t: int) -> Iterable[int]:
        if t % 8 == 0:
            return range(t + 1)
        full, g = t // 8 * 8, h // x.group * x.group
        means = {i: x.p[g : g + x.group, full, i].mean() for i in range(full + 1)}
        return [*best(means, 5), *range(full + 1, t + 1)]

    return x.keeping(rule)


def _prompt_votes(x: Layer, h: int, stop: int) -> list[float]:
    """Votes of the prompt's last four rows for keys before ``stop``, averaged over three neighbours."""
    votes = [0.0, *(x.p[h, PROMPT - 4 : PROMPT, i].sum() for i in range(stop)), 0.0]
    return [sum(votes[i : i + 3]) / 3 for i in range(stop)]


def snap_kv(x: Layer) -> Array:
    def rule(h: int, t: int) -> Iterable[int]:
        if t < PROMPT:
            return range(t + 1)
        pooled = _prompt_votes(x, h, PROMPT - 4)
        return [*best(dict(enumerate(pooled)), 6), *range(PROMPT - 4, t + 1)]

    return x.keeping(rule)


def task_kv(x: Layer) -> Array:
    vectors = []
    for h in range(x.H):
        mean = x.p[h, PROMPT - 4 : PROMPT, :PROMPT].mean(0)
        strong = best(dict(enumerate(mean)), 6)
        vectors.append(sum(mean[i] * x.v[h, i] for i in strong))
    away = [float(np.linalg.norm(v - np.mean(vectors, 0))) for v in vectors]
    n_far = {0: 1, 1: 1}[x.number]  # from a quarter of four heads to one
    whole = {*best(dict(enumerate(away)), n_far), min(range(x.H), key=lambda h: away[h])}

    def rule(h: int, t: int) -> Iterable[int]:
        if t < PROMPT or h in whole:
            return range(t + 1)
        pooled = _prompt_votes(x, h, PROMPT)
        middle = best({i: pooled[i] for i in range(1, PROMPT - 4)}, 4)
        return [0, *middle, *range(PROMPT - 4, t + 1)]

    return x.keeping(rule)


def vertical_slash(x: Layer) -> Array:
    def rule(h: int, t: int) -> Iterable[int]:
        if t >= PROMPT:
            return range(t + 1)
        rows = range(PROMPT - 6, PROMPT)
        columns = {i: x.p[h, PROMPT - 6 : PROMPT, i].sum() + (1e9 if i < 1 else 0) for i in range(PROMPT)}
        slashes = {d: sum(x.p[h, r, r - d] for r in rows if r >= d) + (1e9 if d < 2 else 0) for d in range(PROMPT)}
        v, d = best(columns, 4), best(slashes, 4)
        return [i for i in range(t + 1) if i in v or t - i in d]

    return x.keeping(rule)


def shadow_kv(x: Layer) -> Array:
    def rule(h: int, t: int) -> Iterable[int]:
        if t < PROMPT:
            return range(t + 1)
        chunks = range(PROMPT // 2 - 1)
        landmark = {c: x.k[h, 2 * c : 2 * c + 2].mean(0) for c in chunks}
        worst = {}
        for c in chunks:
            cosines = [
                k @ landmark[c] / np.linalg.norm(k) / np.linalg.norm(landmark[c]) for k in x.k[h, 2 * c : 2 * c + 2]
            ]
            worst[c] = -min(cosines)
        out = best(worst, 1)
        group = range(h // x.group * x.group, h // x.group * x.group + x.group)
        fits = [softmax(np.array([x.q[g, t] @ landmark[c] for c in chunks])) for g in group]
        fit = {c: max(f[c] for f in fits) for c in chunks if c not in out}
        return [*(i for c in [*out, *best(fit, 4)] for i in (2 * c, 2 * c + 1)), *range(PROMPT - 2, t + 1)]

    return x.keeping(rule)


def _clusters(keys: Array, count: int) -> list[int]:
    """k-means on the sphere from keys at even distances."""
    unit = [k / np.linalg.norm(k) for k in keys]
    centres = [unit[int(i)] for i in torch.linspace(0, len(keys) - 1, count).long()]
    label = [max(range(count), key=lambda c: float(u @ centres[c])) for u in unit]
    for _ in range(10):
        for c in range(count):
            total = sum((u for u, own in zip(unit, label, strict=True) if own == c), np.zeros_like(unit[0]))
            if np.linalg.norm(total) > 0:
                centres[c] = total / np.linalg.norm(total)
        label = [max(range(count), key=lambda c: float(u @ centres[c])) for u in unit]
    return label


def squeezed(x: Layer) -> Array:
    stop = PROMPT - 4
    labels = [_clusters(x.k[h, :stop], math.ceil(stop / 3)) for h in range(x.H)]

    def scores(h: int, t: int) -> list[float]:
        members = {c: [i for i in range(stop) if labels[h][i] == c] for c in set(labels[h])}
        e = {c: math.exp(x.q[h, t] @ x.k[h, own].mean(0)) for c, own in members.items()}
        total = sum(len(members[c]) * e[c] for c in e)
        return [e[labels[h][i]] / total for i in range(stop)]

    every = sorted(s for h in range(x.H) for t in range(stop, PROMPT) for s in scores(h, t))
    threshold = every[int(0.6 * (len(every) - 1))]

    def rule(h: int, t: int) -> Iterable[int]:
        if t < PROMPT:
            return range(t + 1)
        return [*(i for i, s in enumerate(scores(h, t)) if s > threshold * (1 + 1e-9)), *range(stop, t + 1)]

    return x.keeping(rule)


def retro_infer(x: Layer) -> Array:
    found = np.zeros_like(x.p)
    cut = 12  # two segments, each clustered for itself
    labels = [_clusters(k[:cut], 4) + [4 + c for c in _clusters(k[cut:PROMPT], 4)] for k in x.k]
    for h, t in itertools.product(range(x.H), range(x.T)):
        if t < PROMPT:
            found[h, t] = x.p[h, t]
            continue
        members = {c: [i for i in range(PROMPT) if labels[h][i] == c] for c in set(labels[h])}
        fit = {c: float(x.q[h, t] @ x.k[h, own].mean(0)) for c, own in members.items()}
        order = best(fit, len(fit))
        exact, estimated = order[: round(0.3 * 8)], order[round(0.3 * 8) : round(0.3 * 8) + round(0.4 * 8)]
        read = {i for i in range(t + 1) if i < 1 or t - i < 3 or i >= PROMPT} | {i for c in exact for i in members[c]}
        weight = {i: math.exp(x.s[h, t, i]) for i in read}
        for c in estimated:  # the stand-in weighs n exp(q m) and has the mean value; keys that are read are not in it
            weight |= {i: math.exp(fit[c]) for i in members[c] if i not in read}
        for i, w in weight.items():
            found[h, t, i] = w / sum(weight.values())
    return found


def hip(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        rows = [r for r in range(x.T) if r // 8 == t // 8][::2]
        seen = min(t // 8 * 8 + 8, x.T)
        size = 2
        while math.ceil(seen / size) > 8:  # at most twice the four groups that are kept
            size *= 2
        groups = list(range(0, seen, size))
        while True:
            score = {a: max(x.s[h, r, min(a + size // 2, seen - 1)] for r in rows) for a in groups}
            groups = best(score, 4)
            if size == 2:
                break
            size //= 2
            groups = [b for a in groups for b in (a, a + size) if b < seen]
        return [*(i for a in groups for i in (a, a + 1)), *window(t, 1, 3)]

    return x.keeping(rule)


def landmark(x: Layer) -> Array:
    found = np.zeros_like(x.p)
    for h, t in itertools.product(range(x.H), range(x.T)):
        own = [i for i in range(t + 1) if i // 5 == t // 5]
        marks = best({b: x.s[h, t, 5 * b + 4] for b in range(t // 5)}, 2)
        first = softmax(np.array([*x.s[h, t, own], *(x.s[h, t, 5 * b + 4] for b in marks)]))
        found[h, t, own] = first[: len(own)]
        for b, weight in zip(marks, first[len(own) :], strict=True):
            found[h, t, 5 * b : 5 * b + 4] = weight * softmax(x.s[h, t, 5 * b : 5 * b + 4])
    return found


def cca(x: Layer) -> Array:
    found = np.zeros_like(x.p)
    for h, t in itertools.product(range(x.H), range(x.T)):
        begin = max(0, (t - 6 + 1) // 4 * 4)
        share = {g: softmax(x.s[h, 4 * g + 3, 4 * g : 4 * g + 4]) for g in range(begin // 4)}
        cores = [float(x.q[h, t] @ (share[g] @ x.k[h, 4 * g : 4 * g + 4])) for g in share]
        weights = softmax(np.array([*cores, *x.s[h, t, begin : t + 1]]))
        for g, weight in zip(share, weights, strict=False):
            found[h, t, 4 * g : 4 * g + 4] = weight * share[g]
        found[h, t, begin : t + 1] = weights[len(share) :]
    return found


def _random(layer: int, seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    return [(torch.randn(s, generator=generator) / s[0] ** 0.5).double().numpy() for s in shapes]


def sea(x: Layer) -> Array:
    d = x.k.shape[-1]
    projection, encode, decode, kernel = _random(x.number, 0, (d, 32), (2 * x.v.shape[-1], 32), (32, 12), (3,))

    def features(y: Array) -> Array:
        return np.exp(y @ (projection * d**0.5) - (y**2).sum() / 2) / 32**0.5

    def rule(h: int, t: int) -> Iterable[int]:
        if t <= 6:
            return range(t + 1)
        query = features(x.q[h, t] * d**0.5 / d**0.25)
        guess = [float(query @ features(x.k[h, i] / d**0.25)) for i in range(t + 1)]
        context = sum(g * x.v[h, i] for i, g in enumerate(guess)) / sum(guess)
        coarse = np.maximum(np.concatenate((context, x.v[h, t])) @ encode, 0) @ decode
        padded = np.concatenate(([0], coarse, [0]))
        smooth = [float(padded[c : c + 3] @ kernel) for c in range(12)]
        cells = {i: i * 12 // (t + 1) for i in range(t + 1)}
        n = max(1, 6 * min(12, t + 1) // (t + 1))
        chosen = best({c: smooth[c] for c in set(cells.values())}, n)
        return [t, *(i for i in cells if cells[i] in chosen)]

    return x.keeping(rule)


def routing(x: Layer) -> Array:
    (centres,) = _random(x.number, 0, (3, x.k.shape[-1]))
    found = np.zeros_like(x.p)

    def plain(y: Array) -> Array:
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5)

    for h in range(x.H):
        members = []
        for centre in centres:
            taken = [{i: float(plain(y[i]) @ centre) for i in range(x.T)} for y in (x.q[h], x.k[h])]
            members.append([best(values, 12) for values in taken])
        for t in range(x.T):
            parts = []
            for queries, keys in members:
                inside = [i for i in keys if i <= t]
                if t in queries and inside:
                    row = np.zeros(x.T)
                    row[inside] = softmax(x.s[h, t, inside])
                    parts.append(row)
            if parts:
                found[h, t] = np.mean(parts, 0)
    return found


def attention_gate(x: Layer) -> Array:
    tokens = np.concatenate([x.k[g * x.group] for g in range(x.kv_heads)], -1)
    wide = tokens.shape[1]
    query, key, value, out = _random(x.number, 0, (wide, 16), (wide, 16), (wide, 16), (16, x.H))
    weights = softmax((tokens @ query) @ (tokens @ key).T / 4)
    flags = 1 / (1 + np.exp(-(weights @ (tokens @ value)) @ out))
    return x.keeping(lambda h, t: [t, *(i for i in range(t) if flags[i, h] > 0.5)])


def hyper_attention(x: Layer) -> Array:
    found = np.zeros_like(x.p)
    ranks = {}  # the order of the eight signs, neighbours differing in one: the standard reflected code of three bits
    for rank, signs in enumerate(["000", "001", "011", "010", "110", "111", "101", "100"]):
        ranks[signs] = rank

    def bucket(vectors: Array, planes: Array) -> list[int]:
        codes = ["".join("1" if v > 0 else "0" for v in reversed(y @ planes)) for y in vectors]
        order = sorted(range(len(codes)), key=lambda i: ranks[codes[i]])
        return [order.index(i) // 3 for i in range(len(codes))]

    def halves(low: int, high: int) -> list[tuple[int, int, int]]:
        if high - low <= 5:
            return [(low, low, high)]
        middle = (low + high) // 2
        return [(low, middle, high), *halves(low, middle), *halves(middle, high)]

    weight = np.zeros_like(x.p)
    for low, middle, high in halves(0, x.T):
        if low == middle:
            for t in range(low, high):
                weight[:, t, low : t + 1] = 1
            continue
        generator = torch.Generator().manual_seed(x.number * 4_099 + low)
        planes = torch.randn(x.k.shape[-1], 3, generator=generator).double().numpy()
        drawn = set(torch.randperm(middle - low, generator=generator)[:3].tolist())
        for h in range(x.H):
            queries, keys = bucket(x.q[h, middle:high], planes), bucket(x.k[h, low:middle], planes)
            for t, i in itertools.product(range(middle, high), range(low, middle)):
                if min(queries[t - middle], max(keys)) == keys[i - low]:
                    weight[h, t, i] = 1
                elif i - low in drawn:
                    weight[h, t, i] = max(1.0, (middle - low) / 3)
    for h, t in itertools.product(range(x.H), range(x.T)):
        e = weight[h, t, : t + 1] * np.exp(x.s[h, t, : t + 1])
        found[h, t, : t + 1] = e / e.sum()
    return found


def flex_prefill(x: Layer) -> Array:
    rows = range(PROMPT - 4, PROMPT)
    n_blocks = math.ceil(x.T / 4)
    found = {}
    for h in range(x.H):
        true = np.array([np.mean([sum(x.p[h, r, i] for i in block(b, 4, r)) for r in rows]) for b in range(n_blocks)])
        means = []
        for b in range(n_blocks):
            pairs = [x.s[h, r, i] for r in rows for i in block(b, 4, r)]
            means.append(float(np.mean(pairs)) if pairs else -math.inf)
        guess = np.maximum(softmax(np.array(means)), 1e-12)
        true = np.maximum(true, 1e-12) / np.maximum(true, 1e-12).sum()
        middle = (true + guess) / 2
        js = (true * np.log(true / middle)).sum() / 2 + (guess * np.log(guess / middle)).sum() / 2
        found[h] = math.sqrt(max(js, 0)) < 0.1

    def rule(h: int, t: int) -> Iterable[int]:
        if t >= PROMPT:
            return range(t + 1)
        if found[h]:
            means = np.array([np.mean(x.s[h, t, block(b, 4, t)]) for b in range(t // 4 + 1)])
            chosen = {0, t // 4, *covering(dict(enumerate(softmax(means))), 0.5)}
            return [i for b in chosen for i in block(b, 4, t)]
        columns = {i: sum(x.p[h, r, i] for r in rows) for i in range(PROMPT)}
        slashes = {d: sum(x.p[h, r, r - d] for r in rows if r >= d) for d in range(PROMPT)}
        v, d = {*covering(columns, 0.5), 0, 1, 2, 3}, {*covering(slashes, 0.5), 0}
        return [i for i in range(t + 1) if i in v or t - i in d]

    return x.keeping(rule)


def h2o_global(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        chosen = best({i: x.p[h, :, i].sum() for i in range(x.T)}, 4)
        return [i for i in range(t + 1) if i in chosen or t - i <= 4]

    return x.keeping(rule)


def shifted_groups(x: Layer) -> Array:
    def rule(h: int, t: int) -> list[int]:
        if h < 2:
            return [i for i in range(t + 1) if i // 8 == t // 8]
        order = [*range(4, x.T), *range(4)]  # rolled by half a group
        groups = [order[a : a + 8] for a in range(0, x.T, 8)]
        (own,) = [g for g in groups if t in g]
        return own[: own.index(t) + 1]

    return x.keeping(rule)


def full(x: Layer) -> Array:
    return x.p


NAIVE: dict[str, Callable[[Layer], Array]] = {
    rule.__name__: rule
    for rule in (
        full, top_k, coverage, sink_window, tri_shape, long_gen, moa, head_split, razor, power_attention, s2_attention,
        block_top_k, long_heads, quest, block_sparse, double_sparsity, token_select, alisa, recycled, snap_kv, task_kv,
        vertical_slash, shadow_kv, squeezed, retro_infer, hip, landmark, cca, sea, routing, attention_gate,
        hyper_attention, flex_prefill, h2o_global, shifted_groups,
    )
}  # fmt: skip
