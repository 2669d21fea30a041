"""The gated model against dense patterns: both ends of the gate, mixtures, gradients, and that nothing stays behind."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine
from sinklens.interventions import SlidingWindow
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.studies.streaming_split import gated
from sinklens.studies.streaming_split.gated import GatedEngine, KeepOutputs, frozen
from sinklens.studies.streaming_split.learn import last_hidden
from tests.families import FAMILIES, boot, random_ids
from tests.interventions import reference

pytestmark = pytest.mark.usefixtures("no_gradients")

POS, SINKS, RECENT = 40, 2, 6
NAMES = ["llama", "mistral", "gemma2", "gpt2", "gpt_neox", "opt", "gpt_oss", "deepseek_v3", "qwen3_next"]


def gates_of(bridge: TransformerBridge, name: str, value: float | None) -> dict[int, Tensor]:
    """The same gate everywhere, or a different one in every KV head."""
    layers, count = FAMILIES[name].attention_layers, kv_head_count(bridge)
    if value is not None:
        return {layer: torch.full((count,), value) for layer in layers}
    values = torch.linspace(0.1, 0.9, len(layers) * count).view(-1, count)
    return dict(zip(layers, values, strict=True))


def logits_of(
    bridge: TransformerBridge, gates: dict[int, Tensor], ids: Tensor, *, teacher: bool, window: tuple[int, int]
) -> Tensor:
    full = KeepOutputs()
    with AttentionEngine(bridge, observers=[full], edited=()):
        bridge(ids)
    with GatedEngine(bridge, gates, *window, full.z if teacher else None):
        found: Tensor = bridge(ids)
    return found


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_open_gates_are_the_model_and_closed_ones_the_lambda_mask(name: str, teacher: bool, zoo: Path) -> None:
    """Card duoattention, check 1."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    plain, streaming = bridge(ids), reference.under(bridge, SlidingWindow(RECENT, SINKS), ids)
    run = partial(logits_of, bridge, ids=ids, teacher=teacher, window=(SINKS, RECENT))
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(run(gates_of(bridge, name, 1.0)), plain, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(run(gates_of(bridge, name, 0.0)), streaming, atol=2e-5 * scale, rtol=0)
    assert float((plain - streaming).abs().max()) > 1e-3
    short = ids[:, : SINKS + RECENT]  # there both attentions are the same, whatever the gate
    found = logits_of(bridge, gates_of(bridge, name, None), short, teacher=teacher, window=(SINKS, RECENT))
    torch.testing.assert_close(found, bridge(short), atol=1e-5 * scale, rtol=0)


def lambda_mask() -> Tensor:
    key = torch.arange(POS)
    return (key[:, None] - key < RECENT) | (key < SINKS)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "opt"])
