"""TransformerLens' own activation patching and its hooks give the numbers of the interventions, head by head.

``patching`` runs the prompt once per head (or position, or KV head) and puts in what a cache holds there; the cache is
another prompt's for resampling, and made up for everything else. Losses are compared sequence by sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import ActivationCache, patching
from transformer_lens.model_bridge import TransformerBridge

from sinklens.interventions import (
    AblateHeads,
    EditValues,
    Intervention,
    MaskKeys,
    ScaleKeys,
    SetActivations,
    mean_outputs,
    mean_values,
)
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.models.tokens import tokenize
from tests.families import FAMILIES, boot, random_ids
from tests.interventions import reference

POS = 24
NAMES = ["llama", "gemma2", "gpt2", "bloom"]
IDS = random_ids(batch=3, pos=POS)
HEADS = [(layer, head) for layer in range(2) for head in range(4)]


def loss(logits: Tensor) -> Tensor:
    """Mean loss of each sequence, in nats."""
    by_token = cross_entropy(logits[:, :-1].transpose(1, 2).double(), IDS[:, 1:], reduction="none")
    return by_token.mean(1)


def patched(name: str, bridge: TransformerBridge, what: str, activation: Callable[[int], Tensor]) -> Tensor:
    """Losses ``[layer ... batch]`` of one of TransformerLens' patching functions with a made-up cache."""
    hook = {"attn_head_out_all_pos": "z", "attn_head_v_by_pos": "v", "attn_head_pattern_all_pos": "pattern"}[what]
    layers = range(len(FAMILIES[name].windows))
    cache = ActivationCache({f"blocks.{layer}.attn.hook_{hook}": activation(layer) for layer in layers}, bridge)
    function = getattr(patching, f"get_act_patch_{what}")
    values: Tensor = function(bridge, IDS, cache, loss, reduce="none").values
    return values.double()


def ours(bridge: TransformerBridge, method: Intervention) -> Tensor:
    return loss(reference.under(bridge, method, IDS))


def check(bridge: TransformerBridge, expected: Tensor, method: Intervention) -> None:
    found = ours(bridge, method)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    # the same numbers because nothing happened would prove nothing
    assert float((expected - loss(bridge(IDS))).abs().max()) > 2e-4


