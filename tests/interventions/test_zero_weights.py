"""ZeroWeights: the model with these zeros written by hand, and afterwards the old bits, whatever happened inside."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, plan_for
from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, ScaleKeys, ZeroWeights
from sinklens.interventions.zero_weights import parameters_by_name
from sinklens.models.tokens import tokenize
from sinklens.passes.attribution import attribute_heads
from sinklens.passes.head_sets import run_head_sets
from tests.families import FAMILIES, boot, boot_hf, random_ids


def bits(model: TransformerBridge) -> dict[str, Tensor]:
    """Every number of the model as bytes: NaN equals NaN here, and 0 is not -0."""
    return {
        name: p.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
        for name, p in model.named_parameters()
    }


def same(before: dict[str, Tensor], model: TransformerBridge) -> bool:
    return all(torch.equal(before[name], now) for name, now in bits(model).items())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_it_is_the_plain_model_with_these_zeros(name: str, zoo: Path) -> None:
    # a bridge holds copies of fused weights: zeros in the original alone would change nothing
    model, plain, ids = boot(name, zoo), boot_hf(name, zoo), random_ids(1, 16)
    before, clean = bits(model), plain(ids).logits
    rounding = 1e-5 * (1 + float(clean.abs().max()))
    changed = []
    for each, parameter in plain.named_parameters(remove_duplicate=False):
        if ".1." not in each:  # one layer of each kind will do
            continue
        old = parameter.data[0].clone()
        parameter.data[0] = 0
        expected = plain(ids).logits
        parameter.data[0] = old
        with ZeroWeights([(each, (0,))])(model):
            torch.testing.assert_close(model(ids), expected, atol=rounding, rtol=0, msg=lambda text, n=each: n + text)
        changed.append(float((expected - clean).abs().max()) > 10 * rounding)
    assert same(before, model) and sum(changed) > len(changed) / 3


def test_tied_weights_change_wherever_they_are_used(zoo: Path) -> None:
    model, ids = boot("gpt2", zoo), random_ids(pos=12)
    known = parameters_by_name(model)
    tied = [name for name, p in known.items() if p is known["transformer.wte.weight"]]
    assert len(tied) > 1
    before, token = bits(model), int(ids[0, 0])
    for names in ([tied[0]], [tied[-1]], tied):
        with ZeroWeights([(name, (token,)) for name in names])(model):
            assert not model(ids)[..., token].any()  # as the unembedding
            assert not model.embed(ids)[0, 0].any()  # as the embedding
        assert same(before, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_odd_numbers_come_back_to_the_bit(dtype: torch.dtype, zoo: Path) -> None:
    model = deepcopy(boot("llama", zoo)).to(dtype)
    plan_for(model)  # which nobody makes of a model with NaN
    name = "model.layers.1.mlp.down_proj.weight"
    weight = parameters_by_name(model)[name]
    weight.data[3, :4] = torch.tensor([-0.0, float("nan"), float("-inf"), 6e-8])
    before = bits(model)
    change = ZeroWeights([f"{name}[3]", f"{name}[3, 1]", (name, (0, 0)), (name, (3, 2))])  # one within another
    with change(model):
        assert not weight[3].any() and not weight[0, 0].any() and torch.isfinite(model(random_ids())).all()
    assert same(before, model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_what_is_raised_inside_leaves_the_model_as_it_was(error: type[BaseException], zoo: Path) -> None:
    model, ids = boot("llama", zoo), random_ids()
    before, clean = bits(model), model(ids)
    change = ZeroWeights(["model.layers.0.mlp.down_proj.weight[2]"])

    def fail(module: nn.Module, given: Any) -> None:
        raise error

    handle = model.original_model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error), change(model):
        model(ids)
    handle.remove()
    assert same(before, model) and torch.equal(model(ids), clean)


def test_one_in_another_is_refused_and_a_sum_is_both(zoo: Path) -> None:
    model, ids = boot("llama", zoo), random_ids()
    row = ZeroWeights(["model.layers.0.mlp.down_proj.weight[2]"])
    one = ZeroWeights(["model.layers.0.mlp.down_proj.weight[2, 5]", "model.layers.1.mlp.down_proj.weight[4]"])
    before, clean = bits(model), model(ids)
    with row(model):
        alone = model(ids)
        with pytest.raises(InputError, match="already"), one(model):
            pass
        assert torch.equal(model(ids), alone)  # the refused one took nothing away, and gave nothing back
    assert same(before, model) and torch.equal(model(ids), clean)
    both = []
    for change in (row + one, one + row, one + row + one):
        with change(model):
            both.append(model(ids))
        assert same(before, model)
    assert torch.equal(both[0], both[1]) and torch.equal(both[0], both[2])
    assert not torch.equal(both[0], alone) and not torch.equal(alone, clean)


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        ("model.layers.0.mlp.down_proj.weight[32]", r"does not exist: the parameter's shape is \(32, 48\)"),
        ("model.layers.0.mlp.down_proj.weight[0, 48]", "does not exist"),
        ("model.layers.0.mlp.down_proj.weight[0, 0, 0]", "does not exist"),
        ("model.layers.7.mlp.down_proj.weight[0]", "no parameter .* for example model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_places_that_are_not_there(weight: str, sentence: str, zoo: Path) -> None:
    model = boot("llama", zoo)
    before = bits(model)
    for change in (ZeroWeights([weight]), ScaleKeys(0, 2.0) + ZeroWeights([weight])):
        with pytest.raises(InputError, match=sentence), change(model):
            pass
    assert same(before, model)


def test_head_sets_are_measured_with_the_weight_gone(zoo: Path) -> None:
    model = boot("llama", zoo)
    batch = tokenize(model, [list(range(5, 30)), list(range(40, 60))])
    zero = ZeroWeights(["model.layers.0.mlp.down_proj.weight[2]"])
    sets = [[(0, 1)], [(1, 0), (1, 2)]]
    before = bits(model)
    found = run_head_sets(model, batch, AblateHeads("all") + zero, sets)
    assert not found.shared
    for row, heads in enumerate(sets):
        alone = run_head_sets(model, batch, AblateHeads("all"), [heads])
        with (AblateHeads(heads) + zero)(model):
            logits = model(batch.ids)
        with AttentionEngine(model, path="fast"):
            clean = model(batch.ids)
        counted = batch.real[:, 1:]
        for rows, name in ((clean, "clean"), (logits, "changed")):
            losses = nn.functional.cross_entropy(rows[:, :-1].mT, batch.ids[:, 1:], reduction="none")
            mean = (losses * counted).sum(1) / counted.sum(1)
            told = found.clean["loss"] if name == "clean" else found.changed["loss"][row]
            torch.testing.assert_close(told, mean, atol=1e-5, rtol=1e-5)
        assert float((found.changed["loss"][row] - alone.changed["loss"][0]).abs().max()) > 1e-4
    assert same(before, model)
    with pytest.raises(InputError, match="ZeroWeights cannot be restricted to heads"):
        run_head_sets(model, batch, zero, sets)
    with pytest.raises(InputError, match="Composition changes more than head outputs"):
        attribute_heads(model, batch, AblateHeads("all") + zero)
