"""Verdicts of real language models, held against their own tables, and what they are known to say."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import Census, scan, tokenize
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


@pytest.fixture(scope="module")
def smol(smollm2: TransformerBridge) -> Census:
    return scan(smollm2, tokens=prose(smollm2, 12, 64), maps=0)


@pytest.fixture(scope="module")
def gemma(gemma3: TransformerBridge) -> Census:
    return scan(gemma3, tokens=prose(gemma3, 8, 64), maps=0)


def lives(census: Census, criterion: str, channel: int) -> list[tuple[int, int]]:
    """First and last layer of the episodes of a channel at position 0."""
    rows = census.massive_episodes.to_dataframe()
    rows = rows[(rows["criterion"] == criterion) & (rows["channel"] == channel) & (rows["bucket"] == "start")]
    return list(zip(rows["appears"].tolist(), rows["leaves_after"].tolist(), strict=True))


def test_smollm2(smol: Census) -> None:
    census = smol
    assert refutations(census) == []
    heads = census.heads.to_dataframe()
    assert (heads["sink_rate"] == 1).sum() > 50  # rates saturate, so they cannot say which head is the strongest
    best = heads.sort_values("importance").iloc[-1]
    assert f"Strongest: L{best['layer']}H{best['head']}, importance {best['importance']:.3f}" in census.verdict[0]
    (layers,) = (each for each in census.verdict if each.startswith("By layer"))
    assert "none in" in layers and "10 and 11" in layers


def test_smollm2s_entry_lives_twice(smol: Census) -> None:
    (first, second) = lives(smol, "absolute", 507)
    assert first[0] in (1, 2) and first[1] in (8, 9) and second == (11, 29)
    assert lives(smol, "relative", 507) == [(11, 27)]
    told = next(each for each in smol.verdict if each.startswith("Massive activations by |h| > 100:"))
    assert told.startswith("Massive activations by |h| > 100: channel 507 at position 0 after layers")


def test_smollm2s_first_the_is_a_sink_and_a_peak(smol: Census) -> None:
    types = smol.token_types.to_dataframe()
    row = types[(types["by"] == "token") & (types["name"] == " the") & (types["occurrence"] == "first")].iloc[0]
    assert row["n_sinks"] >= 2 and row["sink_share"] > 10 * row["token_share"]
    peaks = smol.peaks.to_dataframe()
    first = peaks[(peaks["layer"] == 11) & (peaks["position"] == 0)]
    assert first["n_largest"].sum() == 12 and first["peak_ratio"].min() > 100
    elsewhere = peaks[(peaks["layer"] == 5) & (peaks["position"] > 0)].sort_values("peak_ratio")
    assert elsewhere["token"].iloc[-1] == " the" and elsewhere["n_peaks"].iloc[-1] >= 1
    assert any(each.startswith("Residual peak at position 0") for each in smol.verdict)


def test_gemma3s_bos_holds_the_entry_and_channel_400_is_no_token(gemma: Census) -> None:
    ((appears, leaves),) = lives(gemma, "relative", 163)
    assert appears == 3 and 12 <= leaves <= 17
    rows = gemma.massive_episodes.to_dataframe()
    assert rows[(rows["channel"] == 400) & (rows["criterion"] == "absolute")]["everywhere"].any()
    peaks = gemma.peaks.to_dataframe()
    bos = peaks[(peaks["position"] == 0) & peaks["layer"].between(3, 14)].groupby("layer")
    assert (bos["n_largest"].sum() == 8).all()
    types = gemma.token_types.to_dataframe()
    start = types[(types["by"] == "class") & (types["occurrence"] == "start")]
    assert start["name"].tolist() == ["special"] and start["sink_rate"].item() == 1
    assert any(each.startswith("Residual peak at position 0 ('<bos>')") for each in gemma.verdict)


def test_gemma3_short_and_beyond_its_window(gemma: Census, gemma3: TransformerBridge) -> None:
    short = gemma
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
    assert any(each.endswith("the sink moved from position 0 to position 1.") for each in found.verdict)
    row = found.summary().iloc[0]
    assert row["n_sink_heads"] > 150 and row["delta_loss"] < 0.5
    followed = follow_sinks(smollm2, batch, bound=3)
    assert followed.intervention.keys[:2] == (0, 1) and len(followed.intervention.keys) == 3
    assert followed.n_left > 150  # whichever key is the first one left becomes the sink
