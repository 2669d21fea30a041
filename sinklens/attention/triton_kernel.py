"""Attention statistics in one extra pass over the scores, as Triton kernels for GPUs.

The output and the log-sum-exp of every row come from fused attention; these kernels form each score once more and sum
up what the statistics need. Nothing of size ``q_pos k_pos`` is written.

- :func:`stats_of_lse`: one program for a block of queries of the query heads that share a KV head, stacked into one
  tile. Rows carry entropy, distance, strongest key, masses on key sets and sums of scores; received mass and sums by
  key are added with atomics, whose last bits do not repeat.
- :func:`stats_of_keys`: received mass and sums by key, a program for each block of keys: bits repeat, at the price of
  a second pass.

Importing this module needs Triton; nothing else of sinklens does. With ``TRITON_INTERPRET=1`` it runs on a CPU.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

FAR = tl.constexpr(1e30)
"""Instead of infinity: 0 times it is 0."""


@triton.jit
def _scores(q, kp, offs_n, offs_d, k_len, sk_n, scale, cap, D: tl.constexpr, HAS_CAP: tl.constexpr, PREC: tl.constexpr):
    """``scale q . k`` with the soft cap, for a tile."""
    inside = (offs_n[:, None] < k_len) & (offs_d[None, :] < D)
    k = tl.load(kp + offs_n.to(tl.int64)[:, None] * sk_n + offs_d[None, :], mask=inside, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision=PREC) * scale
    if HAS_CAP:
        u = s / cap
        e = tl.exp(-2.0 * tl.abs(u))  # tanh without a library
        t = (1.0 - e) / (1.0 + e)
        s = cap * tl.where(u >= 0, t, -t)
    return s


@triton.jit
def _visible(
    s,
    pos,
    heads,
    offs_n,
    b,
    H,
    k_len,
    window,
    Keys,
    Shift,
    Limits,
    Spared,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    SPARE_SELF: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
):
    """Shifted scores, ``-FAR`` where a row does not see a key; which it sees, and which it would without an edit."""
    seen = (offs_n[None, :] < k_len) & (pos[:, None] >= 0)
    if CAUSAL:
        seen = seen & (offs_n[None, :] <= pos[:, None])
    if HAS_WINDOW:
        seen = seen & (pos[:, None] - offs_n[None, :] < window)
    if HAS_KEYS:
        real = tl.load(Keys + b * k_len + offs_n, mask=offs_n < k_len, other=0)
        seen = seen & (real[None, :] != 0)
    could = seen
    if HAS_LIMITS:
        limit = tl.load(Limits + heads)
        spared = tl.load(Spared + b * k_len + offs_n, mask=offs_n < k_len, other=0)
        near = (pos[:, None] - offs_n[None, :]) < limit[:, None]
        seen = seen & (near | (limit == 0)[:, None] | (spared != 0)[None, :])
    if HAS_SHIFT:
        at = Shift + (b * H + heads)[:, None] * k_len + offs_n[None, :]
        shift = tl.load(at, mask=offs_n[None, :] < k_len, other=0.0)
        shown = shift != -float("inf")
        s = s + tl.where(shown, shift, 0.0)
        if SPARE_SELF:
            shown = shown | (offs_n[None, :] == pos[:, None])
        seen = seen & shown
    return tl.where(seen, s, -FAR), seen, could


@triton.jit
def stats_of_lse(
    Q, K, Lse, Total, Weight, Column, Members, Keys, Shift, Limits, Spared, Slot,
    Entropy, Distance, TopWeight, TopKey, SetMass, RowSum, Mass, ColSum, Pooled,
    sq_b, sq_h, sq_m, sk_b, sk_h, sk_n,
    B, H, q_len, k_len, scale, cap, window, q_cells, k_cells,
    GROUP: tl.constexpr, HT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
    CELL: tl.constexpr, CQ: tl.constexpr, CN: tl.constexpr, PLAIN: tl.constexpr, SETS: tl.constexpr,
    SP: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_KEYS: tl.constexpr, HAS_SHIFT: tl.constexpr, SPARE_SELF: tl.constexpr,
    HAS_LIMITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, MARGIN: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Statistics of a block of queries, given its log-sum-exp (``Lse`` of the real keys, ``Total`` with a sink)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    unit = tl.program_id(1)
    b = (unit // (H // HT)).to(tl.int64)
    h0 = unit % (H // HT) * HT
    BM: tl.constexpr = HT * BQ
    offs_r = tl.arange(0, BM)
    heads = h0 + offs_r // BQ
    rows = block * BQ + offs_r % BQ
    offs_d = tl.arange(0, BD)
    offset = k_len - q_len
    ok = rows < q_len
    pos = tl.where(ok, rows + offset, -1)
    kp = K + b * sk_b + (h0 // GROUP) * sk_h
    qp = Q + b * sq_b + heads * sq_h + rows.to(tl.int64) * sq_m
    q = tl.load(qp[:, None] + offs_d[None, :], mask=ok[:, None] & (offs_d[None, :] < D), other=0.0)
    row = (b * H + heads) * q_len + rows
    lse = tl.load(Lse + row, mask=ok, other=-float("inf"))
    none = lse == -float("inf")
    lse = tl.where(none, FAR, lse)
    total = tl.load(Total + row, mask=ok, other=0.0)
    kept = tl.where(none, 0.0, tl.exp(lse - total))
    w = tl.load(Weight + b * q_len + rows, mask=ok, other=0.0)
    c = tl.load(Column + b * q_len + rows, mask=ok, other=0.0)
    slot = -1
    if CELL > 0:
        slot = tl.load(Slot + b)
    sums = tl.zeros([BM], tl.float32)
    ent = tl.zeros([BM], tl.float32)
    dist = tl.zeros([BM], tl.float32)
    raw = tl.zeros([BM], tl.float32)
    best = tl.full([BM], -FAR, tl.float32)
    top = tl.zeros([BM], tl.int32)
    sets = tl.zeros([BM, SP], tl.float32)
    first_pos = block * BQ + offset
    begin = 0
    last = k_len
    if CAUSAL:
        last = tl.minimum(first_pos + BQ, k_len)
    if HAS_WINDOW:
        begin = tl.maximum(0, first_pos - window + 1) // BN * BN
    # tiles that every row sees whole are spared the arithmetic of the mask
    clear_from, clear_to = last, last
    if PLAIN:
        clear_from = begin + 0 * last
        clear_to = k_len // BN * BN
        if HAS_WINDOW:
            clear_from = (tl.maximum(0, first_pos + BQ - window) + BN - 1) // BN * BN
        if CAUSAL:
            clear_to = (first_pos + 1) // BN * BN
        clear_to = tl.where((block + 1) * BQ > q_len, 0, clear_to)
    for start in range(begin, last, BN):
        offs_n = start + tl.arange(0, BN)
        s = _scores(q, kp, offs_n, offs_d, k_len, sk_n, scale, cap, D, HAS_CAP, PREC)
        shown = s
        could = s > -FAR
        if (start < clear_from) | (start >= clear_to):
            s, seen, could = _visible(
                s, pos, heads, offs_n, b, H, k_len, window, Keys, Shift, Limits, Spared,
                CAUSAL, HAS_WINDOW, HAS_KEYS, HAS_SHIFT, SPARE_SELF, HAS_LIMITS,
            )  # fmt: skip
            shown = tl.where(seen, s, 0.0)
        gap = lse[:, None] - s  # -log of the weight among the real keys
        p = tl.exp(-gap)
        if ROWS:
            sums += tl.sum(p, 1)
            ent += tl.sum(p * gap, 1)
            dist += tl.sum(p * (pos[:, None] - offs_n[None, :]).to(tl.float32), 1)
            here = tl.max(s, 1)
            at = start + tl.argmax(s, 1).to(tl.int32)
            top = tl.where(here > best, at, top)
            best = tl.maximum(best, here)
            for each in tl.static_range(SETS):
                member = tl.load(Members + (each * B + b) * k_len + offs_n, mask=offs_n < k_len, other=0.0)
                share = tl.sum(p * member[None, :], 1)
                sets += tl.where(tl.arange(0, SP)[None, :] == each, share[:, None], 0.0)
        if MARGIN:
            raw += tl.sum(shown, 1)
        if KEYS:
            at_key = (b * H + h0 + tl.arange(0, HT))[:, None] * k_len + offs_n[None, :]
            inside = (offs_n < k_len)[None, :] & (tl.arange(0, HT) >= 0)[:, None]
            received = tl.sum(tl.reshape(p * (w * kept)[:, None], (HT, BQ, BN)), 1)
            tl.atomic_add(Mass + at_key, received, mask=inside)
            if MARGIN:
                column = tl.sum(tl.reshape(shown * c[:, None], (HT, BQ, BN)), 1)
                tl.atomic_add(ColSum + at_key, column, mask=inside)
        if CELL > 0:  # noqa: SIM102 (decided by the compiler)
            if slot >= 0:
                mark = tl.where(could & (w > 0)[:, None], p * kept[:, None], -1.0)
                cells = tl.max(tl.max(tl.reshape(mark, (HT, BQ // CQ, CQ, BN // CN, CN)), 4), 2)
                head = (slot * H + h0 + tl.arange(0, HT))[:, None, None]
                q_cell = ((block * BQ + tl.arange(0, BQ // CQ) * CQ) // CELL)[None, :, None]
                k_cell = ((start + tl.arange(0, BN // CN) * CN) // CELL)[None, None, :]
                place = Pooled + (head * q_cells + q_cell) * k_cells + k_cell
                tl.atomic_max(place, cells, mask=(cells >= 0) & (q_cell < q_cells) & (k_cell < k_cells))
    if ROWS:
        safe = tl.where(sums > 0, sums, 1.0)  # 1 but for the rounding of a log-sum-exp from elsewhere
        tl.store(Entropy + row, ent / safe + tl.log(safe), mask=ok)
        tl.store(Distance + row, dist / safe, mask=ok)
        tl.store(TopWeight + row, tl.where(none, 0.0, tl.exp(best - total)), mask=ok)
        tl.store(TopKey + row, tl.where(none, -1, top), mask=ok)
        for each in tl.static_range(SETS):
            share = tl.sum(tl.where(tl.arange(0, SP)[None, :] == each, sets, 0.0), 1)
            tl.store(SetMass + each * B * H * q_len + row, share * kept, mask=ok)
    if MARGIN:
        tl.store(RowSum + row, raw, mask=ok)


@triton.jit
def stats_of_keys(
    Q, K, Lse, Total, Weight, Column, Keys, Shift, Limits, Spared, Mass, ColSum,
    sq_b, sq_h, sq_m, sk_b, sk_h, sk_n,
    H, q_len, k_len, scale, cap, window,
    GROUP: tl.constexpr, HT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HAS_KEYS: tl.constexpr,
    HAS_SHIFT: tl.constexpr, SPARE_SELF: tl.constexpr, HAS_LIMITS: tl.constexpr, MARGIN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Received mass and column sums of a block of keys, without atomics."""
    block, unit = tl.program_id(0), tl.program_id(1)
    b = (unit // (H // HT)).to(tl.int64)
    h0 = unit % (H // HT) * HT
    BM: tl.constexpr = HT * BQ
    offs_r = tl.arange(0, BM)
    heads = h0 + offs_r // BQ
    offs_d = tl.arange(0, BD)
    offs_n = block * BN + tl.arange(0, BN)
    offset = k_len - q_len
    kp = K + b * sk_b + (h0 // GROUP) * sk_h
    mass = tl.zeros([HT, BN], tl.float32)
    col = tl.zeros([HT, BN], tl.float32)
    begin = 0
    stop = q_len
    if CAUSAL:
        begin = tl.maximum(block * BN - offset, 0) // BQ * BQ
    if HAS_WINDOW:
        stop = tl.minimum(q_len, (block + 1) * BN - offset + window - 1)
    for start in range(begin, stop, BQ):
        rows = start + offs_r % BQ
        ok = rows < q_len
        pos = tl.where(ok, rows + offset, -1)
        qp = Q + b * sq_b + heads * sq_h + rows.to(tl.int64) * sq_m
        q = tl.load(qp[:, None] + offs_d[None, :], mask=ok[:, None] & (offs_d[None, :] < D), other=0.0)
        s = _scores(q, kp, offs_n, offs_d, k_len, sk_n, scale, cap, D, HAS_CAP, PREC)
        s, seen, _could = _visible(
            s, pos, heads, offs_n, b, H, k_len, window, Keys, Shift, Limits, Spared,
            CAUSAL, HAS_WINDOW, HAS_KEYS, HAS_SHIFT, SPARE_SELF, HAS_LIMITS,
        )  # fmt: skip
        row = (b * H + heads) * q_len + rows
        lse = tl.load(Lse + row, mask=ok, other=-float("inf"))
        total = tl.where(lse == -float("inf"), FAR, tl.load(Total + row, mask=ok, other=0.0))
        w = tl.load(Weight + b * q_len + rows, mask=ok, other=0.0)
        mass += tl.sum(tl.reshape(tl.exp(s - total[:, None]) * w[:, None], (HT, BQ, BN)), 1)
        if MARGIN:
            c = tl.load(Column + b * q_len + rows, mask=ok, other=0.0)
            col += tl.sum(tl.reshape(tl.where(seen, s, 0.0) * c[:, None], (HT, BQ, BN)), 1)
    at_key = (b * H + h0 + tl.arange(0, HT))[:, None] * k_len + offs_n[None, :]
    inside = (offs_n < k_len)[None, :] & (tl.arange(0, HT) >= 0)[:, None]
    tl.store(Mass + at_key, mass, mask=inside)
    if MARGIN:
        tl.store(ColSum + at_key, col, mask=inside)
