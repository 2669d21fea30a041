"""The engine inside every architecture family: logits as the bridge's own, every statistic as the oracle's.

Each family is measured on its own path, and through the hooks as well. ``MEASURED`` holds the largest
deviations of this session by family and path; ``python -m tests.attention.test_families`` prints them as a
table.
"""

import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, Statistic, plan_for
from tests import oracle
from tests.attention import dense
from tests.families import FAMILIES, boot, checkpoint, padding_mask, random_ids
from tests.pretend_cuda.aside import aside

Padding = Literal["none", "right", "left"]

POS, N_PAD = 40, 11
IDS = random_ids(pos=POS)
WITH_ATTENTION = [name for name, family in FAMILIES.items() if family.attention_layers]
LOGITS = 2e-5
"""On logits of size 1 to 20 (measured: at most 4e-6)."""
STATISTICS = 2e-5
"""Relative to 1 + the expected value (measured: at most 2e-6 for masses)."""
MEASURED: dict[tuple[str, str], tuple[float, float]] = {}


@dataclass(frozen=True)
class Reference:
    """What the bridge itself computes."""

    ids: Tensor
    mask: Tensor | None
    real: Tensor
    logits: Tensor
    layers: list[oracle.LayerPattern | None]

    @property
    def sets(self) -> dict[str, Tensor]:
        """Two overlapping sets of keys, padding left out."""
        first = (self.real.cumsum(1) == 1) & self.real
        return {"first": first, "odd": (self.ids % 2 == 1) & self.real}


@functools.cache
@aside()
def reference(name: str, padding: Padding, zoo: Path, pos: int = POS) -> Reference:
    """Right padding goes without an attention mask, as in a capture; left padding cannot."""
    ids = random_ids(pos=pos)
    real = torch.ones_like(ids) if padding == "none" else padding_mask(*ids.shape, N_PAD, padding)
    mask = real if padding == "left" else None
    bridge = boot(name, zoo)
    layers = oracle.full_patterns(bridge, ids, None if padding == "none" else real)
    return Reference(ids, mask, real.bool(), bridge(ids, attention_mask=mask), layers)


def path_of(name: str) -> str:
    return {"mixed": "fast"}.get(FAMILIES[name].path, FAMILIES[name].path)


def measure(
    name: str, path: str, ref: Reference, zoo: Path, **options: Any
) -> tuple[Tensor, dict[int, dict[str, Tensor]], dict[int, Tensor]]:
    """Logits, statistics and values of one engine run."""
    bridge = boot(name, zoo)
    found: dict[int, dict[str, Tensor]] = {}
    values: dict[int, Tensor] = {}

    def collect(layer: int, value: Tensor, statistics: list[Statistic]) -> None:
        found[layer] = dense.computed(statistics)
        values[layer] = value

    makers = dense.factories(len(ref.ids), ref.sets)
    engine = AttentionEngine(bridge, path=path, statistics=makers, on_layer=collect, real=ref.real, **options)
    with engine:
        logits = bridge(ref.ids, attention_mask=ref.mask)
    return logits, found, values


@aside()
def expected(ref: Reference, layer: int) -> dict[str, Tensor]:
    """Everything from the oracle's loops; only display maps need no loop."""
    found = ref.layers[layer]
    assert found is not None
    p, seen = found.pattern, found.visible
    key, weight = oracle.top_key(p, seen)
    n_visible = seen.sum(-1).double()
    sets = {f"mass_{name}": oracle.mass_on(p, seen, keys) for name, keys in ref.sets.items()}
    return {
        "mass": oracle.received_mass(p, seen),
        "queries": oracle.visible_queries(seen),
        "null_mass": oracle.null_mass(seen),
        "entropy": oracle.entropy(p, seen),
        "entropy_null": n_visible.log().masked_fill(n_visible == 0, oracle.NAN),
        "distance": oracle.distance(p, seen),
        "top_key": key,
        "top_weight": weight,
        "missing_mass": oracle.missing_mass(p, seen),
        "delta_logit": oracle.margins(p, seen, found.scores),
        "pooled_map": oracle.pooled_map(p, seen, 1),
        "full_map": p.masked_fill(~seen[:, None], oracle.NAN),
        **sets,
    }


