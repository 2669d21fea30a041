"""The depth x length figure: what stands in which cell, colours, hover, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from sinklens.errors import InputError
from sinklens.plots import needle_grid
from sinklens.plots.style import DIVERGING


def grid(*variants: str) -> pd.DataFrame:
    rows = []
    for place, variant in enumerate(variants):
        for length in (1000, 250):
            for depth in (0.0, 0.5, 1.0):
                exact = max(0.0, 0.9 - depth * length / 2000 - 0.3 * place)
                rows.append(
                    {
                        "variant": variant, "length": length, "depth": depth, "n": 10, "exact": exact,
                        "exact_low": exact / 2, "exact_high": 1.0, "correct": exact, "log_prob": -1 - depth,
                        "log_prob_low": -2.0, "log_prob_high": 0.0, "delta_exact": np.nan, "rank": 1.0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_one_panel_has_the_start_at_the_top_and_short_prompts_left() -> None:
    fig = needle_grid(grid("clean"))
    [heat] = fig.data
    assert np.allclose(heat.z, [[0.9, 0.9], [0.8375, 0.65], [0.775, 0.4]])
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert fig.layout.xaxis.ticktext == ("250", "1,000") and fig.layout.yaxis.ticktext == ("0%", "50%", "100%")
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]
    assert heat.text[2][1] == "<b>1,000 tokens, depth 100%</b><br>exact match: 0.4 [0.2, 1]<br>prompts: 10"
    assert "Prompts per cell: 10." in fig.layout.title.text


def test_before_after_and_difference() -> None:
    fig = needle_grid(grid("clean", "top 2 <uniform>"))
    before, after, change = fig.data
    assert (before.zmin, before.zmax) == (after.zmin, after.zmax) == (0, 1)
    assert before.colorscale == after.colorscale and not before.showscale
    assert np.allclose(change.z, -0.3) and change.zmin == -change.zmax == pytest.approx(-0.3)
    assert change.zmid == 0
    assert change.colorscale == fig.update_traces(colorscale=DIVERGING).data[2].colorscale
    assert "top 2 &lt;uniform&gt;" in {note.text.removeprefix("after: ") for note in fig.layout.annotations}
    assert "change of exact match: -0.3" in change.text[0][0]


def test_of_several_changes_one_is_chosen() -> None:
    table = grid("clean", "a", "b")
    (alone,) = needle_grid(table).data
    assert alone.z.tolist() == needle_grid(table, variant="clean").data[0].z.tolist()
    for variant, said in ((None, "2 changed models are not drawn"), ("a", "1 changed model is not drawn")):
        words = re.sub(r"<.*?>", " ", needle_grid(table, variant=variant).layout.title.text)
        assert f"{said}; variant= names one." in " ".join(words.split())
    assert len(needle_grid(table, variant="b").data) == 3
    assert len(needle_grid(table, variant="clean").data) == 1
    with pytest.raises(InputError, match="no variant 'c'"):
        needle_grid(table, variant="c")
    with pytest.raises(InputError, match="no rows of the unchanged model"):
        needle_grid(grid("a"))


def test_missing_cells_are_grey_and_not_zero() -> None:
    fig = needle_grid(grid("clean").iloc[1:])
    assert np.isnan(fig.data[0].z[0][1]) and "(1): not tested." in fig.layout.title.text


def test_log_probabilities_share_a_scale_and_equal_values_have_one() -> None:
    fig = needle_grid(grid("clean", "a"), measure="log_prob")
    assert (fig.data[0].zmin, fig.data[1].zmax) == (-2, -1)
    assert (np.asarray(fig.data[2].z) == 0).all() and fig.data[2].zmax == 1
    flat = grid("clean").assign(log_prob=-1.0)
    assert needle_grid(flat, measure="log_prob").data[0].zmax == 0


def test_refusals_and_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="got 'rank'"):
        needle_grid(grid("clean"), measure="rank")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exact"):
        needle_grid(grid("clean").drop(columns="exact"))
    assert "Not applicable" in needle_grid(grid("clean").assign(exact=np.nan)).layout.annotations[0].text
