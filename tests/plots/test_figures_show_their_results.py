"""A property of every figure: what it draws is what the result says, and no repeated token is lost."""

import importlib
import inspect
import json
import pkgutil
from typing import Any

import hypothesis.strategies as st
import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings

import sinklens.plots
from sinklens.plots.style import TEMPLATE
from tests.plots.checks import CHECKS, array, heads, retrieval, runs, states, studies

assert all((heads, retrieval, runs, states, studies))  # imported for the checks they register


def figure_functions() -> dict[str, Any]:
    """Every public function of sinklens.plots that draws a figure: the one that its module is named after."""
    found = {}
    for module in pkgutil.iter_modules(sinklens.plots.__path__):
        loaded = importlib.import_module(f"sinklens.plots.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            own = function.__module__ == loaded.__name__ and not name.startswith("_")
            own &= module.name not in ("style", "print_layout")
            if own and function.__annotations__.get("return") is go.Figure:
                found[name] = function
    return found


def test_every_figure_is_checked_below() -> None:
    """A new figure needs a check in tests/plots/checks."""
    assert set(CHECKS) == set(figure_functions())


@pytest.mark.parametrize("name", sorted(CHECKS))
@settings(max_examples=15)
@given(data=st.data())
def test_a_figure_shows_its_result(name: str, data: st.DataObject) -> None:
    fig = CHECKS[name](data)
    text = fig.to_json()
    assert "<script" not in text and "</script" not in text  # a token is text, in every label and hover
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        assert axis.type in (None, "linear", "log")  # strings as categories would merge repeated tokens
    for trace in fig.data:
        for values in (trace[axis] for axis in "xyz" if axis in trace and trace[axis] is not None):
            # strings would make a category axis, whatever the layout says
            assert not any(isinstance(value, str) for value in np.asarray(values, dtype=object).ravel()), trace.name
    for trace in json.loads(text)["data"]:
        # float64 only doubles the page
        assert all(trace[k].get("dtype") != "f8" for k in "yz" if isinstance(trace.get(k), dict)), (name, trace["type"])
    assert fig.layout.template == TEMPLATE
    assert fig.layout.title.text


def test_a_wrong_figure_fails() -> None:
    """The comparison itself can fail: one cell off, a lost column, a 0 for what is missing."""
    from tests.plots.checks import same

    right = np.array([[1.0, 2.0], [np.nan, 4.0]])
    for wrong in ([[1.0, 2.0], [np.nan, 4.001]], [[1.0], [np.nan]], [[1.0, 2.0], [0.0, 4.0]]):
        with pytest.raises(AssertionError):
            same(np.float32(wrong), right)
    same(np.float32(right), right)
    assert np.isnan(array((None, 1.0))[0])
