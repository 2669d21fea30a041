"""Masks and answers on SmolLM2: what the toys could not show."""

import pytest
from transformer_lens.model_bridge import TransformerBridge

from sinklens.studies import make_needles, measure_needles
from sinklens.studies.causal_check.run import run_causal_check


@pytest.mark.real
def test_uniform_attention_is_no_control_in_a_drained_sink_head(smollm2: TransformerBridge) -> None:
    """L18H8 of SmolLM2 rests on its sink: taking its output away costs nothing, uniform attention 2.6 nats."""
    needles = make_needles(smollm2, "passkey", lengths=[100], depths=[0.5], repeats=2, size=3)
    check = run_causal_check(smollm2, ["L18H8"], needles=needles, controls=1, max_sequences=5, max_tokens=32)
    holds_one = check.summary().set_index(["way", "measure"])["harm"]
    assert abs(holds_one["zero", "loss"]) < 0.1 and holds_one["uniform", "loss"] > 1
    said = " ".join(check.verdict)
    assert "the ways of masking the top head do not agree on plain text" in said
    assert "uniform masking is not neutral here" in said


@pytest.mark.real
def test_a_chat_models_answers_are_read(smollm2: TransformerBridge) -> None:
    """Through its chat template, passkeys are given back; what it says is kept, and several filters keep prompts."""
    needles = make_needles(smollm2, "passkey", lengths=[160], depths=[0.8], repeats=4)
    assert needles.meta["template"] == "chat" and not needles.meta["notes"]
    for each in needles.instances:
        assert each.text is not None and "<|im_start|>assistant" in each.text
        assert smollm2.tokenizer.decode(each.ids[slice(*each.span)]).strip() == each.answer_text
    result = measure_needles(smollm2, needles, generate=30)
    counts = result.answered().set_index("keep")["n"]
    assert counts["share"] == 4 and counts["rouge"] >= counts["contained"] >= 1
    table = result.tables["instances"]
    assert not table["response"].str.contains("<|im_end|>", regex=False).any()
    assert result.heads.meta["n_kept"] == counts["rouge"] and len(result.retrieval_heads()) >= 4
