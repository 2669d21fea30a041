"""Checks of figures of residual states, keys and values."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens import plots
from tests.plots.checks import array, column, empty, named, positions_kept, same, shows, tokens

LAYERS = st.integers(1, 4)


@shows("norms_by_token")
def norms_by_token(data: st.DataObject) -> go.Figure:
    words, layers = tokens(data), data.draw(LAYERS)
    rows = [(layer, k, word) for layer in range(-1, layers) for k, word in enumerate(words)]
    table = pd.DataFrame(rows, columns=["layer", "position", "token"])
    table["resid_norm"] = column(data, len(rows), 0.125, 1000)
    fig = plots.norms_by_token(table)
    raw = table["resid_norm"].to_numpy().reshape(layers + 1, len(words))
    same(fig.data[0].customdata, raw)
    same(fig.data[0].z, np.log10(raw), rtol=1e-4)
    positions_kept(fig, len(words))
    return fig


@shows("massive_map")
def massive_map(data: st.DataObject) -> go.Figure:
    words = tokens(data)
    channels = data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=4, unique=True))
    rows = [(layer, k, word, channel) for layer in (0, 3) for channel in channels for k, word in enumerate(words)]
    table = pd.DataFrame(rows, columns=["layer", "position", "token", "channel"])
    table = table.assign(value=column(data, len(rows), -500, 500), median=0.5)
    layer = data.draw(st.sampled_from([0, 3]))
    own = table.loc[table["layer"] == layer, "value"].to_numpy().reshape(len(channels), len(words))
    space = plots.massive_map(table, layer=layer, kind="3d")
    for trace, values in zip(space.data, own, strict=True):
        same(trace.z, np.abs(values))
        same(trace.customdata, values)
        assert list(trace.x) == [*range(len(words))] and len(set(trace.text)) == len(words)
    fig = plots.massive_map(table, layer=layer)
    same(fig.data[0].z, own)
    assert list(fig.layout.yaxis.ticktext) == [str(channel) for channel in channels]
    positions_kept(fig, len(words))
    return fig


def massive_entries(data: st.DataObject) -> pd.DataFrame:
    words, layers, sequences = tokens(data, 5, 9), data.draw(LAYERS), data.draw(st.integers(1, 3))
    rows = [
        (s, layer, k, words[k], 7 + k, 0.5) for s in range(sequences) for layer in range(-1, layers) for k in range(5)
    ]
    table = pd.DataFrame(rows, columns=["sequence", "layer", "position", "token", "channel", "median"])
    table["value"] = column(data, len(rows), -500, 500)
    return table.assign(ratio=table["value"].abs() / 0.5)


@shows("top_magnitudes")
def top_magnitudes(data: st.DataObject) -> go.Figure:
    table = massive_entries(data)
    fig = plots.top_magnitudes(table, k=3)
    layers = sorted(table["layer"].unique())
    for rank, name in enumerate(("largest |h|", "2nd |h|", "3rd |h|")):
        expected = [
            np.mean([np.sort(g["value"].abs())[::-1][rank] for _, g in rows.groupby("sequence")])
            for _, rows in table.groupby("layer")
        ]
        same(named(fig, name).y, expected)
        assert list(named(fig, name).x) == layers
    same(named(fig, "median |h|").y, [0.5] * len(layers))
    return fig


@shows("massive_table")
def massive_table(data: st.DataObject) -> go.Figure:
    table = massive_entries(data)
    channels = sorted({*table["channel"]})
    spans = data.draw(st.lists(st.tuples(st.sampled_from(channels), st.integers(0, 5), st.integers(0, 4)), max_size=5))
    episodes = pd.DataFrame([(c, a, a + n) for c, a, n in spans], columns=["channel", "appears", "leaves_after"])
    fig = plots.massive_table(table, episodes, n=99)
    best = table.assign(size=table["value"].abs()).groupby("channel")["size"].max()
    named_channels, layers, largest, *_ = fig.data[0].cells.values
    assert sorted(named_channels) == channels
    same([abs(float(text.replace(",", ""))) for text in largest], sorted(best, reverse=True), rtol=6e-3)
    for channel, said in zip(named_channels, layers, strict=True):
        alive = sorted({layer for c, a, n in spans if c == channel for layer in range(a, a + n + 1)})
        ends = [part.split("-") for part in said.split(", ")] if said != "none" else []
        assert [layer for part in ends for layer in range(int(part[0]), int(part[-1]) + 1)] == alive
    return fig


@shows("massive_activations")
def massive_activations(data: st.DataObject) -> go.Figure:
    n = data.draw(LAYERS)
    table = pd.DataFrame({"layer": range(n), "top_position": 0, "top_token": "<b>", "top_channel": 7})
    table = table.assign(max_abs=column(data, n, 1, 5000), median_abs=column(data, n, 0.0625, 2))
    fig = plots.massive_activations(table)
    same(named(fig, "largest |h|").y, table["max_abs"])
    same(named(fig, "median |h|").y, table["median_abs"])
    both = (table["max_abs"] > 100) & (table["max_abs"] > 1000 * table["median_abs"])
    assert list(named(fig, "over both thresholds").x) == np.flatnonzero(both).tolist()
    return fig


@shows("residual_peaks")
def residual_peaks(data: st.DataObject) -> go.Figure:
    n = data.draw(LAYERS)
    table = pd.DataFrame({"layer": range(-1, n - 1)})
    table = table.assign(resid_norm_first=column(data, n, 1, 900), resid_norm_others=column(data, n, 1, 900))
    fig = plots.residual_peaks(table)
    same(named(fig, "position 0").y, table["resid_norm_first"])
    same(named(fig, "other positions").y, table["resid_norm_others"])
    return fig


@shows("state_norms")
def state_norms(data: st.DataObject) -> go.Figure:
    n, heads = data.draw(LAYERS), data.draw(st.integers(1, 3))
    skipped = data.draw(st.integers(0, n))  # a layer without attention
    rows = [(layer, "hidden", pd.NA) for layer in range(-1, n)]
    rows += [(layer, s, h) for layer in range(n) if layer != skipped for s in ("key", "value") for h in range(heads)]
    table = pd.DataFrame(rows, columns=["layer", "state", "kv_head"]).astype({"kv_head": "Int64"})
    table = table.assign(norm=column(data, len(rows), 0.125, 99), others=column(data, len(rows), 0.125, 99))
    table["ratio"] = table["norm"] / table["others"]
    fig = plots.state_norms(table)
    same(named(fig, "hidden state after the layer").y, table.loc[table["state"] == "hidden", "ratio"], rtol=1e-4)
    for state, name in (("key", "keys, mean over KV heads"), ("value", "values, mean over KV heads")):
        own = table[table["state"] == state]
        line = named(fig, name)
        assert (line is None) == own.empty
        if line is not None:
            sums = own.groupby("layer")[["norm", "others"]].sum().reindex(line.x)
            same(line.y, sums["norm"] / sums["others"], rtol=1e-4)
            assert skipped in line.x or skipped < own["layer"].min() or skipped > own["layer"].max()
            if heads > 1:
                same(named(fig, f"one KV head ({state})").y, own["ratio"], rtol=1e-4)
    return fig


@shows("lifecycle")
def lifecycle(data: st.DataObject) -> go.Figure:
    n, sequences, word = data.draw(LAYERS), data.draw(st.integers(1, 2)), tokens(data, 1, 1)[0]
    rows = []
    for sequence in range(sequences):
        at = data.draw(st.floats(-5, 5))
        for layer in range(n):
            attention, mlp = column(data, 2, -300, 300)
            rows.append((sequence, layer, 0, word, 67, at, attention, mlp, at + attention + mlp))
            at += attention + mlp
    names = ["sequence", "layer", "position", "token", "channel", "before", "attention", "mlp", "after"]
    table = pd.DataFrame(rows, columns=names)
    fig = plots.lifecycle(table)
    means = table.groupby("layer")[["before", "attention", "mlp", "after"]].mean()
    bars, line = (
        array(named(fig, "attention adds").y) + array(named(fig, "MLP adds").y),
        named(fig, "entry after the layer"),
    )
    same(named(fig, "attention adds").y, means["attention"])
    same(named(fig, "MLP adds").y, means["mlp"])
    same(line.y, [means["before"].iloc[0], *means["after"]], rtol=1e-4)
    np.testing.assert_allclose(np.diff(array(line.y)), bars, rtol=1e-3, atol=1e-2)  # the picture adds up, too
    return fig


@shows("compression")
def compression(data: st.DataObject) -> go.Figure:
    n = data.draw(LAYERS)
    table = pd.DataFrame({"layer": range(-1, n - 1)})
    table = table.assign(entropy=column(data, n, 0, 5), entropy_others=column(data, n, 0, 5))
    fig = plots.compression(table)
    same(named(fig, "all tokens").y, table["entropy"])
    same(named(fig, "without position 0").y, table["entropy_others"])
    return fig


@shows("decorrelation")
def decorrelation(data: st.DataObject) -> go.Figure:
    n = data.draw(LAYERS)
    table = pd.DataFrame({"layer": range(-1, n - 1), "in_loss": [True] * n, "bos_cosine": 0.5})
    table = table.assign(bos_cosine_sq=column(data, n, 0, 1, nan=True), null=column(data, n, 0, 1))
    fig = plots.decorrelation(table)
    known = table.dropna(subset=["bos_cosine_sq"])
    assert empty(fig) == known.empty
    if len(known):
        same(named(fig, "squared cosine").y, known["bos_cosine_sq"])
        assert list(named(fig, "squared cosine").x) == known["layer"].tolist()
        same(named(fig, "null: random directions").y, known["null"])
    return fig


@shows("secondary_sinks")
def secondary_sinks(data: st.DataObject) -> go.Figure:
    words = tokens(data, 1, 12)
    places = st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(["secondary", "noise", "bos_sink"]))
    rows = [(*data.draw(places), word, 0.5) for word in words]
    table = pd.DataFrame(rows, columns=["first_layer", "life", "label", "token", "importance_max"])
    fig = plots.secondary_sinks(table)
    counted = {}
    for trace in fig.data:
        for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
            counted[trace.name.rsplit(" (", 1)[0], x, y] = int(text.split(" ", 1)[0])
    names = {"secondary": "secondary sink", "noise": "too brief", "bos_sink": "as long as the BOS"}
    sizes = table.groupby(["label", "first_layer", "life"]).size()
    assert counted == {(names[label], x, y): size for (label, x, y), size in sizes.items()}
    return fig
