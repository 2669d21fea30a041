"""What commands of sinklens measure, in plain code with all T x T patterns in hand: the other side of ``real.py``.

Scores alone: nothing here makes nulls, intervals, labels, sentences or tables, and what counts as a delimiter or as the
key of a head's drain is the simplest that does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from needle import decode
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from sinklens.models.tokens import TokenBatch
from sinklens.passes.repeated_tokens import RepeatedTokens
from sinklens.studies import NeedleSet

SETTINGS = {"use_cache": False, "logits_to_keep": 1}
EPS, MIN_QUERIES = 0.3, 10


def cached(bridge: TransformerBridge, ids: Tensor, *names: str) -> Iterator[dict[str, Tensor]]:
    """The named hooks of the attention of every layer, as TransformerLens keeps them."""
    _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith(names), **SETTINGS)
    for layer in range(len(bridge.blocks)):
        yield {name: cache[f"blocks.{layer}.attn.{name}"] for name in names}


def text_roles(bridge: TransformerBridge, batch: TokenBatch) -> list[dict[str, Tensor]]:
    """Sinks, drains, entropy, distances, previous token, delimiters and Task-KV's offsets, by layer, from one pass."""
    heads, length = int(bridge.cfg.n_heads), batch.ids.shape[1]
    place = torch.arange(length)
    apart = (place[:, None] - place).clamp(min=0)
    marks = torch.tensor([[not any(map(str.isalnum, token)) for token in row] for row in batch.tokens])
    found = []
    for layer, seen in enumerate(cached(bridge, batch.ids, "hook_pattern", "hook_v", "hook_z")):
        pattern = seen["hook_pattern"]
        value = seen["hook_v"].reshape(len(batch), length, -1, int(bridge.cfg.d_head))
        value = value.repeat_interleave(heads // value.shape[2], 2)
        w_o = bridge.blocks[layer].attn.W_O
        written = torch.einsum("bphd,hdm->bphm", value, w_o).norm(dim=-1).transpose(1, 2)
        importance = pattern.sum(2) / (length - place)
        rest = pattern[..., 1:]
        weighted = pattern * written[:, :, None]
        means = seen["hook_z"].reshape(len(batch), length, heads, -1).mean(1)
        by_head = torch.einsum("bhd,hdm->bhm", means, w_o)
        found.append(
            {
                "importance": importance.mean(0)[..., : length - MIN_QUERIES + 1].amax(-1),
                "sink_rate": (importance > EPS).float().mean(0)[..., : length - MIN_QUERIES + 1].amax(-1),
                "drain": (value.norm(dim=-1)[:, 0] / value.norm(dim=-1)[:, 1:].mean(1)).mean(0),
                "drain_wo": (written[..., 0] / written[..., 1:].mean(-1)).mean(0),
                "entropy": -torch.special.xlogy(pattern, pattern).sum(-1).mean((0, 2)),
                "distance": (pattern * apart).sum(-1).mean((0, 2)),
                "distance_without_sink": ((rest * apart[:, 1:]).sum(-1) / rest.sum(-1)).nanmean((0, 2)),
                "previous_token": pattern.diagonal(-1, 2, 3).mean((0, 2)),
                "delimiter_mass": (pattern * marks[:, None, None]).sum(-1).mean((0, 2)),
                "sink_share": pattern[..., 0].mean((0, 2)),
                "value_weighted_sink_share": (weighted[..., 0] / weighted.sum(-1)).mean((0, 2)),
                "semantic_offset": (means - means.mean(1, keepdim=True)).norm(dim=-1).mean(0),
                "written_offset": (by_head - by_head.mean(1, keepdim=True)).norm(dim=-1).mean(0),
            }
        )
    return found


def stripes(bridge: TransformerBridge, probe: RepeatedTokens) -> list[dict[str, Tensor]]:
    """Previous token, duplicate token, induction, echo and RazorAttention's induction, by layer, from one pass."""
    size, count, first = probe.repeats.block, probe.repeats.repeats, probe.repeats.prefix
    found = []
    for seen in cached(bridge, probe.batch.ids, "hook_pattern"):
        pattern = seen["hook_pattern"][:, :, first:, first:]
        second = pattern[:, :, size : 2 * size, :]
        here = torch.arange(size)
        echo, induction = torch.zeros(pattern.shape[1]), torch.zeros(pattern.shape[1])
        for block in range(1, count):
            rows = block * size + here
            for back in range(1, block + 1):
                echo += pattern[:, :, rows, rows - back * size].mean((0, 2)) / (count - 1)
                induction += pattern[:, :, rows, rows - back * size + 1].mean((0, 2)) / (count - 1)
        found.append(
            {
                "previous_token": pattern.diagonal(-1, 2, 3).mean((0, 2)),
                "duplicate_token": second[:, :, here, here].mean((0, 2)),
                "induction": second[:, :, here, here + 1].mean((0, 2)),
                "echo": echo,
                "razor_induction": induction,
            }
        )
    return found


def retrieval(model: Any, needles: Sequence[NeedleSet]) -> list[Tensor]:
    """Share of every answer that each head points at while it is decoded, as the paper's released code does it."""
    found = []
    for each in (each for some in needles for each in some.instances):
        keys = decode(model, torch.tensor([each.ids]), len(each.answer))
        wanted = torch.arange(each.span[0], each.span[0] + keys.shape[-1])
        found.append((keys == wanted).float().mean(-1))
    return found


def checkpoint(path: Path, batch: TokenBatch) -> dict[str, Tensor]:
    """Loss, sinks, margins, drains and residual peaks of one checkpoint, from one pass."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    values: list[Tensor] = []
    for block in model.model.layers:
        block.self_attn.v_proj.register_forward_hook(lambda module, given, out: values.append(out))
    out = model(batch.ids, output_attentions=True, output_hidden_states=True, use_cache=False)
    length, heads = batch.ids.shape[1], int(model.config.num_attention_heads)
    place = torch.arange(length)
    rows: dict[str, list[Tensor]] = {}
    for block, pattern, value, hidden in zip(
        model.model.layers, out.attentions, values, out.hidden_states[1:], strict=True
    ):
        d_head = int(model.config.hidden_size) // heads
        value = value.unflatten(-1, (-1, d_head)).repeat_interleave(heads * d_head // value.shape[-1], 2)
        w_o = block.self_attn.o_proj.weight.T.unflatten(0, (heads, d_head))
        written = torch.einsum("bphd,hdm->bphm", value, w_o).norm(dim=-1)
        importance = pattern.sum(2) / (length - place)
        scores = pattern.clamp(min=1e-30).log()
        margin = scores[..., 1:, 0] - scores[..., 1:, 1:].tril().sum(-1) / place[1:]
        norm = hidden.norm(dim=-1)
        rows.setdefault("importance", []).append(importance[..., 0].mean(0))
        rows.setdefault("sink_rate", []).append((importance[..., 0] > EPS).float().mean(0))
        rows.setdefault("margin", []).append(margin.mean((0, 2)))
        rows.setdefault("drain", []).append((value.norm(dim=-1)[:, 0] / value.norm(dim=-1)[:, 1:].mean(1)).mean(0))
        rows.setdefault("drain_wo", []).append((written[:, 0] / written[:, 1:].mean(1)).mean(0))
        rows.setdefault("residual", []).append((norm[:, 0] / norm[:, 1:].mean(1)).mean(0))
        rows.setdefault("peak", []).append(
            (hidden.abs().amax((1, 2)) / hidden.abs().flatten(1).median(1).values).mean(0)
        )
    found = {name: torch.stack(values) for name, values in rows.items()}
    losses = cross_entropy(out.logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none")
    return found | {"loss": losses.mean(1)}
