"""Task-KV on models: against the bridge's hooks, under rotations of a real model's heads, and by KV group."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import sinklens
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.tokens import tokenize
from sinklens.studies.head_scores.heterogeneous_heads import heterogeneous_heads
from tests.families import boot, checkpoint, random_ids

pytestmark = pytest.mark.usefixtures("no_gradients")

POS = 24


@pytest.mark.parametrize(("name", "group"), [("gpt2", 1), ("llama", 2)])
def test_offsets_are_those_of_the_bridge_s_hooks(name: str, group: int, tmp_path: Path) -> None:
    bridge = boot(name, tmp_path)
    batch = tokenize(bridge, random_ids(batch=3, pos=POS))
    seen = {}
    hooks: list[Any] = []
    for layer in range(2):
        hooks.append((f"blocks.{layer}.attn.hook_z", lambda z, hook, at=layer: seen.update({at: z.clone()})))
    with bridge.hooks(fwd_hooks=hooks):
        bridge(batch.ids)
    frame = heterogeneous_heads(bridge, tokens=batch, beta=0.5, least=1).frame
    for layer in range(2):
        vectors = seen[layer].mean(1)  # [batch head d_head]
        raw = vectors.unflatten(1, (-1, group)).mean(2)
        written = torch.einsum("bhd,hdm->bhm", vectors, bridge.blocks[layer].attn.W_O).unflatten(1, (-1, group)).sum(2)
        own = frame[frame["layer"] == layer]
        for column, each in (("semantic_offset", raw), ("written_offset", written)):
            expected = (each - each.mean(1, keepdim=True)).norm(dim=-1).mean(0).repeat_interleave(group)
            np.testing.assert_allclose(own[column], expected, rtol=1e-4)


def test_rotated_heads_of_a_model_are_the_same_heads(tmp_path: Path) -> None:
    """The rotated model has the same logits; the raw offsets differ, the written ones do not."""
    plain = sinklens.load(checkpoint("gpt2", tmp_path))
    weights: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for block in weights.transformer.h:
        turn = torch.block_diag(*torch.linalg.qr(torch.randn(4, 8, 8, generator=generator)).Q)
        value = slice(64, 96)  # of the fused q, k, v
        block.attn.c_attn.weight[:, value] = block.attn.c_attn.weight[:, value] @ turn
        block.attn.c_attn.bias[value] = block.attn.c_attn.bias[value] @ turn
        block.attn.c_proj.weight.copy_(turn.T @ block.attn.c_proj.weight)
    shutil.copytree(tmp_path / "gpt2", tmp_path / "turned")
    weights.save_pretrained(tmp_path / "turned")
    turned = sinklens.load(tmp_path / "turned")
    ids = random_ids(pos=POS)
    torch.testing.assert_close(turned(ids), plain(ids), atol=1e-3, rtol=1e-3)
    before, after = (heterogeneous_heads(bridge, tokens=ids, least=1).frame for bridge in (plain, turned))
    np.testing.assert_allclose(after["written_offset"], before["written_offset"], rtol=1e-5, atol=1e-5)
    assert float((after["semantic_offset"] - before["semantic_offset"]).abs().max()) > 1e-2
    assert after["written_heterogeneous"].tolist() == before["written_heterogeneous"].tolist()


def test_labels_are_by_kv_group_and_follow_the_layer(tmp_path: Path) -> None:
    ids = random_ids(batch=4, pos=POS)
    scores = heterogeneous_heads(boot("gpt2", tmp_path), tokens=ids, beta=0.5, least=0)
    assert scores.meta["settings"]["counts"] == {"0": 2, "1": 0}
    for form in ("semantic", "written"):
        labels = scores.frame.groupby("layer")[f"{form}_heterogeneous"]
        assert labels.sum().tolist() == [3, 1]  # the far ones and the closest
        far = scores.frame[scores.frame["layer"] == 0].sort_values(f"{form}_offset")[f"{form}_heterogeneous"]
        assert far.tolist() == [True, False, True, True]
        assert scores.frame[f"{form}_share"].between(0, 1).all()
    json.dumps(scores.meta, allow_nan=False)
    grouped = heterogeneous_heads(boot("llama", tmp_path), tokens=ids).frame
    for _, group in grouped.groupby(["layer", "kv_head"]):
        assert len(group) == 2 and (group.drop(columns="head").nunique() == 1).all()


def test_what_does_not_apply(tmp_path: Path) -> None:
    gated = heterogeneous_heads(boot("qwen3_next", tmp_path), tokens=random_ids(pos=POS))
    assert gated.frame["written_offset"].isna().all() and gated.frame["semantic_offset"].notna().all()
    assert gated.frame["layer"].unique().tolist() == [3] and len(gated.meta["warnings"]) == 1
    with pytest.raises(UnsupportedArchitectureError, match="no attention heads"):
        heterogeneous_heads(boot("mamba", tmp_path), tokens=random_ids())
