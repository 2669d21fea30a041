"""The roles figure against the tables that it draws."""

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklens import plots
from sinklens.errors import InputError
from sinklens.studies import Roles
from tests.plots.checks import named, title
from tests.studies.head_roles.synthetic import HEADS, LAYERS, scores

RETRIEVAL = [np.nan, 0.0, 0.0, 0.0, 0.05, 0.0, 0.1, 0.2, 0.9, 0.8, 0.0, 0.6]
INDUCTION = [0.0, 0.1, 0.0, 0.0, 0.1, 0.0, 0.2, 0.4, 0.9, 0.7, 0.1, 0.3]
PLAIN = [float(x) for x in range(12)]


@pytest.fixture(scope="module")
def roles() -> Roles:
    missing = scores(missing=[np.nan] * 12)
    return Roles.of({"a": scores(retrieval=RETRIEVAL, induction=INDUCTION, norm=PLAIN), "b": missing})


def draw(roles: Roles, **options: Any) -> go.Figure:
    return plots.head_roles(roles.to_dataframe(), roles.criteria(), roles.agreement(), **options)


@given(st.lists(st.floats(0, 1), min_size=24, max_size=24))
def test_every_score_is_in_its_cell(values: list[float]) -> None:
    roles = Roles.of({"a": scores(retrieval=values[:12], induction=values[12:])})
    fig = draw(roles)
    z = np.asarray(named(fig, "scores").z, dtype=float)
    assert z.shape == (2, LAYERS * HEADS)
    for row, part in zip(z, (values[:12], values[12:]), strict=True):
        low, high = min(part), max(part)
        expected = [(x - low) / (high - low) if high > low else 0.0 for x in part]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    labelled = {(int(x), int(y)) for x, y in zip(named(fig, "labelled").x, named(fig, "labelled").y, strict=True)}
    wanted = {(x, 0) for x in range(12) if values[x] >= 0.1} | {(x, 1) for x in range(12) if values[12 + x] >= 0.4}
    assert labelled == wanted


def test_missing_scores_are_missing_cells(roles: Roles) -> None:
    fig = draw(roles)
    z = np.asarray(named(fig, "scores").z, dtype=float)
    assert np.isnan(z[0, 0]) and np.isnan(z[3]).all() and np.isnan(z).sum() == 13
    assert "Grey rows: not applicable (missing)." in title(fig) and "Grey cells (1)" in title(fig)
    hover = named(fig, "scores").text
    assert (
        "L2H0" in hover[0][8]
        and "retrieval: 0.9" in hover[0][8]
        and "labelled retrieval: retrieval &gt;= 0.1" in hover[0][8]
    )
    assert "labelled" not in hover[0][4] and "n/a" in hover[3][0]


def test_agreement_is_in_both_halves_of_the_matrix(roles: Roles) -> None:
    trace = named(draw(roles), "agreement")
    z = np.asarray(trace.z, dtype=float)
    names = roles.criteria()["criterion"].tolist()
    table = roles.agreement().set_index(["first", "second"])
    for i, first in enumerate(names):
        assert np.isnan(z[i, i])
        for j, second in enumerate(names[i + 1 :], i + 1):
            row = table.loc[(first, second)]
            np.testing.assert_allclose([z[i, j], z[j, i]], row["spearman"], rtol=1e-6)
            assert trace.text[j][i] == ("" if np.isnan(row["spearman"]) else f"{row['spearman']:.2f}")
            jaccard = row["jaccard"]
            wanted = "" if np.isnan(jaccard) else f"{jaccard:.2f}<br>({row['jaccard_chance']:.2f})"
            assert trace.text[i][j] == wanted
    assert "Jaccard of labelled 0.6" in trace.customdata[0][1]


def test_only_labelled_heads_where_there_are_many(roles: Roles) -> None:
    fig = draw(roles, show="labelled")
    assert np.asarray(named(fig, "scores").z).shape == (4, 5)
    assert "Only the 5 heads with a label are drawn, of 12." in title(fig)
    marks = {(int(x), int(y)) for x, y in zip(named(fig, "labelled").x, named(fig, "labelled").y, strict=True)}
    assert marks == {(x, 0) for x in range(5)} | {(1, 1), (2, 1), (3, 1)}
    assert [fig.layout.xaxis.ticktext[0], fig.layout.xaxis.ticktext[-1]] == ["L1H2", "L2H3"]
    many = roles.to_dataframe()
    many = pd.concat([many.assign(layer=many["layer"] + 3 * copy) for copy in range(30)], ignore_index=True)
    auto = plots.head_roles(many, roles.criteria(), roles.agreement())
    assert np.asarray(named(auto, "scores").z).shape == (4, 150)
    everything = plots.head_roles(many, roles.criteria(), roles.agreement(), show="all")
    assert np.asarray(named(everything, "scores").z).shape == (4, 360)


def test_nothing_to_draw_is_said(roles: Roles) -> None:
    nothing = Roles.of({"a": scores(retrieval=[0.0] * 12)})
    assert "No head has a label" in draw(nothing, show="labelled").layout.annotations[0].text
    empty = plots.head_roles(roles.to_dataframe().head(0), roles.criteria(), roles.agreement())
    assert "Not applicable" in empty.layout.annotations[0].text
    with pytest.raises(InputError, match="show must be"):
        draw(roles, show="some")
    with pytest.raises(InputError, match="needs the column"):
        plots.head_roles(roles.to_dataframe().drop(columns="retrieval"), roles.criteria(), roles.agreement())


def test_tables_stay_as_they_are_and_axes_are_numbers(roles: Roles) -> None:
    before = roles.to_dataframe()
    fig = draw(roles)
    pd.testing.assert_frame_equal(before, roles.to_dataframe())
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        assert axis.type in (None, "linear")
    assert '"f8"' not in re.sub(r'"(x|y)":\{[^}]*\}', "", fig.to_json())