@aside()
def underflowed(ref: Reference, layer: int) -> bool:
    """The bridge shows no scores of this layer and a visible weight is 0: margins are not applicable."""
    found = ref.layers[layer]
    assert found is not None
    return found.scores is None and bool(((found.pattern == 0) & found.visible[:, None]).any())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")
def test_plan(name: str, zoo: Path) -> None:
    family, plan = FAMILIES[name], plan_for(boot(name, zoo))
    assert plan.path == path_of(name)
    assert [layer.layer for layer in plan.layers] == list(range(family.n_layers))
    for layer in plan.layers:
        attends = layer.layer in family.attention_layers
        assert layer.path == (plan.path if attends else "none")
        assert layer.window == family.windows[layer.layer]
        assert layer.learned_sink == (family.sink and attends)


def run(name: str, path: str, padding: Padding, zoo: Path) -> None:
    ref = reference(name, padding, zoo)
    logits, found, values = measure(name, path, ref, zoo)
    difference = float((logits - ref.logits)[ref.real].abs().max())
    assert difference < LOGITS
    assert sorted(found) == list(FAMILIES[name].attention_layers)
    worst = 0.0
    for layer, computed in found.items():
        pattern = ref.layers[layer]
        assert pattern is not None
        right = expected(ref, layer)
        if path == "fallback" and underflowed(ref, layer):
            assert computed.pop("delta_logit").isnan().all()
            right.pop("delta_logit")
        deviations = dense.assert_right(computed, right, pattern.visible, STATISTICS)
        worst = max(worst, deviations["mass"])
        family = FAMILIES[name]
        assert values[layer].shape == (len(ref.ids), family.kv_heads, POS, family.d_value)
    old = MEASURED.get((name, path), (0.0, 0.0))
    MEASURED[name, path] = max(old[0], difference), max(old[1], worst)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_every_statistic_equals_the_oracle(name: str, padding: Padding, zoo: Path) -> None:
    run(name, path_of(name), padding, zoo)


FAST = [name for name in WITH_ATTENTION if path_of(name) == "fast"]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", FAST)
def test_hooks_measure_the_fast_families_too(name: str, padding: Padding, zoo: Path) -> None:
    run(name, "fallback", padding, zoo)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_padding_changes_no_number(name: str, zoo: Path) -> None:
    alone = reference(name, "none", zoo)
    n_real = POS - N_PAD
    for padding in ("right", "left"):
        ref = reference(name, padding, zoo)
        ids = ref.ids[-1:][ref.real[-1:]][None]
        real = torch.ones_like(ids, dtype=torch.bool)
        short = Reference(ids, None, real, boot(name, zoo)(ids), [])
        _, padded, _ = measure(name, path_of(name), ref, zoo)
        _, unpadded, _ = measure(name, path_of(name), short, zoo)
        keep = slice(0, n_real) if padding == "right" else slice(POS - n_real, POS)
        for layer, computed in unpadded.items():
            for key in ("mass", "queries", "null_mass", "entropy", "distance", "top_weight", "missing_mass"):
                value = padded[layer][key][-1:, ..., keep]
                torch.testing.assert_close(value, computed[key], atol=2e-5, rtol=2e-5, msg=f"{layer} {key}")
    assert alone.real.all()


