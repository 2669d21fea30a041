"""The published kinds of figures: what they say about missing, clipped, pooled and null, and what they refuse."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinklens import plots
from sinklens.errors import InputError
from sinklens.plots.pooling import pooled
from sinklens.studies.census.result import Census
from tests.plots.checks import array, named, title
from tests.plots.synthetic import EVIL, WITHOUT_ATTENTION, synthetic_census

NAN = float("nan")


@pytest.fixture(scope="module")
def census() -> Census:
    return synthetic_census()


@pytest.fixture
def norms() -> pd.DataFrame:
    rows = [(layer, "hidden", None, 20.0, 10.0) for layer in range(-1, 3)]
    rows += [(layer, state, head, 1.0 + head, 4.0) for layer in (0, 2) for state in ("key", "value") for head in (0, 1)]
    table = pd.DataFrame(rows, columns=["layer", "state", "kv_head", "norm", "others"]).astype({"kv_head": "Int64"})
    return table.assign(ratio=table["norm"] / table["others"], n_sequences=3)


@pytest.fixture
def profile() -> pd.DataFrame:
    rows = [(layer, k, (EVIL, " the")[k % 2], c) for layer in (0, 1) for c in (447, 3) for k in range(6)]
    table = pd.DataFrame(rows, columns=["layer", "position", "token", "channel"]).assign(value=0.5, median=0.5)
    table.loc[(table["layer"] == 1) & (table["channel"] == 447) & (table["position"] == 0), "value"] = -900.0
    return table


@pytest.fixture
def traced() -> pd.DataFrame:
    columns = ["sequence", "layer", "position", "token", "channel", "before", "attention", "mlp", "after"]
    rows = [
        (s, layer, 0, EVIL, 67, *values)
        for s in (0, 1)
        for layer, values in enumerate([(0, 1, 2, 3), (3, 0, 97, 100), (100, -80, 5, 25)])
    ]
    return pd.DataFrame(rows, columns=columns)


# ------------------------------------------------------------------ montage
def test_a_montage_pools_until_all_maps_fit_and_says_so(census: Census) -> None:
    maps = [one for one in census.maps.values() if one.cell == 1]
    fig = plots.head_montage(maps, n_layers=7, cells=16)
    assert "Pooled: each cell is the max over 3 x 3 tokens." in title(fig) and "hidden by the mask" in title(fig)
    assert "Grey rows: no map in layers 1, 3, 6." in title(fig)
    one = next(one for one in maps if (one.layer, one.head) == (2, 1))
    tile = array(fig.data[0].z)[2 * 17 : 2 * 17 + 16, 17 : 17 + 16]
    for i, j in ((0, 0), (15, 0), (7, 3)):
        block = one.values[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
        assert tile[i, j] == pytest.approx(np.nanmax(block))
    assert np.isnan(tile[0, 1]) and np.isnan(array(fig.data[0].z)[:, 16]).all()  # masked, and the gap
    assert fig.layout.xaxis.ticktext[17] == "head 1, key 0-2 &lt;s&gt; The ·cat"
    assert len(plots.head_montage(maps).layout.shapes) == 5 + 3  # white strips between 6 layers and 4 heads


def test_a_montage_of_many_heads_stays_small() -> None:
    from sinklens.studies.census.result import AttentionMap

    values = np.where(np.tri(128) == 1, 0.5, np.nan).astype("float32")
    maps = [AttentionMap(layer, head, values, 32, 4096, ["a"] * 4096, "") for layer in range(32) for head in range(32)]
    fig = plots.head_montage(maps)
    assert array(fig.data[0].z).size <= 330_000 and "4096" not in title(fig)
    assert re.search(r"max over (\d+) x \1 tokens", title(fig))
    assert len(fig.layout.xaxis2.ticktext) == 32 and fig.layout.width < 1300


def test_a_log_montage_clips_visibly(census: Census) -> None:
    maps = [one for one in census.maps.values() if one.cell == 1]
    fig = plots.head_montage(maps, log=True, floor=0.01)
    assert "clipped below 0.01" in title(fig) and np.nanmin(array(fig.data[0].z)) == pytest.approx(-2)
    np.testing.assert_array_equal(array(fig.data[0].customdata), array(plots.head_montage(maps).data[0].z))


def test_pooling_keeps_what_stands_out_with_its_sign() -> None:
    assert pooled([1.0, -5.0, 2.0, NAN, NAN, 0.5], 2).tolist() == [-5.0, 2.0, 0.5]
    grid = pooled(np.arange(9.0).reshape(3, 3), 2, (0, 1))
    assert grid.tolist() == [[4.0, 5.0], [7.0, 8.0]]
    assert pooled([NAN, 0.0], 2).tolist() == [0.0]
    assert np.isnan(pooled([NAN, NAN], 2)).all() and pooled([1.0, 2.0], 1).tolist() == [1.0, 2.0]


# ------------------------------------------------------------------ shares by layer
def test_runs_with_other_nulls_have_their_own_lines(census: Census) -> None:
    heads = census.tables["heads"].assign(null_first=0.09)
    fig = plots.sink_share({"a": heads, "b": heads.assign(null_first=0.2), "c": heads})
    nulls = [trace for trace in fig.data if "null" in trace.name]
    assert [trace.name for trace in nulls] == ["null, a, c", "null, b"]
    assert len({trace.line.dash for trace in nulls}) == 2
    assert [trace.name for trace in plots.sink_share(heads).data][-1] == "causal-uniform null"
    short = plots.sink_share({"short": heads[heads["layer"] < 2], "long": heads}).data[-1]
    assert short.name == "causal-uniform null" and list(short.x) == [0, 1, 2, 4, 5]


def test_a_layer_without_attention_is_a_gap_in_line_and_band(census: Census) -> None:
    heads = census.tables["heads"].assign(null_first=0.09)
    fig = plots.sink_share(heads)
    line = named(fig, "mean over heads")
    assert math.isnan(line.y[WITHOUT_ATTENTION]) and not line.connectgaps
    filled = [list(trace.x) for trace in fig.data if trace.fill == "tonexty"]
    assert filled == [[0, 1, 2], [4, 5]]
    assert not [trace for trace in plots.sink_share(heads, spread=False).data if trace.fill]


def test_a_sink_rate_has_no_null_line_and_runs_without_attention_are_named(census: Census) -> None:
    heads = census.tables["heads"].assign(null_first=0.09)
    fig = plots.sink_share({"a": heads, "mamba": heads.assign(sink_rate_first=NAN)}, value="sink_rate_first")
    assert "Not applicable (no attention measured): mamba." in title(fig)
    assert not [trace for trace in fig.data if "null" in trace.name]


# ------------------------------------------------------------------ norms
def test_norms_say_what_was_not_measured(norms: pd.DataFrame) -> None:
    fig = plots.state_norms(norms)
    keys = named(fig, "keys, mean over KV heads")
    assert list(keys.x) == [0, 1, 2] and np.isnan(array(keys.y)[1])  # layer 1 has no attention
    assert fig.layout.yaxis.type == "log" and fig.layout.xaxis.ticktext[0] == "embed"
    assert "norm 1.5, others 4" in keys.text[0]
    without = plots.state_norms(norms[norms["state"] != "key"])
    assert "Not applicable: keys were not measured." in title(without)
    assert "1 ratio of exactly 0" in title(plots.state_norms(norms.assign(ratio=[0.0, *norms["ratio"][1:]])))


# ------------------------------------------------------------------ massive activations
def test_the_layer_with_the_largest_entry_is_drawn(profile: pd.DataFrame) -> None:
    fig = plots.massive_map(profile)
    assert "after layer 1" in title(fig) and "Largest entry: 900 = 1,800 times the median" in title(fig)
    assert (fig.data[0].zmin, fig.data[0].zmid, fig.data[0].zmax) == (-900, 0, 900)
    assert "&lt;script&gt;ale…" in fig.layout.xaxis2.ticktext
    assert "before the first layer" in title(plots.massive_map(profile[profile["layer"] == 0].assign(layer=-1)))


def test_space_draws_one_line_a_channel_and_one_webgl_context(profile: pd.DataFrame) -> None:
    fig = plots.massive_map(profile, kind="3d")
    assert [trace.name for trace in fig.data] == ["channel 447", "channel 3"]
    assert {trace.type for trace in fig.data} == {"scatter3d"} and max(fig.data[0].z) == 900
    assert fig.data[0].customdata[0] == -900
    # ticks of a 3-D axis are drawn as they stand: nothing to unescape, nothing that looks like a tag
    assert fig.layout.scene.xaxis.ticktext[0] == "⟨script…" and "&" not in "".join(fig.layout.scene.xaxis.ticktext)


def test_long_sequences_are_pooled_and_say_so() -> None:
    n = 2500
    table = pd.DataFrame({"layer": 0, "position": range(n), "token": " the", "channel": 7, "median": 1.0})
    value = np.zeros(n)
    value[1001] = -70.0
    fig = plots.massive_map(table.assign(value=value))
    assert "Pooled: each column is the entry of largest magnitude of 3 tokens." in title(fig)
    assert array(fig.data[0].z).shape == (1, 834) and array(fig.data[0].z)[0, 333] == -70
    assert fig.layout.xaxis.ticktext[333].startswith("999-1001 ")
    assert fig.layout.xaxis.ticktext[833].startswith("2499 ")


def test_several_sequences_are_no_map(profile: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="which differ in sequence"):
        plots.massive_map(pd.concat([profile.assign(sequence=0), profile.assign(sequence=1)]))


def test_ranks_are_taken_in_every_sequence_by_itself(census: Census) -> None:
    rows = [
        (s, 0, k, " a", k, v, 0.5) for s, values in enumerate(([-9.0, 1.0], [3.0, -5.0])) for k, v in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["sequence", "layer", "position", "token", "channel", "value", "median"])
    fig = plots.top_magnitudes(table, k=3)
    assert list(named(fig, "largest |h|").y) == [7.0] and list(named(fig, "2nd |h|").y) == [2.0]
    assert named(fig, "3rd |h|") is None
    assert "(in 50% of sequences)" in named(fig, "largest |h|").text[0]
    big = plots.top_magnitudes(census.tables["massive"])
    assert "&lt;s&gt;" in named(big, "largest |h|").text[0] and big.layout.yaxis.type == "log"


def test_the_writer_and_the_canceller_are_named(traced: pd.DataFrame) -> None:
    fig = plots.lifecycle(traced)
    assert "Written by the MLP of layer 1: 97, 97% of its largest value." in title(fig)
    assert "Cancelled most by the attention of layer 2: -80, -80%" in title(fig) and "Mean over 2" in title(fig)
    assert "position 0, token &lt;script&gt;ale…, channel 67" in fig.layout.title.text
    marks = {note.text: (note.x, note.y) for note in fig.layout.annotations}
    assert marks == {"writes": (1.18, 97), "cancels": (1.82, -80)}
    assert list(fig.layout.xaxis.ticktext) == ["embed", "0", "1", "2"]
    none = plots.lifecycle(traced[traced["layer"] < 2])
    assert "No layer takes it away again." in title(none)


def test_an_entry_is_chosen_from_several(traced: pd.DataFrame) -> None:
    two = pd.concat([traced, traced.assign(channel=3, mlp=0.0, attention=0.0, before=1.0, after=1.0)])
    assert "channel 3" in title(plots.lifecycle(two, entry=(0, 3)))
    with pytest.raises(InputError, match=r"Choose one entry .*\(0, 3\), \(0, 67\)\.$"):
        plots.lifecycle(two)
    with pytest.raises(InputError, match=r"not \(1, 1\)"):
        plots.lifecycle(two, entry=(1, 1))


# ------------------------------------------------------------------ scatters
def test_scatters_count_what_they_leave_out_and_draw_their_nulls(census: Census, norms: pd.DataFrame) -> None:
    heads = census.tables["heads"].reset_index(drop=True).copy()
    heads.loc[0, "drain"], heads.loc[1, "drain"] = NAN, 0.0
    fig = plots.drain_scatter(heads)
    assert "Not applicable and not drawn: 1." in title(fig) and "on a log axis: 1 head." in title(fig)
    lines = {(shape.x0, shape.x1, shape.y0, shape.y1) for shape in fig.layout.shapes}
    null = float(heads.loc[2:, "null"].median())
    assert lines == {(null, null, 0, 1), (0, 1, 1, 1)}
    hover = named(fig, "sink head (4)").text[0]
    assert hover.startswith("<b>L1H0</b><br>strongest key at position 0") and "|W_O v| / others: 0.04" in hover
    fig = plots.entropy_scatter(heads, norms)
    drawn = heads["layer"].isin([0, 2])
    assert f"{drawn.sum()} heads" in title(fig) and f"not drawn: {(~drawn).sum()}." in title(fig)
    assert any("even attention" in note.text for note in fig.layout.annotations)


# ------------------------------------------------------------------ what cannot be drawn
def test_nothing_to_draw_is_not_applicable(
    census: Census, norms: pd.DataFrame, profile: pd.DataFrame, traced: pd.DataFrame
) -> None:
    heads = census.tables["heads"].assign(null_first=0.09)
    for fig in (
        plots.head_montage({}),
        plots.sink_share(heads.assign(importance_first=NAN)),
        plots.sink_share({}),
        plots.state_norms(norms.assign(ratio=NAN)),
        plots.massive_map(profile.iloc[:0]),
        plots.top_magnitudes(census.tables["massive"].iloc[:0]),
        plots.lifecycle(traced.iloc[:0]),
        plots.drain_scatter(heads.assign(drain=NAN)),
        plots.entropy_scatter(heads, norms[norms["state"] == "hidden"]),
    ):
        assert not fig.data and fig.layout.annotations[0].text.startswith("Not applicable")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda c: plots.head_montage([c.maps["L2H1"], c.maps["L1H0"]]), "maps of the same tokens"),
        (lambda c: plots.head_montage([c.maps["L2H1"], replace(c.maps["L2H2"], tokens=["x"] * 48)]), "same tokens"),
        (lambda c: plots.head_montage(c.maps, floor=1), "floor"),
        (lambda c: plots.head_montage(c.maps, cells=1), "at least 2 cells"),
        (lambda c: plots.sink_share(c.tables["heads"]), "null_first"),
        (lambda c: plots.sink_share(c.tables["heads"], value="drain"), "got 'drain'"),
        (lambda c: plots.state_norms(c.tables["heads"]), "needs the column"),
        (lambda c: plots.massive_map(c.tables["massive"].iloc[:0], kind="4d"), "got '4d'"),
        (
            lambda c: plots.massive_map(c.tables["massive"].query("sequence == 0"), layer=99),
            "no layer 99; the profile has -1, 0",
        ),
        (lambda c: plots.top_magnitudes(c.tables["massive"], k=6), "1 to 5 lines, not 6"),
        (lambda c: plots.drain_scatter(c.tables["heads"].drop(columns="is_sink")), "is_sink"),
        (lambda c: plots.entropy_scatter(c.tables["heads"], c.tables["heads"]), "norms"),
        (lambda c: plots.lifecycle(c.tables["heads"]), "needs the column"),
    ],
)
def test_wrong_input_is_explained(census: Census, draw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(census)
