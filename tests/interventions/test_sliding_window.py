"""SlidingWindow against StreamingLLM's cache: which keys a query sees for R and for R + 1, evicted keys, bb-1l."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, SlidingWindow
from sinklens.interventions.kv_groups import heads_of_kv, kv_head_count
from sinklens.lab.bigram_backcopy import BigramBackcopy
from sinklens.lab.streams import stream
from tests.families import boot, random_ids
from tests.interventions import invariants, reference

POS = 40


def evict(kept: list[int], sinks: int, recent: int) -> list[int]:
    """StreamingLLM's StartRecentKVCache: what stays of a cache after a forward pass (card xiao2023, (b))."""
    if len(kept) <= sinks + recent:
        return kept
    return kept[:sinks] + kept[len(kept) - recent :]


def seen_by(query: int, sinks: int, recent: int) -> list[int]:
    """Keys of a query that decodes token by token with that cache: the cache as it was left, and itself."""
    cache: list[int] = []
    for token in range(query):
        cache = evict([*cache, token], sinks, recent)
    return [*cache, query]


def test_the_reference_is_that_of_the_card() -> None:
    assert evict(list(range(10)), 4, 4) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert evict([0, 1, 2, 3, 6, 7, 8, 9], 4, 4) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert seen_by(10, 4, 4) == [0, 1, 2, 3, 6, 7, 8, 9, 10]


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 6))
def test_visible_keys_are_those_of_the_cache(zoo: Path, recent: int, sinks: int) -> None:
    bridge, ids = boot("llama", zoo), random_ids(batch=1, pos=24)
    streaming = reference.patterns(bridge, ids, SlidingWindow.streaming(recent, sinks))[1][0, 0] > 0
    window = reference.patterns(bridge, ids, SlidingWindow(recent, sinks))[1][0, 0] > 0
    for query in range(24):
        expected = seen_by(query, sinks, recent)
        assert streaming[query].nonzero().flatten().tolist() == expected
        # the same number as a window counts the query itself: the oldest of the recent keys is gone
        if len(expected) == sinks + recent + 1:
            expected = expected[:sinks] + expected[sinks + 1 :]
        assert window[query].nonzero().flatten().tolist() == expected


