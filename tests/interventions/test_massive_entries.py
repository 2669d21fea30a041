"""Where massive activations appear, the rule that sets them, and the control of median size, on planted ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import SetActivations, control_entries, massive_entries, mean_activations
from sinklens.interventions.entries import MassiveRule, hook_name
from sinklens.interventions.massive_entries import control_rules
from sinklens.models.tokens import TokenBatch, tokenize
from tests.families import boot, checkpoint, random_ids
from tests.interventions import reference

POS = 40
STOP = 50
"""Token whose embedding is planted: a delimiter, at another place in every text."""

Plant = tuple[int, int, int, int, float]
"""Layer, sequence, position, channel, value."""

PLANTS: list[Plant] = [
    (0, 0, 0, 7, 5000.0),
    (0, 1, 0, 7, 5200.0),
    (0, 2, 0, 7, 5400.0),
    (0, 0, 4, 7, 9000.0),
    (0, 0, 4, 20, -7000.0),
    (0, 2, 9, 7, 9600.0),
]


@contextmanager
def planted(bridge: TransformerBridge, plants: list[Plant]) -> Iterator[None]:
    """Write values into the residual stream; the layers after carry them on."""

    def at(layer: int) -> tuple[str, Any]:
        def write(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            for _, sequence, position, dim, value in (p for p in plants if p[0] == layer):
                if position < x.shape[1] and sequence < x.shape[0]:
                    x[sequence, position, dim] = value
            return x

        return hook_name(layer), write

    with bridge.hooks(fwd_hooks=[at(layer) for layer in sorted({p[0] for p in plants})]):
        yield


@pytest.fixture
def batch(zoo: Path) -> TokenBatch:
    rows = [random_ids(batch=1, pos=n, seed=n)[0].tolist() for n in (40, 17, 30)]
    return tokenize(boot("llama", zoo), rows)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "mamba", "qwen3_next"])
def test_exactly_the_planted_entries_are_found(name: str, zoo: Path, batch: TokenBatch) -> None:
    bridge = boot(name, zoo)
    with planted(bridge, PLANTS):
        found = massive_entries(bridge, batch, ratio=500)
    assert (found.layer, found.layers, found.n_sequences) == (0, {0: 3}, 3)
    assert found.dims == (7, 20)
    columns = ["sequence", "position", "dim", "value"]
    assert sorted(map(tuple, found.table[columns].to_numpy().tolist())) == sorted(p[1:] for p in PLANTS)
    assert (found.table["bucket"] == found.table["position"].map(lambda p: "others" if p else "start")).all()
    assert found.table["token"].tolist() == [batch.tokens[s][p] for s, p in found.table[columns[:2]].to_numpy()]
    medians = found.table.groupby("sequence")["median"].first()
    assert found.above == max(100.0, 500 * medians.min())
    assert found.rule() == MassiveRule(0, (7, 20), found.above)


def test_the_layer_is_the_mode_over_sequences(zoo: Path, batch: TokenBatch) -> None:
    bridge = boot("gemma2", zoo)  # 3 layers
    later: list[Plant] = [(1, 0, 0, 7, 9e4), (2, 1, 0, 7, 9e4), (2, 2, 3, 5, 9e4)]
    with planted(bridge, later):
        found = massive_entries(bridge, batch)
    # what appeared earlier in sequence 0 is still there in the layer of the others
    assert (found.layer, found.layers) == (2, {1: 1, 2: 2})
    assert set(found.dims) == {5, 7} and sorted(found.table["sequence"]) == [0, 1, 2]
    with planted(bridge, later[:2]):
        tie = massive_entries(bridge, batch)
    assert (tie.layer, tie.layers, tie.n_sequences) == (1, {1: 1, 2: 1}, 3)
    assert tie.table["sequence"].tolist() == [0]


def test_bounds_are_strict_and_may_be_left_out(zoo: Path, batch: TokenBatch) -> None:
    bridge = boot("llama", zoo)
    edge: list[Plant] = [(1, 0, 0, 7, 100.0)]
    with planted(bridge, edge):
        with pytest.raises(InputError, match=r"No massive activation.*The largest is 100 after layer"):
            massive_entries(bridge, batch, ratio=0)
        assert massive_entries(bridge, batch, absolute=99.9, ratio=0).above == 99.9
        median = massive_entries(bridge, batch, absolute=0, ratio=30).table["median"].iloc[0]
        found = massive_entries(bridge, batch, absolute=0, ratio=30)
        assert found.dims == (7,) and found.above <= 30 * median
    for name in ("llama", "mamba"):
        with pytest.raises(InputError, match="No massive activation"):
            massive_entries(boot(name, zoo), batch)
    with pytest.raises(InputError, match="cannot both be left out"):
        massive_entries(bridge, batch, absolute=0, ratio=0)


def test_zero_takes_them_away_downstream_and_the_control_does_not(zoo: Path, batch: TokenBatch) -> None:
    """Card sun2024, check 4."""
    bridge = boot("llama", zoo)
    with planted(bridge, PLANTS):
        rule = massive_entries(bridge, batch, ratio=500).rule()
        control = control_entries(bridge, batch, rule)
        nothing = SetActivations([(0, POS, 0)])  # type: ignore[arg-type]
        plain = reference.under(bridge, nothing, batch.ids)
        last: list[Tensor] = []
        with bridge.hooks(fwd_hooks=[(hook_name(1), lambda x, hook: last.append(x[batch.real].abs().max()))]):
            emptied = reference.under(bridge, SetActivations(rule), batch.ids)
        beside = reference.under(bridge, SetActivations(control), batch.ids)
        changed = count(bridge, batch, SetActivations(control)), count(bridge, batch, SetActivations(rule))
    assert float(last[0]) < 100
    real = batch.real
    scale = float(plain[real].abs().max())
    assert float((emptied - plain)[real].abs().max()) / scale > 0.1
    assert 0 < float((beside - plain)[real].abs().max()) / scale < 1e-3
    assert changed == (len(PLANTS), len(PLANTS))


def count(bridge: TransformerBridge, batch: TokenBatch, method: SetActivations) -> int:
    """How many entries of the first layer's output the method changes, and only at massive tokens."""
    seen: list[Tensor] = []
    keep = [(hook_name(0), lambda x, hook: seen.append(x.clone()))]
    with bridge.hooks(fwd_hooks=keep), method(bridge), bridge.hooks(fwd_hooks=keep):
        bridge(batch.ids)
    before, after = seen
    changed = (before != after).nonzero().tolist()
    assert {(s, p) for s, p, _ in changed} == {(s, p) for _, s, p, _, _ in PLANTS}
    return len(changed)


