"""Retrieval scores on the built-in model that answers needles: the card's checks, and decoding as the reference."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load
from sinklens.detectors.retrieval import similarity
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads
from sinklens.lab.induction.idle_heads import add_idle_heads
from sinklens.models.builtin import data_dir
from sinklens.studies import NeedleSet, make_needles, retrieval_scores, score_needles
from sinklens.studies.needles.outcome import Outcome
from sinklens.studies.needles.run import run_needles
from tests import families


@pytest.fixture(scope="module")
def needles(induction: TransformerBridge) -> NeedleSet:
    """Needle of 8 values after a key in about 48 random tokens, as in the card's check."""
    return make_needles(induction, lengths=(67, 120), depths=(0.1, 0.5, 0.9), repeats=8)


def test_induction_heads_are_retrieval_heads_and_others_are_not(
    induction: TransformerBridge, needles: NeedleSet
) -> None:
    found = retrieval_scores(induction, needles)
    frame = found.frame
    assert (frame.loc[frame["layer"] == 1, "retrieval"] > 0.8).all()
    assert (frame.loc[frame["layer"] == 0, "retrieval"] < 0.05).all()
    assert set(frame.loc[frame["layer"] == 1, "retrieval_band"]) == {">=0.5"}
    assert (frame.loc[frame["layer"] == 1, "activation_frequency"] == 1).all()
    assert (frame["retrieval_null"] < 0.02).all()
    assert found.meta["n_kept"] >= 0.95 * len(needles) and not found.meta["warnings"]
    assert found.meta["tokens"]["bos"]["added_by"] == "sinklens"
    assert set(found.metrics) <= set(frame.columns)


@pytest.mark.parametrize("how", ["uniform", "zero"])
def test_masking_every_retrieval_head_ends_it(induction: TransformerBridge, needles: NeedleSet, how: str) -> None:
    frame = retrieval_scores(induction, needles).frame
    heads = list(frame.loc[frame["retrieval"] >= 0.1, ["layer", "head"]].itertuples(index=False, name=None))
    assert score_needles(induction, needles)["exact"].mean() > 0.95
    masked = score_needles(induction, needles, AblateHeads(heads, how))  # type: ignore[arg-type]
    assert masked["exact"].mean() < 0.05


def test_teacher_forcing_equals_decoding_where_the_model_answers(induction: TransformerBridge) -> None:
    # 500 tokens with the needle at the start are too much for it, so some prompts are not kept
    some = make_needles(induction, lengths=(67, 500), depths=(0.0, 0.6), repeats=3)
    fast = retrieval_scores(induction, some)
    slow = retrieval_scores(induction, some, procedure="decode")
    assert 0 < fast.meta["n_kept"] < len(some) and fast.meta["n_kept"] == slow.meta["n_kept"]
    same = ["layer", "head", "retrieval", "retrieval_event", "retrieval_null", "activation_frequency", "retrieval_sd"]
    pd.testing.assert_frame_equal(fast.frame[same], slow.frame[same], atol=1e-6, rtol=0)


def test_the_papers_filter_keeps_partly_right_answers(induction: TransformerBridge) -> None:
    some = make_needles(induction, lengths=(67, 500), depths=(0.0,), repeats=3)
    exact = retrieval_scores(induction, some, procedure="decode")
    rouge = retrieval_scores(induction, some, procedure="decode", keep="rouge")
    every = retrieval_scores(induction, some, procedure="decode", keep="all")
    assert exact.meta["n_kept"] <= rouge.meta["n_kept"] <= every.meta["n_kept"] == len(some)
    merged = every.frame["retrieval"] - every.frame["retrieval_unfiltered"]
    assert merged.abs().max() == 0
    with pytest.raises(InputError, match='needs procedure="decode"'):
        retrieval_scores(induction, some, keep="rouge")
    with pytest.raises(InputError, match='keep must be "exact", "contained"'):
        retrieval_scores(induction, some, keep="some")  # type: ignore[arg-type]


def test_sharing_and_batches_change_nothing(induction: TransformerBridge, needles: NeedleSet) -> None:
    frame = retrieval_scores(induction, needles).frame
    for options in ({"share": False}, {"max_tokens": 1}, {"share": False, "max_tokens": 200}):
        pd.testing.assert_frame_equal(retrieval_scores(induction, needles, **options).frame, frame)  # type: ignore[arg-type]


def test_a_model_that_answers_nothing_has_no_scores(tmp_path: Path) -> None:
    model = load(families.build_checkpoint("llama", tmp_path))
    found = retrieval_scores(model, make_needles(model, lengths=(60,), depths=(0.5,), repeats=3))
    assert found.frame["retrieval"].isna().all() and found.frame["retrieval_unfiltered"].notna().all()
    assert "None of 3 prompts passes the filter 'exact'" in found.meta["warnings"][-1]
    assert math.isnan(similarity(found.frame, found.frame))


def test_grouped_keys_change_nothing(tmp_path: Path) -> None:
    """A model with shared key and value heads scores as the same one with a copy of them for every query head."""
    grouped = load(families.build_checkpoint("qwen2", tmp_path / "grouped"))
    config = grouped.original_model.config
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    assert shared < heads
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(tmp_path / "grouped")
    config = source.config.__class__.from_dict(source.config.to_dict() | {"num_key_value_heads": heads})
    copy = AutoModelForCausalLM.from_config(config)
    weights = source.state_dict()
    for name, value in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            by_head = value.unflatten(0, (shared, -1))
            weights[name] = by_head.repeat_interleave(heads // shared, 0).flatten(0, 1)
    copy.load_state_dict(weights)
    copy.save_pretrained(tmp_path / "expanded")
    AutoTokenizer.from_pretrained(tmp_path / "grouped").save_pretrained(tmp_path / "expanded")
    expanded = load(tmp_path / "expanded")
    needles = make_needles(grouped, lengths=(40, 70), depths=(0, 0.5), repeats=3, size=3)
    pd.testing.assert_frame_equal(*(retrieval_scores(each, needles, keep="all").frame for each in (grouped, expanded)))
    found: list[dict[int, Outcome]] = [{}, {}]
    for model, outcomes in zip((grouped, expanded), found, strict=True):
        run_needles(model, needles.instances, outcomes.update)
    for number, one in found[0].items():
        assert one.top_key is not None and torch.equal(one.top_key, found[1][number].top_key)
        assert one.top_key.unique().numel() > 3


def test_idle_heads_copy_nothing_that_matters(induction: TransformerBridge, needles: NeedleSet, tmp_path: Path) -> None:
    """Heads without any way to the residual stream: masking them changes the score by exactly 0."""
    add_idle_heads(data_dir() / "models" / "induction-2l", 4, out=tmp_path / "wide")
    wide = load(tmp_path / "wide")
    idle = [(layer, head) for layer in range(2) for head in range(4, 8)]
    clean, masked = (score_needles(wide, needles, change) for change in (None, AblateHeads(idle, "zero")))
    frame = retrieval_scores(wide, needles).frame
    assert (frame.loc[(frame["layer"] == 1) & (frame["head"] < 4), "retrieval"] > 0.8).all()
    assert (frame.loc[frame["head"] >= 4, "retrieval"] < 0.1).all()
    pd.testing.assert_frame_equal(clean, masked, atol=1e-6, rtol=0)