def test_mixtures_equal_mixed_patterns(name: str, zoo: Path) -> None:
    """With its own full attention a gated head weighs both patterns: ``alpha A + (1 - alpha) A_streaming``."""
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    gates = gates_of(bridge, name, None)

    def mix(layer: int, pattern: Tensor) -> Tensor:
        alpha = gates[layer].double().repeat_interleave(4 // len(gates[layer]))[:, None, None]
        return alpha * pattern + (1 - alpha) * reference.renormalised(pattern * lambda_mask())

    expected = reference.logits(bridge, name, ids, mix)
    found = logits_of(bridge, gates, ids, teacher=False, window=(SINKS, RECENT))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_the_teacher_gives_the_full_attention(zoo: Path) -> None:
    """As in the released code: full outputs from the unchanged model, streaming ones from the gated model's own."""
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    gates, clean, seen = gates_of(bridge, "llama", None), {}, {}

    def keep(x: Tensor, hook: Any, store: dict[Any, Tensor], key: Any) -> None:
        store[key] = x.clone()

    watched = [(f"blocks.{layer}.attn.hook_z", partial(keep, store=clean, key=layer)) for layer in range(2)]
    with bridge.hooks(fwd_hooks=watched):
        bridge(ids)

    def write(z: Tensor, hook: Any, layer: int) -> Tensor:
        alpha = gates[layer].repeat_interleave(2)[:, None]
        pattern = reference.renormalised(seen["pattern", layer].double() * lambda_mask())
        value = seen["v", layer].double().repeat_interleave(2, 2)
        streaming = torch.einsum("bhqk,bkhd->bqhd", pattern, value).float()
        return alpha * clean[layer] + (1 - alpha) * streaming

    hooks: list[tuple[str, Any]] = []
    for layer in range(2):
        for what in ("pattern", "v"):
            hooks.append((f"blocks.{layer}.attn.hook_{what}", partial(keep, store=seen, key=(what, layer))))
        hooks.append((f"blocks.{layer}.attn.hook_z", partial(write, layer=layer)))
    with bridge.hooks(fwd_hooks=hooks):
        expected = bridge(ids)
    found = logits_of(bridge, gates, ids, teacher=True, window=(SINKS, RECENT))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    own = logits_of(bridge, gates, ids, teacher=False, window=(SINKS, RECENT))
    assert float((own - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_blocks_of_rows_change_nothing(name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    gates = gates_of(bridge, name, None)
    whole = logits_of(bridge, gates, ids, teacher=False, window=(SINKS, RECENT))
    for rows in (1, 7, 16):
        monkeypatch.setattr(gated, "ROWS", rows)
        found = logits_of(bridge, gates, ids, teacher=False, window=(SINKS, RECENT))
        torch.testing.assert_close(found, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_gradients_are_those_of_finite_differences(name: str, teacher: bool, zoo: Path) -> None:
    bridge, ids = boot(name, zoo), random_ids(pos=POS)
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[:, -9:] = True
    full = KeepOutputs()
    wanted = last_hidden(bridge, ids, rows, AttentionEngine(bridge, observers=[full], edited=()))
    layers = FAMILIES[name].attention_layers
    start = torch.stack(list(gates_of(bridge, name, None).values()))

    def loss(values: Tensor) -> Tensor:
        engine = GatedEngine(bridge, dict(zip(layers, values, strict=True)), SINKS, RECENT, full.z if teacher else None)
        return (last_hidden(bridge, ids, rows, engine) - wanted).square().mean()

    with torch.enable_grad(), frozen(bridge):
        values = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(values), values)
    step, numeric = 5e-3, torch.zeros_like(start)
    for place in range(start.numel()):
        change = torch.zeros(start.numel())
        change[place] = step
        change = change.view_as(start)
        numeric.view(-1)[place] = (loss(start + change) - loss(start - change)) / (2 * step)
    torch.testing.assert_close(gradient, numeric, atol=2e-2 * float(numeric.abs().max()), rtol=0)
    assert bool((gradient != 0).all())


def test_hidden_states_are_those_after_the_final_norm(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[0, 3], rows[1, 7:9] = True, True
    hidden = last_hidden(bridge, ids, rows, AttentionEngine(bridge, edited=()))
    unembed: Any = bridge.original_model
    torch.testing.assert_close(hidden @ unembed.get_output_embeddings().weight.T, bridge(ids)[rows], atol=1e-4, rtol=0)


def test_parameters_and_hooks_are_as_before(zoo: Path) -> None:
    bridge, ids = boot("llama", zoo), random_ids(pos=POS)
    first = next(iter(bridge.parameters()))
    first.requires_grad_(False)
    try:
        before = reference.state(bridge), [p.requires_grad for p in bridge.parameters()]
        with pytest.raises(RuntimeError, match="stop"), torch.enable_grad(), frozen(bridge):
            assert not any(p.requires_grad for p in bridge.parameters())
            with GatedEngine(bridge, gates_of(bridge, "llama", 0.5), SINKS, RECENT):
                bridge(ids)
                raise RuntimeError("stop")
        assert reference.same(before[0], reference.state(bridge))
        assert [p.requires_grad for p in bridge.parameters()] == before[1]
    finally:
        first.requires_grad_(True)
