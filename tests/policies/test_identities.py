"""Identities that hold for what rules drop, keep and round, and rules that lie about themselves and are caught."""

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.builtin import data_dir
from sinklens.policies import View
from sinklens.policies.alisa import Alisa
from sinklens.policies.coverage import Coverage
from sinklens.policies.fake_quant import FakeQuantKV
from sinklens.policies.full import Full
from sinklens.policies.h2o import H2O
from sinklens.policies.h2o_global import H2OGlobal
from sinklens.policies.low_rank_keys import LowRankKeys
from sinklens.policies.moa import MoA
from sinklens.policies.razor import Razor
from sinklens.policies.rounding import hadamard, quantised
from sinklens.policies.shared_pattern import SharedPattern
from sinklens.policies.shifted_groups import ShiftedGroups
from sinklens.policies.sink_window import SinkWindow
from sinklens.policies.sp_atten import SpAtten
from sinklens.policies.streaming_llm import StreamingLLM
from sinklens.policies.tidal_decode import TidalDecode
from sinklens.policies.top_k import TopK
from sinklens.policies.vertical_slash import VerticalSlash
from tests.families import FAMILIES, boot, random_ids
from tests.policies.naive import Layer, best
from tests.policies.rules import POS, PROMPT, SMALL
from tests.policies.test_invariants import holds_its_scope, kept_by, under
from tests.policies.test_oracle import layers_under

ATTENDING = [name for name, family in FAMILIES.items() if family.path != "none"]


@pytest.mark.filterwarnings("ignore:.*bridge's hooks")
@pytest.mark.parametrize("family", ATTENDING)
def test_keep_all_changes_no_bit_and_keep_self_reaches_the_logits_on_every_family(family: str, zoo: Path) -> None:
    """Or the family is refused: some bridges show scores only after they were used, and edits would be dropped."""
    bridge, ids = boot(family, zoo), random_ids(1, 12)
    with AttentionEngine(bridge, path=plan_for(bridge).path):
        plain = bridge(ids)
    try:
        alone = under(bridge, SinkWindow(0, 1), ids)
    except UnsupportedArchitectureError:
        assert FAMILIES[family].scores == "pattern"
        return
    assert torch.equal(under(bridge, Full(), ids), plain)
    assert not torch.allclose(alone, plain, atol=1e-4)


def view_of(scores: Tensor) -> View:
    at = torch.arange(scores.shape[-1])
    return View(0, 2, scores, at, at, tuple(range(len(scores))), len(scores), len(scores) // 2)


@pytest.fixture(scope="module")
def scores() -> Tensor:
    found = 2 * torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return found.masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -math.inf)


def test_divergence_from_full_attention_is_minus_log_of_the_kept_mass(scores: Tensor) -> None:
    """And the output moves by the dropped mass times the distance of the mean values of dropped and kept keys."""
    view, values = view_of(scores), torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for name in ("top_k", "coverage", "sink_window", "h2o", "tova", "alisa"):
        kept = SMALL[name].keep(view) & view.visible
        kept = kept.expand_as(scores)
        p = view.pattern
        mass = (p * kept).sum(-1)
        renormalised = torch.softmax(scores.masked_fill(~kept, -math.inf), -1)
        kl = torch.where(kept, renormalised * (renormalised / p).log(), 0.0).nan_to_num(0).sum(-1)
        torch.testing.assert_close(kl, -mass.log(), atol=1e-12, rtol=0)
        torch.testing.assert_close((renormalised - p).abs().sum(-1) / 2, 1 - mass, atol=1e-12, rtol=0)
        gone = 1 - mass
        dropped = (p * ~kept) @ values / gone.clamp(min=1e-30)[..., None]
        inside = (p * kept) @ values / mass[..., None]
        moved = torch.where(gone[..., None] > 1e-12, gone[..., None] * (dropped - inside), 0.0)
        torch.testing.assert_close(p @ values - renormalised @ values, moved, atol=1e-11, rtol=0)
        assert bool((gone > 0.05).any())


def test_coverage_holds_its_share_with_the_fewest_keys_and_top_k_the_most_mass(scores: Tensor) -> None:
    view = view_of(scores)
    for share in (0.3, 0.6, 0.9):
        kept = Coverage(share).keep(view) & view.visible
        mass, count = (view.pattern * kept).sum(-1), kept.sum(-1)
        assert bool((mass >= share - 1e-12).all())
        for h in range(4):
            for t in range(16):
                if count[h, t] > 1:  # one key less cannot hold it
                    fewer = view.pattern[h, t].sort(descending=True).values[: int(count[h, t]) - 1].sum()
                    assert float(fewer) < share
    for name in ("sink_window", "tova", "token_select", "block_top_k"):
        kept = SMALL[name].keep(view).expand_as(scores) & view.visible
        for h in range(4):
            for t in range(16):
                top = view.pattern[h, t].topk(int(kept[h, t].sum())).values.sum()
                assert float(top) >= float((view.pattern[h, t] * kept[h, t]).sum()) - 1e-12


