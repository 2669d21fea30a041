"""ZeroTuning: three exact forms, torch's fused attention with a mask per head, limits, and the inexact shortcut."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sinklens.attention import AttentionEngine
from sinklens.interventions import MaskKeys, ScaleKeys
from sinklens.interventions.positions import Positions
from tests.attention import dense
from tests.families import boot, checkpoint, random_ids
from tests.interventions import reference

POS = 40
GAMMAS = [0.1, 0.5, 1.0, 2.0, 8.0]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_three_forms_are_one(name: str, gamma: float, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    before, after = (reference.patterns(bridge, ids, m)[0] for m in (None, ScaleKeys(0, gamma)))
    first = before[..., :1]
    divided = before / (1 + (gamma - 1) * first)
    divided[..., :1] *= gamma
    multiplied = before.clone()
    multiplied[..., 0] *= gamma
    for form in (divided, reference.renormalised(multiplied)):
        torch.testing.assert_close(after, form, atol=1e-6, rtol=0)
    rest = 1 - after[..., 0]
    torch.testing.assert_close(rest, ((1 - first) / (1 + (gamma - 1) * first))[..., 0], atol=1e-6, rtol=0)
    assert torch.equal(after[:, :, 0], before[:, :, 0])


def fused(name: str, ids: Tensor, gamma: float, zoo: Path, heads: list[int]) -> Tensor:
    """Logits of the plain Hugging Face model, SDPA with log(gamma) in column 0 of an additive mask per head."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(name, zoo), attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    mask = torch.zeros(len(ids), 4, POS, POS).masked_fill(~dense.causal(POS, POS)[None], -math.inf)
    mask[:, heads, :, 0] += math.log(gamma)
    logits: Tensor = model(ids, attention_mask=mask).logits
    return logits


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_fused_attention_with_a_mask_per_head_is_the_same(gamma: float, zoo: Path) -> None:
    bridge, ids, heads = boot("llama", zoo), random_ids(pos=POS), [0, 2]
    method = ScaleKeys(0, gamma, heads=[(layer, head) for layer in range(2) for head in heads])  # type: ignore[arg-type]
    found = reference.under(bridge, method, ids)
    torch.testing.assert_close(found, fused("llama", ids, gamma, zoo, heads), atol=1e-5, rtol=1e-5)
    assert float((found - bridge(ids)).abs().max()) > 1e-2


def scaled_keys(bridge: Any, ids: Tensor, factor: float) -> Tensor:
    """Logits with the key state of position 0 multiplied, what scaling a KV cache amounts to."""

    def scale(key: Tensor, hook: Any) -> Tensor:
        key = key.clone()
        key[:, 0] *= factor  # before the rotation, which is linear
        return key

    hooks = [(f"blocks.{layer}.attn.hook_k", scale) for layer in range(2)]
    with bridge.hooks(fwd_hooks=hooks):
        logits: Tensor = bridge(ids)
    return logits


def test_a_factor_on_the_key_state_is_not_the_same(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    exact, shortcut = reference.under(bridge, ScaleKeys(0, 2.0), ids), scaled_keys(bridge, ids, 2.0)
    assert float((shortcut - exact).abs().max()) > 1e-3
    torch.testing.assert_close(scaled_keys(bridge, ids, 1.0), reference.under(bridge, ScaleKeys(0, 1.0), ids))
    # the shortcut's gamma is exp(score): it differs by row and may even point the other way
    patterns: list[Tensor] = []
    with bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda p, hook: patterns.append(p.double()))]):
        bridge(ids)
        scaled_keys(bridge, ids, 2.0)
    before, after = (p[:, :, 1:, 0] / p[:, :, 1:, 1] for p in patterns)
    gamma = (after / before).nan_to_num(1)
    assert float(gamma.min()) < 0.9
    assert float(gamma.max()) > 1.1


def test_a_very_large_gamma_hands_on_the_first_value(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    z: list[Tensor] = []
    values: list[Tensor] = []

    class Read:
        def edit_output(self, shape: Any, output: Tensor) -> None:
            z.append(output.clone())

    edits: list[Any] = [*ScaleKeys(0, 1e30).edits(Positions()), Read()]
    with AttentionEngine(bridge, edits=edits, on_layer=lambda layer, value, s: values.append(value.clone())):
        bridge(ids)
    for layer in range(2):
        first = values[layer][:, :, :1].repeat_interleave(2, 1)
        torch.testing.assert_close(z[layer], first.expand_as(z[layer]), atol=1e-5, rtol=0)


def test_a_very_small_gamma_hides_the_key(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    torch.testing.assert_close(
        reference.under(bridge, ScaleKeys(0, 1e-30), ids), reference.under(bridge, MaskKeys(0), ids), atol=1e-5, rtol=0
    )
