import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.plots import head_scores
from tests.plots.checks import title

NAMES = ("a", "b_c", "distance", "<i>")


def table(**columns: list[float]) -> HeadScores:
    frame = pd.DataFrame(
        {
            "layer": [0, 0, 2, 2],
            "head": [0, 2, 0, 2],
            "a": [0.0, 0.25, 0.5, 1.0],
            "a_null": [0.1, 0.1, 0.2, 0.2],
            "a_sd": [0.01, 0.02, math.nan, 0.0],
            "b_c": [math.nan, 0.2, 0.3, 0.4],
            "distance": [1.0, 2.0, 4.0, 8.0],
            "<i>": [-0.5, 0.0, 0.5, 0.9],
            "n_sequences": 7,
        }
        | columns
    )
    return HeadScores(frame, {name: Metric(name, 1, "what it is", "nobody") for name in NAMES})


def panels(fig: go.Figure) -> dict[str, np.ndarray]:
    return {trace.name: np.asarray(trace.z, dtype=float) for trace in fig.data}


def test_every_score_stands_in_its_cell_of_its_panel() -> None:
    scores = table()
    fig = head_scores(scores, n_layers=4)
    grids = panels(fig)
    assert list(grids) == list(NAMES)
    for name, grid in grids.items():
        assert grid.shape == (4, 3) and np.isnan(grid[[1, 3]]).all() and np.isnan(grid[:, 1]).all()
        scale = 8.0 if name == "distance" else 1.0
        for row in scores.frame.to_dict("records"):
            expected = np.float32(row[name] / scale)
            assert grid[row["layer"], row["head"]] == expected or math.isnan(expected)
    assert np.isnan(grids["b_c"][0, 0])


def test_one_scale_from_0_to_1_for_all_panels() -> None:
    fig = head_scores(table())
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
    assert all(trace.coloraxis == "coloraxis" for trace in fig.data)
    texts = [note.text for note in fig.layout.annotations]
    assert texts == ["a", "b c", "distance (1 = 8)", "&lt;i&gt;"]
    said = title(fig)
    assert "divided by its largest value" in said and "1 value below 0" in said
    assert "no attention in layer 1" in said
    shares = head_scores(table(), columns=["a"])
    assert "divided" not in title(shares) and "below 0" not in title(shares)


def test_missing_cells_are_counted_without_those_of_missing_layers() -> None:
    # heads 0 to 2 of layers 0 and 2, of which head 1 has no row: 2 cells a panel, and one NaN
    assert "Grey cells (3)" in title(head_scores(table(), columns=["b_c"]))


def test_the_hover_names_head_score_null_and_spread() -> None:
    text = head_scores(table()).data[0].text[2][2]
    for part in (
        "<b>L2H2</b>",
        "a: 1",
        "uniform attention would score: 0.2",
        "deviation over sequences: 0",
        "sequences: 7",
    ):
        assert part in text
    assert "n/a" in head_scores(table()).data[0].text[2][0]
    assert "&lt;i&gt;: -0.5" in head_scores(table()).data[3].text[0][0]


def test_panels_lie_apart_on_numeric_axes() -> None:
    fig = head_scores(table())
    places = []
    for trace in fig.data:
        x, y = (fig.layout[f"{axis[0]}axis{axis[1:]}"] for axis in (trace.xaxis, trace.yaxis))
        assert x.type in (None, "linear") and y.type in (None, "linear") and y.range[0] > y.range[1]
        places.append((*x.domain, *y.domain))
    for index, (left, right, low, high) in enumerate(places):
        assert 0 <= left < right <= 1 and 0 <= low < high <= 1
        for other in places[:index]:
            assert right <= other[0] or left >= other[1] or high <= other[2] or low >= other[3]
    assert places[0][2] > places[3][3]  # the fourth panel lies below the first


def test_nothing_to_draw_is_said_and_unknown_scores_refused() -> None:
    assert "Not applicable" in head_scores(table(a=[math.nan] * 4), columns=["a"]).layout.annotations[0].text
    empty = HeadScores(table().frame.iloc[:0], table().metrics)
    assert "Not applicable" in head_scores(empty).layout.annotations[0].text
    with pytest.raises(InputError, match="a_null"):
        head_scores(table(), columns=["a", "a_null"])
    with pytest.raises(InputError, match="nothing"):
        head_scores(table(), columns=[])
