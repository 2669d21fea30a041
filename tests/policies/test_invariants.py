"""What holds for every policy: identity at a large budget, scope, budget, groups, eviction, caches, padding, JSON."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, FullMap, plan_for
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import Intervention
from sinklens.policies import Account, Policy, View, policies
from sinklens.policies.registry import budgeted
from tests.families import boot, padding_mask, random_ids
from tests.interventions.invariants import decoded, on_path
from tests.policies.rules import LARGE, MOST, POS, PROMPT, SMALL

SCOPED = {name: rule for name, rule in SMALL.items() if rule.scope != "global"}


class Masks(Account):
    """Keeps the masks themselves: ``{layer: [batch head q k]}``."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[int, list[tuple[Tensor, Tensor]]]] = {}

    def add(self, view: View, kept: Tensor, entries: Tensor, cached: Tensor) -> None:
        super().add(view, kept, entries, cached)
        at = self.rows.setdefault(view.layer, {}).setdefault(view.sequence, [])
        at.append((kept.clone(), view.visible.clone()))

    def of(self, which: int = 0) -> dict[int, Tensor]:
        """Kept keys (0) or visible ones (1)."""
        return {
            layer: torch.stack([self.whole([part[which] for part in found]) for _, found in sorted(by.items())])
            for layer, by in self.rows.items()
        }

    @staticmethod
    def whole(parts: list[Tensor]) -> Tensor:
        width = max(part.shape[-1] for part in parts)
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts], 1)


def kept_by(policy: Policy, bridge: TransformerBridge, ids: Tensor, **options: Any) -> Masks:
    masks = Masks()
    with policy.counted(masks)(bridge):
        bridge(ids, **options)
    return masks


def under(bridge: TransformerBridge, policy: Intervention, ids: Tensor, **options: Any) -> Tensor:
    with policy(bridge):
        found: Tensor = bridge(ids, **options)
    return found


def test_every_listed_policy_is_tested() -> None:
    assert policies().keys() == SMALL.keys() == LARGE.keys()
    assert all(kind.source and kind.scope in ("causal", "block", "prompt", "global") for kind in policies().values())


@pytest.mark.parametrize("name", LARGE)
def test_a_budget_as_large_as_the_text_changes_no_bit(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    with AttentionEngine(bridge):
        plain = bridge(ids)
    assert torch.equal(under(bridge, LARGE[name], ids), plain)


@pytest.mark.parametrize("name", [n for n, rule in SMALL.items() if budgeted(type(rule)) and n != "landmark"])
def test_a_rule_sized_for_the_whole_text_changes_no_bit_of_a_model_with_windows(name: str, zoo: Path) -> None:
    """But a landmark is not read itself. What a window hides is not dropped, and nothing is merged yet."""
    bridge, ids = boot("gemma3", zoo), random_ids(pos=64)
    rule = replace(type(SMALL[name]).sized(64, 64), prompt=40)
    with AttentionEngine(bridge):
        plain = bridge(ids)
    account = Account()
    with rule.counted(account)(bridge):
        found = bridge(ids)
    assert torch.equal(found, plain)
    assert account.by_head()["density"].min() == 1
    full = Account()
    with SMALL["full"].counted(full)(bridge):
        bridge(ids)
    assert (account.by_kv_head()["held"] == full.by_kv_head()["held"]).all(), "nothing is dropped or merged yet"


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "gpt_neox", "qwen3", "phi3", "gpt_oss", "falcon_alibi", "opt"])
def test_keeping_everything_is_full_attention_on_other_families(family: str, zoo: Path) -> None:
    bridge, ids = boot(family, zoo), random_ids(pos=POS)
    with AttentionEngine(bridge, path=plan_for(bridge).path):
        plain = bridge(ids)
    for name in ("full", "top_k", "h2o", "snap_kv", "tova"):
        try:
            found = under(bridge, LARGE[name], ids)
        except UnsupportedArchitectureError:
            assert plan_for(bridge).path == "fallback"
            continue
        assert torch.equal(found, plain), name


