"""ACT: the redistribution's algebra, both sink rules, both ways of finding sinks, and decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, CalibrateSinks, MaskKeys, ScaleKeys
from sinklens.interventions.redistribution import move_mass
from tests.attention import dense
from tests.families import FAMILIES, boot, padding_mask, random_ids
from tests.interventions import invariants, reference
from tests.interventions.invariants import POS, PROMPT
from tests.interventions.planted import edited, stochastic
from tests.ties import same_choice

SOME = ((0, 1), (0, 2), (1, 3))
PAST = CalibrateSinks(alpha=2.0)
ABSOLUTE = CalibrateSinks(heads=SOME, rule="absolute", beta=0.2)
WHOLE = CalibrateSinks(alpha=1.5, sinks_from="prompt")
TOLD = CalibrateSinks(alpha=1.5, sinks_from="prompt", prompt_length=PROMPT)
METHODS = [PAST, ABSOLUTE, WHOLE, TOLD]


# ------------------------------------------------------------------ the slow way
def limit(method: CalibrateSinks, tokens: int) -> float:
    return method.alpha / tokens if method.rule == "alpha/N" else method.threshold


def sinks_of(method: CalibrateSinks, pattern: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Which keys are sinks for which row [q_pos k_pos], key by key."""
    n = len(pattern)
    found = np.zeros((n, n), dtype=bool)
    prompt = n if method.prompt_length is None else int(method.prompt_length)  # type: ignore[arg-type]
    for last in range(n) if method.sinks_from == "past" else [prompt - 1]:
        rows = [last] if method.sinks_from == "past" else range(n)
        for j in range(1, last + 1):
            queries = [r for r in range(j, last + 1) if visible[r, j]]
            if queries:
                found[rows, j] = pattern[queries, j].mean() > limit(method, last + 1)
    return found


