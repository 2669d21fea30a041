import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sinklens.app.dashboard.figures.by_position import Positions, by_position
from sinklens.app.dashboard.figures.exact_rows import exact_rows
from sinklens.app.dashboard.figures.layer_maps import arranged, head_at, layer_maps
from sinklens.app.dashboard.figures.score_grid import score_grid
from sinklens.app.dashboard.figures.side_by_side import side_by_side
from sinklens.app.dashboard.figures.token_norm import token_norm
from sinklens.plots import sink_heatmap
from sinklens.studies import Census
from sinklens.studies.census.result import AttentionMap

numbers = st.floats(-50, 50, width=32) | st.just(float("nan"))
grids = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=numbers)


@given(grids)
def test_a_grid_holds_its_numbers(values: np.ndarray) -> None:
    fig = score_grid(values, "x")
    if np.isnan(values).all():
        assert not fig.data
        return
    np.testing.assert_array_equal(np.asarray(fig.data[0].z, dtype=np.float32), values)
    assert fig.data[0].zmin <= np.nanmin(values) and fig.data[0].zmax >= np.nanmax(values)
    assert (fig.data[0].zmin == -fig.data[0].zmax) == bool(np.nanmin(values) < 0)


@given(grids, grids)
def test_two_grids_share_one_scale(first: np.ndarray, second: np.ndarray) -> None:
    a, b = score_grid(first, "x"), score_grid(second, "x")
    if not a.data or not b.data:
        return
    fig = side_by_side(a, b, ("a", "b"))
    assert fig.data[0].zmin == fig.data[1].zmin <= np.nanmin([np.nanmin(first), np.nanmin(second)])
    assert fig.data[0].zmax == fig.data[1].zmax >= np.nanmax([np.nanmax(first), np.nanmax(second)])
    assert fig.data[0].colorscale == fig.data[1].colorscale
    np.testing.assert_array_equal(np.asarray(fig.data[1].z, dtype=np.float32), second)
    if first.shape != second.shape:
        assert len(fig.data) == 2
        return
    change = second.astype(float) - first
    np.testing.assert_allclose(np.asarray(fig.data[2].z, dtype=float), change, rtol=1e-5, atol=1e-6)
    assert fig.data[2].zmin == -fig.data[2].zmax


@pytest.mark.parametrize(("change", "scale"), [(1e-7, 1.0), (0.001, 0.001)])
def test_rounding_is_not_drawn_as_a_change(change: float, scale: float) -> None:
    first = np.linspace(0.1, 0.9, 8).reshape(2, 4)
    second = first.copy()
    second[1, 2] += change
    drawn = side_by_side(score_grid(first, "x"), score_grid(second, "x"), ("a", "b")).data[2]
    assert drawn.zmax == pytest.approx(scale, rel=1e-3) and np.abs(np.asarray(drawn.z, dtype=float)).max() > 0


def test_a_logarithmic_score_says_factors(census: Census) -> None:
    heads = census.tables["heads"]
    twice = heads.assign(ratio=2 * heads["ratio"])
    fig = side_by_side(sink_heatmap(heads, value="ratio"), sink_heatmap(twice, value="ratio"), ("a", "b"))
    change = np.asarray(fig.data[2].z, dtype=float)
    np.testing.assert_allclose(change[np.isfinite(change)], np.log10(2), rtol=1e-4)
    assert "2 times A's" in fig.data[2].text[0][0] and "log10" in fig.layout.annotations[2].text


def test_names_cannot_become_markup() -> None:
    grid = score_grid(np.ones((1, 1)), "x")
    fig = side_by_side(grid, grid, ("<b>evil</b>", "b"))
    assert "&lt;b&gt;evil" in fig.layout.annotations[0].text and "&lt;b&gt;" in fig.data[0].hovertemplate


def test_positions_repeat_tokens_and_keep_their_values() -> None:
    tokens = ["the", "the", "<i>", "the"]
    importance = np.array([0.5, 0.1, np.nan, 0.2])
    one = Positions({"importance": importance}, {"value_norm": np.arange(4.0)}, "text 3 of 9", tokens)
    fig = by_position(1, 2, [one], token=2)
    np.testing.assert_allclose(np.asarray(fig.data[0].y, dtype=float), importance, rtol=1e-6)
    assert list(fig.data[0].x) == [0, 1, 2, 3] and fig.data[0].text[2] == "&lt;i&gt;"
    assert fig.layout.shapes[0].x0 == 2
    assert "text 3 of 9" in fig.layout.xaxis.title.text
    assert not by_position(1, 2, [Positions({}, {"value_norm": np.full(4, np.nan)})]).data
    both = by_position(1, 2, [one, Positions({"importance": 2 * importance}, {}, "one text")])
    by_name = {trace.name: np.asarray(trace.y, dtype=float) for trace in both.data}
    np.testing.assert_allclose(by_name["B attention received"], 2 * by_name["A attention received"], rtol=1e-6)
    assert "A: text 3 of 9; B: one text" in both.layout.xaxis.title.text


def test_a_tokens_norm_stands_beside_the_others() -> None:
    norms = np.array([[10.0 * layer + position + 1 for layer in range(3)] for position in range(5)])
    fig = token_norm(norms, 0)
    by_name = {trace.name: np.asarray(trace.y, dtype=float) for trace in fig.data}
    np.testing.assert_allclose(by_name["this token"], [1, 11, 21])
    np.testing.assert_allclose(by_name["median of the others"], [3.5, 13.5, 23.5])
    np.testing.assert_allclose(by_name["range of the others"], [2, 12, 22])
    assert not token_norm(norms, 9).data


@pytest.mark.parametrize("log", [False, True])
def test_exact_rows_stand_at_their_positions(log: bool) -> None:
    values = np.array([[0.5, np.nan], [0.25, 0.0]])
    fig = exact_rows(values, 7, 3, ["t"] * 20, log=log)
    trace = fig.data[0]
    assert isinstance(trace, go.Heatmap) and (trace.x0, trace.y0) == (3, 7)
    np.testing.assert_array_equal(np.asarray(trace.customdata, dtype=float), values)
    expected = np.where(np.isnan(values), np.nan, np.log10(np.maximum(values, 1e-3))) if log else values
    np.testing.assert_allclose(np.asarray(trace.z, dtype=float), expected, rtol=1e-5)
    assert fig.layout.yaxis.range == (8.5, 6.5)


@pytest.mark.parametrize(("heads", "cells"), [(1, 10), (4, 64), (9, 64), (9, 128), (32, 128), (64, 37)])
def test_maps_of_a_layer_stand_where_a_click_finds_them(heads: int, cells: int) -> None:
    rng = np.random.default_rng(0)
    maps = {
        head: AttentionMap(3, head, rng.random((cells, cells)).astype(np.float32), 1, cells, ["t"] * cells, "")
        for head in range(0, heads, 2)
    }
    fig = layer_maps(maps, heads, chosen=0)
    canvas = np.asarray(fig.data[0].z, dtype=float)
    columns, side, step = arranged(heads, cells)
    found: dict[int, list[float]] = {}
    for y, x in zip(*np.nonzero(np.isfinite(canvas)), strict=True):
        head = head_at(int(x), int(y), heads, cells)
        assert head is not None
        found.setdefault(head, []).append(canvas[y, x])
    assert set(found) == set(maps)
    for head, values in found.items():
        assert len(values) == side**2 and max(values) == pytest.approx(maps[head].values.max())
    assert head_at(columns * step + 1, 0, heads, cells) is None and canvas.size < 90_000
    assert [note.text for note in fig.layout.annotations] == [f"L3H{head}" for head in range(heads)]
