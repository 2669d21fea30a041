"""Checks of figures of studies: near and far keys, donors, classes, generation, extreme tokens, injection, poolings."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinklens import plots
from tests.plots.checks import array, column, empty, head_grid, named, same, shows, tokens


def spread(data: st.DataObject, table: pd.DataFrame, name: str, ends: tuple[str, str]) -> pd.DataFrame:
    """A column with an interval around it; now and then there is none."""
    table[name] = column(data, len(table), -2, 2)
    width = column(data, len(table), 0.125, 1, nan=True)
    return table.assign(**{ends[0]: table[name] - width, ends[1]: table[name] + np.asarray(width)})


def bars(trace: go.Scatter, rows: pd.DataFrame, name: str, ends: tuple[str, str]) -> None:
    """A trace's values and both ends of its intervals."""
    same(trace.x, rows[name])
    same(trace.error_x.array, rows[ends[1]] - rows[name], rtol=1e-3)
    same(trace.error_x.arrayminus, rows[name] - rows[ends[0]], rtol=1e-3)


@shows("near_far")
def near_far(data: st.DataObject) -> go.Figure:
    draws = data.draw(st.integers(0, 3))
    sets = [("tested", -1, "L0H1, <b>"), *(("random", draw, "L1H0") for draw in range(draws))]
    table = pd.DataFrame([(*each, way) for each in sets for way in ("near", "far")])
    table.columns = pd.Index(["kind", "draw", "heads", "sees"])
    table = spread(data, table, "cost", ("low", "high"))
    fig = plots.near_far(table)
    tested, random = (table[table["kind"] == kind] for kind in ("tested", "random"))
    bars(named(fig, "tested heads"), tested, "cost", ("low", "high"))
    assert [*named(fig, "tested heads").y] == [0, 1] and fig.layout.yaxis.ticktext[0] == "sees near keys alone"
    if draws:
        same(named(fig, "as many random heads").x, random["cost"])
        assert [round(each) for each in named(fig, "as many random heads").y] == [0, 1] * draws
    return fig


@shows("donors")
def donors(data: st.DataObject) -> go.Figure:
    edits = [("zero", "sink"), ("ordinary", "sink"), ("donor", "sink"), ("zero", "control"), ("ordinary", "control")]
    heads = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=3, unique=True))
    table = pd.DataFrame(
        [(*head, f"L{head[0]}H<b>", *edit, 7 * (edit[1] == "control")) for head in heads for edit in edits],
        columns=["layer", "kv_head", "heads", "edit", "place", "position"],
    )
    ends = ("delta_loss_low", "delta_loss_high")
    table = spread(data, table, "delta_loss", ends)
    fig = plots.donors(table)
    if not heads:
        assert "Not measured" in fig.layout.annotations[0].text
        return fig
    names = {"zero": "nothing in its place", "ordinary": "an ordinary token's", "donor": "another text's"}
    for edit, place in edits:
        trace = named(fig, f"{names[edit]}{'' if place == 'sink' else ', elsewhere'}")
        rows = table[(table["edit"] == edit) & (table["place"] == place)]
        bars(trace, rows, "delta_loss", ends)
        assert [round(each) for each in trace.y] == [*range(len(heads))]
        assert trace.marker.symbol == ("circle" if place == "sink" else "circle-open")
    assert [text.split(" ")[0] for text in fig.layout.yaxis.ticktext] == [f"L{a}KV{b}" for a, b in heads]
    return fig


