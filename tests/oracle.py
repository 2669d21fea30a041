"""Slow, obviously right reference values for the engine: whole patterns in fp64 and Python loops over them.

Everything here reads the model's own pattern (``hook_pattern``) or its Hugging Face weights, and nothing of
sinklens. In all functions rows are queries i and columns keys j, both counted from 0; padding queries count
nowhere; what no real query defines is NaN (-1 for an index).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig, PreTrainedModel

NAN = math.nan

Pattern = Float[Tensor, "batch head q_pos k_pos"]
Visible = Bool[Tensor, "batch q_pos k_pos"]
PerKey = Float[Tensor, "batch head k_pos"]
PerQuery = Float[Tensor, "batch head q_pos"]


@dataclass(frozen=True)
class LayerPattern:
    """One attention layer's pattern, fp64.

    Attributes:
        layer: Block index.
        pattern: Weights; rows of padding queries are 0 (Hugging Face leaves 1/T there).
        scores: Pre-softmax scores with ``-inf`` at hidden keys, ``None`` where the bridge does not show them.
        visible: Query i is real and sees the real key j.
    """

    layer: int
    pattern: Pattern
    scores: Pattern | None
    visible: Visible


@dataclass(frozen=True)
class LayerValues:
    """One attention layer's values, fp64, NaN at padding positions.

    Attributes:
        layer: Block index.
        value: Value vectors with their bias, before any gate.
        norm: ``||v||`` of each KV head.
        wo_norm: ``||v W_O^h||`` of each query head, without the output bias and before any later norm.
    """

    layer: int
    value: Float[Tensor, "batch pos kv_head d_head"]
    norm: Float[Tensor, "batch pos kv_head"]
    wo_norm: Float[Tensor, "batch pos head"]


# ------------------------------------------------------------------ what a query may see
def attention_layers(config: PretrainedConfig) -> dict[int, int | None]:
    """Window of each layer that has attention, ``None`` for full attention; other layers are absent."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if not kinds:  # one window, or none, for all
        return dict.fromkeys(range(config.num_hidden_layers), window)
    windows = {"sliding_attention": window, "local": window, "full_attention": None, "global": None}
    return {layer: windows[kind] for layer, kind in enumerate(kinds) if kind in windows}