@pytest.mark.parametrize("name", [name for name in SMALL if name != "full"])
def test_a_small_budget_reaches_the_logits_and_leaves_rows_that_sum_to_one(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    maps: dict[int, Tensor] = {}
    with SMALL[name](
        bridge, statistics=[FullMap], on_layer=lambda i, v, s: maps.update({i: s[0].compute()["full_map"]})
    ):
        changed = bridge(ids)
    assert float((changed - bridge(ids)).abs().max()) > 1e-3
    for pattern in maps.values():
        pattern = pattern.nan_to_num(0)
        sums = pattern.sum(-1)
        full = torch.where(sums == 0, 0.0, 1.0) if SMALL[name].may_be_empty else torch.ones_like(sums)
        torch.testing.assert_close(sums, full, atol=1e-5, rtol=0)
        assert float(pattern.triu(1).abs().max()) == 0, "attention to the future"


def holds_its_scope(policy: Policy, bridge: TransformerBridge, cut: int = 28) -> bool:
    """Whether no choice within the declared scope changes when everything after a position is replaced by noise."""
    ids = random_ids(pos=POS)
    other = ids.clone()
    other[:, cut:] = random_ids(pos=POS, seed=5)[:, cut:]
    first, second = kept_by(policy, bridge, ids).of(), kept_by(policy, bridge, other).of()
    rows = (
        slice(PROMPT, cut) if policy.scope == "prompt" else slice(0, cut // 8 * 8 if policy.scope == "block" else cut)
    )
    return all(torch.equal(first[layer][:, :, rows], second[layer][:, :, rows]) for layer in first)


@pytest.mark.parametrize("name", SMALL)
def test_what_comes_later_changes_no_choice_beyond_the_declared_scope(name: str, zoo: Path) -> None:
    """A rule that claims to be global must fail this."""
    scope, same = SMALL[name].scope, holds_its_scope(SMALL[name], boot("llama", zoo))
    if name in ("shifted_groups", "low_rank_keys"):  # masks do not move; their leak has a test of its own
        assert scope == "global"
    else:
        assert same == (scope != "global"), name


@pytest.mark.parametrize("name", [name for name, rule in SMALL.items() if rule.scope == "prompt"])
def test_a_rule_of_the_prompt_does_depend_on_the_prompts_end(name: str, zoo: Path) -> None:
    """Or the scope would be declared too wide."""
    if name == "tri_shape":
        pytest.skip("its mask depends on the prompt's length alone")
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    other = ids.clone()
    other[:, PROMPT - 4 : PROMPT] = random_ids(pos=POS, seed=6)[:, PROMPT - 4 : PROMPT]
    first, second = kept_by(SMALL[name], bridge, ids).of(), kept_by(SMALL[name], bridge, other).of()
    rows = slice(0, PROMPT - 4) if name in ("vertical_slash", "flex_prefill") else slice(PROMPT, None)
    assert not torch.equal(first[0][:, :, rows], second[0][:, :, rows])


@pytest.mark.parametrize("name", MOST)
def test_the_budget_is_kept_in_every_row(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    masks = kept_by(SMALL[name], bridge, ids)
    cut = {
        layer: kept for layer, kept in masks.of().items() if not (name in ("tidal_decode", "sp_atten") and layer == 0)
    }
    most = max(int(kept.sum(-1).max()) for kept in cut.values())
    assert most <= MOST[name] and most >= MOST[name] // 2
    table = masks.by_head()
    expected = masks.of()[1][:, 2].sum(-1).float().mean()
    row = table[(table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    assert row["kept"] == pytest.approx(float(expected), abs=1e-5)
    assert 0 < row["mass"] <= 1 + 1e-6 and row["first_kept"] <= row["first_mass"] + 1e-6


@pytest.mark.parametrize("name", [name for name, rule in SCOPED.items() if rule.evicts])
def test_what_is_evicted_never_comes_back(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    for kept in kept_by(SMALL[name], bridge, ids).of().values():
        start = PROMPT if SMALL[name].scope == "prompt" else 0
        for row in range(start, POS - 1):
            later, now = kept[:, :, row + 1].clone(), kept[:, :, row]
            later[..., row + 1] = False
            assert not bool((later & ~now).any()), row


@pytest.mark.parametrize("name", ["recycled", "top_k", "quest", "alisa", "token_select", "block_top_k"])
def test_rules_that_choose_anew_do_bring_keys_back(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    kept = kept_by(SMALL[name], bridge, ids).of()[1]
    back = (kept[:, :, 1:] & ~kept[:, :, :-1]) & torch.ones(POS - 1, POS, dtype=torch.bool).tril(0)
    assert bool(back.any()) and not SMALL[name].evicts


@pytest.mark.parametrize("name", SMALL)
def test_the_kept_keys_are_the_same_within_the_declared_group(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    found = kept_by(SMALL[name], bridge, ids).of()
    for kept in found.values():
        group = {"head": 1, "kv_group": 2, "layer": 4, "model": 4}[SMALL[name].group]
        parts = kept.unflatten(1, (-1, group))
        assert torch.equal(parts, parts[:, :, :1].expand_as(parts))
    if SMALL[name].group == "model" and name != "long_gen":
        assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    "name", [n for n, rule in SMALL.items() if rule.scope not in ("global", "block") and n != "tri_shape"]
)
def test_decoding_with_a_cache_is_one_pass(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    policy = SMALL[name]
    torch.testing.assert_close(decoded(bridge, policy, ids), under(bridge, policy, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("shifted_groups",)])
def test_left_padding_and_company_change_nothing(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    policy, pad = SMALL[name], 7
    if SMALL[name].prompt:
        policy = replace(policy, prompt=PROMPT - pad)
    mask = padding_mask(2, POS, pad, "left")
    padded = under(bridge, policy, ids, attention_mask=mask)
    alone = under(bridge, policy, ids[1:, pad:])
    if policy.scope == "block":
        pytest.skip("blocks of queries are counted in the text, and one may be cut by a block of the engine")
    torch.testing.assert_close(padded[1:, pad:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_padding_behind_a_text_changes_nothing(name: str, zoo: Path) -> None:
    """Padding is longer than any window here, so that its own rows would read nothing; it has no say in other rows."""
    bridge, ids, end = boot("llama", zoo), random_ids(pos=POS), 25
    mask = padding_mask(2, POS, POS - end, "right")
    padded = under(bridge, SMALL[name], ids, attention_mask=mask)
    alone = under(bridge, SMALL[name], ids[1:, :end])
    torch.testing.assert_close(padded[1:, :end], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded[:1], under(bridge, SMALL[name], ids[:1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_policy_goes_to_json_and_back(name: str) -> None:
    for policy in (SMALL[name], LARGE[name], SMALL[name] & SMALL["sink_window"]):
        assert Intervention.from_json(policy.to_json()) == policy
        assert hash(policy) == hash(Intervention.from_json(policy.to_json()))


@pytest.mark.parametrize(
    "name", [n for n, rule in SMALL.items() if type(rule).sized.__func__ is not Policy.sized.__func__]
)
def test_a_rule_sized_for_a_budget_reads_about_that_many_keys(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=64)
    means = []
    for keys in (8, 16, 32):
        policy = replace(type(SMALL[name]).sized(keys, 64), prompt=40)
        table = kept_by(policy, bridge, ids).by_head(first_row=40)
        means.append(float(table["kept"].mean()))
    if name != "full":
        assert means == sorted(means) and means[0] < 60, means
    if SMALL[name].scope == "causal" and name not in ("full", "long_gen", "sp_atten", "tidal_decode", "recycled"):
        assert all(mean <= keys + 1e-6 for mean, keys in zip(means, (8, 16, 32), strict=True)), means


def test_position_and_score_rules_give_the_same_through_the_bridges_hooks(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    for name in ("sink_window", "top_k", "coverage", "h2o", "tova", "block_top_k", "alisa", "recycled", "sp_atten"):
        fast, hooks = (on_path(bridge, SMALL[name], path, ids) for path in ("fast", "fallback"))
        torch.testing.assert_close(fast, hooks, atol=1e-4, rtol=0, msg=name)
    with pytest.raises(UnsupportedArchitectureError, match="reads queries and keys"):
        on_path(bridge, SMALL["quest"], "fallback", ids)


def test_looking_changes_nothing_and_agrees_with_the_rule_at_the_first_layer(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    with AttentionEngine(bridge):
        plain = bridge(ids)
    look, applied = Masks(), Masks()
    with SMALL["h2o"].counted(look, only_look=True)(bridge):
        assert torch.equal(bridge(ids), plain)
    with SMALL["h2o"].counted(applied)(bridge):
        assert not torch.equal(bridge(ids), plain)
    assert torch.equal(look.of()[0], applied.of()[0])
    first, second = (each.by_head() for each in (look, applied))
    torch.testing.assert_close(*(torch.tensor(t[t["layer"] == 0]["mass"].to_numpy()) for t in (first, second)))
    assert not torch.equal(look.of()[1], applied.of()[1])


def test_top_k_keeps_the_most_attention_for_its_size(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    mass = {}
    for name in ("top_k", "sink_window", "tova"):
        policy = {"top_k": SMALL["top_k"], "sink_window": SMALL["sink_window"], "tova": SMALL["tova"]}[name]
        account = Account()
        with (replace(policy, k=9) if name == "top_k" else policy).counted(account, only_look=True)(bridge):  # type: ignore[call-arg]
            bridge(ids)
        mass[name] = account.by_head()["mass"].to_numpy()
    assert (mass["top_k"] >= mass["sink_window"] - 1e-6).all() and (mass["top_k"] >= mass["tova"] - 1e-6).all()


def test_a_row_that_would_read_nothing_is_refused(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    with pytest.raises(InputError, match="nothing to read in L0H0"), SMALL["top_k"].__class__(0)(bridge):
        bridge(ids)


def test_nothing_is_left_behind(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    before = bridge(ids)
    for policy in SMALL.values():
        under(bridge, policy, ids)
    assert torch.equal(bridge(ids), before)
    assert not any(point.fwd_hooks for point in bridge.hook_dict.values())


def test_scores_that_move_together_change_no_choice(zoo: Path) -> None:
    """A constant on a row moves nothing; a factor leaves top-k sets and changes coverage."""
    scores = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(0))
    scores = scores.masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -math.inf)
    at = torch.arange(12)

    def kept(policy: Policy, values: Tensor) -> Tensor:
        return policy.keep(View(0, 2, values, at, at, (0, 1, 2, 3), 4, 2)) & (values != -math.inf)

    for name in ("top_k", "coverage", "h2o", "tova", "block_top_k", "alisa", "recycled", "token_select"):
        assert torch.equal(kept(SMALL[name], scores), kept(SMALL[name], scores + 3)), name
    assert torch.equal(kept(SMALL["top_k"], scores), kept(SMALL["top_k"], scores * 2))
    assert not torch.equal(kept(SMALL["coverage"], scores), kept(SMALL["coverage"], scores * 2))
    tied = torch.zeros_like(scores).masked_fill(scores == -math.inf, -math.inf)
    for name in ("top_k", "h2o", "tova", "token_select"):
        assert int(kept(SMALL[name], tied).sum(-1).max()) <= MOST[name]