def test_a_larger_budget_holds_more_mass_where_sets_nest(scores: Tensor) -> None:
    view = view_of(scores)
    for rules in (
        [TopK(k) for k in (2, 4, 8)],
        [Coverage(s) for s in (0.2, 0.5, 0.9)],
        [SinkWindow(1, r) for r in (2, 5, 9)],
    ):
        masks = [rule.keep(view).expand_as(scores) & view.visible for rule in rules]
        for small, large in pairwise(masks):
            assert not bool((small & ~large).any()) and bool((large & ~small).any())


@pytest.mark.parametrize("name", ["h2o", "tova", "sink_window", "snap_kv", "keyformer", "d2o"])
def test_a_cache_grows_with_its_budget(name: str, zoo: Path) -> None:
    bridge, ids, held = boot("llama", zoo), random_ids(1, 64), []
    for keys in (8, 16, 32):
        policy = replace(type(SMALL[name]).sized(keys, 64), prompt=40)
        held.append(float(kept_by(policy, bridge, ids).by_kv_head(40)["held"].mean()))
    assert held == sorted(held) and held[0] < held[-1]


NOT_ITSELF = {"top_k", "coverage", "double_sparsity", "tidal_decode", "routing", "landmark", "shared_pattern", "moa"}
"""Rules that may leave out the query's own key: their papers force neither it nor recent ones. The small MoA here has a
window of 0, which its paper's least size of 128 excludes."""