def test_controls_have_median_size_and_share_nothing(zoo: Path, batch: TokenBatch) -> None:
    bridge = boot("llama", zoo)
    with planted(bridge, PLANTS):
        rule = massive_entries(bridge, batch, ratio=500).rule()
        draws = [control_entries(bridge, batch, rule, draw=draw) for draw in range(15)]
        with pytest.raises(InputError, match="Draw 15 needs 2 more channels than the 30 that there are"):
            control_entries(bridge, batch, rule, draw=15)
        with pytest.raises(InputError, match="a control already"):
            control_entries(bridge, batch, draws[0])
        with pytest.raises(InputError, match="at least 0"):
            control_entries(bridge, batch, rule, draw=-1)
        with pytest.raises(InputError, match="do not occur"):
            control_entries(bridge, batch, MassiveRule(0, (7,), 1e9))
        with pytest.raises(InputError, match="do not occur"):
            control_entries(bridge, batch, [(0, 39, 7), (0, POS, 7)])
        hidden: list[Tensor] = []
        with SetActivations([(0, POS, 0)])(bridge):  # type: ignore[arg-type]
            bridge.run_with_hooks(batch.ids, fwd_hooks=[(hook_name(0), lambda x, hook: hidden.append(x.clone()))])
    instead = [dim for draw in draws for dim in draw.instead]  # type: ignore[union-attr]
    assert sorted([*instead, 7, 20]) == list(range(32))
    assert all((d.layer, d.dims, d.above) == (0, (7, 20), rule.above) for d in draws)  # type: ignore[union-attr]
    tokens = torch.stack([hidden[0][s, p] for s, p in {(s, p) for _, s, p, _, _ in PLANTS}])
    medians = torch.stack([h[real].abs().median() for h, real in zip(hidden[0], batch.real, strict=True)])
    far = (tokens.abs().mean(0) - medians.mean()).abs()[instead]
    assert bool((far.diff() >= -1e-5).all())


