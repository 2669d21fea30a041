"""The order of sink heads: saturated rates and ties never let the row order decide."""

import numpy as np
import pandas as pd

from sinklens.detectors.sink_ranking import by_importance
from sinklens.studies.census.result import strongest_heads


def saturated(count: int = 12) -> pd.DataFrame:
    """Heads that all have the rate 1.00; the later, the stronger."""
    importance = np.linspace(0.4, 0.99, count)
    return pd.DataFrame(
        {
            "layer": np.arange(count) // 2,
            "head": np.arange(count) % 2,
            "sink_position": 0,
            "importance": importance,
            "sink_rate": 1.0,
            "null": 0.07,
            "ratio": importance / 0.07,
        }
    )


def test_a_saturated_rate_does_not_choose() -> None:
    heads = saturated()
    assert by_importance(heads).index.tolist() == list(range(11, -1, -1))
    shown = strongest_heads(heads, 3)
    assert shown["head"].tolist() == ["L5H1", "L5H0", "L4H1"]
    assert shown.columns[:3].tolist() == ["head", "key", "alpha"]


def test_ties_and_shuffled_rows_give_one_order() -> None:
    heads = saturated().assign(importance=0.7, ratio=10.0)
    expected = heads[["layer", "head"]].to_numpy().tolist()
    for seed in range(5):
        mixed = heads.sample(frac=1, random_state=seed)
        assert by_importance(mixed)[["layer", "head"]].to_numpy().tolist() == expected


def test_nan_comes_last() -> None:
    heads = saturated(4)
    heads.loc[3, "importance"] = np.nan
    assert by_importance(heads).index.tolist() == [2, 1, 0, 3]
