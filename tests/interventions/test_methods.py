"""Each intervention against patterns changed as dense weights, on GQA, soft cap and windows, dead hooks, fallback."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklens.attention import AttentionEngine, AttentionShape
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions import AblateHeads, Intervention, MaskKeys, ScaleKeys, SlidingWindow, mean_outputs
from sinklens.models.tokens import tokenize
from tests.attention import dense
from tests.families import FAMILIES, boot, random_ids
from tests.interventions import reference

POS = 40
NAMES = ["llama", "gemma2", "gpt2", "opt", "bloom"]
SOME = ((0, 1), (0, 2), (1, 3))


def heads_of(heads: Any, layer: int) -> list[int]:
    return list(range(4)) if heads == "all" else [h for at, h in heads if at == layer]


def changed(intervention: Intervention, layer: int, pattern: Tensor) -> Tensor:
    """The same change in the space of weights: multiply, delete, renormalise."""
    pattern = pattern.clone()
    heads = heads_of(getattr(intervention, "heads", "all"), layer)
    part = pattern[:, heads]
    all_keys = torch.arange(pattern.shape[-1])
    back = all_keys[:, None] - all_keys
    if isinstance(intervention, ScaleKeys):
        keys = list(intervention.keys)
        mass = part[..., keys].sum(-1, keepdim=True)
        part[..., keys] *= intervention.gamma
        part /= 1 + (intervention.gamma - 1) * mass
    elif isinstance(intervention, MaskKeys):
        hidden = torch.isin(all_keys, torch.tensor(intervention.keys))[None] & ~(intervention.spare_self & (back == 0))
        part = reference.renormalised(part.masked_fill(hidden, 0))
    elif isinstance(intervention, SlidingWindow):
        hidden = (back >= intervention.window) & (all_keys >= intervention.sinks)
        part = reference.renormalised(part.masked_fill(hidden, 0))
    elif isinstance(intervention, AblateHeads):
        part = part * 0 if intervention.how == "zero" else reference.renormalised((part > 0).double())
    pattern[:, heads] = part
    return pattern


METHODS = [
    ScaleKeys(0, 3.0),
    ScaleKeys((0, 5), 0.2, heads=SOME),
    MaskKeys(0),
    MaskKeys((0, 7), heads=SOME),
    MaskKeys(0, spare_self=False),
    SlidingWindow(5),
    SlidingWindow(5, sinks=2),
    AblateHeads(SOME),
    AblateHeads("all"),
    AblateHeads(SOME, "uniform"),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_methods_equal_dense_ones(name: str, method: Intervention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    plain = bridge(ids)
    if isinstance(method, AblateHeads) and method.how == "uniform":
        visible = [dense.causal(POS, POS, window) for window in FAMILIES[name].windows]

        def change(layer: int, pattern: Tensor) -> Tensor:
            return changed(method, layer, pattern + visible[layer] * 1e-300)

    else:

        def change(layer: int, pattern: Tensor) -> Tensor:
            return changed(method, layer, pattern)

    expected = reference.logits(bridge, name, ids, change)
    found = reference.under(bridge, method, ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((expected - plain).abs().max()) > 1e-2
    assert torch.equal(bridge(ids), plain)


@pytest.mark.parametrize("method", [m for m in METHODS if getattr(m, "how", "zero") == "zero"], ids=repr)
@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_long_texts(name: str, method: Intervention, zoo: Path) -> None:
    # above 128 keys blocks carry hidden extra columns, and edits meet several blocks of rows
    bridge, ids = boot(name, zoo), random_ids(pos=150)
    expected = reference.logits(bridge, name, ids, lambda layer, pattern: changed(method, layer, pattern))
    torch.testing.assert_close(reference.under(bridge, method, ids), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, "gpt_oss"])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0, 8.0])
def test_scaled_weights_follow_the_formula(name: str, gamma: float, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    before, after = reference.patterns(bridge, ids), reference.patterns(bridge, ids, ScaleKeys(0, gamma))
    first = FAMILIES[name].attention_layers[0]
    torch.testing.assert_close(after[first], changed(ScaleKeys(0, gamma), 0, before[first]), atol=2e-6, rtol=0)
    if name != "gpt_oss":  # whose row 0 shares with the learned sink
        assert torch.equal(after[first][:, :, 0], before[first][:, :, 0])
    if gamma == 1:
        assert all(torch.equal(after[layer], before[layer]) for layer in before)


def test_small_gamma_is_a_mask(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    masked = reference.under(bridge, MaskKeys(0), ids)
    torch.testing.assert_close(reference.under(bridge, ScaleKeys(0, 1e-30), ids), masked, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", [SlidingWindow(POS), SlidingWindow(1, sinks=POS), ScaleKeys(POS, 3.0), MaskKeys(POS)]
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_identities_are_bit_for_bit(name: str, method: Intervention, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    assert torch.equal(reference.under(bridge, method, ids), reference.under(bridge, ScaleKeys(0, 1.0), ids))
    torch.testing.assert_close(reference.under(bridge, method, ids), bridge(ids), atol=5e-5, rtol=0)


def test_a_row_without_keys_attends_to_nothing(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    for layer, pattern in reference.patterns(bridge, ids, MaskKeys(0, heads=["L0H1"], spare_self=False)).items():
        assert float(pattern[:, 1, 0, 0].max()) == (0 if layer == 0 else 1)
        assert torch.equal(pattern[:, 0, 0, 0], torch.ones(2).double())
    spared = reference.patterns(bridge, ids, MaskKeys(0))[0]
    assert torch.equal(spared[:, :, 0, 0], torch.ones(2, 4).double())
    assert not spared[:, :, 1:, 0].any()


def test_a_window_counts_the_query_itself(zoo: Path) -> None:
    bridge, ids = boot("gpt2", zoo), random_ids(pos=POS)
    seen = reference.patterns(bridge, ids, SlidingWindow(3, sinks=1))[0] > 0
    assert not seen[0, :, 20, 1:18].any()
    assert seen[0, :, 20, [0, 18, 19, 20]].any(0).all()
    alone = reference.patterns(bridge, ids, SlidingWindow(1))[1]
    assert torch.equal(alone, torch.eye(POS).double().expand(2, 4, -1, -1))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom"])
def test_uniform_rows_are_uniform_over_what_a_mask_left(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    heads = ["L1H2"]
    found = reference.patterns(bridge, ids, AblateHeads(heads, "uniform"))[1]
    window = FAMILIES[name].windows[1]
    visible = dense.causal(POS, POS, window)[0].double()
    expected = (visible / visible.sum(-1, keepdim=True)).expand(2, -1, -1)
    torch.testing.assert_close(found[:, 2], expected, atol=1e-6, rtol=0)
    for both in (
        AblateHeads(heads, "uniform") + MaskKeys(0, spare_self=False),
        MaskKeys(0, spare_self=False) + AblateHeads(heads, "uniform"),
    ):
        found = reference.patterns(bridge, ids, both)[1]
        visible[:, 0] = 0
        expected = reference.renormalised(visible).expand(2, -1, -1)
        torch.testing.assert_close(found[:, 2], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, "gptj", "gpt_neo", "deepseek_v3", "qwen3_next"])
def test_head_outputs_are_zeroed_where_w_o_reads_them(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    layer, family = FAMILIES[name].attention_layers[-1], FAMILIES[name]

    def silence(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z.flatten(2)[:, :, 2 * family.d_value : 3 * family.d_value] = 0  # in the order that W_O reads
        return z

    with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)]):
        expected = bridge(ids)
    found = reference.under(bridge, AblateHeads([(layer, 2)]), ids)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert float((expected - bridge(ids)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", [*NAMES, "deepseek_v3"])
def test_mean_outputs_and_mean_ablation(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    batch = tokenize(bridge, [list(range(5, 45)), list(range(60, 80))])
    means = mean_outputs(bridge, batch)
    family = FAMILIES[name]
    assert sorted(means) == sorted(f"L{layer}H{h}" for layer in family.attention_layers for h in range(4))
    kept: list[Tensor] = []
    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: kept.append(z.clone()))]):
        bridge(batch.ids)
    z = kept[0].flatten(2).unflatten(2, (4, family.d_value)).double()
    expected = torch.cat([z[0], z[1, :20]]).mean(0)
    found = torch.tensor([means[f"L1H{head}"] for head in range(4)]).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def write(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z.flatten(2)[:, :, 3 * family.d_value :] = expected[3].float()
        return z

    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", write)]):
        logits = bridge(batch.ids)
    method = AblateHeads(["L1H3"], "mean", means)
    torch.testing.assert_close(reference.under(bridge, method, batch.ids), logits, atol=5e-5, rtol=0)
    assert Intervention.from_json(method.to_json()) == method


def test_means_that_do_not_fit_are_refused(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids()
    with pytest.raises(InputError, match="no output of L1H3"):
        reference.under(bridge, AblateHeads(["L1H3"], "mean", {"L0H0": [0.0] * 8}), ids)
    with pytest.raises(InputError, match=r"no output of L0H1"):
        reference.under(bridge, AblateHeads("all", "mean", {"L0H0": [0.0] * 8}), ids)
    with pytest.raises(InputError, match="has 3 numbers, it needs 8"):
        reference.under(bridge, AblateHeads(["L0H0"], "mean", {"L0H0": [0.0] * 3}), ids)
    for means in ({"L0H0": [math.nan]}, {"L0H0": ["x"]}, {"nobody": [1.0]}, [1.0], {"L0H0": 1.0}):
        with pytest.raises(InputError):
            AblateHeads(["L0H0"], "mean", means)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gptj", "gpt_neo"])
@pytest.mark.parametrize("method", [ScaleKeys(0, 2.0), MaskKeys(0), SlidingWindow(3), AblateHeads("all", "uniform")])
def test_attention_that_cannot_be_edited_is_refused(name: str, method: Intervention, zoo: Path) -> None:
    bridge = boot(name, zoo)
    bridge(random_ids())  # TransformerLens wires hooks of its own in a bridge's first forward pass
    before = reference.state(bridge)
    with pytest.raises(UnsupportedArchitectureError, match="can be measured but not edited"):
        reference.under(bridge, method, random_ids())
    assert reference.same(before, reference.state(bridge))


def test_models_without_attention_are_refused(zoo: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="has none"):
        reference.under(boot("mamba", zoo), MaskKeys(0), random_ids())
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        mean_outputs(boot("mamba", zoo), tokenize(boot("mamba", zoo), [[5, 6, 7]]))


class Silence:
    """Zeroes head 2 at its output."""

    def edit_output(self, shape: AttentionShape, output: Tensor) -> None:
        assert output.shape[:3] == (shape.batch, shape.heads, shape.q_pos)
        output[:, 2] = 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_output_edits_are_the_same_on_both_paths(name: str, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    logits = []
    for path in ("fast", "fallback"):
        with AttentionEngine(bridge, path=path, edits=[Silence()]):
            logits.append(bridge(ids))
    torch.testing.assert_close(logits[0], logits[1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next"])
def test_outputs_that_hooks_show_otherwise_are_refused(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    before = reference.state(bridge)
    engine = AttentionEngine(bridge, path="fallback", edits=[Silence()])
    with pytest.raises(UnsupportedArchitectureError, match="edited on the fast path"), engine:
        pass
    assert reference.same(before, reference.state(bridge))
