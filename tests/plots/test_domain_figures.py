"""Figures of active-dormant heads, compression and secondary sinks: what lies where, what is missing and said so."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sinklens import plots
from sinklens.errors import InputError
from tests.plots.checks import title
from tests.plots.synthetic import EVIL

NAN = float("nan")


@pytest.fixture
def heads() -> pd.DataFrame:
    labels = ["active", "dormant", "idle", "loaded sink", "unclear", "not judged"]
    rows = [
        (layer, head, domain, "all", 0.1 * (layer + head) * (domain == "prose"), (layer - head) * 0.5, -1.0, 1.0, label)
        for label, (layer, head) in zip(labels, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)], strict=True)
        for domain in ("prose", EVIL)
    ]
    columns = ["layer", "head", "domain", "class", "mass", "delta", "delta_low", "delta_high", "label"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def layers() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [-1, 0, 1],
            "entropy": [3.0, 0.5, 2.0],
            "entropy_others": [3.1, 2.9, 2.5],
            "entropy_null": [4.0] * 3,
            "entropy_bound": [3.9, 0.6, 3.0],
            "anisotropy": [0.1, 0.9, 0.4],
            "anisotropy_others": [0.1, 0.2, 0.3],
            "first_share": [0.02, 0.89, 0.3],
        }
    )


@pytest.fixture
def tokens() -> pd.DataFrame:
    rows = [(3, 5, "secondary", f"t{i}", 0.4) for i in range(9)]
    rows += [(3, 5, "noise", EVIL, NAN), (1, 9, "bos_sink", " the", 0.9), (4, 2, "aligned, not judged", "x", NAN)]
    return pd.DataFrame(rows, columns=["first_layer", "life", "label", "token", "importance_max"])


def every_figure(heads: pd.DataFrame, layers: pd.DataFrame, tokens: pd.DataFrame) -> dict[str, go.Figure]:
    windows = pd.DataFrame({"start": [1, 1, None], "end": [10, 10, None]}, dtype="Int64")
    return {
        "active_dormant": plots.active_dormant(heads),
        "compression": plots.compression(layers),
        "secondary_sinks": plots.secondary_sinks(tokens, windows),
    }


def test_axes_are_numeric_texts_escaped_and_numbers_small(heads: Any, layers: Any, tokens: Any) -> None:
    for name, fig in every_figure(heads, layers, tokens).items():
        text = fig.to_json()
        assert "<script" not in text, name
        for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
            assert axis.type in (None, "linear"), name
        for one in json.loads(text)["data"]:
            assert all(not isinstance(v, dict) or v.get("dtype") != "f8" for k, v in one.items() if k in "yz"), name


def test_missing_columns_and_empty_tables_are_explained(heads: Any, layers: Any, tokens: Any) -> None:
    for draw, table in ((plots.active_dormant, heads), (plots.compression, layers), (plots.secondary_sinks, tokens)):
        with pytest.raises(InputError, match="needs the column"):
            draw(table.iloc[:, 1:])
        fig = draw(table.iloc[:0])
        assert not fig.data and fig.layout.annotations[0].text.startswith("Not applicable")
    none = pd.DataFrame({"start": [NAN], "end": [NAN]})
    fig = plots.secondary_sinks(tokens.iloc[:0], none)
    assert "no sequence has a BOS that is much longer" in fig.layout.annotations[0].text.replace("<br>", " ")


# ------------------------------------------------------------------ active and dormant
def test_heads_and_domains_have_their_cells(heads: pd.DataFrame) -> None:
    fig = plots.active_dormant(heads)
    mass, delta = fig.data
    assert np.asarray(mass.z).shape == (6, 2) and (mass.zmin, mass.zmax) == (0, 1)
    assert np.asarray(mass.z)[3].tolist() == pytest.approx([0.2, 0.0])
    assert np.asarray(delta.z)[4].tolist() == [1.0, 1.0] and (delta.zmin, delta.zmid, delta.zmax) == (-1, 0, 1)
    assert [row[0] for row in mass.text] == ["A", "D", "i", "L", "?", ""] == [row[0] for row in delta.text]
    assert list(fig.layout.yaxis.ticktext) == ["L0H0", "L0H1", "L1H0", "L1H1", "L2H0", "L2H1"]
    assert fig.layout.xaxis.ticktext[0] == "prose" and "&lt;script" in fig.layout.xaxis2.ticktext[1]
    assert "loss without it: +1.000 [-1.000, +1.000] nats" in mass.customdata[4][0]


def test_few_heads_are_chosen_by_how_much_they_differ(heads: pd.DataFrame) -> None:
    fig = plots.active_dormant(heads, limit=2, effect=0.25)
    assert list(fig.layout.yaxis.ticktext) == ["L1H1", "L2H1"]
    assert "2 of 6 heads" in title(fig) and "Colours are clipped: 2 cells lie" in title(fig)


def test_a_head_that_was_not_judged_somewhere_is_missing_there(heads: pd.DataFrame) -> None:
    fig = plots.active_dormant(heads.drop(index=heads[heads["domain"] != "prose"].index[0]))
    assert math.isnan(np.asarray(fig.data[0].z, dtype=float)[0, 1]) and fig.data[0].text[0][1] == ""


def test_classes_name_their_columns(heads: pd.DataFrame) -> None:
    two = pd.concat([heads.assign(**{"class": name}) for name in ("trigger", "other")])
    names = list(plots.active_dormant(two[two["domain"] == "prose"]).layout.xaxis.ticktext)
    assert names == ["prose: trigger", "prose: other"]
    names = list(plots.active_dormant(two[two["domain"] == "prose"].assign(domain="text")).layout.xaxis.ticktext)
    assert names == ["trigger", "other"]


# ------------------------------------------------------------------ compression
def test_entropy_with_and_without_row_0_bound_and_null(layers: pd.DataFrame) -> None:
    fig = plots.compression(layers)
    lines = {one.name: one for one in fig.data}
    assert list(lines) == ["all tokens", "without position 0", "most that position 0 allows", "null: orthogonal tokens"]
    assert np.asarray(lines["all tokens"].y).tolist() == [3.0, 0.5, 2.0]
    assert list(fig.layout.xaxis.ticktext) == ["embed", "0", "1"]
    assert "strongest direction: 90.0%" in lines["all tokens"].text[1]
    assert "part of the squared length: 89.0%" in lines["all tokens"].text[1]
    assert "strongest direction: 20.0%" in lines["without position 0"].text[1]
    assert len(plots.compression(layers[["layer", "entropy", "entropy_others"]]).data) == 2


# ------------------------------------------------------------------ secondary sinks
def test_marks_count_tokens_by_creation_and_life(tokens: pd.DataFrame) -> None:
    windows = pd.DataFrame({"start": [1, 1, None], "end": [10, 10, None]}, dtype="Int64")
    fig = plots.secondary_sinks(tokens, windows)
    marks = {one.name: one for one in fig.data}
    line = marks.pop("until the BOS loses its norm")
    assert (list(line.x), list(line.y)) == ([1, 9], [9, 1])
    assert "2 of 3 sequences have a BOS" in title(fig)
    assert set(marks) == {
        "secondary sink (9)",
        "as long as the BOS (1)",
        "aligned, attention not judged (1)",
        "too brief (1)",
    }
    nine = marks["secondary sink (9)"]
    assert (list(nine.x), list(nine.y)) == ([3], [5]) and nine.text[0].startswith("9 tokens, such as t0, t1")
    assert nine.marker.size[0] == pytest.approx(30) and marks["too brief (1)"].marker.size[0] < 16
    assert len(plots.secondary_sinks(tokens).data) == 4  # without windows no line
