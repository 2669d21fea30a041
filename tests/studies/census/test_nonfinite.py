"""Activations that are NaN or infinite: the rest is measured, and what is not says so in tables, words and figures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, scan
from sinklens.attention import plan_for
from sinklens.capture import capture
from sinklens.capture.finite import NonFinite
from sinklens.detectors.registry import default_detectors
from sinklens.errors import InputError
from sinklens.models import tokenize
from sinklens.plots import sink_heatmap
from sinklens.studies import Census
from tests.families import boot, checkpoint, random_ids

ROWS = [row[:n].tolist() for row, n in zip(random_ids(3, 40), (40, 30, 25), strict=True)]


def planted(zoo: Path, family: str = "llama") -> TransformerBridge:
    """NaN in one value weight: KV head 0 of layer 1, which the query heads 0 and 1 read."""
    model: TransformerBridge = boot.__wrapped__(family, zoo)
    model.original_model.model.layers[1].self_attn.v_proj.weight.data[3, 4] = math.nan
    return model


def heads_of(census: Census) -> pd.DataFrame:
    return census.heads.to_dataframe().set_index(["layer", "head"])


def test_a_planted_nan_takes_its_heads_and_no_others(zoo: Path) -> None:
    found = scan(planted(zoo), tokens=ROWS)
    expected = heads_of(scan(boot("llama", zoo), tokens=ROWS))
    heads = heads_of(found)
    affected = [(1, 0), (1, 1)]
    for name in ("importance", "sink_rate", "entropy", "drain", "drain_wo"):
        assert heads.loc[affected, name].isna().all(), name
        rest = heads.drop(index=affected).index
        # values do not change who attends to whom, and what was before is as it was
        np.testing.assert_allclose(heads.loc[rest, name], expected.loc[rest, name], rtol=1e-5)
    assert not heads.loc[affected, "is_sink"].any()
    assert found.verdict[0].startswith(
        "Activations are NaN or infinite after layer 1 and in the attention of layer 1 (float32), first in sequence 0 "
        "at position 0"
    )
    assert "2 of 8 heads have no numbers" in found.verdict[0] and "damaged weights" in found.verdict[0]
    by_layer = found.tables["residual_norms"].select_dtypes("float").isna().any(axis=1)
    assert by_layer.groupby(found.tables["residual_norms"]["layer"]).any().tolist() == [False, False, True]


def test_a_nan_in_one_sequence_says_which(zoo: Path) -> None:
    model = boot.__wrapped__("llama", zoo)
    token = ROWS[2][-1]
    assert token not in ROWS[0] + ROWS[1]
    model.original_model.get_input_embeddings().weight.data[token] = math.nan
    found = scan(model, tokens=ROWS)
    assert "in the embedding and after layers 0-1" in found.verdict[0]
    assert f"first in sequence 2 at position {ROWS[2].index(token)}" in found.verdict[0]
    assert "in 1 sequence: 8 of 8 heads" in found.verdict[0]
    assert heads_of(found)["importance"].isna().all()
    norms = found.tables["residual_norms"]
    assert norms.select_dtypes("float").isna().to_numpy().any()
    assert any("all 8 heads gave NaN" in sentence for sentence in found.verdict)
    assert not any("heads sink" in sentence for sentence in found.verdict)


def test_what_a_token_is_needs_no_activations() -> None:
    seen = NonFinite()
    seen.heads, seen.sequences = {(0, 0)}, {1}
    facts = {"is_bos": [True, True], "is_special": [True, True]}
    found = seen.mask({"tokens": pd.DataFrame({"sequence": [0, 1], "received": 0.5, "is_massive_ratio": True} | facts)})
    tokens = found["tokens"]
    assert tokens["is_bos"].tolist() == tokens["is_special"].tolist() == [True, True]
    assert tokens["is_massive_ratio"].tolist() == [True, False] and np.isnan(tokens["received"][1])


def test_float16_that_overflows_has_its_advice(zoo: Path) -> None:
    model = load(checkpoint("llama", zoo), device="cpu", dtype="float16")
    model.original_model.model.layers[0].mlp.down_proj.weight.data *= 3e6
    assert not plan_for(model, nonfinite=True).finite
    found = scan(model, tokens=ROWS)
    assert "after layers 0-1" in found.verdict[0] and "(float16)" in found.verdict[0]
    assert "--dtype bfloat16 or --dtype float32" in found.verdict[0]
    heads = heads_of(found)
    assert heads.loc[0, "importance"].notna().all() and heads.loc[1, "importance"].isna().all()


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_model_that_is_all_nan(family: str, zoo: Path) -> None:
    model = boot.__wrapped__(family, zoo)
    model.original_model.get_input_embeddings().weight.data[:] = math.nan
    found = scan(model, tokens=ROWS)
    assert "8 of 8 heads have no numbers" in found.verdict[0]
    assert heads_of(found)[["importance", "sink_rate"]].isna().to_numpy().all()


def test_figures_draw_it_as_missing_and_the_report_is_written(zoo: Path, tmp_path: Path) -> None:
    found = scan(planted(zoo), tokens=ROWS)
    drawn: Any = sink_heatmap(found).data[0]
    missing = np.isnan(np.asarray(drawn.z, dtype=float))
    assert missing.sum() == 2
    for name in (name for name in dir(found.plot) if not name.startswith("_")):
        getattr(found.plot, name)()
    found.save(tmp_path / "run")
    again = Census.load(tmp_path / "run")
    assert heads_of(again)["importance"].isna().sum() == 2 and again.verdict == found.verdict
    assert "Activations are NaN or infinite" in found.report(tmp_path / "report.html").read_text("utf-8")


def test_a_sound_model_has_no_such_sentence(zoo: Path) -> None:
    found = scan(boot("llama", zoo), tokens=ROWS)
    assert not any("NaN" in sentence for sentence in found.verdict)


def test_who_has_no_use_for_a_part_of_the_model_is_refused_as_before(zoo: Path) -> None:
    model = boot.__wrapped__("llama", zoo)
    model.original_model.get_input_embeddings().weight.data[ROWS[2][-1]] = math.nan
    plan_for(model, nonfinite=True)
    with pytest.raises(InputError, match=r"in the embedding, first in sequence 2 .*look for damaged weights"):
        capture(model, tokenize(model, ROWS))
    whole = planted(zoo)
    with pytest.raises(InputError, match="NaN or infinite logits for ordinary tokens"):
        capture(whole, tokenize(whole, ROWS))
    scan(whole, tokens=ROWS)
    with pytest.raises(InputError, match="NaN or infinite logits for ordinary tokens"):
        capture(whole, tokenize(whole, ROWS))  # also where a scan has made a plan


def test_detectors_that_look_at_everything_have_nothing_to_stumble_over(zoo: Path) -> None:
    found = scan(planted(zoo), tokens=ROWS, detectors=[*default_detectors(), "compression"])
    assert heads_of(found)["importance"].isna().sum() == 2
