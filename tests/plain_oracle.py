"""What a scan says of a real model, computed again from plain transformers: eager attention, own hooks and formulas.

Nothing here comes from sinklens or TransformerLens. Sequences run alone and without padding, in fp32 as the model is;
sums are taken in fp64. Formulas are the definitions of the papers, written out:

- importance ``alpha_k = 1 / (T - k) sum_{i >= k} A_ik`` (Gu et al. 2025), its null with ``A_ik = 1 / n_i``, n_i being
  the number of keys that query i sees;
- drain ``|v_k|`` and ``|v_k W_O^h|``, by mean over sequences and then over the mean of the others (Guo et al. 2024);
- ``|h|`` after every block, its largest entry and the lower median of all entries (Sun et al. 2024).
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig


@dataclass(frozen=True)
class Plain:
    """What the model did on sequences of one length T; layers come first in every tensor.

    Attributes:
        pattern: ``[layer batch head q k]``.
        value_norm: ``[layer batch kv_head pos]``.
        output_norm: ``|v W_O^h|``, ``[layer batch head pos]``.
        hidden: Residual stream after the embedding and after every block, ``[layer + 1, batch, pos, d_model]``.
        windows: Sliding window of every layer, ``None`` for full attention.
        logits: ``[batch pos vocabulary]``.
    """

    pattern: Tensor
    value_norm: Tensor
    output_norm: Tensor
    hidden: Tensor
    windows: list[int | None]
    logits: Tensor


@cache
def plain_model(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, as anybody would load them."""
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # transformers parses the file three times, and makes the table of names for every module
    once = {name: cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    with mock.patch.multiple(gguf, **once):
        model = AutoModelForCausalLM.from_pretrained(
            **place,
            dtype=torch.float32,
            attn_implementation="eager",
            quantization_config=GgufConfig(dequantize=True),
        )
        return model.eval(), AutoTokenizer.from_pretrained(**place)


@torch.no_grad()
def run_plain(model: Any, ids: list[list[int]]) -> Plain:
    """Run sequences of one length, each alone."""
    config = model.config
    layers = model.model.layers
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [layers[0].register_forward_pre_hook(lambda module, args: seen.setdefault("h", []).append(args[0]))]
    for layer in layers:
        handles.append(layer.register_forward_hook(keep("h")))
        handles.append(layer.self_attn.v_proj.register_forward_hook(keep("v")))
    runs = []
    try:
        for row in ids:
            seen.clear()
            out = model(torch.tensor([row]), output_attentions=True)
            pattern = torch.stack([a[0] for a in out.attentions])
            value = torch.stack([v[0] for v in seen["v"]]).double()
            value = value.unflatten(-1, (kv_heads, -1)).transpose(1, 2)  # [layer kv_head pos d_head]
            runs.append((pattern, value, torch.stack([h[0] for h in seen["h"]]), out.logits[0]))
    finally:
        for handle in handles:
            handle.remove()
    pattern, value, hidden, logits = (torch.stack(parts) for parts in zip(*runs, strict=True))
    output_norm = []
    for number, layer in enumerate(layers):
        per_head = value[:, number].repeat_interleave(heads // kv_heads, dim=1)  # query head h reads kv head h // group
        w_o = layer.self_attn.o_proj.weight.double().T.unflatten(0, (heads, -1))  # [head d_head d_model]
        output_norm.append(torch.einsum("bhpd,hdm->bhpm", per_head, w_o).norm(dim=-1))
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    return Plain(
        pattern.double().swapaxes(0, 1),
        value.norm(dim=-1).swapaxes(0, 1),
        torch.stack(output_norm),
        hidden.swapaxes(0, 1),
        windows,
        logits,
    )


def importance(pattern: Tensor) -> Tensor:
    """``alpha_k`` of every key: the column sum over the number of queries from k on."""
    length = pattern.shape[-1]
    return pattern.sum(-2) / (length - torch.arange(length))


def uniform_pattern(length: int, window: int | None) -> Tensor:
    """Every query spreads its attention evenly over the keys it sees, ``[q k]``."""
    rows = torch.zeros(length, length, dtype=torch.double)
    for i in range(length):
        first = 0 if window is None else max(0, i - window + 1)
        rows[i, first : i + 1] = 1 / (i + 1 - first)
    return rows


def entropy(pattern: Tensor) -> Tensor:
    """Entropy in nats of every query's attention, averaged over queries."""
    return -(pattern * pattern.clamp_min(1e-300).log()).sum(-1).mean(-1)


def distance(pattern: Tensor) -> Tensor:
    """Mean distance in tokens that a query looks back, averaged over queries."""
    at = torch.arange(pattern.shape[-1], dtype=torch.double)
    return (pattern * (at[:, None] - at)).sum(-1).mean(-1)


def others(mean_norm: Tensor) -> Tensor:
    """Mean over the other positions, for every position of the last axis."""
    return (mean_norm.sum(-1, keepdim=True) - mean_norm) / (mean_norm.shape[-1] - 1)


def lower_median(magnitude: Tensor) -> float:
    """Middle of all entries, the lower one of an even count."""
    ordered = magnitude.flatten().sort().values
    return float(ordered[math.ceil(len(ordered) / 2) - 1])
