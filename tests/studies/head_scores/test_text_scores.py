"""Scores on text: equal to the detectors' own, complete in their provenance, and right on planted attention."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import tokenize
from sinklens.capture import capture
from sinklens.detectors.attention_summary import AttentionSummaryDetector
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads
from sinklens.studies import text_scores
from tests import families, oracle
from tests.detectors import stripes

TEXTS = ["To be, or not to be:\nthat is the question.", "The king, the king!", "no marks at all"]
SCORES = [
    "entropy",
    "normalised_entropy",
    "distance",
    "distance_without_sink",
    "windowed_distance",
    "previous_token",
    "delimiter_mass",
    "sink_share",
    "value_weighted_sink_share",
]


def test_means_are_those_of_a_scan_and_of_loops(tiny: TransformerBridge) -> None:
    found = text_scores(tiny, TEXTS)
    assert found.scores == SCORES
    batch, summary = tokenize(tiny, TEXTS), AttentionSummaryDetector()
    capture(tiny, batch, [summary])
    expected = summary.tables()["attention_summary"]
    for name in ("entropy", "entropy_null", "distance"):
        np.testing.assert_allclose(found.frame[name], expected[name], atol=1e-5)
    weights: list[list[torch.Tensor]] = [[], []]
    for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
        for layer in oracle.full_patterns(tiny, ids[None, :length]):
            assert layer is not None
            weights[layer.layer].append(layer.pattern[0].diagonal(-1, -2, -1))
    naive = torch.cat([torch.cat(rows, -1).mean(-1) for rows in weights])
    np.testing.assert_allclose(found.frame["previous_token"], naive, atol=2e-6)
    assert (found.frame["n_sequences"] == 3).all() and (found.frame["delimiter_mass_null"] < 0.25).all()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_change_nothing(tiny: TransformerBridge, batch_size: int) -> None:
    one, other = text_scores(tiny, TEXTS).frame, text_scores(tiny, TEXTS, batch_size=batch_size).frame
    numbers = one.select_dtypes("number").columns
    np.testing.assert_allclose(one[numbers], other[numbers], atol=2e-5)
    assert one["span"].tolist() == other["span"].tolist()


def test_uniform_attention_scores_its_nulls(tiny: TransformerBridge) -> None:
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    found = text_scores(tiny, TEXTS, intervention=AblateHeads(heads, how="uniform"))
    frame = found.frame
    for name in SCORES:
        null = frame.get(f"{name}_null", 1.0)  # 1 is the null of a normalised entropy
        np.testing.assert_allclose(frame[name], null, atol=1e-4, err_msg=name)
    assert "L1H3" in json.dumps(found.meta["intervention"])


def test_the_table_says_how_it_was_made(tiny: TransformerBridge) -> None:
    found = text_scores(tiny, TEXTS, window=5, share=0.25, source="a play", delimiters=("punctuation",))
    meta = json.loads(json.dumps(found.meta))
    assert meta["source"] == "a play" and meta["settings"]["window"] == 5 and meta["warnings"] == []
    assert meta["tokens"]["bos"]["statement"] and meta["settings"]["delimiters"] == ["punctuation"]
    assert (found.frame["span"] == "local").sum() == (found.frame["span"] == "global").sum() == 2
    assert (found.frame["windowed_distance"] <= 5).all()


def test_what_does_not_apply_is_missing_and_said(tiny: TransformerBridge) -> None:
    found = text_scores(tiny, ["no marks at all"])
    assert found.frame["delimiter_mass"].isna().all()
    assert any("delimiter" in note for note in found.meta["warnings"])
    alone = text_scores(tiny, tokens=[[5], [6, 7, 8]])
    assert any("one token" in note for note in alone.meta["warnings"])


def test_the_default_is_a_built_in_corpus() -> None:
    found = text_scores("bb-1l", max_sequences=3)
    assert "bigram-backcopy" in found.meta["source"] and (found.frame["n_sequences"] == 3).all()


def test_wrong_input_is_refused(tiny: TransformerBridge, zoo: Path) -> None:
    with pytest.raises(InputError, match="delimiters"):
        text_scores(tiny, TEXTS, delimiters=("comma",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share"):
        text_scores(tiny, TEXTS, share=0.9)
    with pytest.raises(InputError, match="window"):
        text_scores(tiny, TEXTS, window=0)
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        text_scores(families.boot("mamba", zoo))


def test_loops_agree_on_a_windowed_model(zoo: Path) -> None:
    model = families.boot("mistral", zoo)
    ids = [[families.BOS, *range(30, 60)]]
    found = text_scores(model, tokens=ids)
    for layer in oracle.full_patterns(model, torch.tensor(ids)):
        assert layer is not None
        rows = found.frame[found.frame["layer"] == layer.layer]
        np.testing.assert_allclose(rows["previous_token"], stripes.naive(layer.pattern[0], stripes.before), atol=2e-6)
        share = layer.visible[0].double() / layer.visible[0].sum(-1, keepdim=True)
        null = stripes.naive(share[None], stripes.before).item()
        np.testing.assert_allclose(rows["previous_token_null"], null, atol=1e-6)
        far = sum(share[i, j].item() * (i - j) for i in range(31) for j in range(i + 1)) / 31
        np.testing.assert_allclose(rows["distance_null"], far, atol=1e-5)