def calibrated(method: CalibrateSinks, pattern: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """One head's pattern by the card's formula."""
    out, sinks = pattern.copy(), sinks_of(method, pattern, visible)
    for i, row in enumerate(pattern):
        freed = (1 - method.beta) * row[sinks[i]].sum()
        others = row[~sinks[i]].sum()
        if others > 1e-30:
            out[i] = np.where(sinks[i], method.beta * row, row + freed * row / others)
    return out


def change_for(name: str, method: CalibrateSinks) -> Any:
    def change(layer: int, pattern: Tensor) -> Tensor:
        visible = dense.causal(pattern.shape[-1], pattern.shape[-1], FAMILIES[name].windows[layer])[0].numpy()
        heads = range(4) if method.heads == "all" else [h for at, h in method.heads if at == layer]  # type: ignore[misc]
        pattern = pattern.clone()
        for sequence in range(len(pattern)):
            for head in heads:
                new = calibrated(method, pattern[sequence, head].numpy(), visible)
                pattern[sequence, head] = torch.from_numpy(new)
        return pattern

    return change


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
def test_it_equals_loops_over_whole_patterns(name: str, method: CalibrateSinks, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    expected = reference.logits(bridge, name, ids, change_for(name, method))
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("method", [CalibrateSinks(alpha=6.0), CalibrateSinks(alpha=6.0, sinks_from="prompt")])
def test_long_texts(name: str, method: CalibrateSinks, zoo: Path) -> None:
    # blocks of rows follow each other and carry hidden extra columns
    bridge, ids = boot(name, zoo), random_ids(batch=1, pos=128 + 13)
    for layer, pattern in [*reference.patterns(bridge, ids).items()][:1]:
        expected = change_for(name, method)(layer, pattern)
        found = reference.patterns(bridge, ids, method)[layer]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert float((found - pattern).abs().max()) > 1e-2


# ------------------------------------------------------------------ algebra (card act, check 1)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), seed=st.integers(0, 999), beta=st.sampled_from([0.0, 0.25, 0.4, 0.9]))
def test_row_sums_and_ratios(n: int, seed: int, beta: float) -> None:
    pattern, sinks = stochastic(n, seed), torch.zeros(n, dtype=torch.bool)
    sinks[[n // 3, n // 2]] = True
    after = move_mass(pattern, sinks, ~sinks, beta)
    assert float((after.sum(-1) - 1).abs().max()) < 1e-6
    assert torch.equal(after[..., sinks], pattern[..., sinks] * beta)
    growth = after[..., ~sinks] / pattern[..., ~sinks]
    seen = pattern[..., ~sinks] > 1e-6
    mean = growth.masked_fill(~seen, 0).sum(-1) / seen.sum(-1)
    gap = (growth - mean[..., None]).masked_fill(~seen, 0)  # all others grow by one factor
    assert float((gap / mean[..., None]).abs().max()) < 1e-5
    assert bool((mean[:, n // 2 :] > 1).all())
    assert torch.equal(move_mass(pattern, sinks, ~sinks, 1.0), pattern)


def test_a_row_with_all_its_weight_on_sinks_stays() -> None:
    pattern = torch.tensor([[[0.0, 1.0, 0.0], [0.25, 0.75, 0.0]]])
    sinks = torch.tensor([False, True, False])
    after = move_mass(pattern, sinks, ~sinks, 0.4)
    torch.testing.assert_close(after, torch.tensor([[[0.0, 1.0, 0.0], [0.7, 0.3, 0.0]]]))
    assert torch.equal(after[0, 0], pattern[0, 0])


@pytest.mark.parametrize("sinks_from", ["past", "prompt"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom"])
def test_beta_1_changes_no_bit(name: str, sinks_from: Any, zoo: Path) -> None:
    invariants.check_identity(
        name, CalibrateSinks(rule="absolute", threshold=0.0, beta=1.0, sinks_from=sinks_from), zoo
    )


@pytest.mark.parametrize("method", [PAST, WHOLE], ids=repr)
def test_weight_beside_a_learned_sink_is_kept(method: CalibrateSinks, zoo: Path) -> None:
    bridge, ids = boot("gpt_oss", zoo), random_ids(pos=POS)
    before, after = (reference.patterns(bridge, ids, m)[0] for m in (None, method))
    torch.testing.assert_close(after.sum(-1), before.sum(-1), atol=1e-6, rtol=0)
    assert float((after - before).abs().max()) > 1e-2
    assert torch.equal(after[:, :, 0], before[:, :, 0])


# ------------------------------------------------------------------ what a sink is (checks 2 and 3)
def flat_with_sink(n: int, sink: int, mass: float, first: float) -> Tensor:
    """Rows with ``first`` on key 0, ``mass`` on the sink and the rest shared by all other visible keys."""
    pattern = torch.zeros(n, n)
    for i in range(n):
        weights = torch.ones(i + 1)
        weights[0], rest = 0, 1 - first
        if i >= sink:
            weights[sink], rest = 0, rest - mass
        if weights.sum() > 0:
            pattern[i, : i + 1] = rest * weights / weights.sum()
        pattern[i, 0] = first if i > 0 else 1
        if i >= sink:
            pattern[i, sink] = mass
    return pattern / pattern.sum(-1, keepdim=True)


@pytest.mark.parametrize("sinks_from", ["past", "prompt"])
def test_the_two_rules_differ(sinks_from: Any) -> None:
    pattern = flat_with_sink(200, sink=60, mass=0.05, first=0.5)[None]
    assert abs(float(pattern[0, 60:, 60].mean()) - 0.05) < 1e-6
    relative = edited(pattern, CalibrateSinks(sinks_from=sinks_from))
    absolute = edited(pattern, CalibrateSinks(rule="absolute", sinks_from=sinks_from))
    assert abs(float(relative[0, 199, 60]) / 0.05 - 0.4) < 1e-4  # 0.05 > 5 / 200
    assert abs(float(absolute[0, 199, 60]) / 0.05 - 1.0) < 0.2  # 0.05 < 0.1, though it may receive
    assert float(absolute[0, 199, 60]) >= 0.05 - 1e-6


@pytest.mark.parametrize("sinks_from", ["past", "prompt"])
@pytest.mark.parametrize("first", [0.001, 0.9])
def test_position_0_is_spared_and_only_it(sinks_from: Any, first: float) -> None:
    # the released code spares the first sink, which is key 20 when position 0 is no sink
    pattern = flat_with_sink(80, sink=20, mass=0.09, first=first)[None]
    after = edited(pattern, CalibrateSinks(sinks_from=sinks_from))
    assert abs(float(after[0, -1, 20]) / 0.09 - 0.4) < 1e-4
    assert float(after[0, -1, 0]) > float(pattern[0, -1, 0])


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 50), seed=st.integers(0, 999), rows=st.sampled_from([1, 7, 16, None]), beta=st.floats(0, 1))
def test_blocks_do_not_matter(n: int, seed: int, rows: int | None, beta: float) -> None:
    pattern = stochastic(n, seed)
    visible = np.tril(np.ones((n, n), dtype=bool))
    for sinks_from in ("past", "prompt"):
        method = CalibrateSinks(alpha=1.7, beta=beta, sinks_from=sinks_from)  # type: ignore[arg-type]
        found = edited(pattern, method, rows)
        expected = np.stack([calibrated(method, head.numpy().astype(float), visible) for head in pattern])
        torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=2e-5, rtol=0)


# ------------------------------------------------------------------ caches, padding, paths (check 4)
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding_of_the_past(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, PAST, zoo)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom", "gpt_oss"])
def test_cached_decoding_of_the_prompt(name: str, zoo: Path) -> None:
    invariants.check_decoding(name, TOLD, zoo, untold=WHOLE)


def test_sinks_of_the_past_do_not_see_the_future(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    other = torch.cat([ids[:, :25], random_ids(pos=POS, seed=9)[:, 25:]], 1)
    for method, sees in ((PAST, False), (WHOLE, True)):
        a, b = (reference.under(bridge, method, x)[:, :25] for x in (ids, other))
        assert (float((a - b).abs().max()) > 1e-3) == sees


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("method", [PAST, WHOLE], ids=repr)
def test_left_padding_does_not_count(name: str, method: CalibrateSinks, zoo: Path) -> None:
    invariants.check_left_padding(name, method, zoo)


def test_left_padded_decoding(zoo: Path) -> None:
    alone = CalibrateSinks(alpha=1.5, sinks_from="prompt", prompt_length=PROMPT - 7)
    several = CalibrateSinks(alpha=1.5, sinks_from="prompt", prompt_length=(PROMPT, PROMPT - 7))
    for method in (WHOLE, several):
        invariants.check_padded_decoding("llama", method, alone, zoo)
    invariants.check_padded_decoding("llama", PAST, PAST, zoo)


@pytest.mark.parametrize("told", [True, False])
def test_right_padding_that_is_known_does_not_count(told: bool, zoo: Path) -> None:
    bridge, ids, n = boot("llama", zoo), random_ids(pos=POS), 9
    mask = padding_mask(2, POS, n, "right")
    method = CalibrateSinks(alpha=1.5, sinks_from="prompt", prompt_length=(POS, POS - n) if told else None)
    found = reference.under(bridge, method, ids) if told else reference.under(bridge, method, ids, attention_mask=mask)
    expected = reference.under(bridge, WHOLE, ids[1:, :-n])
    torch.testing.assert_close(found[1:, :-n], expected, atol=1e-4, rtol=0)
    with WHOLE(bridge, real=mask.bool()):
        torch.testing.assert_close(bridge(ids)[1:, :-n], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_engine_and_hooks_agree(name: str, method: CalibrateSinks, zoo: Path) -> None:
    invariants.check_both_paths(name, method, zoo)


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("first", [PAST, WHOLE], ids=["past", "prompt"])
def test_compositions_see_what_came_before(name: str, first: CalibrateSinks, zoo: Path) -> None:
    # sinks are found in the pattern as earlier parts leave it; scores are all edited before any pattern
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    expected = reference.logits(
        bridge, name, ids, lambda layer, p: change_for(name, first)(layer, reference.renormalised(_without(p, 5)))
    )
    for both in (first + MaskKeys(5, spare_self=False), MaskKeys(5, spare_self=False) + first):
        torch.testing.assert_close(reference.under(bridge, both, ids), expected, atol=2e-4, rtol=0)
    twice = CalibrateSinks(rule="absolute", threshold=0.15, sinks_from="prompt")
    expected = reference.logits(
        bridge, name, ids, lambda layer, p: change_for(name, twice)(layer, change_for(name, first)(layer, p))
    )
    torch.testing.assert_close(reference.under(bridge, first + twice, ids), expected, atol=2e-4, rtol=0)


def _without(pattern: Tensor, key: int) -> Tensor:
    pattern = pattern.clone()
    pattern[..., key] = 0
    return pattern


def test_text_after_text_and_steps_taken_back(zoo: Path) -> None:
    bridge, (a, b) = boot("llama", zoo), random_ids(pos=POS)[:, None]
    model = bridge.original_model
    for method in (PAST, TOLD):
        expected = {x: reference.under(bridge, method, text)[:, PROMPT:] for x, text in (("a", a), ("b", b))}
        with method(bridge):
            for name, text in (("a", a), ("b", b)):
                cache = model(text[:, :PROMPT], use_cache=True).past_key_values
                for n in (1, 2):  # tokens that are taken back
                    model(a[:, :n], past_key_values=cache, use_cache=True)
                    cache.crop(-n)
                for i in range(PROMPT, POS):
                    out = model(text[:, i : i + 1], past_key_values=cache, use_cache=True).logits
                    torch.testing.assert_close(out[:, 0], expected[name][:, i - PROMPT], atol=1e-4, rtol=0)


def test_caches_of_other_texts_are_refused(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    model = bridge.original_model
    for method in (PAST, WHOLE, TOLD):
        cache = model(ids[:, :PROMPT], use_cache=True).past_key_values
        with method(bridge), pytest.raises(InputError, match=r"under the intervention|run it inside"):
            model(ids[:, PROMPT:], past_key_values=cache)
    with PAST(bridge), pytest.raises(InputError, match="under the intervention"):
        cache = model(ids[:, :PROMPT], use_cache=True).past_key_values
        model(ids[:, PROMPT:], past_key_values=cache, use_cache=True)
        cache.crop(-2)  # the sums of the last step cannot be undone by halves
        model(ids[:, -2:], past_key_values=cache)
    with TOLD(bridge), pytest.raises(InputError, match="has to come in one forward pass"):
        cache = model(ids[:, :10], use_cache=True).past_key_values
        model(ids[:, 10:PROMPT], past_key_values=cache)


def test_generation_follows_a_full_pass(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(batch=1, pos=PROMPT)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, stop_at_eos=False, verbose=False)
    for method, told in ((PAST, PAST), (WHOLE, TOLD)):
        with method(bridge):
            text = bridge.generate(ids, return_type="tokens", use_past_kv_cache=True, **options)
        logits = reference.under(bridge, told, text)
        same_choice(text[:, PROMPT:], logits[:, PROMPT - 1 : -1])


def test_unedited_heads_stay(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    for sinks_from in ("past", "prompt"):
        method = CalibrateSinks(["L0H2"], alpha=1.5, sinks_from=sinks_from)  # type: ignore[arg-type]
        before, after = reference.patterns(bridge, ids)[0], reference.patterns(bridge, ids, method)[0]
        assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]])
        assert not torch.equal(before[:, 2], after[:, 2])


@pytest.mark.parametrize("method", [*METHODS, CalibrateSinks(sinks_from="prompt", prompt_length=(3, 4))], ids=repr)
def test_json(method: CalibrateSinks) -> None:
    invariants.check_json(method)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "other"},
        {"alpha": 0},
        {"alpha": "5"},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"beta": 1.1},
        {"beta": True},
        {"sinks_from": "future"},
        {"prompt_length": 5},
        {"prompt_length": 0, "sinks_from": "prompt"},
        {"prompt_length": (), "sinks_from": "prompt"},
        {"prompt_length": "5", "sinks_from": "prompt"},
    ],
)
def test_fields_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CalibrateSinks(**wrong)


def test_prompt_lengths_fit_the_batch(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(batch=3)
    with pytest.raises(InputError, match="names 2 sequences, the batch has 3"):
        reference.under(bridge, CalibrateSinks(sinks_from="prompt", prompt_length=(20, 20)), ids)


def test_it_adds_up_with_other_methods(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    several = ScaleKeys(0, 0.5) + PAST + AblateHeads(["L1H0"])
    torch.testing.assert_close(
        invariants.decoded(bridge, several, ids), reference.under(bridge, several, ids), atol=1e-4, rtol=0
    )
