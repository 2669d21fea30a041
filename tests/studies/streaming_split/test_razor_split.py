"""Razor's split from scores of heads, and what it leaves of the built-in induction model."""

import pandas as pd
import pytest

import sinklens
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.studies import GateSettings, check_split
from sinklens.studies.head_scores.pattern_scores import pattern_scores
from sinklens.studies.streaming_split.split import razor_split


def scores_of(selected: list[object], group: int = 2) -> HeadScores:
    n = len(selected)
    frame = pd.DataFrame({"layer": [0] * n, "head": range(n), "kv_head": [head // group for head in range(n)]})
    frame["razor"] = selected
    return HeadScores(frame.assign(induction=0.0), {"induction": Metric("induction", 1, "", "")})


def test_a_group_is_kept_for_any_of_its_heads() -> None:
    split = razor_split(scores_of(["", "induction", None, "", "", ""]))
    assert split.retrieval_kv == ((0, 0),) and split.streaming_kv == ((0, 1), (0, 2))
    assert split.retrieval_heads == ((0, 0), (0, 1)) and split.group == 2
    assert "1 of 3 KV heads are kept whole, because 1 query heads are selected" in split.statement
    assert razor_split(scores_of([False, True, True, False])).retrieval_kv == ((0, 0), (0, 1))
    with pytest.raises(InputError, match="kv_head and chosen, and chosen is not there"):
        razor_split(scores_of([True]), "chosen")


def test_it_keeps_what_the_induction_model_needs() -> None:
    """Four of eight heads copy; Razor's shares (14 % and 1 %) are for models with few of them, so take them all."""
    model = sinklens.load("induction-2l")
    scores = pattern_scores(model, block=16, repeats=4, n_sequences=4)
    frame = scores.to_dataframe()
    frame["razor"] = frame["razor_induction"] > 0.7
    split = razor_split(HeadScores(frame, scores.metrics, scores.meta))
    assert split.retrieval_heads == ((1, 0), (1, 1), (1, 2), (1, 3))
    settings = GateSettings(sinks=1, recent=8, max_length=96)
    rows = check_split(model, split, settings, n_sequences=16).to_dataframe().set_index("condition")
    for kept in ("split", "split, compensated"):
        assert abs(rows.at[kept, "delta_exact_match"]) <= 0.05
    assert rows.at["random 0", "exact_match"] <= 0.05
