"""Idle heads change nothing, whatever is done to them, in models with and without grouped queries."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from sinklens.errors import InputError, ResultError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads
from sinklens.lab.induction.idle_heads import add_idle_heads
from sinklens.lab.induction.masked import MASKINGS, masked, mean_outputs
from sinklens.lab.induction.patterns import patterns
from sinklens.lab.induction.settings import InductionSettings
from sinklens.lab.induction.training import build_model
from sinklens.models.builtin import builtin_models
from sinklens.models.load import load
from tests.families import BROKEN, FAMILIES, boot_hf, random_ids

INDUCTION = builtin_models()["induction-2l"].path


HOW: tuple[Literal["zero", "uniform"], ...] = ("zero", "uniform")


def ids(n_words: int = 512, length: int = 40) -> torch.Tensor:
    return torch.randint(0, n_words, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kv_heads", "more"), [(4, 4), (4, 12), (2, 4), (1, 4)])
def test_masking_idle_heads_changes_logits_by_exactly_nothing(kv_heads: int, more: int) -> None:
    old = build_model(InductionSettings(kv_heads=kv_heads, d_model=32)).eval()
    before = {name: weight.clone() for name, weight in old.state_dict().items()}
    new = add_idle_heads(old, more)
    assert (new.config.num_attention_heads, old.config.num_attention_heads) == (4 + more, 4)
    assert all(torch.equal(before[name], weight) for name, weight in old.state_dict().items())
    tokens = ids()
    with torch.no_grad():
        logits = new(tokens).logits
        torch.testing.assert_close(logits, old(tokens).logits, atol=1e-5, rtol=1e-5)
        idle = [(layer, head) for layer in range(2) for head in range(4, 4 + more)]
        means = mean_outputs(new, tokens)  # type: ignore[arg-type]
        assert all(means[head].abs().max() > 1e-4 for head in idle)
        for how in MASKINGS:
            with masked(new, idle, how, means):  # type: ignore[arg-type]
                assert torch.equal(new(tokens).logits, logits)
            with masked(new, [(0, 3)], how, means):  # type: ignore[arg-type]
                assert not torch.equal(new(tokens).logits, logits)


def test_old_heads_attend_as_before_and_new_ones_at_random() -> None:
    old = build_model(InductionSettings(kv_heads=2, d_model=32)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in old.model.layers:
            layer.self_attn.q_proj.weight.normal_()
            layer.self_attn.k_proj.weight.normal_()
    tokens, new = ids(), add_idle_heads(old, 4)
    for before, after in zip(patterns(old, tokens).attention, patterns(new, tokens).attention, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(after[:, :4], before, atol=1e-4, rtol=1e-4)
        uneven = after[:, 4:, 20:].max(-1).values
        assert after.shape[1] == 8 and uneven.mean() > 0.2
        # each new head is its own
        assert not torch.allclose(after[:, 4], after[:, 5], atol=1e-2)


def test_the_seed_decides_the_random_weights() -> None:
    old = build_model(InductionSettings(d_model=32))
    first, again, other = (
        add_idle_heads(old, 4, seed=seed).state_dict()["model.layers.1.self_attn.k_proj.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std() == pytest.approx(0.02, rel=0.1)


def test_a_directory_gives_a_directory_that_the_engine_reads(tmp_path: Path) -> None:
    add_idle_heads(INDUCTION, 4, out=tmp_path / "idle")
    bridge, plain = load(tmp_path / "idle", device="cpu"), load("induction-2l", device="cpu")
    assert (bridge.cfg.n_heads, bridge.cfg.d_head) == (8, 32)
    tokens = ids()
    with torch.no_grad():
        logits = bridge(tokens)
        torch.testing.assert_close(logits, plain(tokens), atol=2e-4, rtol=1e-4)
        idle = [(layer, head) for layer in range(2) for head in range(4, 8)]
        for how in HOW:
            # the engine computes differently with an edit than without, so an edit is compared with an edit
            with AblateHeads([(0, 4), (1, 4)], how=how)(bridge):
                few = bridge(tokens)
            with AblateHeads(idle, how=how)(bridge):
                assert torch.equal(bridge(tokens), few)
            torch.testing.assert_close(few, logits, atol=2e-4, rtol=1e-4)
    assert bridge.tokenizer("b sr")["input_ids"][-2:] == [1, 511]


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2"])
def test_relatives_of_llama_take_whole_groups(name: str, zoo: Path) -> None:
    family = FAMILIES[name]
    model, tokens = boot_hf(name, zoo), random_ids()
    group = 4 // family.kv_heads
    with torch.no_grad():
        new = add_idle_heads(model, 4)
        torch.testing.assert_close(new(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    if group > 1:
        with pytest.raises(InputError, match=f"groups of {group}"):
            add_idle_heads(model, 1)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_other_layouts_are_refused(name: str, zoo: Path) -> None:
    assert name in FAMILIES or name in BROKEN
    with pytest.raises(UnsupportedArchitectureError, match=r"q_proj, k_proj, v_proj and o_proj"):
        add_idle_heads(boot_hf(name, zoo), 4)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1 head"):
        add_idle_heads(INDUCTION, 0)
    with pytest.raises(InputError, match=r"with 7 heads could not be saved .* 4 always doubles them"):
        add_idle_heads(INDUCTION, 3)
    with pytest.raises(ResultError, match="no Hugging Face directory"):
        add_idle_heads(tmp_path / "nothing", 1)
    with pytest.raises(InputError, match="give a directory as source"):
        add_idle_heads(AutoModelForCausalLM.from_pretrained(INDUCTION), 4, out=tmp_path / "out")
