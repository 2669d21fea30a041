"""Checks of figures of heads: grids, maps, scatters, shares."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens import plots
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.studies.census.result import AttentionMap
from tests.plots.checks import (
    array,
    column,
    empty,
    floats,
    head_grid,
    named,
    positions_kept,
    same,
    shows,
    tokens,
)


def filled(heads: list[tuple[int, int]], values: list[float]) -> np.ndarray:
    grid = np.full((1 + max(layer for layer, _ in heads), 1 + max(head for _, head in heads)), np.nan)
    for place, value in zip(heads, values, strict=True):
        grid[place] = value
    return grid


def frame(heads: list[tuple[int, int]], **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"layer": [a for a, _ in heads], "head": [b for _, b in heads], **columns})


@shows("sink_heatmap")
def sink_heatmap(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    values = column(data, len(heads), 0, 1, nan=True)
    fig = plots.sink_heatmap(frame(heads, sink_rate=values), value="sink_rate")
    if np.isnan(values).all():
        assert empty(fig)
    else:
        same(fig.data[0].z, filled(heads, values))
    return fig


def one_map(data: st.DataObject, layer: int, head: int, words: list[str]) -> AttentionMap:
    n = len(words)
    values = np.array([column(data, n, 0, 1) for _ in range(n)], dtype="float32")
    return AttentionMap(layer, head, np.where(np.tri(n) == 1, values, np.nan).astype("float32"), 1, n, words, "why")


@shows("attention_map")
def attention_map(data: st.DataObject) -> go.Figure:
    words = tokens(data, 1, 8)
    one = one_map(data, 2, 1, words)
    fig = plots.attention_map(one)
    same(fig.data[0].z, one.values)
    for axis in "xy":
        positions_kept(fig, len(words), axis)
    return fig


@shows("head_montage")
def head_montage(data: st.DataObject) -> go.Figure:
    words, heads = tokens(data, 2, 5), head_grid(data)
    heads = [head for head in heads if data.draw(st.booleans())] or heads[:1]
    maps = {place: one_map(data, *place, words) for place in heads}
    fig = plots.head_montage(maps.values())
    canvas, n = array(fig.data[0].z), len(words)
    rows, columns = (1 + max(place[i] for place in heads) for i in (0, 1))
    assert canvas.shape == (rows * (n + 1) - 1, columns * (n + 1) - 1)
    left = canvas.copy()
    for (layer, head), one in maps.items():
        tile = (slice(layer * (n + 1), layer * (n + 1) + n), slice(head * (n + 1), head * (n + 1) + n))
        same(canvas[tile], one.values)
        left[tile] = np.nan
    assert np.isnan(left).all()
    for axis, count, what in (("xaxis", columns, "head"), ("yaxis", rows, "layer")):
        texts = list(fig.layout[axis].ticktext)
        assert list(fig.layout[axis].tickvals) == [*range(count * (n + 1) - 1)]
        own = [text for text in texts if text.startswith(f"{what} 0,") and not text.endswith(", ")]
        assert len(set(own)) == len(own) == n
    return fig


@shows("sink_share")
def sink_share(data: st.DataObject) -> go.Figure:
    runs = {}
    for name in data.draw(st.lists(st.sampled_from(["a", "<b>", "c"]), min_size=1, unique=True)):
        heads = head_grid(data)
        share = column(data, len(heads), 0, 1)
        runs[name] = frame(heads, importance_first=share, null_first=data.draw(st.sampled_from([0.07, 0.2])))
    fig = plots.sink_share(runs)
    for name, table in runs.items():
        line = named(fig, name.replace("<", "&lt;").replace(">", "&gt;"))
        mean = table.groupby("layer")["importance_first"].mean().reindex(range(int(table["layer"].max()) + 1))
        same(line.y, mean)
        assert list(line.x) == list(mean.index)
    nulls = [trace for trace in fig.data if "null" in (trace.name or "")]
    assert len(nulls) == len({float(table["null_first"].iloc[0]) for table in runs.values()})
    drawn = {round(float(y), 4) for trace in nulls for y in trace.y}
    assert drawn == {float(table["null_first"].iloc[0]) for table in runs.values()}
    return fig


def points(fig: go.Figure) -> set[tuple[float, float]]:
    return {(float(np.float32(x)), float(np.float32(y))) for t in fig.data for x, y in zip(t.x, t.y, strict=True)}


@shows("drain_scatter")
def drain_scatter(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    n = len(heads)
    table = frame(
        heads,
        importance=column(data, n, 0, 1, nan=True),
        drain=column(data, n, 0, 20, nan=True),
        null=0.07,
        is_sink=data.draw(st.lists(st.booleans(), min_size=n, max_size=n)),
    )
    fig = plots.drain_scatter(table)
    drawn = table[(table["drain"] > 0) & table["importance"].notna()]
    expected = {
        (float(np.float32(a)), float(np.float32(b))) for a, b in zip(drawn["importance"], drawn["drain"], strict=True)
    }
    assert points(fig) == expected and empty(fig) == drawn.empty
    for trace in fig.data:
        sinks = drawn["is_sink"] == trace.name.startswith("sink head")
        assert len(trace.x) == sinks.sum() and f"({sinks.sum()})" in trace.name
    return fig


@shows("entropy_scatter")
def entropy_scatter(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    n = len(heads)
    table = frame(heads, kv_head=[head // 2 for _, head in heads], entropy=column(data, n, 0, 5, nan=True), ratio=9.0)
    table["is_sink"] = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    keys = table[["layer", "kv_head"]].drop_duplicates()
    ratios = column(data, len(keys), 0, 5, nan=True)
    norms = keys.assign(state="key", ratio=ratios)
    norms = pd.concat([norms, keys.assign(state="value", ratio=77.0)]).astype({"kv_head": "Int64"})
    fig = plots.entropy_scatter(table, norms)
    by_key = {(a, b): c for a, b, c in zip(keys["layer"], keys["kv_head"], ratios, strict=True)}
    expected = {
        (float(np.float32(row.entropy)), float(np.float32(by_key[row.layer, row.kv_head])))
        for row in table.itertuples()
        if by_key[row.layer, row.kv_head] > 0 and not np.isnan(row.entropy)
    }
    assert points(fig) == expected and empty(fig) == (not expected)
    return fig


@shows("head_scores")
def head_scores(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    table = frame(heads, a=column(data, len(heads), 0, 1, nan=True), b=column(data, len(heads), 0, 1, nan=True))
    metrics = {name: Metric(name, 1, "", "") for name in ("a", "b")}
    fig = plots.head_scores(HeadScores(table, metrics))
    if table[["a", "b"]].isna().all(axis=None):
        assert empty(fig)
        return fig
    for name in ("a", "b"):
        same(named(fig, name).z, filled(heads, list(table[name])))
    return fig


@shows("head_roles")
def head_roles(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    n = len(heads)
    table = frame(heads, **{"a<": column(data, n, 0, 1, nan=True), "b": column(data, n, -3, 3)})
    table["is_x"] = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    criteria = pd.DataFrame({"criterion": ["a<", "b"], "role": ["x", None], "rule": ["> 0", None]})
    pair = {"first": "a<", "second": "b", "unit": "head", "n": n, "spearman": data.draw(floats(-1, 1, nan=True))}
    pair |= dict.fromkeys(("spearman_low", "spearman_high", "jaccard", "jaccard_chance", "n_both", "p"), np.nan)
    fig = plots.head_roles(table, criteria, pd.DataFrame([pair]))
    z = array(named(fig, "scores").z)
    for row, name in enumerate(("a<", "b")):
        values = table[name].to_numpy()
        known = values[~np.isnan(values)]
        spread = known.max() - known.min() if len(known) else 0
        same(z[row], (values - known.min()) / spread if spread else np.where(np.isnan(values), np.nan, 0), rtol=1e-4)
    assert sorted(named(fig, "labelled").x) == np.flatnonzero(table["is_x"]).tolist()
    agreement = array(named(fig, "agreement").z)
    same([agreement[0, 1], agreement[1, 0]], [pair["spearman"]] * 2)
    return fig


@shows("active_dormant")
def active_dormant(data: st.DataObject) -> go.Figure:
    heads, domains = head_grid(data), ["prose", "<code>"]
    rows = [(*place, domain, "all", "active") for place in heads for domain in domains]
    table = pd.DataFrame(rows, columns=["layer", "head", "domain", "class", "label"])
    table = table.assign(mass=column(data, len(rows), 0, 1), delta=column(data, len(rows), -2, 2, nan=True))
    fig = plots.active_dormant(table)
    for trace, name in zip(fig.data, ("mass", "delta"), strict=True):
        same(trace.z, table[name].to_numpy().reshape(len(heads), 2))
    return fig


@shows("domain_differences")
def domain_differences(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    both = column(data, 2 * len(heads), 0, 1)
    first, second = both[: len(heads)], both[len(heads) :]
    change = np.subtract(first, second)
    sides = {"importance_first_difference": change}
    sides |= {"importance_first_difference_low": change - 0.1, "importance_first_difference_high": change + 0.2}
    a = frame(heads, domain="<a>", null_first=0.07, importance_first=first, **sides)
    fig = plots.domain_differences(pd.concat([a, a.assign(domain="b", importance_first=second)]), limit=99)
    same(fig.data[0].x, first)
    same(fig.data[1].x, second)
    same(fig.data[2].x, change)
    assert list(fig.layout.yaxis.ticktext) == [f"L{layer}H{head}" for layer, head in heads]
    return fig


@shows("step_heatmap")
def step_heatmap(data: st.DataObject) -> go.Figure:
    heads, steps = head_grid(data), [0, 125, 8000]
    rows = [(step, "all", *place) for place in heads for step in steps]
    table = pd.DataFrame(rows, columns=["step", "domain", "layer", "head"])
    table["drain"] = column(data, len(rows), 0, 3, nan=True)
    fig = plots.step_heatmap(table, "drain")
    if table["drain"].isna().all():
        assert empty(fig)
    else:
        same(fig.data[0].z, table["drain"].to_numpy().reshape(len(heads), 3))
    return fig


@shows("retrieval_join")
def retrieval_join(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    scores = {name: column(data, len(heads), 0, 1) for name in ("retrieval", "importance", "induction")}
    table = frame(heads, **scores)
    for name in scores:
        table[f"rank_{name}"] = table[name].rank(ascending=False)
    fig = plots.retrieval_join(table)
    drawn = named(fig, "heads")
    expected = table.sort_values("rank_retrieval")
    for found, name in ((drawn.x, "importance"), (drawn.y, "retrieval"), (drawn.marker.color, "induction")):
        same(sorted(array(found)), sorted(expected[name]))
    same(array(drawn.y), expected["retrieval"])
    labels = [note.text for note in fig.layout.annotations if note.text.startswith("L") and "H" in note.text]
    said = [name for label in labels for name in label.split(", ")]
    assert len(said) == len({*said}) == min(8, int((table["retrieval"] >= 0.1).sum()))
    return fig


@shows("sink_causes")
def sink_causes(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    table = frame(heads, margin=column(data, len(heads), -50, 50)).assign(name=[f"L{a}H{b}" for a, b in heads])
    parts = []
    for what, names in (("channel", [-1, 3, 5, 7, 8, 9]), ("component", ["bias", "L0H1", "MLP 0", "embedding", "<b>"])):
        rows = [
            {"layer": a, "head": b, "side": s, what: name} for a, b in heads for s in ("key", "query") for name in names
        ]
        parts.append(pd.DataFrame(rows).assign(share=column(data, len(rows), -20, 20)))
    fig = plots.sink_causes(table, *parts)
    *bars, margins = fig.data
    same(margins.x, table["margin"])
    for place, (layer, head) in enumerate(heads):
        for half, part in ((bars[:5], parts[0]), (bars[5:], parts[1])):
            own = part[(part["layer"] == layer) & (part["head"] == head) & (part["side"] == "key")]
            total = sum(float(array(bar.x)[place]) for bar in half)
            assert abs(total - own["share"].sum()) < 1e-3
    return fig


@shows("massive_sources")
def massive_sources(data: st.DataObject) -> go.Figure:
    count = data.draw(st.integers(1, 4))
    table = pd.DataFrame({"channel": [*range(count)], "episode": 0, "appears": 1, "leaves_after": 3})
    table["value"] = [data.draw(st.sampled_from([-1.0, 1.0])) * x for x in column(data, count, 1, 100)]
    table["writer_share"] = table["value"] * column(data, count, 0.5, 1)
    table["weight_share"] = table["writer_share"] * column(data, count, 0, 1, nan=True)
    table = table.assign(writer="MLP <b>", weight=[None if x != x else "a[1, 2]" for x in table["weight_share"]])
    fig = plots.massive_sources(table)
    bars = [array(trace.x) for trace in fig.data]
    same(sum(bars), np.ones(count))
    same(bars[0], (table["weight_share"].fillna(0) / table["value"]).tolist())
    same(bars[2], (1 - table["writer_share"] / table["value"]).tolist())
    return fig


@shows("role_growth")
def role_growth(data: st.DataObject) -> go.Figure:
    steps = sorted(data.draw(st.lists(st.integers(0, 9000), min_size=1, max_size=5, unique=True)))
    scores = ["previous_token", "<b>", "induction"]
    table = pd.DataFrame([(step, score) for step in steps for score in scores], columns=["step", "score"])
    table["excess_top"] = column(data, len(table), -1, 1, nan=True)
    table["specialisation"] = column(data, len(table), 0, 1, nan=True)
    fig = plots.role_growth(table)
    for number, score in enumerate(sorted(scores)):
        rows = table[table["score"] == score]
        for trace, name in zip(fig.data[2 * number : 2 * number + 2], ("excess_top", "specialisation"), strict=True):
            same(trace.y, rows[name])
            assert [*trace.x] == [*range(len(steps))]
    return fig


@shows("token_types")
def token_types(data: st.DataObject) -> go.Figure:
    kinds = [("word", "start"), ("special", "start"), ("word", "first"), ("delimiter", "later")]
    kinds = [kind for kind in kinds if data.draw(st.booleans())] or kinds[:1]
    table = pd.DataFrame(kinds, columns=["name", "occurrence"]).assign(by="class", n_tokens=9)
    counts = data.draw(st.lists(st.integers(0, 9), min_size=len(kinds), max_size=len(kinds)))
    table = table.assign(n_sinks=counts, sink_share=column(data, len(kinds), 0, 1, nan=True))
    table["token_share"] = column(data, len(kinds), 0, 1)
    others = table.assign(by="token", name="<b>", occurrence=[f"{n}" for n in range(len(kinds))], sink_share=0.99)
    fig = plots.token_types(pd.concat([others, table]))
    assert empty(fig) == (not any(counts))
    if not empty(fig):
        bars, nulls = fig.data
        names = [f"{name}, {'position 0' if when == 'start' else when}" for name, when in kinds]
        labels = [text.removesuffix(")").split(" (") for text in fig.layout.yaxis.ticktext]
        placed = [names.index(name) for name, _ in labels]
        assert sorted(placed) == [*range(len(names))]
        same(bars.x, table["sink_share"].iloc[placed])
        same(nulls.x, table["token_share"].iloc[placed])
        assert [said for _, said in labels] == [f"{counts[place]} of 9" for place in placed]
    return fig