@pytest.mark.parametrize("pos", [150, 300])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma2", "bloom"])
def test_display_cells_of_several_tokens(name: str, pos: int, zoo: Path) -> None:
    # above 128 keys a display cell holds several of them, and 150 or 300 tokens do not fill the last one
    ids = random_ids(pos=pos)
    real = padding_mask(2, pos, 21, "right").bool()
    bridge = boot(name, zoo)
    shown: dict[str, Tensor] = {}
    points = [
        f"blocks.{layer}.attn.{point}"
        for layer in FAMILIES[name].attention_layers
        for point in ("hook_pattern", "hook_attn_scores")
    ]
    hooks = [(point, lambda x, hook, key=point: shown.update({key: x.double()})) for point in points]
    with bridge.hooks(fwd_hooks=hooks):
        logits = bridge(ids)
    ref = Reference(ids, None, real, logits, [])
    measured, found, _ = measure(name, path_of(name), ref, zoo)
    assert float((measured - logits).abs().max()) < LOGITS
    for layer, computed in found.items():
        seen = dense.causal(pos, pos, FAMILIES[name].windows[layer]) & real[:, :, None]
        pattern, scores = (shown[f"blocks.{layer}.attn.{point}"] for point in ("hook_pattern", "hook_attn_scores"))
        dense.assert_right(computed, dense.statistics(pattern, scores, seen, ref.sets), seen, 1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gpt2", "qwen3_next"])
def test_decoding_with_a_cache(name: str, zoo: Path) -> None:
    bridge = boot(name, zoo)
    ref = reference(name, "none", zoo)
    found: list[tuple[int, dict[str, Tensor]]] = []
    makers = dense.factories(2)
    hf = bridge.original_model
    split = POS - 3
    with AttentionEngine(bridge, statistics=makers, on_layer=lambda i, v, s: found.append((i, dense.computed(s)))):
        cache = hf(ref.ids[:, :split], use_cache=True).past_key_values
        found.clear()
        steps = []
        for position in range(split, POS):  # one token at a time
            out = hf(ref.ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), ref.logits[:, split:], atol=1e-4, rtol=0)
    n_layers = len(FAMILIES[name].attention_layers)
    for index, (layer, computed) in enumerate(found):
        position = split + index // n_layers
        pattern = ref.layers[layer]
        assert pattern is not None
        right = pattern.pattern[:, :, position]
        width = computed["full_map"].shape[-1]  # a sliding cache keeps the window only
        row = right[..., position + 1 - width : position + 1]
        full = computed["full_map"][:, :, 0].nan_to_num().double()
        torch.testing.assert_close(full, row, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            computed["entropy"][..., 0].double(),
            oracle.entropy(pattern.pattern, pattern.visible)[:, :, position],
            atol=5e-5,
            rtol=0,
        )


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma2", "gpt2", "deepseek_v3", "bloom", "gptj"])
@pytest.mark.filterwarnings("ignore:.*measured through the bridge's hooks")
def test_a_gpu_gives_the_same_numbers(name: str, zoo: Path) -> None:
    ref = reference(name, "right", zoo)
    bridge = TransformerBridge.boot_transformers(str(checkpoint(name, zoo)), device="cuda", dtype=torch.float32)
    bridge.eval()
    found: dict[int, dict[str, Tensor]] = {}
    plan = plan_for(bridge)
    assert plan.path == path_of(name)
    with AttentionEngine(
        bridge,
        path=plan.path,
        statistics=dense.factories(2, ref.sets),
        on_layer=lambda i, v, s: found.update({i: dense.computed(s)}),
        real=ref.real,
    ):
        logits = bridge(ref.ids.cuda()).cpu()
    assert float((logits - ref.logits)[ref.real].abs().max()) < 1e-3
    for layer, computed in found.items():
        pattern = ref.layers[layer]
        assert pattern is not None
        right = expected(ref, layer)
        if plan.path == "fallback" and underflowed(ref, layer):
            computed.pop("delta_logit"), right.pop("delta_logit")
        dense.assert_right(computed, right, pattern.visible, 1e-3)


def main() -> None:
    """Print the largest deviations of every family and path as a Markdown table."""
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as directory:
        for name in WITH_ATTENTION:
            for padding in ("none", "right", "left"):
                run(name, path_of(name), padding, Path(directory))  # type: ignore[arg-type]
    print("| family | path | logits | received mass |\n| --- | --- | --- | --- |")
    for (name, path), (logits, mass) in MEASURED.items():
        print(f"| {name} | {path} | {logits:.1e} | {mass:.1e} |")


if __name__ == "__main__":
    sys.exit(main())
