"""A margin and its parts against plain formulas, on many architectures, and on a head whose cause was planted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sinklens.attention import AttentionEngine
from sinklens.attention.delta_logit import DeltaLogit
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import as_batch
from sinklens.passes.head_margin import HeadMargin
from sinklens.passes.margin_parts import margin_directions
from sinklens.passes.qk_attribution import qk_attribution
from sinklens.passes.sink_kinds import sink_kinds, stable_rank
from tests import families
from tests.passes.planted_sink import CHANNEL, HEAD, planted_sink, sink_ids


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("families"))


def margins(scores: Tensor, key: int = 0) -> Tensor:
    """Of scores [batch pos pos], one row at a time."""
    found = []
    for rows in scores:
        each = [
            rows[t, key] - rows[t, [j for j in range(t + 1) if j != key]].mean() for t in range(max(key, 1), len(rows))
        ]
        found.append(torch.stack(each).mean())
    return torch.stack(found)


class Plain:
    """A Llama head by hand, in fp64: scores of layer 1 from any residual streams of queries and keys."""

    def __init__(self, hf: Any, ids: Tensor, layer: int, head: int) -> None:
        self.layer = hf.model.layers[layer]
        attention = self.layer.self_attn
        out = hf(ids, output_hidden_states=True)
        self.hidden = out.hidden_states[layer].double()
        self.rms = (self.hidden.square().mean(-1, keepdim=True) + hf.config.rms_norm_eps).sqrt()
        size = attention.head_dim
        kv = head // attention.num_key_value_groups
        self.w_q = attention.q_proj.weight.double()[head * size : (head + 1) * size]
        self.w_k = attention.k_proj.weight.double()[kv * size : (kv + 1) * size]
        self.scaling = attention.scaling
        self.rotary = [each.double() for each in hf.model.rotary_emb(self.hidden, torch.arange(ids.shape[1])[None])]

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Streams in, with the norms of the true stream."""
        g = self.layer.input_layernorm.weight.double()
        q, k = (g * queries / self.rms) @ self.w_q.T, (g * keys / self.rms) @ self.w_k.T
        q, k = apply_rotary_pos_emb(q[:, None], k[:, None], *self.rotary)
        return (q[:, 0] @ k[:, 0].mT) * self.scaling