def test_resampled_heads(zoo: Path) -> None:
    for name in NAMES:
        bridge = boot(name, zoo)
        other = random_ids(batch=1, pos=POS, seed=5)
        _, cache = bridge.run_with_cache(other)
        expected = patching.get_act_patch_attn_head_out_all_pos(bridge, IDS, cache, loss, reduce="none").values
        outputs = prompt_outputs(bridge, tokenize(bridge, other))
        for head in HEADS:
            check(bridge, expected[head].double(), AblateHeads([head], "resample", outputs))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_silenced_and_mean_heads(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    _, clean = bridge.run_with_cache(IDS)
    z = [clean[f"blocks.{layer}.attn.hook_z"] for layer in range(len(FAMILIES[name].windows))]
    zero = patched(name, bridge, "attn_head_out_all_pos", lambda layer: torch.zeros_like(z[layer]))
    batch = tokenize(bridge, IDS)
    mean = patched(name, bridge, "attn_head_out_all_pos", lambda layer: z[layer].mean((0, 1), keepdim=True))
    placed = patched(name, bridge, "attn_head_out_all_pos", lambda layer: z[layer].mean(0, keepdim=True))
    means, by_position = mean_outputs(bridge, batch), mean_outputs(bridge, batch, per_position=True)
    for head in HEADS:
        check(bridge, zero[head], AblateHeads([head]))  # type: ignore[arg-type]
        check(bridge, mean[head], AblateHeads([head], "mean", means))  # type: ignore[arg-type]
        check(bridge, placed[head], AblateHeads([head], "mean", by_position))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_changed_patterns(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    _, clean = bridge.run_with_cache(IDS)

    def pattern(layer: int) -> Tensor:
        found: Tensor = clean[f"blocks.{layer}.attn.hook_pattern"]
        return found

    def uniform(layer: int) -> Tensor:
        seen = torch.ones(POS, POS).tril().expand_as(pattern(layer))
        window = FAMILIES[name].windows[layer]
        seen = seen if window is None else seen.triu(1 - window)
        return seen / seen.sum(-1, keepdim=True)

    def without(layer: int) -> Tensor:
        left = pattern(layer).clone()
        left[:, :, 6:, 5] = 0
        return left / left.sum(-1, keepdim=True)

    def scaled(layer: int) -> Tensor:
        times = pattern(layer).clone()
        times[..., 0] *= 7.0
        return times / times.sum(-1, keepdim=True)

    for make, method in (
        (uniform, lambda head: AblateHeads([head], "uniform")),
        (without, lambda head: MaskKeys(5, [head])),
        (scaled, lambda head: ScaleKeys(0, 7.0, [head])),
    ):
        expected = patched(name, bridge, "attn_head_pattern_all_pos", make)
        for head in HEADS:
            check(bridge, expected[head], method(head))


@pytest.mark.parametrize("name", NAMES)
def test_values_of_one_key(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    _, clean = bridge.run_with_cache(IDS)
    batch = tokenize(bridge, random_ids(batch=2, pos=POS, seed=9))
    means = mean_values(bridge, batch)
    kv_heads, layers = FAMILIES[name].kv_heads, range(len(FAMILIES[name].windows))

    def mean(layer: int) -> Tensor:
        rows = torch.tensor([means[f"L{layer}KV{head}"] for head in range(kv_heads)])
        return rows.expand(3, POS, -1, -1)

    def zero(layer: int) -> Tensor:
        return torch.zeros_like(clean[f"blocks.{layer}.attn.hook_v"])

    for make, to in ((zero, "zero"), (mean, "mean")):
        expected = patched(name, bridge, "attn_head_v_by_pos", make)
        for layer in layers:
            for head in range(kv_heads):
                for key in (0, 7):
                    method = EditValues(key, to, [f"L{layer}KV{head}"], means if to == "mean" else None)  # type: ignore[arg-type]
                    torch.testing.assert_close(ours(bridge, method), expected[layer, key, head], atol=2e-5, rtol=0)
        assert float((expected[:, [0, 7]] - loss(bridge(IDS))).abs().min(-1).values.max()) > 2e-4


@pytest.mark.parametrize("name", [*NAMES, "mamba"])
def test_a_whole_residual_vector(name: str, zoo: Path) -> None:
    bridge, other = boot(name, zoo), random_ids(batch=1, pos=POS, seed=5)
    _, cache = bridge.run_with_cache(other)
    expected = patching.get_act_patch_resid_pre(bridge, IDS, cache, loss, reduce="none").values.double()
    for block in (0, 1):
        stream = cache[f"blocks.{block}.hook_resid_pre"][0]
        for position in (0, 6):
            entries = [(block - 1, position, dim) for dim in range(32)]
            check(bridge, expected[block, position], SetActivations(entries, stream[position]))  # type: ignore[arg-type]


# ------------------------------------------------------------------ sets of heads, by plain hooks
@contextmanager
def silenced(bridge: TransformerBridge, heads: list[tuple[int, int]]) -> Iterator[None]:
    """The loop everyone writes: z of some heads set to 0 by ``model.hooks``."""

    def silence(z: Tensor, hook: object, layer: int) -> Tensor:
        for at, head in heads:
            if at == layer:
                z[:, :, head] = 0
        return z

    hooks = [
        (f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: silence(z, hook, layer))
        for layer in {layer for layer, _ in heads}
    ]
    with bridge.hooks(fwd_hooks=hooks):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_sets_of_heads(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    for heads in ([(0, 0), (0, 3)], [(0, 1), (1, 0), (1, 2)], HEADS):
        with silenced(bridge, heads):
            expected = loss(bridge(IDS))
        check(bridge, expected, AblateHeads(heads))  # type: ignore[arg-type]