@shows("token_classes")
def token_classes(data: st.DataObject) -> go.Figure:
    kinds = [("word", "first"), ("delimiter", "later"), ("<b>", None)]
    table = pd.DataFrame(kinds, columns=["kind", "occurrence"]).assign(n_tokens=[9, 5, 2])
    table["token_share"], table["n_rows"] = column(data, 3, 0, 1), [3, 2, 1]
    for name in ("row_share", "mass", "null", "null_document"):
        table[name] = column(data, 3, 0, 1, nan=name == "mass")
    table["mass_sd"] = column(data, 3, 0, 1, nan=True)
    value = data.draw(st.sampled_from([None, "mass"]))
    fig = plots.token_classes(table, value=value)
    same(named(fig, "share of the rows").x, table["row_share"])
    same(named(fig, "share of all tokens").x, table["token_share"])
    labels = [text.split(" (") for text in fig.layout.yaxis.ticktext]
    assert [name for name, _ in labels] == ["word, first", "delimiter, later", "&lt;b&gt;, none"]
    assert [count for _, count in labels] == ["3 of 9)", "2 of 5)", "1 of 2)"]
    if value:
        same(named(fig, "mass").x, table["mass"])
        same(named(fig, "mass").error_x.array, table["mass_sd"].fillna(0))
        for null in ("null", "null_document"):
            same(named(fig, f"even attention ({null})").x, table[null])
    return fig


@shows("generation")
def generation(data: st.DataObject) -> go.Figure:
    words = tokens(data, 2, 9)
    prompt = data.draw(st.integers(1, len(words)))
    table = pd.DataFrame({"position": range(len(words)), "token": words})
    table["generated"] = table["position"] >= prompt
    table["n_sink_heads"] = column(data, len(words), 0, 9, nan=True)
    table["max_abs"] = column(data, len(words), 1, 900)
    table["is_massive"] = [data.draw(st.booleans()) for _ in words]
    steps = table[table["generated"]].copy()
    steps["mass_first"], steps["null"] = (column(data, len(steps), 0, 1, nan=True) for _ in range(2))
    fig = plots.generation(steps, table)
    first, even, sinks, entries = fig.data
    for trace, rows, name in (
        (first, steps, "mass_first"), (even, steps, "null"), (sinks, table, "n_sink_heads"),
        (entries, table, "max_abs"),
    ):  # fmt: skip
        same(trace.y, rows[name])
        assert [*trace.x] == rows["position"].tolist()
    assert [each == "square" for each in entries.marker.symbol] == table["is_massive"].tolist()
    assert len({*sinks.text}) == len(words)  # a token that comes again keeps a name of its own
    return fig


@shows("extreme_tokens")
def extreme_tokens(data: st.DataObject) -> go.Figure:
    words = data.draw(st.lists(st.sampled_from([" the", "the", "<b>", "."]), max_size=9))
    table = pd.DataFrame({"sequence": range(len(words)), "position": 0, "token": words})
    table["position"] = data.draw(st.lists(st.integers(0, 2), min_size=len(words), max_size=len(words)))
    places = [(1, 7), (3, 7), (3, 2)]
    channels = pd.DataFrame(places, columns=["layer", "channel"]).assign(n_tokens=[4, 9, 2])
    fig = plots.extreme_tokens(table, channels)
    if not words:
        assert empty(fig)
        return fig
    cells, counted = fig.data
    nan = float("nan")
    same(cells.z, [[4, nan, 9], [nan, nan, 2]])
    assert [*cells.x] == [1, 2, 3] and [*fig.layout.yaxis.ticktext] == ["channel 7", "channel 2"]
    assert sum(array(counted.x)) == len(words)
    shown = dict(zip(fig.layout.yaxis2.ticktext, array(counted.x), strict=True))
    assert shown.pop("position 0", 0) == (table["position"] == 0).sum()
    written = table[table["position"] > 0]["token"].replace({" the": "·the", "<b>": "&lt;b&gt;"}).value_counts()
    assert shown == written.to_dict()
    return fig