@torch.no_grad()
def test_every_part_is_what_plain_formulas_give(cache: str) -> None:
    bridge, hf = families.boot("llama", cache), families.boot_hf("llama", cache)
    ids = families.random_ids(2, 14)
    removals = {(1, 2): {"two": [3, 11]}}
    found = qk_attribution(bridge, as_batch(bridge, ids), [(1, 2)], removals=removals, named={(1, 2): [3]})[1, 2]
    plain = Plain(hf, ids, 1, 2)
    h = plain.hidden
    assert found.margin == pytest.approx(margins(plain.scores(h, h)).numpy(), abs=1e-4)
    for channel in (0, 3, 31):
        only = torch.zeros_like(h)
        only[..., channel] = h[..., channel]
        assert found.channels["key"][:, channel] == pytest.approx(margins(plain.scores(h, only)).numpy(), abs=1e-4)
        assert found.channels["query"][:, channel] == pytest.approx(margins(plain.scores(only, h)).numpy(), abs=1e-4)
    three = torch.zeros_like(h)
    three[..., 3] = h[..., 3]
    expected = [[margins(plain.scores(q, k)) for k in (three, h - three)] for q in (three, h - three)]
    assert found.pairs is not None
    assert found.pairs[:, :2, :2] == pytest.approx(
        torch.stack([torch.stack(row) for row in expected]).permute(2, 0, 1).numpy(), abs=1e-4
    )
    # who wrote: the embedding, and one head of layer 0 by its own output
    embedded = hf.model.embed_tokens(ids).double()
    assert found.components["key"]["embedding"] == pytest.approx(margins(plain.scores(h, embedded)).numpy(), abs=1e-4)
    kept: list[Tensor] = []
    handle = hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    hf(ids)
    handle.remove()
    write = kept[0][..., 8:16].double() @ hf.model.layers[0].self_attn.o_proj.weight.double()[:, 8:16].T
    assert found.components["query"]["L0H1"] == pytest.approx(margins(plain.scores(write, h)).numpy(), abs=1e-4)
    # what is left without two channels
    less = h.clone()
    less[..., [3, 11]] = 0
    hidden_ones = torch.ones(14, 14).triu(1).bool()
    for keys, name in ((h, ""), (less, "two")):
        pattern = plain.scores(h, keys).masked_fill(hidden_ones, -torch.inf).softmax(-1)
        assert found.masses[name] == pytest.approx(pattern[..., 0].mean(1).numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt_neox", "cohere", "gpt_oss", "opt", "qwen3_next", "phi"])
def test_parts_sum_to_the_margin_that_the_engine_measures(name: str, cache: str) -> None:
    model = families.boot(name, cache)
    batch = as_batch(model, families.random_ids(2, 20))
    layer = max(attention_layers(model))
    found = qk_attribution(model, batch, [(layer, 0), (layer, 3)], named={(layer, 0): [1, 4]})
    seen: dict[int, Tensor] = {}
    engine = AttentionEngine(
        model, statistics=[DeltaLogit], on_layer=lambda at, _, s: seen.update({at: s[0].compute()["delta_logit"]})
    )
    with torch.no_grad(), engine:
        model(batch.ids)
    for (_, head), each in found.items():
        assert each.gap < 1e-4
        assert each.margin == pytest.approx(seen[layer][:, head, 0].numpy(), abs=2e-4)
        assert len(each.components["key"]) > 3


@torch.no_grad()
@pytest.mark.parametrize(("window", "key"), [(None, 3), (4, 0), (4, 5), (1, 0)])
def test_directions_of_windows_and_later_keys(window: int | None, key: int) -> None:
    q, k = torch.randn(2, 9, 4).double(), torch.randn(2, 9, 4).double()
    scores, width, rows = q @ k.mT, window or 9, []
    for b in range(2):
        each = []
        for t in range(9):
            seen = list(range(max(0, t - width + 1), t + 1))
            if key in seen and len(seen) > 1:
                each.append(scores[b, t, key] - scores[b, t, [j for j in seen if j != key]].mean())
        rows.append(sum(each) / max(1, len(each)))
    to_key, to_query = margin_directions(q, k, key, window)
    expected = torch.tensor([float(row) for row in rows], dtype=torch.float64)
    assert torch.allclose((to_key * k).sum((1, 2)), expected)
    assert torch.allclose((to_query * q).sum((1, 2)), expected)


def planted_margin(model: TransformerBridge) -> HeadMargin:
    batch = as_batch(model, sink_ids())
    randoms = {f"random {c}": [c] for c in range(12, 20)}
    return qk_attribution(model, batch, [HEAD], removals={HEAD: {"named": [CHANNEL]} | randoms})[HEAD]


def test_a_planted_cause_is_named_and_taken_away() -> None:
    found = planted_margin(planted_sink())
    shares = found.channels["key"].mean(0)
    assert shares.argmax() == CHANNEL and shares[CHANNEL] > 0.9 * found.margin.mean() > 8
    writers = {name: values.mean() for name, values in found.components["key"].items()}
    assert max(writers, key=lambda name: writers[name]) == "embedding"
    assert found.bands.mean(0).argmax() == 3  # where it was put
    masses = {name: values.mean() for name, values in found.masses.items()}
    assert masses[""] > 0.9 and masses["named"] < 0.3
    assert min(masses[f"random {c}"] for c in range(12, 20)) > 0.9
    # the norm keeps the sink's margin down: at the others' scale it would be larger
    assert (found.common_scale > 1.5 * found.margin).all()


def test_without_the_plant_no_channel_makes_a_sink() -> None:
    found = planted_margin(planted_sink(strength=0))
    assert np.abs(found.channels["key"].mean(0)).max() < 1 and found.masses[""].mean() < 0.3


def test_what_cannot_be_split_is_refused(cache: str) -> None:
    for name, told in (("olmo2", "each head by itself"), ("falcon_alibi", "cannot be seen"), ("deepseek_v3", "W_Q")):
        model = families.boot(name, cache)
        with pytest.raises(UnsupportedArchitectureError, match=told):
            qk_attribution(model, as_batch(model, families.random_ids(1, 8)), [(1, 0)])
    model = families.boot("llama", cache)
    with pytest.raises(InputError, match="one length"):
        qk_attribution(model, as_batch(model, [[5, 6, 7], [5, 6]]), [(1, 0)])


@torch.no_grad()
def test_kinds_follow_the_size_of_the_value_and_the_rank() -> None:
    kinds = {value: sink_kinds(planted_sink(value=value), as_batch(planted_sink(), sink_ids())) for value in (0.0, 3.0)}
    nothing, same = kinds[0.0][HEAD], kinds[3.0][HEAD]
    assert nothing.kind == "no-op" and nothing.n_events == 3 and float(nothing.ratio.max()) <= 0.2
    assert same.kind == "broadcast" and float(same.stable_rank.max()) <= 1.5 and float(same.ratio.min()) >= 0.5
    assert kinds[3.0][1, 3].kind is None and not kinds[3.0][1, 3].n_events  # it does not rest there
    # by hand: eager attention of the same weights
    model = planted_sink(value=3.0)
    ids = sink_ids()
    _, cache = model.run_with_cache(ids)
    pattern, v = cache["blocks.1.attn.hook_pattern"][:, 0].double(), cache["blocks.1.attn.hook_v"].double()
    w_o = model.blocks[1].attn.W_O[0].double()
    written = (v[:, :, 0] @ w_o).norm(dim=-1)
    assert same.ratio.numpy() == pytest.approx((written[:, 0] / written[:, 1:].mean(1)).numpy(), rel=1e-4)
    updates = (pattern @ v[:, :, 0] @ w_o)[:, 1:]
    by_hand = [float(u.square().sum() / torch.linalg.svdvals(u)[0] ** 2) for u in updates]
    assert same.stable_rank.numpy() == pytest.approx(np.array(by_hand), rel=1e-4)
    assert stable_rank(torch.zeros(2, 2)) != stable_rank(torch.zeros(2, 2))
