"""For every figure function: draw it from random results with repeated tokens and hold its data against them.

A new figure needs a function here, named by :func:`shows`; ``test_figures_show_their_results`` fails without.
"""

import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import plotly.graph_objects as go

from tests.plots.synthetic import CLOSING, EVIL

Check = Callable[[st.DataObject], go.Figure]

CHECKS: dict[str, Check] = {}
"""By the name of the figure function; a check draws a result, asserts, and returns the figure."""

WORDS = (" the", " the", "the", ".", "\n", "", EVIL, CLOSING, "$x$", "<b>", "%{x}", " &amp;")


def shows(name: str) -> Callable[[Check], Check]:
    """Register a check of the figure function ``name``."""

    def register(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return register


def tokens(data: st.DataObject, least: int = 1, most: int = 12) -> list[str]:
    """Tokens of one sequence, most of them more than once."""
    return data.draw(st.lists(st.sampled_from(WORDS), min_size=least, max_size=most))


def floats(low: float, high: float, nan: bool = False) -> st.SearchStrategy[float]:
    """Numbers as a measurement gives them; ``nan``: now and then there is none."""
    numbers = st.floats(low, high, width=32).map(lambda x: 0.0 if abs(x) < 1e-12 else float(x))
    return st.one_of(numbers, numbers, numbers, st.just(float("nan"))) if nan else numbers


def column(data: st.DataObject, count: int, low: float, high: float, nan: bool = False) -> list[float]:
    """That many of :func:`floats`."""
    return data.draw(st.lists(floats(low, high, nan), min_size=count, max_size=count))


def head_grid(data: st.DataObject) -> list[tuple[int, int]]:
    """Heads of a small model; some layers have none."""
    layers = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True))
    heads = data.draw(st.integers(1, 3))
    return [(layer, head) for layer in sorted(layers) for head in range(heads)]


def array(values: Any) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """What a trace holds, as numbers; None is NaN."""
    return np.asarray(
        [np.nan if x is None else x for x in values] if isinstance(values, tuple) else values, dtype=float
    )


def same(found: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Equal up to the float32 that goes to the browser; what is missing is missing in both."""
    np.testing.assert_allclose(array(found), np.asarray(expected, dtype=float), rtol=rtol, atol=1e-6, equal_nan=True)


def named(fig: go.Figure, name: str) -> Any:
    """The trace of this name, or None."""
    return next((trace for trace in fig.data if trace.name == name), None)


def title(fig: go.Figure) -> str:
    """Title and subtitle as one line of plain text."""
    return re.sub(r"<[^>]+>", "", fig.layout.title.text.replace("<br>", " "))


def empty(fig: go.Figure) -> bool:
    """Whether the figure only says that nothing applies."""
    return not fig.data and fig.layout.annotations[0].text.startswith("Not applicable")


def positions_kept(fig: go.Figure, count: int, axis: str = "x") -> None:
    """Every position has its own number and its own name for the hover, however often its token comes."""
    labels = fig.layout[f"{axis}axis"]
    assert list(labels.tickvals) == [*range(count)] and len(labels.ticktext) == count
    assert len(set(labels.ticktext)) == count
