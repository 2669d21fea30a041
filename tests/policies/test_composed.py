"""Rules by head, layer and phase do all that their rules do; caches, padded prompts, other families."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionEngine
from sinklens.errors import InputError
from sinklens.interventions import Intervention
from sinklens.policies import Account, HeadMap, LayerMap, Phase, Policy, Protect
from sinklens.policies.fake_quant import FakeQuantKV
from sinklens.policies.full import Full
from sinklens.policies.h2o import H2O
from sinklens.policies.low_rank_keys import LowRankKeys
from sinklens.policies.razor import Razor
from sinklens.policies.rotary import frequencies, turned
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.snap_kv import SnapKV
from sinklens.policies.streaming_llm import StreamingLLM
from sinklens.policies.top_k import TopK
from tests.families import boot, padding_mask, random_ids
from tests.interventions.invariants import decoded

POS, PROMPT = 40, 22
RULES: dict[str, Policy] = {
    "window": SinkWindow(2, 6),
    "streaming": StreamingLLM(2, 6),  # changes scores
    "razor": Razor((), 2, 6),  # changes scores and counts a token
    "h2o": H2O(4, 4),  # keeps state
}


def under(bridge: Any, policy: Intervention, ids: Tensor, **options: Any) -> Tensor:
    with policy(bridge):
        found: Tensor = bridge(ids, **options)
    return found


def counted(bridge: Any, policy: Policy, ids: Tensor) -> tuple[Tensor, Any, Any]:
    account = Account()
    with policy.counted(account)(bridge):
        logits = bridge(ids)
    return logits, account.by_head(), account.by_kv_head()


@pytest.mark.parametrize("name", RULES)
def test_a_map_whose_rules_are_all_one_is_that_rule(name: str, zoo: Path) -> None:
    bridge, ids, rule = boot("llama", zoo), random_ids(pos=POS), RULES[name]
    logits, heads, caches = counted(bridge, rule, ids)
    assert float((logits - bridge(ids)).abs().max()) > 1e-3
    maps = [LayerMap({0: rule}, rule), Phase(rule, rule, prompt=PROMPT), HeadMap({"L0H1": rule}, rule)]
    maps += [] if name == "razor" else [Protect(rule, first=0)]
    for policy in maps:
        found, by_head, by_kv_head = counted(bridge, policy, ids)
        assert torch.equal(found, logits), policy
        assert by_head.equals(heads), policy
        if type(policy) is not HeadMap or name != "razor":  # heads with a token each share one cache
            assert by_kv_head.equals(caches), policy
        assert Intervention.from_json(policy.to_json()) == policy and hash(policy) == hash(replace(policy))


def test_rules_that_change_keys_work_by_layer_and_are_refused_by_head(zoo: Path) -> None:
    bridge, ids, rule = boot("llama", zoo), random_ids(pos=POS), FakeQuantKV(2)
    everywhere = under(bridge, rule, ids)
    assert torch.equal(under(bridge, LayerMap({0: rule, 1: rule}), ids), everywhere)
    one = under(bridge, LayerMap({1: rule}), ids)
    assert not torch.equal(one, everywhere) and float((one - bridge(ids)).abs().max()) > 1e-3
    for make in (lambda: HeadMap({"L0H0": rule}), lambda: Phase(Full(), rule), lambda: Protect(LowRankKeys(2))):
        with pytest.raises(InputError, match="which changes the keys and values"):
            make()
    with pytest.raises(InputError, match="whose fields name what it keeps exact"):
        Protect(Razor())


def test_one_head_under_a_rule_leaves_the_others_of_its_layer_as_they_were(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    _, plain, _ = counted(bridge, Full(), ids)
    _, heads, _ = counted(bridge, HeadMap({"L0H1": StreamingLLM(2, 6)}), ids)
    first, other = (table[table["layer"] == 0].set_index("head") for table in (heads, plain))
    assert first.loc[[0, 2, 3]].equals(other.loc[[0, 2, 3]])
    assert first.loc[1, "kept"] < other.loc[1, "kept"] and first.loc[1, "mass"] < other.loc[1, "mass"]


def test_a_cache_holds_what_may_be_read_again(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    seen = sum(range(1, POS + 1)) / POS
    for policy, held, peak in [
        (TopK(4), seen, POS),  # any key may be chosen next time
        (SinkWindow(2, 6), sum(min(n, 8) for n in range(1, POS + 1)) / POS, 8),
        (Razor((), 2, 6), sum(min(n, 8) + (n > 8) for n in range(1, POS + 1)) / POS, 9),
        (TopK(4) | SinkWindow(1, 2), seen, POS),
    ]:
        caches = counted(bridge, policy, ids)[2]
        assert caches["held"].tolist() == pytest.approx([held] * len(caches)), policy
        assert set(caches["peak"]) == {peak}
    h2o = counted(bridge, H2O(4, 4), ids)[2]  # two query heads of a KV head may keep different keys
    assert float(h2o["held"].max()) <= 18 and float(h2o["peak"].max()) > 9


def test_bytes_of_a_key_in_the_cache() -> None:
    assert TopK(4).bytes_per_key(64, 4) == 512
    assert FakeQuantKV(4).bytes_per_key(64, 2) == 2 * (32 + 4)
    assert FakeQuantKV(2, group_size=32, what="keys").bytes_per_key(64, 2) == 16 + 8 + 128
    assert FakeQuantKV(16).bytes_per_key(64, 2) == 256
    assert LowRankKeys(16).bytes_per_key(64, 2) == 160
    assert (TopK(4) & FakeQuantKV(4)).bytes_per_key(64, 2) == 72
    mixed = LayerMap({0: FakeQuantKV(4)}).bytes_per_key(64, 2)
    assert mixed != mixed  # not one number for all layers


def test_a_prompt_that_nobody_named_ends_with_the_first_pass_for_each_sequence(zoo: Path) -> None:
    """Left padding is no part of a prompt: the shorter sequence is cut at its own end."""
    bridge, ids, pad = boot("llama", zoo), random_ids(pos=POS), 7
    for policy in (SnapKV(8, window=4, pool=3), Phase(Full(), SinkWindow(1, 3))):
        found = decoded(bridge, policy, ids, attention_mask=padding_mask(2, POS, pad, "left"))
        alone = under(bridge, replace(policy, prompt=PROMPT - pad), ids[1:, pad:])
        torch.testing.assert_close(found[1:, pad:], alone, atol=1e-4, rtol=0)
        told = under(bridge, replace(policy, prompt=PROMPT), ids[:1])
        torch.testing.assert_close(found[:1], told, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "phi", "stablelm"]
)
def test_turning_a_query_is_moving_it(family: str, zoo: Path) -> None:
    """What the model makes of the same tokens some positions later, in its first layer."""
    bridge, ids, by = boot(family, zoo), random_ids(1, 12), 5
    seen: list[tuple[Tensor, Tensor]] = []

    class Watch:
        def observe(self, call: Any) -> None:
            if call.layer == 0:
                seen.append((call.query.clone(), call.key.clone()))

    for start in (0, by):
        with AttentionEngine(bridge, observers=[Watch()]):
            bridge.original_model(ids, position_ids=torch.arange(start, start + 12)[None])
    for here, there in zip(*seen, strict=True):
        moved = turned(here, torch.full((12,), float(by)), frequencies(bridge, 0))
        torch.testing.assert_close(moved, there, atol=1e-4, rtol=0)
        assert float((here - there).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["sink_window", "h2o", "tova", "streaming_llm", "quest", "fake_quant", "snap_kv"])
def test_rules_work_in_bfloat16(name: str, zoo: Path, tmp_path: Path) -> None:
    from sinklens.models import load
    from tests.families import build_checkpoint
    from tests.policies.rules import SMALL

    bridge = load(build_checkpoint("llama", tmp_path / "bf16", torch.bfloat16), dtype="bfloat16")
    ids = random_ids(pos=POS)
    found = under(bridge, SMALL[name], ids)
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())
    assert float((found - bridge(ids)).abs().max()) > 1e-2