def test_rules_of_one_block_have_controls_of_their_own(zoo: Path, batch: TokenBatch) -> None:
    bridge = boot("llama", zoo)
    with planted(bridge, PLANTS):
        both = massive_entries(bridge, batch, ratio=500).rule()
        rules = [MassiveRule(0, (dim,), both.above) for dim in both.dims]
        draws = [control_rules(bridge, batch, rules, draw=draw) for draw in range(15)]
        with pytest.raises(InputError, match="Draw 15 needs 2 more channels than the 30 that there are"):
            control_rules(bridge, batch, rules, draw=15)
    assert all([c.dims for c in draw] == [rule.dims for rule in rules] for draw in draws)
    assert sorted([7, 20, *(dim for draw in draws for c in draw for dim in c.instead or ())]) == list(range(32))


def test_controls_of_named_entries(zoo: Path, batch: TokenBatch) -> None:
    bridge = boot("llama", zoo)
    entries = [(0, 0, 7), (0, 4, 20), (0, 4, 7), (1, 4, 3)]
    draws = [control_entries(bridge, batch, entries, draw=draw) for draw in range(3)]
    for draw in draws:
        assert sorted((e[0], e[1]) for e in draw) == [(0, 0), (0, 4), (0, 4), (1, 4)]
        assert not {e[2] for e in draw if e[0] == 0} & {7, 20}
    assert len({e for draw in draws for e in draw}) == 12
    found: list[Tensor] = []
    with SetActivations([(0, POS, 0)])(bridge):  # type: ignore[arg-type]
        bridge.run_with_hooks(batch.ids, fwd_hooks=[(hook_name(0), lambda x, hook: found.append(x.clone()))])
    hidden = found[0]
    median = torch.stack([h[real].abs().median() for h, real in zip(hidden, batch.real, strict=True)]).mean()
    distance = (hidden[:, 0].abs().mean(0) - median).abs()
    distance[[7, 20]] = torch.inf
    assert draws[0][0] == (0, 0, int(distance.argmin()))


def test_a_delimiter_is_found_wherever_it_stands(zoo: Path) -> None:
    """Planted in the weights: everything from finding to mean, in a text the means were not taken from."""
    bridge = TransformerBridge.boot_transformers(str(checkpoint("llama", zoo)), device="cpu", dtype=torch.float32)
    weight = bridge.eval().original_model.get_input_embeddings().weight  # type: ignore[operator]
    weight[STOP, 11], weight[STOP, 3] = 9000.0, -6000.0
    texts = random_ids(batch=6, pos=30, seed=3)
    texts[texts == STOP] = STOP + 1
    for row, place in enumerate((4, 9, 17, 22, 6, 29)):
        texts[row, place] = STOP
    found = massive_entries(bridge, tokenize(bridge, texts[:4]))
    assert (found.layer, set(found.dims)) == (0, {11, 3})
    assert sorted(set(found.table["position"])) == [4, 9, 17, 22]
    means = mean_activations(bridge, tokenize(bridge, texts[:4]), found.rule())
    start, others = means["L0D11"]  # none is large at position 0: there the mean is of an ordinary size
    assert start == pytest.approx(0, abs=10) and others == pytest.approx(9000, rel=1e-2)
    assert means["L0D3"][1] == pytest.approx(-6000, rel=1e-2)
    fresh, mean, zero = texts[4:], SetActivations(found.rule(), "mean", means), SetActivations(found.rule())
    plain = bridge(fresh)
    near = float((reference.under(bridge, mean, fresh) - plain).abs().max())
    far = float((reference.under(bridge, zero, fresh) - plain).abs().max())
    assert near < far / 20 and far > 0.1
    # token by token the rule finds the delimiter in the cache's last position
    model, cache, parts = bridge.original_model, None, []
    with zero(bridge):
        for i in range(30):
            out = model(fresh[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), reference.under(bridge, zero, fresh), atol=1e-4, rtol=0)
