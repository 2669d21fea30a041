"""Checks of figures of what else heads do: documents ranked, paths, sides in a conflict, experts of a mixture."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens import plots
from tests.plots.checks import array, column, empty, named, same, shows


@shows("document_ranks")
def document_ranks(data: st.DataObject) -> go.Figure:
    tasks, documents = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    rows, hits = [], dict.fromkeys(("icr", "<b>", "random"), 0)
    for task in range(tasks):
        gold = data.draw(st.integers(0, documents - 1))
        for method in hits:
            order = data.draw(st.permutations(range(documents)))
            hits[method] += order[0] == gold
            rows += [(task, method, d, d == gold, 1.0, order.index(d) + 1) for d in range(documents)]
    table = pd.DataFrame(rows, columns=["task", "method", "document", "gold", "score", "rank"])
    fig = plots.document_ranks(table)
    same(named(fig, "rule").x, [hits[method] / tasks for method in ("icr", "<b>")])
    same(named(fig, "control").x, [hits["random"] / tasks])
    assert [*named(fig, "rule").y, *named(fig, "control").y] == [0, 1, 2]
    assert list(fig.layout.yaxis.ticktext) == ["icr", "&lt;b&gt;", "random"]
    same([shape.x0 for shape in fig.layout.shapes], [1 / documents])
    assert empty(plots.document_ranks(table.assign(gold=None)))
    return fig


@shows("path_effects")
def path_effects(data: st.DataObject) -> go.Figure:
    pairs = [(f"L{layer}H{head}", receiver) for layer in (0, 1) for head in (0, 1) for receiver in ("L2H0.k", "logits")]
    table = pd.DataFrame(pairs, columns=["sender", "receiver"])
    table["effect"] = column(data, len(table), -1, 1, nan=True)
    table = table.assign(low=table["effect"] - 0.125, high=table["effect"] + 0.25)
    fig = plots.path_effects(table, rows=5)
    known = table.dropna(subset=["effect"])
    if known.empty:
        assert empty(fig)
        return fig
    size = known["effect"].abs().sort_values(ascending=False).head(5).to_numpy()
    drawn = {at: value for trace in fig.data for at, value in zip(trace.y, trace.x, strict=True)}
    same([abs(drawn[at]) for at in range(len(size))], size)
    of = {f"{row.sender} to {row.receiver}": row.effect for row in known.itertuples()}
    same([drawn[at] for at in range(len(size))], [of[name] for name in fig.layout.yaxis.ticktext])
    for trace in fig.data:
        same(trace.error_x.array, [0.25] * len(trace.x), rtol=1e-3)
        assert all(
            text.startswith(f"<b>{fig.layout.yaxis.ticktext[int(at)]}</b>")
            for at, text in zip(trace.y, trace.text, strict=True)
        )
        assert all(fig.layout.yaxis.ticktext[int(at)].endswith(trace.name) for at in trace.y)
    return fig


@shows("conflict_sides")
def conflict_sides(data: st.DataObject) -> go.Figure:
    places = [(layer, head) for layer in (0, 2) for head in (0, 1, 2)]
    table = pd.DataFrame(places, columns=["layer", "head"])
    table["context"] = column(data, len(table), -2, 2, nan=True)
    table["memory"] = column(data, len(table), -2, 2)
    table["conflict"] = table["context"] - table["memory"]
    table["side"] = data.draw(st.lists(st.sampled_from(["context", "memory", ""]), min_size=6, max_size=6))
    fig = plots.conflict_sides(table, named=2)
    known = table.dropna(subset=["context"])
    if known.empty:
        assert empty(fig)
        return fig
    for side, name in (("context", "for the context's"), ("memory", "for the memory's"), ("", "neither")):
        rows = known[known["side"] == side]
        traces = [trace for trace in fig.data if (trace.name or "").startswith(name)]
        assert len(traces) == (len(rows) > 0)
        for trace in traces:
            same(trace.x, rows["context"])
            same(trace.y, rows["memory"])
    sizes = known.set_index([known["layer"], known["head"]])["conflict"].abs()
    said = [tuple(map(int, word.text.strip()[1:].split("H"))) for word in fig.layout.annotations]
    same(sorted((sizes[place] for place in said), reverse=True), sizes.sort_values(ascending=False).head(2))
    return fig


@shows("super_experts")
def super_experts(data: st.DataObject) -> go.Figure:
    layers, experts, shared = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), data.draw(st.booleans())
    places = [(layer, expert) for layer in range(layers) for expert in [*range(experts), *([-1] if shared else [])]]
    table = pd.DataFrame(places, columns=["layer", "expert"])
    table["a"] = column(data, len(table), 0, 500, nan=True)
    for flag in ("is_super", "is_super_code", "outlier"):
        table[flag] = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    fig = plots.super_experts(table.assign(n_tokens=3))
    if not (table["a"] > 0).any():
        assert empty(fig)
        return fig
    z = array(fig.data[0].z)
    assert z.shape == (layers, experts + shared)
    for row in table.itertuples():
        found = z[row.layer, row.expert if row.expert >= 0 else experts]
        same([10**found], [row.a if row.a > 0 else np.nan], rtol=1e-4)
    for flag, name in (
        ("is_super", "super by the paper"),
        ("is_super_code", "super by its code"),
        ("outlier", "large"),
    ):
        marked = [trace for trace in fig.data[1:] if trace.name.startswith(name)]
        expected = {(row.layer, row.expert if row.expert >= 0 else experts) for row in table[table[flag]].itertuples()}
        assert {(y, x) for trace in marked for x, y in zip(trace.x, trace.y, strict=True)} == expected
    return fig