def visible_keys(real: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"], window: int | None) -> Visible:
    """Which keys each query sees: both real, ``j <= i`` and, with a window W, ``i - j < W``."""
    batch, pos = real.shape
    visible = torch.zeros(batch, pos, pos, dtype=torch.bool)
    for b in range(batch):
        for i in range(pos):
            for j in range(i + 1):
                near = window is None or i - j < window
                visible[b, i, j] = bool(real[b, i]) and bool(real[b, j]) and near
    return visible


def full_patterns(
    bridge: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> list[LayerPattern | None]:
    """The pattern of every layer from ``hook_pattern``; ``None`` for a layer without attention.

    Raises:
        AssertionError: If a real query attends where the mask derived from the config hides the key, which
            means that this oracle misunderstands the architecture.
    """
    real = torch.ones_like(ids) if attention_mask is None else attention_mask
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            ids,
            attention_mask=attention_mask,
            names_filter=lambda name: name.endswith((".attn.hook_pattern", ".attn.hook_attn_scores")),
        )
    windows = attention_layers(cast(PretrainedConfig, bridge.original_model.config))
    layers: list[LayerPattern | None] = []
    for layer in range(len(bridge.blocks)):
        name = f"blocks.{layer}.attn.hook_pattern"
        assert (name in cache) == (layer in windows), f"layer {layer}: attention or not?"
        if layer not in windows:
            layers.append(None)
            continue
        visible = visible_keys(real, windows[layer])
        hidden = ~visible[:, None]
        pattern, shown = cache[name].double(), cache[f"blocks.{layer}.attn.hook_attn_scores"].double()
        real_row = visible.any(-1)[:, None, :, None]
        assert not (pattern * (hidden & real_row)).any(), f"layer {layer}: attention outside the mask"
        scores = None if torch.equal(pattern, shown) else shown.masked_fill(hidden, -math.inf)
        layers.append(LayerPattern(layer, pattern.masked_fill(hidden, 0.0), scores, visible))
    return layers


# ------------------------------------------------------------------ statistics of keys
def received_mass(pattern: Pattern, visible: Visible) -> PerKey:
    """``mass_k = sum_i p_ik`` over real queries."""
    mass = torch.zeros(*pattern.shape[:2], pattern.shape[3], dtype=torch.float64)
    for b, h, _, row in _rows(pattern, visible):
        for j, p in row.items():
            mass[b, h, j] += p
    return mass


def visible_queries(visible: Visible) -> Float[Tensor, "batch k_pos"]:
    """Number of real queries that see each key."""
    count = torch.zeros(visible.shape[0], visible.shape[2], dtype=torch.float64)
    for b, i, j in visible.nonzero().tolist():
        assert i >= j
        count[b, j] += 1
    return count


def null_mass(visible: Visible) -> Float[Tensor, "batch k_pos"]:
    """Mass received if every real query spread itself evenly over the keys it sees."""
    mass = torch.zeros(visible.shape[0], visible.shape[2], dtype=torch.float64)
    for b, i, j in visible.nonzero().tolist():
        mass[b, j] += 1 / int(visible[b, i].sum())
    return mass


def importance(pattern: Pattern, visible: Visible) -> PerKey:
    """``alpha_k = mass_k / (T - k)``: mass over the number of real queries at or after k (Gu et al., 2025).

    The denominator counts all later queries, also those whose window has moved past k. NaN for padding keys.
    """
    mass = received_mass(pattern, visible)
    alpha = torch.full_like(mass, NAN)
    for b in range(visible.shape[0]):
        real = visible[b].any(-1).tolist()
        for k in range(visible.shape[2]):
            if real[k]:
                alpha[b, :, k] = mass[b, :, k] / sum(real[k:])
    return alpha


def margins(
    pattern: Pattern,
    visible: Visible,
    scores: Pattern | None = None,
) -> PerKey:
    """Mean over queries i that see k and another key of ``s_ik - mean_{j != k, j visible} s_ij``.

    Without scores ``log p`` stands in: the row's log-sum-exp, a learned sink included, cancels.
    """
    source = pattern.log() if scores is None else scores
    found: dict[tuple[int, int, int], list[float]] = {}
    for b, h, _, row in _rows(source, visible):
        if len(row) < 2:
            continue
        for k, s in row.items():
            others = [other for j, other in row.items() if j != k]
            found.setdefault((b, h, k), []).append(s - sum(others) / len(others))
    margin = torch.full((*pattern.shape[:2], pattern.shape[3]), NAN, dtype=torch.float64)
    for (b, h, k), differences in found.items():
        margin[b, h, k] = sum(differences) / len(differences)
    return margin


# ------------------------------------------------------------------ statistics of queries
def entropy(pattern: Pattern, visible: Visible) -> PerQuery:
    """Entropy in nats of each row given that it attends to a real key (a learned sink is no outcome)."""
    value = _per_query(pattern)
    for b, h, i, row in _rows(pattern, visible):
        total = sum(row.values())
        value[b, h, i] = -sum(p / total * math.log(p / total) for p in row.values() if p > 0)
    return value


def distance(pattern: Pattern, visible: Visible) -> PerQuery:
    """``sum_j p_ij (i - j) / sum_j p_ij`` in tokens."""
    value = _per_query(pattern)
    for b, h, i, row in _rows(pattern, visible):
        value[b, h, i] = sum(p * (i - j) for j, p in row.items()) / sum(row.values())
    return value


def top_key(pattern: Pattern, visible: Visible) -> tuple[Int[Tensor, "batch head q_pos"], PerQuery]:
    """Strongest key of each query (the first one on ties) and its weight."""
    weight = _per_query(pattern)
    key = torch.full(weight.shape, -1)
    for b, h, i, row in _rows(pattern, visible):
        best = max(row.values())
        weight[b, h, i] = best
        key[b, h, i] = min(j for j, p in row.items() if p == best)
    return key, weight


def mass_on(
    pattern: Pattern,
    visible: Visible,
    keys: Bool[Tensor, "batch k_pos"],
) -> PerQuery:
    """Mass of each query on a set of keys, not renormalised."""
    value = _per_query(pattern)
    for b, h, i, row in _rows(pattern, visible):
        value[b, h, i] = sum(p for j, p in row.items() if keys[b, j])
    return value


def missing_mass(pattern: Pattern, visible: Visible) -> PerQuery:
    """``1 - sum_j p_ij``: what a learned sink took."""
    value = _per_query(pattern)
    for b, h, i, row in _rows(pattern, visible):
        value[b, h, i] = 1 - sum(row.values())
    return value


def pooled_map(pattern: Pattern, visible: Visible, cell: int) -> Float[Tensor, "batch head q_cell k_cell"]:
    """Largest weight in each ``cell x cell`` square, NaN where nothing is visible; edge cells are smaller."""
    batch, heads, q_pos, k_pos = pattern.shape
    pooled = torch.full((batch, heads, -(-q_pos // cell), -(-k_pos // cell)), NAN, dtype=torch.float64)
    for b, h, i, row in _rows(pattern, visible):
        for j, p in row.items():
            old = pooled[b, h, i // cell, j // cell].item()
            pooled[b, h, i // cell, j // cell] = p if math.isnan(old) else max(old, p)
    return pooled


# ------------------------------------------------------------------ values from the weights
def value_norms(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> list[LayerValues | None]:
    """Values and norms from a Hugging Face model's weights; ``None`` for a layer without attention.

    Only the input of each attention module is taken from a forward pass; each sequence runs alone, without
    its padding, and its values are put back where its real tokens stand.
    """
    real = torch.ones_like(ids) if attention_mask is None else attention_mask
    layers: list[LayerValues | None] = []
    inputs = [_attention_inputs(model, ids[b, real[b] > 0]) for b in range(len(ids))]
    for layer in range(model.config.num_hidden_layers):
        if layer not in attention_layers(model.config):
            layers.append(None)
            continue
        rows = [_values(model, layer, inputs[b][layer]) for b in range(len(ids))]
        value = torch.full((*ids.shape, *rows[0].shape[1:]), NAN, dtype=torch.float64)
        for b, row in enumerate(rows):
            value[b, real[b] > 0] = row
        output = _output_weight(model, layer)
        heads, kv_heads = model.config.num_attention_heads, value.shape[2]
        wo_norm = torch.full((*ids.shape, heads), NAN, dtype=torch.float64)
        for h in range(heads):
            v = value[:, :, h * kv_heads // heads]
            width = v.shape[-1]
            wo_norm[:, :, h] = (v @ output[h * width : (h + 1) * width]).norm(dim=-1)
        layers.append(LayerValues(layer, value, value.norm(dim=-1), wo_norm))
    return layers


_MODULES = {
    "gpt2": "transformer.h.{}.attn",
    "gptj": "transformer.h.{}.attn",
    "codegen": "transformer.h.{}.attn",
    "gpt_neo": "transformer.h.{}.attn.attention",
    "gpt_neox": "gpt_neox.layers.{}.attention",
    "opt": "model.decoder.layers.{}.self_attn",
    "falcon": "transformer.h.{}.self_attention",
    "bloom": "transformer.h.{}.self_attention",
    "mpt": "transformer.blocks.{}.attn",
}


def _attention(model: PreTrainedModel, layer: int) -> torch.nn.Module:
    return model.get_submodule(_MODULES.get(model.config.model_type, "model.layers.{}.self_attn").format(layer))


def _attention_inputs(model: PreTrainedModel, ids: Int[Tensor, " pos"]) -> dict[int, Float[Tensor, "pos d_model"]]:
    seen: dict[int, Tensor] = {}
    handles = []
    for layer in attention_layers(model.config):

        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
            seen[layer] = (args[0] if args else kwargs["hidden_states"])[0].double()

        handles.append(_attention(model, layer).register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            model(ids[None])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _values(model: PreTrainedModel, layer: int, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos kv_head d_head"]:
    """Where each architecture keeps W_V: a module of its own, or some rows of a fused projection."""
    config, weights = model.config, _weights(model, layer)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kind = config.model_type
    if "v_proj.weight" in weights:
        weight, bias = weights["v_proj.weight"], weights.get("v_proj.bias")
    elif kind == "deepseek_v3":
        latent = (x @ weights["kv_a_proj_with_mqa.weight"].T)[:, : config.kv_lora_rank]
        scale = latent.pow(2).mean(-1, keepdim=True).add(config.rms_norm_eps).rsqrt()
        normed = latent * scale * weights["kv_a_layernorm.weight"]
        keys_and_values = normed @ weights["kv_b_proj.weight"].T
        return keys_and_values.reshape(len(x), heads, -1)[..., config.qk_nope_head_dim :]
    elif kind == "gpt2":  # stored [in, out] with columns q, k, v
        weight, bias = weights["c_attn.weight"].T.chunk(3)[2], weights["c_attn.bias"].chunk(3)[2]
    else:
        name = {"phi3": "qkv_proj", "mpt": "Wqkv", "codegen": "qkv_proj"}.get(kind, "query_key_value")
        fused, fused_bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        if kind == "falcon":
            new = config.new_decoder_architecture
            kv_heads = config.num_kv_heads if new else 1 if config.multi_query else heads
        rows = _value_rows(config, heads, kv_heads, len(fused))
        weight, bias = fused[rows], None if fused_bias is None else fused_bias[rows]
    value = x @ weight.T
    if bias is not None:
        value = value + bias
    return value.reshape(len(x), kv_heads, -1)


def _value_rows(config: PretrainedConfig, heads: int, kv_heads: int, n_rows: int) -> Int[Tensor, " row"]:
    """Rows of a fused projection that make values, KV head by KV head."""
    rows = torch.arange(n_rows)
    grouped = config.model_type == "falcon" and (config.new_decoder_architecture or not config.multi_query)
    if grouped or config.model_type in ("gpt_neox", "bloom"):  # per KV head: its queries, its key, its value
        return rows.view(kv_heads, heads // kv_heads + 2, -1)[:, -1].flatten()
    if config.model_type == "codegen":  # 4 shards of queries, values, keys
        return rows.view(4, 3, -1)[:, 1].flatten()
    d_head = n_rows // (heads + 2 * kv_heads)  # phi3, mpt, multi-query falcon: all q, all k, all v
    return rows[-kv_heads * d_head :]


def _output_weight(model: PreTrainedModel, layer: int) -> Float[Tensor, "head_d_head d_model"]:
    weights = _weights(model, layer)
    if "c_proj.weight" in weights:  # GPT-2 stores [in, out]
        return weights["c_proj.weight"]
    name = next(name for name in ("o_proj", "out_proj", "dense") if f"{name}.weight" in weights)
    return weights[f"{name}.weight"].T


def _weights(model: PreTrainedModel, layer: int) -> dict[str, Tensor]:
    return {name: weight.double() for name, weight in _attention(model, layer).state_dict().items()}


# ------------------------------------------------------------------ loops
def _rows(matrix: Pattern, visible: Visible) -> Iterator[tuple[int, int, int, dict[int, float]]]:
    """Each real query's row as ``{key: value}`` over the keys it sees."""
    values, seen = matrix.tolist(), visible.tolist()
    for b, heads in enumerate(values):
        for h, rows in enumerate(heads):
            for i, row in enumerate(rows):
                if any(seen[b][i]):
                    yield b, h, i, {j: x for j, x in enumerate(row) if seen[b][i][j]}


def _per_query(pattern: Pattern) -> PerQuery:
    return torch.full(pattern.shape[:3], NAN, dtype=torch.float64)
