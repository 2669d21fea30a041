"""Verdicts of real language models, held against their own tables, and what they are known to say."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import scan, tokenize
from sinklens.interventions import MaskKeys
from sinklens.models.builtin import data_dir
from sinklens.models.tokens import TokenBatch
from sinklens.studies import follow_sinks, measure_effects
from tests.studies.census.verdict.test_models import refutations

pytestmark = pytest.mark.real


def prose(model: TransformerBridge, n_sequences: int, length: int) -> TokenBatch:
    text = (data_dir() / "texts" / "shakespeare.txt").read_text()
    size = 6 * length
    return tokenize(model, [text[i * size : (i + 1) * size] for i in range(n_sequences)], max_tokens=length)


def test_smollm2(smollm2: TransformerBridge) -> None:
    census = scan(smollm2, tokens=prose(smollm2, 12, 64), maps=0)
    assert refutations(census) == []
    heads = census.heads.to_dataframe()
    assert (heads["sink_rate"] == 1).sum() > 50  # rates saturate, so they cannot say which head is the strongest
    best = heads.sort_values("importance").iloc[-1]
    assert f"Strongest: L{best['layer']}H{best['head']}, importance {best['importance']:.3f}" in census.verdict[0]
    (layers,) = (each for each in census.verdict if each.startswith("By layer"))
    assert "none in" in layers and "10 and 11" in layers


def test_gemma3_short_and_beyond_its_window(gemma3: TransformerBridge) -> None:
    short = scan(gemma3, tokens=prose(gemma3, 8, 64), maps=0)
    assert refutations(short) == []
    assert any("normalises what attention writes" in each for each in short.verdict)
    assert not any(each.startswith(("Out of reach", "Hard to reach")) for each in short.verdict)
    long = scan(gemma3, tokens=prose(gemma3, 1, 1024), detectors=["sinks"], maps=0)
    assert refutations(long) == []
    assert any(each.startswith("Hard to reach: in 15 layers") for each in long.verdict)
    heads = long.heads.to_dataframe()
    assert heads["is_sink_visible"].sum() > 2 * heads["is_sink"].sum()
    windowed = heads[heads["ceiling_first"] < 1]
    assert (windowed["importance_first"] <= 0.5 + 1e-6).all()
    torch.testing.assert_close(windowed["ceiling_first"].max(), 0.5, rtol=0, atol=1e-6)


def test_a_masked_sink_moves_to_the_next_token(smollm2: TransformerBridge) -> None:
    batch = prose(smollm2, 6, 48)
    found = measure_effects(smollm2, {"no 0": MaskKeys(0)}, batch)
    assert found.verdict[0].endswith("the sink moved from position 0 to position 1.")
    row = found.summary().iloc[0]
    assert row["n_sink_heads"] > 150 and row["delta_loss"] < 0.5
    followed = follow_sinks(smollm2, batch, bound=3)
    assert followed.intervention.keys[:2] == (0, 1) and len(followed.intervention.keys) == 3
    assert followed.n_left > 150  # whichever key is the first one left becomes the sink
