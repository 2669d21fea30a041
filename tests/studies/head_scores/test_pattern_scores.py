"""The probe, the one pass over it, and what it finds on built-in and planted models."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads
from sinklens.models.ordinary_tokens import ordinary_ids
from sinklens.passes.repeated_tokens import repeated_tokens
from sinklens.studies import pattern_scores
from tests import families, oracle
from tests.detectors import stripes
from tests.heard import Heard

SCORES = ["previous_token", "duplicate_token", "induction", "echo", "razor_induction"]


@pytest.fixture(scope="module")
def induction_model() -> TransformerBridge:
    return load("induction-2l")


# ------------------------------------------------------------------ the probe
def test_ordinary_ids_are_what_text_can_hold(tiny: TransformerBridge) -> None:
    special = set(tiny.tokenizer.all_special_ids)
    found = ordinary_ids(tiny)
    assert found.tolist() == [i for i in range(len(tiny.tokenizer)) if i not in special]


def test_the_probe_repeats_distinct_ordinary_tokens(tiny: TransformerBridge) -> None:
    probe = repeated_tokens(tiny, block=10, repeats=3, n_sequences=4, seed=1)
    ids = probe.batch.ids
    assert ids.shape == (4, 31) and ids[:, 0].eq(families.BOS).all() and not probe.notes
    assert probe.batch.bos_added_by == "sinklens" and "has one" in probe.batch.statement
    body = ids[:, 1:].view(4, 3, 10)
    assert torch.equal(body[:, 0], body[:, 1]) and torch.equal(body[:, 0], body[:, 2])
    assert not torch.isin(ids[:, 1:], torch.tensor(tiny.tokenizer.all_special_ids)).any()
    assert all(len(set(row.tolist())) == 10 for row in body[:, 0])
    assert len({tuple(row.tolist()) for row in body[:, 0]}) == 4
    fewer = repeated_tokens(tiny, block=10, repeats=3, n_sequences=2, seed=1)
    assert torch.equal(fewer.batch.ids, ids[:2])
    other = repeated_tokens(tiny, block=10, repeats=3, n_sequences=2, seed=2)
    assert not torch.equal(other.batch.ids, ids[:2])


def test_the_probe_without_a_bos_or_with_repetition(tiny: TransformerBridge) -> None:
    bare = repeated_tokens(tiny, block=10, repeats=2, n_sequences=1, bos=False)
    assert bare.batch.ids.shape == (1, 20) and bare.repeats.prefix == 0
    assert bare.batch.bos_added_by == "nobody" and "asked for none" in bare.batch.statement
    assert "asked for it" in repeated_tokens(tiny, block=4, repeats=2, n_sequences=1, bos=True).batch.statement
    drawn = repeated_tokens(tiny, block=60, repeats=2, n_sequences=5, distinct=False).batch.ids
    assert any(len(set(row.tolist())) < 61 for row in drawn)


def test_the_probe_is_scaled_down_and_says_so(tiny: TransformerBridge) -> None:
    probe = repeated_tokens(tiny, block=2500, repeats=4, n_sequences=1)
    assert probe.repeats.block == (families.N_CTX - 1) // 4 == 31 and probe.batch.ids.shape[1] == 125
    assert "from 2500 to 31" in probe.notes[0] and str(families.N_CTX) in probe.notes[0]
    with pytest.raises(InputError, match="fewer repeats"):
        repeated_tokens(tiny, block=9, repeats=100, n_sequences=1)
    with pytest.raises(InputError, match="n_sequences"):
        repeated_tokens(tiny, block=9, repeats=2, n_sequences=0)
    with pytest.raises(InputError, match="at least 2"):
        repeated_tokens(tiny, block=1, repeats=2, n_sequences=1)
    small = load("bb-1l")
    few = repeated_tokens(small, block=66, repeats=1 + 1, n_sequences=1, bos=False)
    assert few.repeats.block == min(64, len(ordinary_ids(small))) and few.notes


# ------------------------------------------------------------------ one pass
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_all_scores_equal_loops_over_whole_patterns(name: str, batch_size: int | None, zoo: Path) -> None:
    model = families.boot(name, zoo)
    found = pattern_scores(model, block=9, repeats=3, n_sequences=3, seed=5, batch_size=batch_size)
    frame = found.frame
    assert found.scores == SCORES and len(frame) == 4 * len(model.blocks)
    probe = repeated_tokens(model, block=9, repeats=3, n_sequences=3, seed=5)
    for layer in oracle.full_patterns(model, probe.batch.ids):
        assert layer is not None
        rows = frame[frame["layer"] == layer.layer]
        for score, target in stripes.targets_of(probe.repeats).items():
            by_sequence = np.stack([stripes.naive(pattern, target) for pattern in layer.pattern])
            np.testing.assert_allclose(rows[score], by_sequence.mean(0), atol=2e-6, err_msg=score)
            np.testing.assert_allclose(rows[f"{score}_sd"], by_sequence.std(0, ddof=1), atol=2e-6)
        groups = rows.groupby("kv_head")[["razor_induction", "echo"]].max()
        assert len(groups) == 2  # of four query heads
        for column in ("razor_induction", "echo"):
            assert rows[f"{column}_kv"].tolist() == groups[column].loc[rows["kv_head"]].tolist()
    assert (frame["n_sequences"] == 3).all()


def test_the_table_says_how_it_was_made(tiny: TransformerBridge) -> None:
    found = pattern_scores(tiny, block=40, repeats=4, n_sequences=2, seed=3)
    meta = json.loads(json.dumps(found.meta))
    assert meta["settings"]["block"] == 31 and meta["settings"]["block_asked"] == 40
    assert any("scaled down" in note for note in meta["warnings"]) and any("echo" in note for note in meta["warnings"])
    assert meta["tokens"]["bos"]["added_by"] == "sinklens" and meta["settings"]["seed"] == 3
    assert meta["intervention"] is None and all(found.metrics[name].version == 1 for name in SCORES)
    columns = list(found.frame)
    assert columns[:6] == ["layer", "head", "kv_head", "previous_token", "previous_token_null", "previous_token_sd"]
    assert columns[-4:] == ["n_sequences", "razor_induction_kv", "echo_kv", "razor"]


def test_the_model_is_the_same_afterwards_and_layers_are_reported(tiny: TransformerBridge) -> None:
    ids = torch.arange(20, 40)[None]
    before, heard = tiny(ids), Heard()
    pattern_scores(tiny, block=8, n_sequences=3, batch_size=2, progress=heard)
    assert torch.equal(tiny(ids), before)
    assert heard.whole and sum(heard.done) == 3 * (len(tiny.blocks) + 1)


def test_one_sequence_has_no_spread(tiny: TransformerBridge) -> None:
    frame = pattern_scores(tiny, block=8, n_sequences=1).frame
    assert frame["induction_sd"].isna().all() and frame["induction"].notna().all()


def test_under_an_intervention(tiny: TransformerBridge) -> None:
    found = pattern_scores(tiny, block=8, n_sequences=2, intervention=AblateHeads(["L0H1"], how="uniform"))
    row = found.frame.set_index(["layer", "head"]).loc[(0, 1)]
    for score in SCORES:
        assert row[score] == pytest.approx(row[f"{score}_null"], abs=1e-6)
    assert "L0H1" in json.dumps(found.meta["intervention"])


def test_a_model_without_attention_is_refused(zoo: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        pattern_scores(families.boot("mamba", zoo))


# ------------------------------------------------------------------ what it finds
def bands(found: HeadScores) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = found.frame
    return frame[frame["layer"] == 0], frame[frame["layer"] == 1]


def test_razor_s_check_on_the_induction_model(induction_model: TransformerBridge) -> None:
    # card razorattention, check 2: K = 16, R = 4
    found = pattern_scores(induction_model, block=16, repeats=4, n_sequences=16)
    first, second = bands(found)
    assert (second["razor_induction"] > 0.7).all() and (first["razor_induction"] < 0.05).all()
    assert (found.frame["echo"] <= 0.07).all()
    assert any("no echo heads" in note for note in found.meta["warnings"])
    assert set(found.frame.loc[found.frame["razor"] != "", "layer"]) == {1}
    replaced = pattern_scores(induction_model, block=16, repeats=4, n_sequences=16, distinct=False)
    assert (bands(replaced)[1]["razor_induction"] > 0.7).all()


def test_standard_bands_on_the_induction_model(induction_model: TransformerBridge) -> None:
    # card standard-head-scores, check F: induction at 0.7 or more in exactly one layer, the token before in the other
    found = pattern_scores(induction_model, block=30, repeats=2, n_sequences=32)
    first, second = bands(found)
    assert (second["induction"] >= 0.7).all() and (first["induction"] <= 0.05).all()
    assert first["previous_token"].max() >= 0.4 and (second["previous_token"] <= 0.1).all()
    assert (found.frame["duplicate_token"] <= 0.1).all()
    nulls = found.frame.loc[0, [f"{name}_null" for name in SCORES[:3]]].tolist()
    assert nulls == pytest.approx([0.0616, 0.0223, 0.0223], abs=1e-4)


def test_a_model_of_another_task_has_no_induction_heads() -> None:
    found = pattern_scores("bb-1l", block=20, repeats=2, n_sequences=8)
    assert (found.frame["induction"] < 0.3).all() and not math.isnan(found.frame["induction"].max())
