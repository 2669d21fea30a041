"""Rules that evict, beside a decoder that really drops keys and values, token by token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.models.builtin import data_dir
from sinklens.models.real import real_model_path
from sinklens.policies import Policy, policies
from sinklens.policies.d2o import D2O
from sinklens.policies.h2o import H2O
from sinklens.policies.head_split import HeadSplit
from sinklens.policies.keyformer import Keyformer
from sinklens.policies.long_gen import LongGen
from sinklens.policies.moa import MoA
from sinklens.policies.s2_attention import S2Attention
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.snap_kv import SnapKV
from sinklens.policies.streaming_llm import StreamingLLM
from sinklens.policies.task_kv import TaskKV
from sinklens.policies.tova import TOVA
from tests.families import boot, boot_hf, random_ids
from tests.plain_oracle import plain_model
from tests.policies import physical

POS, PROMPT = 40, 22
Rules = dict[str, tuple[Policy, physical.Forget, bool]]

SMALL: Rules = {
    "full": (SinkWindow(0, POS), physical.forget_nothing, False),
    "h2o": (H2O(4, 4), physical.h2o(4, 4), False),
    "tova": (TOVA(8), physical.tova(8), False),
    "keyformer": (Keyformer(4, 4), physical.keyformer(4, 4), False),
    "d2o": (D2O(4, 4, 2, dense_first=0), physical.d2o(4, 4, 2), False),
    "sink_window": (SinkWindow(2, 6, evict_after=True), physical.window(2, 6), False),
    "streaming_llm": (StreamingLLM(2, 6), physical.window(2, 6), True),
    "head_split": (HeadSplit(["L0H1", "L1H2"], 2, 7), physical.window(2, 6, {0: {1}, 1: {2}}), False),
    "long_gen": (LongGen(2, 7, 0, 0.5), physical.window(2, 6, {0: {0, 1, 2, 3}}), False),
    "moa": (
        MoA({"L0H1": (8, 0), "L1H2": (12, 0)}, n_tokens=POS, shortest=4, step=4),
        physical.windows({(0, 1): (4, 3), (1, 2): (4, 7)}),
        False,
    ),
    "s2_attention": (S2Attention(4, 2, 3), physical.stripes(4, 2, 3, kv_heads=2), False),
    "snap_kv": (SnapKV(10, window=4, pool=3, prompt=PROMPT), physical.snap(PROMPT, 10, 4, 3), False),
    "task_kv": (
        TaskKV(4, 1, 4, strongest=6, window=4, pool=3, prompt=PROMPT),
        physical.task(PROMPT, 4, 1, 4, 1, 6, 4, 3),
        False,
    ),
}


def test_every_rule_that_evicts_is_here() -> None:
    drops = {name for name, kind in policies().items() if kind.evicts and kind.scope != "global"}
    assert drops - {"fake_quant"} <= SMALL.keys()  # fake_quant keeps every key
    assert {name for name, kind in policies().items() if kind.evicts and kind.scope == "global"} == {
        "attention_gate",  # its choice knows the whole text, so no cache can follow it
        "low_rank_keys",  # keeps every key
    }


def one_pass(bridge: Any, rules: Rules, ids: Tensor) -> Tensor:
    found = []
    for policy, _, _ in rules.values():
        with policy(bridge):
            found.append(bridge(ids))
    return torch.cat(found)


def both(bridge: Any, model: Any, rules: Rules, ids: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Largest difference of logits by rule, to the physical decoder and to full attention."""
    found = one_pass(bridge, rules, ids)
    expected = physical.decode(model, ids, [(forget, renumber) for _, forget, renumber in rules.values()])
    away, plain = (found - expected).abs().amax((1, 2)), (found - bridge(ids)).abs().amax((1, 2))
    return dict(zip(rules, away.tolist(), strict=True)), dict(zip(rules, plain.tolist(), strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_pass_equals_a_decoder_that_drops_keys_for_good(family: str, zoo: Path) -> None:
    away, plain = both(boot(family, zoo), boot_hf(family, zoo), SMALL, random_ids(1, POS))
    assert max(away.values()) < 1e-4, away
    assert min(cost for name, cost in plain.items() if name != "full") > 1e-2, plain


@pytest.mark.real
@pytest.mark.slow
def test_one_pass_on_smollm2_equals_a_decoder_that_drops_keys_for_good(smollm2: Any) -> None:
    """200 tokens of a play, 32 keys a row; prints what docs/policies/index.md says of it."""
    model, tokenizer = plain_model(real_model_path("smollm2"))
    text = (data_dir() / "texts" / "shakespeare.txt").read_text()[3000:6000]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:200]])
    full = {0: {1}, 10: {0, 2}, 20: {5}}
    rules: Rules = {
        "h2o": (H2O(16, 16), physical.h2o(16, 16), False),
        "tova": (TOVA(32), physical.tova(32), False),
        "keyformer": (Keyformer(16, 16), physical.keyformer(16, 16), False),
        "d2o": (D2O(16, 16), physical.d2o(16, 16, 4, 2), False),
        "sink_window": (SinkWindow(4, 28, evict_after=True), physical.window(4, 28), False),
        "streaming_llm": (StreamingLLM(4, 28), physical.window(4, 28), True),
        "head_split": (
            HeadSplit([(layer, head) for layer, heads in full.items() for head in heads], 4, 29),
            physical.window(4, 28, full),
            False,
        ),
        "snap_kv": (SnapKV(32, window=8, prompt=100), physical.snap(100, 32, 8, 5), False),
        "task_kv": (
            TaskKV(12, 4, 16, least=1, window=8, prompt=100),
            physical.task(100, 12, 4, 16, 1, 256, 8, 7),
            False,
        ),
    }
    away, plain = both(smollm2, model, rules, ids)
    for name in rules:
        print(f"{name}: {away[name]:.1e} from the physical decoder, {plain[name]:.2f} from full attention")
    assert max(away.values()) < 1e-4, away
    assert min(plain.values()) > 0.1, plain


def test_numbering_the_cache_anew_is_not_the_plain_window(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    with StreamingLLM(2, 6)(bridge):
        near = bridge(ids)
    with SinkWindow(2, 6, evict_after=True)(bridge):
        far = bridge(ids)
    assert float((near - far).abs().max()) > 1e-2
    assert torch.allclose(near[:, :9], far[:, :9], atol=1e-6)  # nothing has been dropped yet