def test_both_spellings() -> None:
    assert SlidingWindow.streaming(recent=4, sinks=1) == SlidingWindow(5, sinks=1)
    assert SlidingWindow.streaming(4) == SlidingWindow(5)
    for wrong in (0, -1, 2.5, True, None):
        with pytest.raises(InputError, match="recent must be an integer from 1"):
            SlidingWindow.streaming(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sinks must be"):
        SlidingWindow.streaming(3, -1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_text_that_fits_the_cache_is_unchanged(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    plain = bridge(ids)
    for recent, sinks in ((POS - 1, 0), (POS - 5, 4)):
        fits = SlidingWindow.streaming(recent, sinks)  # recent + sinks + 1 keys for the last query
        torch.testing.assert_close(reference.under(bridge, fits, ids), plain, atol=1e-5, rtol=0)
        cut = reference.under(bridge, SlidingWindow.streaming(recent - 1, sinks), ids)
        torch.testing.assert_close(cut[:, :-1], plain[:, :-1], atol=1e-5, rtol=0)
        assert float((cut - plain)[:, -1].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_twice_is_once_and_no_sinks_is_a_plain_window(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    once = SlidingWindow(6, sinks=2)
    assert torch.equal(reference.under(bridge, once + once, ids), reference.under(bridge, once, ids))
    back = torch.arange(POS)[:, None] - torch.arange(POS)
    seen = reference.patterns(bridge, ids, SlidingWindow(6))[0] > 0
    assert not seen[..., back >= 6].any() and bool(seen[:, :, (back >= 0) & (back < 6)].any(1).all())


@pytest.mark.parametrize(("recent", "sinks"), [(6, 2), (5, 0), (1, 1)])
def test_it_equals_a_cache_that_is_cut_after_every_token(recent: int, sinks: int, zoo: Path) -> None:
    """Keys keep the positions they were rotated with; values carry what their tokens saw when they arrived."""
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    model, cache, parts = bridge.original_model, None, []
    for token in range(POS):
        place = torch.full((2, 1), token)
        out = model(ids[:, token : token + 1], past_key_values=cache, position_ids=place, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
        kept = evict(list(range(cache.layers[0].keys.shape[2])), sinks, recent)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    evicted = torch.cat(parts, 1)
    found = reference.under(bridge, SlidingWindow.streaming(recent, sinks), ids)
    torch.testing.assert_close(found, evicted, atol=1e-4, rtol=0)
    assert float((reference.under(bridge, SlidingWindow(recent, sinks), ids) - evicted).abs().max()) > 1e-2
    # encoding only the kept tokens anew is something else: deeper keys and values carry what was evicted
    kept = torch.tensor(seen_by(POS - 1, sinks, recent))
    anew = bridge(ids[:, kept], position_ids=kept[None].expand(2, -1))[:, -1]
    assert float((anew - evicted[:, -1]).abs().max()) > 1e-3


# ------------------------------------------------------------------ StreamingLLM in miniature
def damage(
    bridge: TransformerBridge, length: int, methods: dict[str, Intervention], after: int = 20
) -> dict[str, tuple[float, float]]:
    """Rise of the mean loss in nats at dormant positions (no trigger there) and after triggers, by method.

    Queries from ``after`` on, for 256 sequences of Bigram-Backcopy.
    """
    task = BigramBackcopy(seq_len=length)
    ids = task.sample(256, length + 1, stream(0, "streaming in miniature"))
    queries, late = ids[:, :-1], torch.arange(length) >= after
    trigger = task.trigger_mask(queries)

    def losses(logits: Tensor) -> Tensor:
        loss = cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none").view(queries.shape)
        return torch.stack([loss[~trigger & late].mean(), loss[trigger & late].mean()])

    clean = losses(bridge(queries))
    assert float(clean[1]) < 0.05  # it has learnt to copy
    rises = {name: losses(reference.under(bridge, method, queries)) - clean for name, method in methods.items()}
    return {name: (float(rise[0]), float(rise[1])) for name, rise in rises.items()}


def check_miniature(bridge: TransformerBridge, length: int) -> None:
    """Card xiao2023, check 7: evicting BOS costs dormant positions, one sink brings it back, copies do not care."""
    found = damage(
        bridge,
        length,
        {f"{s}+{w}": SlidingWindow(w, sinks=s) for s in (0, 1) for w in (2, 4, 16)}
        | {"4+4": SlidingWindow(4, sinks=4), "R": SlidingWindow.streaming(4), "1+R": SlidingWindow.streaming(4, 1)},
    )
    dormant = {name: rise for name, (rise, _) in found.items()}
    for without, kept in (("0+4", "1+4"), ("R", "1+R")):  # 4 keys with the query's own, and 4 besides it
        assert dormant[without] >= 0.04
        assert dormant[kept] <= min(0.01, dormant[without] / 10)
    assert dormant["0+2"] > dormant["0+4"] > dormant["0+16"] > 0.01
    assert abs(dormant["4+4"] - dormant["1+4"]) <= 0.002  # a second sink brings nothing more
    assert all(abs(copies) <= 0.01 for _, copies in found.values()), found


def test_streaming_in_miniature_on_the_built_in_model() -> None:
    check_miniature(sinklens.load("bb-1l"), 128)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_streaming_in_miniature_by_seed(seed: int, tmp_path: Path) -> None:
    """The built-in model is seed 0 of this recipe."""
    from sinklens.lab.training import train_bb

    with torch.enable_grad():
        train_bb(1, tmp_path / "bb", seq_len=128, seed=seed, device="cpu")
    check_miniature(sinklens.load(str(tmp_path / "bb")), 128)


def test_the_head_of_bb_1l_works_after_triggers_alone() -> None:
    """Zeroing the attention output costs at least 5 nats after trigger tokens and at most 0.03 elsewhere."""
    found = damage(sinklens.load("bb-1l"), 128, {"zero": AblateHeads("all")}, after=0)
    dormant, active = found["zero"]
    assert active >= 5
    assert abs(dormant) <= 0.03


# ------------------------------------------------------------------ streaming heads beside full ones (DuoAttention)
SOME = ("L0H1", "L1H0", "L1H3")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2"])
def test_only_the_named_heads_stream(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    split = SlidingWindow(6, sinks=2, heads=SOME)
    back = torch.arange(POS)[:, None] - torch.arange(POS)
    lambda_mask = (back >= 0) & ((back < 6) | (torch.arange(POS) < 2))
    plain = reference.patterns(bridge, ids)
    first = reference.patterns(bridge, ids, split)[0]  # what enters layer 0 is the same with and without
    for head in range(4):
        expected = plain[0][:, head]
        if head == 1:
            expected = reference.renormalised(expected * lambda_mask)
        torch.testing.assert_close(first[:, head], expected, atol=1e-5, rtol=0)
    later = reference.patterns(bridge, ids, split)[1]
    for head in range(4):
        hidden = later[:, head][:, ~lambda_mask]
        assert bool((hidden == 0).all()) == (head in (0, 3)), head


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_visible_keys_of_a_streaming_head_are_counted(name: str, zoo: Path) -> None:
    """Card duoattention, check 4: sinks + recent keys, fewer only where the text has no more; row 0 sees itself."""
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=POS)
    for sinks, recent in ((3, 5), (0, 4), (7, 1)):
        seen = reference.patterns(bridge, ids, SlidingWindow(recent, sinks, heads=["L1H2"]))[1][0, 2] > 0
        for row in range(POS):
            assert int(seen[row].sum()) == min(row + 1, sinks + recent)
        assert seen[0].nonzero().flatten().tolist() == [0]


def test_every_head_named_is_all_heads_and_a_cache_changes_nothing(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    every = SlidingWindow(6, sinks=2, heads=[(layer, head) for layer in range(2) for head in range(4)])
    everywhere = reference.under(bridge, SlidingWindow(6, sinks=2), ids)
    assert torch.equal(reference.under(bridge, every, ids), everywhere)
    split = SlidingWindow(6, sinks=2, heads=SOME)
    assert float((reference.under(bridge, split, ids) - everywhere).abs().max()) > 1e-2
    fits = SlidingWindow(POS - 4, sinks=4, heads=SOME)
    torch.testing.assert_close(reference.under(bridge, fits, ids), bridge(ids), atol=1e-5, rtol=0)
    for name in ("llama", "mistral", "gpt2"):
        invariants.check_decoding(name, split, zoo)
        invariants.check_padded_decoding(name, split, split, zoo)


def test_the_heads_go_to_json_and_back(zoo: Path) -> None:
    split = SlidingWindow.streaming(5, sinks=2, heads=SOME)
    assert split == SlidingWindow(6, 2, ((0, 1), (1, 0), (1, 3)))
    invariants.check_json(split)
    saved_before_there_were_heads = SlidingWindow(6, 2).to_json().replace(', "heads": "all"', "")
    assert "heads" not in saved_before_there_were_heads
    assert Intervention.from_json(saved_before_there_were_heads) == SlidingWindow(6, 2)
    with pytest.raises(InputError, match="L5H0 does not exist"):
        reference.under(boot("llama", zoo), SlidingWindow(6, 2, ["L5H0"]), random_ids())
    with pytest.raises(InputError, match="heads is empty"):
        SlidingWindow(6, 2, [])  # type: ignore[arg-type]


def test_kv_heads_and_the_query_heads_that_read_them(zoo: Path) -> None:
    grouped, plain = boot("llama", zoo), boot("gpt2", zoo)
    assert (kv_head_count(grouped), kv_head_count(plain)) == (2, 4)
    assert heads_of_kv(grouped, [(1, 1), (0, 0)]) == ((0, 0), (0, 1), (1, 2), (1, 3))
    assert heads_of_kv(plain, ["L1H3"]) == ((1, 3),)
    assert heads_of_kv(grouped, []) == ()
    for missing in ((0, 2), (2, 0)):
        with pytest.raises(InputError, match=r"KV head \d of layer \d does not exist"):
            heads_of_kv(grouped, [missing])
