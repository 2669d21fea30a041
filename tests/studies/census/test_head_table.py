"""What a scan's tables of heads and layers hold beside each detector's own columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinklens import Census, load, scan
from tests import families


def test_the_stream_that_enters_a_block_left_the_one_before(bb3_census: Census) -> None:
    layers = bb3_census.layers.to_dataframe().set_index("layer")
    for column in ("resid_norm_first", "resid_norm_others", "resid_ratio"):
        assert np.isnan(layers.loc[-1, f"{column}_in"])
        for layer in range(3):
            assert layers.loc[layer, f"{column}_in"] == layers.loc[layer - 1, column]


@pytest.mark.parametrize(("family", "expected"), [("llama", False), ("gemma3", True), ("olmo2", True)])
def test_a_norm_after_attention_is_known(family: str, expected: bool, tmp_path: Path) -> None:
    model = load(families.build_checkpoint(family, tmp_path))
    column = scan(model, tokens=families.random_ids(2, 20), maps=0).layers.to_dataframe()["norm_after_attention"]
    assert pd.isna(column[0]) and (column[1:] == expected).all()


def test_the_two_counts_are_one_without_windows(bb3_census: Census) -> None:
    heads = bb3_census.heads.to_dataframe()
    assert heads["ceiling_first"].eq(1).all() and heads["ceiling"].eq(1).all()
    assert (heads["is_sink"] == heads["is_sink_visible"]).all()
    np.testing.assert_array_equal(heads["sink_position"], heads["sink_position_visible"])
    for column in ("importance", "sink_rate", "null", "ratio"):
        np.testing.assert_allclose(heads[column], heads[f"{column}_visible"])
    layers = bb3_census.layers.to_dataframe().iloc[1:]
    assert (layers["n_sink_heads"] == layers["n_sink_heads_visible"]).all()


def test_a_model_without_attention_has_the_same_columns(bb3_census: Census, tmp_path: Path) -> None:
    mamba = load(families.build_checkpoint("mamba", tmp_path))
    census = scan(mamba, tokens=families.random_ids(2, 20), maps=0)
    assert set(census.heads.to_dataframe().columns) <= set(bb3_census.heads.to_dataframe().columns)
    assert list(census.sinks.to_dataframe().columns) == list(bb3_census.sinks.to_dataframe().columns)