@shows("injection")
def injection(data: st.DataObject) -> go.Figure:
    conditions = [(0, "clean", -1), (2, "token", 0), (2, "random", 0), (2, "random", 1)]
    places = ["<b>", "middle"]
    rows = [(sequence, place, *each) for sequence in range(5) for place in places for each in conditions]
    table = pd.DataFrame(rows, columns=["sequence", "place", "count", "kind", "draw"])
    for name in ("inserted", "first", "sink_inserted", "sink_first", "value_inserted", "massive_inserted", "change"):
        table[name] = column(data, len(table), 0, 1)
    fig = plots.injection(table)
    for panel, measure in enumerate(("inserted", "first", "change")):
        mine = [trace for trace in fig.data if trace.xaxis == f"x{panel + 1 if panel else ''}"]
        assert [trace.name for trace in mine] == ["the token", "random tokens", "nothing inserted"][: 2 + (panel == 1)]
        for trace, kind in zip(mine, ("token", "random", "clean"), strict=False):
            some = table[table["kind"] == kind].groupby("place", sort=False)[measure].mean()
            same(trace.x, some[places], rtol=1e-4)
    assert [*fig.layout.yaxis.ticktext] == ["&lt;b&gt;, 2", "middle, 2"]
    return fig


@shows("pooling_ranks")
def pooling_ranks(data: st.DataObject) -> go.Figure:
    names = ["mean", "<b>", "random"]
    rows = [
        (layer, name, draw, pair)
        for layer in (2, 9)
        for name in names
        for draw in range(2 if name == "random" else 1)
        for pair in range(5)
    ]
    table = pd.DataFrame(rows, columns=["layer", "pooling", "draw", "pair"]).assign(n=4)
    table["rank"] = [float(data.draw(st.integers(1, 4))) for _ in rows]
    table["own"], table["others"] = column(data, len(rows), -1, 1), column(data, len(rows), -1, 1)
    fig = plots.pooling_ranks(table)
    for place, name in enumerate(names):
        ranks, alike = fig.data[2 * place : 2 * place + 2]
        some = table[table["pooling"] == name].assign(value=lambda t: 1 / t["rank"]).groupby("layer")
        same(ranks.y, some["value"].mean())
        same(alike.y, some["others"].mean())
        assert [round(each) for each in ranks.x] == [0, 1] and fig.data[2].name == "&lt;b&gt;"
    assert fig.layout.shapes[0].y0 == np.mean([1, 1 / 2, 1 / 3, 1 / 4])
    return fig


@shows("span_heads")
def span_heads(data: st.DataObject) -> go.Figure:
    heads = head_grid(data)
    table = pd.DataFrame(heads, columns=["layer", "head"])
    table["name"] = [f"L{a}H{b}" for a, b in heads]
    for name in ("dependence", "other", "excess"):
        table[name] = column(data, len(heads), -3, 3, nan=name == "excess")
    table["chosen"] = [data.draw(st.booleans()) for _ in heads]
    rows = [(task, kind, draw) for task in range(6) for kind, n in (("span heads", 1), ("<b>", 2)) for draw in range(n)]
    steered = pd.DataFrame(rows, columns=["task", "kind", "draw"]).assign(change=column(data, len(rows), -2, 2))
    fig = plots.span_heads(table, steered)
    cells, rings, moved = fig.data
    z = array(cells.z)
    same([z[head] for head in heads], table["excess"])
    assert np.isfinite(z).sum() == table["excess"].notna().sum()
    assert [*zip(rings.y, rings.x, strict=True)] == [
        head for head, chosen in zip(heads, table["chosen"], strict=True) if chosen
    ]
    same(moved.x, steered.groupby("kind", sort=False)["change"].mean(), rtol=1e-4)
    assert [*fig.layout.yaxis2.ticktext] == ["span heads", "&lt;b&gt;"]
    return fig


@shows("factual_recall")
def factual_recall(data: st.DataObject) -> go.Figure:
    table = pd.DataFrame({"layer": range(data.draw(st.integers(1, 5)))})
    for name in ("attention", "rest", "lens"):
        table[name] = column(data, len(table), -3, 3, nan=name == "attention")
    table = spread(data, table, "total", ("low", "high"))
    fig = plots.factual_recall(table)
    for name, part in (("attention", "attention"), ("the rest (MLP)", "rest"), ("layer", "total")):
        same(named(fig, name).y, table[part])
        assert [*named(fig, name).x] == table["layer"].tolist()
    same(named(fig, "layer").error_y.array, table["high"] - table["total"], rtol=1e-3)
    same(named(fig, "answer's log-probability").y, table["lens"])
    return fig