@pytest.mark.parametrize("name", SMALL)
def test_a_row_reads_its_own_key_unless_the_rule_says_otherwise(name: str, zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    own = [kept[..., :POS].diagonal(dim1=-2, dim2=-1).all() for kept in kept_by(SMALL[name], bridge, ids).of().values()]
    assert all(own) or name in NOT_ITSELF


@pytest.mark.parametrize(
    "name", ["top_k", "coverage", "h2o", "tova", "block_top_k", "alisa", "token_select", "long_heads"]
)
def test_heads_that_change_places_take_their_choices_along(name: str, scores: Tensor) -> None:
    order = torch.tensor([2, 0, 3, 1])
    kept, moved = (SMALL[name].keep(view_of(each)).expand_as(scores) for each in (scores, scores[order]))
    assert torch.equal(kept[order], moved)


def test_seeds_repeat_and_differ(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    for name in ("keyformer", "hyper_attention", "sea", "routing", "attention_gate"):
        rule = SMALL[name]
        first, again = (under(bridge, rule, ids) for _ in range(2))
        other = under(bridge, replace(rule, seed=1), ids)  # type: ignore[call-arg]
        assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3), name


def test_rules_that_lie_about_what_they_look_at_are_caught(zoo: Path) -> None:
    @dataclass(frozen=True)
    class CausalSlash(VerticalSlash):
        scope: ClassVar = "causal"
        name: ClassVar[str] = ""

    @dataclass(frozen=True)
    class CausalSums(H2OGlobal):
        scope: ClassVar = "causal"
        name: ClassVar[str] = ""

    bridge = boot("llama", zoo)
    slash = CausalSlash(4, 4, voters=6, first=1, recent=2, prompt=PROMPT)
    assert not holds_its_scope(slash, bridge, cut=PROMPT - 4)
    assert not holds_its_scope(CausalSums(4, 4), bridge)
    assert holds_its_scope(H2O(4, 4), bridge) and holds_its_scope(
        replace(SMALL["vertical_slash"], prompt=PROMPT), bridge
    )


def test_the_published_shift_reads_the_future_and_the_engine_does_not_let_it(zoo: Path) -> None:
    rule, at = ShiftedGroups(8, n_tokens=POS), torch.arange(POS)
    ahead = rule.published(at, at).triu(1)
    assert ahead[:4].any(-1).all() and not bool(ahead[4:].any())  # the first tokens stand behind the last ones
    assert int(ahead.sum()) == 4 * 4
    for kept in kept_by(rule, boot("llama", zoo), random_ids(pos=POS)).of().values():
        assert not bool(kept[..., :POS].triu(1).any())


def test_the_mean_key_changes_no_weight_and_rounding_errs_by_half_a_step() -> None:
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(6, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close((q @ k.T).softmax(-1), (q @ (k - k.mean(0)).T).softmax(-1), atol=1e-12, rtol=0)
    errors = []
    for bits in (2, 3, 4, 8):
        rounded = quantised(k, bits)
        step = (k.amax(-1) - k.amin(-1)) / (2**bits - 1)
        assert bool(((rounded - k).abs().amax(-1) <= step / 2 + 1e-9).all())
        assert len(quantised(torch.linspace(0, 1, 4096), bits).unique()) == 2**bits
        errors.append(float((rounded - k).abs().max()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_turning_keys_changes_no_score_and_spreads_one_large_channel() -> None:
    """RotateKV's identity: (q H)(k H)^T = q k^T; and why it helps: a lone outlier no longer widens the range alone."""
    turn = hadamard(16).double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(16, dtype=torch.float64))
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(8, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close((q @ turn) @ (k @ turn).T, q @ k.T, atol=1e-12, rtol=0)
    k[:, 3] = 40
    plain, turned = quantised(k, 2), quantised(k @ turn, 2) @ turn.T
    assert float((turned - k).norm()) < 0.9 * float((plain - k).norm())
    for bits in (2, 4):  # the release takes bits**2 - 1 for 2**bits - 1: right for 2 and 4, wrong for 3
        assert bits**2 == 2**bits
    assert 3**2 != 2**3


def test_one_token_that_counts_n_times_is_n_equal_tokens(zoo: Path) -> None:
    """Where the dropped keys and values are all the same, RazorAttention's token stands for them exactly."""
    at = torch.arange(16)
    scores = torch.randn(4, 16, 1, generator=torch.Generator().manual_seed(7)).expand(-1, -1, 16).clone()
    scores = scores.masked_fill(at > at[:, None], -math.inf)
    changed = Razor((), 2, 4).change_scores(view_of(scores))
    torch.testing.assert_close(changed, scores)


@torch.no_grad()
def test_numbering_a_cache_anew_moves_sinks_alone_and_only_once_it_is_full(zoo: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    @dataclass(frozen=True)
    class Watched(StreamingLLM):
        name: ClassVar[str] = ""

        def change_scores(self, view: View) -> Tensor:
            changed = super().change_scores(view)
            seen.append((view.scores.clone(), changed.clone()))
            return changed

    under(boot("llama", zoo), Watched(2, 6), random_ids(1, POS))
    for before, after in seen:
        assert torch.equal(before[..., 2:], after[..., 2:]) and torch.equal(before[:, :9], after[:, :9])
        assert not torch.allclose(before[:, 9:POS, :2], after[:, 9:POS, :2], atol=1e-3)


def test_layers_read_what_the_last_choosing_layer_noted(zoo: Path) -> None:
    """TidalDecode beside loops; at a budget as large as two thirds the layers' own choices overlap most of it."""
    bridge, ids, noted = boot("llama", zoo), random_ids(1, POS), {}
    calls, maps = layers_under(bridge, TidalDecode(6, first=0, correction=0, in_prompt=True), ids)
    first = calls[0]
    np.testing.assert_allclose(maps[0][:, :POS, :POS], first.p, atol=1e-5)
    for h in range(first.H):
        for t in range(POS):
            noted[h, t] = best({i: first.s[h, t, i] for i in range(t + 1)}, 6)
    np.testing.assert_allclose(maps[1][:, :POS, :POS], calls[1].keeping(lambda h, t: noted[h, t]), atol=1e-5)
    share = [
        len({*noted[h, t]} & {*best({i: calls[1].s[h, t, i] for i in range(t + 1)}, 6)}) / 6 for h, t in noted if t > 8
    ]
    assert 0 < np.mean(share) < 1


def test_layers_of_a_block_attend_as_its_first(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    calls, maps = layers_under(bridge, SharedPattern(0, last=2, size=2), ids)
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-6)
    np.testing.assert_allclose(maps[0][:, :POS, :POS], calls[0].p, atol=1e-5)


def test_a_token_dropped_at_one_layer_is_gone_in_the_next(zoo: Path) -> None:
    """SpAtten beside loops: importance of the layers before, summed over heads and rows so far."""
    calls, maps = layers_under(boot("llama", zoo), SpAtten(8), random_ids(1, POS))
    sums = np.cumsum(maps[0][:, :POS, :POS].sum(0), 0)

    def rule(_: int, t: int) -> list[int]:
        return [t, *best({i: sums[t, i] for i in range(t)}, 8)]

    np.testing.assert_allclose(maps[1][:, :POS, :POS], calls[1].keeping(rule), atol=1e-5)


def test_alisa_keeps_keys_that_nobody_has_looked_at_while_there_is_room() -> None:
    """Attention of sharp heads is exactly 0 for most keys; they count all the same."""
    scores = torch.zeros(1, 9, 9)
    scores[..., 1:4] = -300.0
    at = torch.arange(9)
    view = View(0, 1, scores.masked_fill(at > at[:, None], -math.inf), at, at, (0,), 1, 1)
    assert float(view.pattern[0, 8, 2]) == 0
    assert Alisa(3, 6).keep(view)[0, 8].all() and Alisa(3, 5).keep(view)[0, 8].sum() == 8


@torch.no_grad()
def test_few_bits_and_few_directions_beside_numpy(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    plain = layers_under(bridge, Full(), ids)[0][0]
    found = {
        name: layers_under(bridge, rule, ids)[1][0]
        for name, rule in {"bits": FakeQuantKV(3, protect=2, what="keys"), "rank": LowRankKeys(2)}.items()
    }
    keys = plain.k.copy()
    for h in range(plain.H):
        for t in range(2, POS):
            low, high = keys[h, t].min(), keys[h, t].max()
            levels = np.linspace(low, high, 8)
            keys[h, t] = [levels[np.abs(levels - each).argmin()] for each in keys[h, t]]
    np.testing.assert_allclose(found["bits"][:, :POS, :POS], Layer(plain.q, keys, plain.v, plain.kv_heads).p, atol=1e-4)
    for h in range(plain.H):
        u, s, w = np.linalg.svd(plain.k[h], full_matrices=False)
        keys[h] = u[:, :2] * s[:2] @ w[:2]
    np.testing.assert_allclose(found["rank"][:, :POS, :POS], Layer(plain.q, keys, plain.v, plain.kv_heads).p, atol=1e-4)


def test_the_tables_of_moa_fail_below_their_lengths(zoo: Path) -> None:
    """The example for Llama-3-8B-262k: 'all but 1024' keeps everything but 1024 at 8192, and 128 tokens at 1152."""
    sizes = {}
    for n in (8192, 1152, 512):
        rule = MoA({"L0H0": (-1024, 1.0), "L0H1": (1024, 0.0), "L0H2": (0, 0.125)}, n_tokens=n)
        sizes[n] = [int(rule.size(head)) for head in ("L0H0", "L0H1", "L0H2")]
    assert sizes[8192] == [7168, 1024, 1024] and sizes[1152] == [128, 1024, 192] and sizes[512] == [128, 512, 128]


@pytest.mark.real
@torch.no_grad()
def test_streaming_in_miniature(smollm2: Any) -> None:
    """StreamingLLM's table: without first tokens a window's loss jumps; with four of them it does not."""
    batch = sinklens.builtin_corpus(smollm2).tokens.rows(range(2)).ids[:, :128]
    rules = {"window": SinkWindow(0, 32), "sinks": SinkWindow(4, 28), "streaming": StreamingLLM(4, 28)}
    loss = {}
    for name, rule in {"full": Full(), **rules}.items():
        with rule(smollm2):
            logits = smollm2(batch)[:, 48:-1].log_softmax(-1)
        loss[name] = float(-logits.gather(-1, batch[:, 49:, None]).mean())
    costs = {name: loss[name] - loss["full"] for name in rules}
    assert costs["window"] > 1 and max(abs(costs["sinks"]), abs(costs["streaming"])) < costs["window"] / 4, costs


@pytest.mark.real
@torch.no_grad()
def test_keys_chosen_at_one_layer_fit_the_next_ones_better_than_chance_and_a_correction_helps(smollm2: Any) -> None:
    """TidalDecode's assumption: largest keys overlap between layers, head by head, and more from a nearer layer."""
    text = (data_dir() / "texts" / "shakespeare.txt").read_text("utf-8")[3000:5000]
    ids = torch.tensor([smollm2.tokenizer(text, add_special_tokens=False)["input_ids"][:96]])
    calls = layers_under(smollm2, Full(), ids)[0]
    largest = {at: np.argsort(-calls[at].s[:, 64:96], -1)[..., :16].reshape(-1, 16) for at in (2, 12, 14, 16, 20, 24)}

    def overlap(a: int, b: int) -> float:
        return float(np.mean([len(set(x) & set(y)) / 16 for x, y in zip(largest[a], largest[b], strict=True)]))

    chance = float(np.mean([16 / (t + 1) for t in range(64, 96)]))
    first, corrected = (float(np.mean([overlap(at, late) for late in (14, 16, 20, 24)])) for at in (2, 12))
    print(f"overlap {first:.2f} from layer 2, {corrected:.2f} from layer 12, {chance:.2f} by chance")
    assert corrected > first + 0.05 > chance + 0.1


def released_h2o(attention: Tensor, heavy: int, recent: int) -> Tensor:
    """FMInference/H2O, ``local_heavy_hitter``-free global mask: column sums, top columns, and a band."""
    sums = attention.sum(-2)
    mask = torch.zeros_like(attention, dtype=torch.bool)
    mask = mask.scatter(-1, sums.topk(heavy, -1).indices[..., None, :].expand(*attention.shape[:-1], heavy), True)
    band = torch.tril(torch.triu(torch.ones_like(mask), diagonal=-recent), diagonal=recent)
    return (mask | band) & torch.ones_like(mask).tril()


def test_released_formulas_on_shared_random_inputs(scores: Tensor, zoo: Path) -> None:
    """The tensor expressions of the releases, written with their own operations, beside the rules."""
    bridge, ids = boot("llama", zoo), random_ids(1, POS)
    layer = layers_under(bridge, Full(), ids)[0][0]
    attention = torch.from_numpy(layer.p)
    kept = kept_by(H2OGlobal(4, 4), bridge, ids).of()[0][0][..., :POS]
    assert torch.equal(kept, released_h2o(attention, 4, 4))
    # SnapKV: softmax rows of the window, sum, average pool, topk of the prefix; cat with the window
    voters = attention[:, PROMPT - 4 : PROMPT, : PROMPT - 4].sum(-2)
    pooled = torch.nn.functional.avg_pool1d(voters[None], 3, padding=1, stride=1)[0]
    prefix = torch.zeros(layer.H, PROMPT - 4, dtype=torch.bool).scatter(-1, pooled.topk(6, -1).indices, True)
    snap = kept_by(SMALL["snap_kv"], bridge, ids).of()[0][0]
    assert torch.equal(snap[:, PROMPT, : PROMPT - 4], prefix) and bool(snap[:, PROMPT, PROMPT - 4 : PROMPT + 1].all())
    # MInference: column and diagonal sums of the last rows' softmax, the first and the nearest forced by infinity
    rows = attention[:, PROMPT - 6 : PROMPT, :PROMPT]
    vertical = rows.sum(-2)
    vertical[:, :1] = math.inf
    slash = torch.zeros(layer.H, PROMPT, dtype=rows.dtype)
    for r in range(6):
        at = PROMPT - 6 + r
        slash[:, : at + 1] += rows[:, r, : at + 1].flip(-1)
    slash[:, :2] = math.inf
    v = torch.zeros(layer.H, PROMPT, dtype=torch.bool).scatter(-1, vertical.topk(4, -1).indices, True)
    s = torch.zeros(layer.H, PROMPT, dtype=torch.bool).scatter(-1, slash.topk(4, -1).indices, True)
    distance = (torch.arange(PROMPT)[:, None] - torch.arange(PROMPT)).clamp(min=0)
    expected = (v[:, None] | s[:, distance]).tril()
    assert torch.equal(kept_by(SMALL["vertical_slash"], bridge, ids).of()[0][0][:, :PROMPT, :PROMPT], expected)
    # Quest: sum over channels of the larger of q m and q x, by page
    q, k = torch.from_numpy(layer.q), torch.from_numpy(layer.k)
    low, high = (getattr(k.unflatten(1, (-1, 4)), name)(2) for name in ("amin", "amax"))
    bound = torch.maximum(q[:, :, None] * low[:, None], q[:, :, None] * high[:, None]).sum(-1)
    t = 30
    pages = bound[:, t, : t // 4].topk(2, -1).indices
    quest = kept_by(SMALL["quest"], bridge, ids).of()[0][0][:, t, :t]
    chosen = torch.zeros(layer.H, t // 4 + 1, dtype=torch.bool).scatter(-1, pages, True)
    chosen[:, t // 4] = True
    assert torch.equal(quest, chosen.repeat_interleave(4, -1)[:, :t])


def test_every_property_on_the_page_has_tests_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies" / "invariants.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|.*$", page, re.MULTILINE)
    named = set(re.findall(r"`(test_\w+)`", page))
    files = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert rows == [str(n) for n in range(1, 26)] and named
    assert all(f"def {name}(" in files for name in named), sorted(n for n in named if f"def {n}(" not in files)
