"""The margin of a sink before the softmax, split exactly: by residual channel, by who wrote it, by rotary band."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, ReceivedMass, plan_for
from sinklens.attention.kernel import AttentionCall, attend
from sinklens.detectors.direct_logit import FrozenNorm
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Head
from sinklens.models.architecture import attention_layers, window_of
from sinklens.models.tokens import TokenBatch
from sinklens.passes.head_margin import HeadMargin
from sinklens.passes.margin_parts import band_shares, key_parts, margin_directions, query_parts
from sinklens.passes.margin_writers import MarginWriters
from sinklens.passes.qk_projection import Projection, freeze_exactly, project

Removals = dict[Head, dict[str, Sequence[int]]]
"""Channels to take out of a head's keys, by name."""


@torch.no_grad()
def qk_attribution(
    model: TransformerBridge,
    batch: TokenBatch,
    heads: Sequence[Head],
    *,
    position: int = 0,
    components: bool = True,
    removals: Removals | None = None,
    named: Mapping[Head, Sequence[int]] | None = None,
) -> dict[Head, HeadMargin]:
    """Split the margin by which heads prefer one key, exactly, into what makes it.

    With every norm's scale held at what it is, a score is bilinear in the residual streams of query and key, so its
    margin is a sum over channels of either, over the components that wrote them, and over pairs of rotated dims. What
    all keys share cancels on the key's side: only what sets the sink's key apart from the others counts there.

    Args:
        model: The bridge.
        batch: Sequences of one length, without padding.
        heads: Layers and heads.
        position: The key.
        components: Whether to tell who wrote the streams: a second forward pass.
        removals: Also measure the attention to the key with these channels' shares taken out of the head's keys, in
            that head alone and with everything before it as it was.
        named: Channels by head for which :attr:`HeadMargin.pairs` are told.

    Raises:
        InputError: A key that the sequences do not have, or padding.
        UnsupportedArchitectureError: Scores of this architecture are not such sums (bias by distance, no queries and
            keys to be seen, gates), or a norm or scale stands where it cannot be read.

    Cost: one or two forward passes, and for each head O(pos d_model d_head), nothing T x T; memory for queries, keys
    and residual stream of one layer, and one residual stream for each head and side. Each removal is the attention of
    one head once more.
    """
    width = batch.ids.shape[1]
    if not bool(batch.real.all()) or not 0 <= position < width - 1:
        raise InputError(
            f"Expected sequences of one length with a token after position {position}, got lengths "
            f"{sorted(set(batch.lengths.tolist()))}."
        )
    plan = plan_for(model)
    if plan.path != "fast":
        raise UnsupportedArchitectureError(
            f"Queries and keys of {model.cfg.architecture} cannot be seen as attention uses them, so its scores are "
            "not split into parts."
        )
    reader = _Reader(model, heads, position, removals or {}, named or {})
    reader.run(batch)
    if components:
        MarginWriters(model, reader.found, reader.reads).run(batch)
    return reader.found


class _Reader:
    """The first pass: margins, and what the head reads at every token, as directions of the residual stream."""

    def __init__(
        self,
        model: TransformerBridge,
        heads: Sequence[Head],
        position: int,
        removals: Removals,
        named: Mapping[Head, Sequence[int]],
    ) -> None:
        self.model, self.position, self.removals, self.named = model, position, removals, named
        self.by_layer: dict[int, list[int]] = defaultdict(list)
        for layer, head in heads:
            self.by_layer[layer].append(head)
        self.found: dict[Head, HeadMargin] = {}
        self.reads: dict[tuple[Head, str], Tensor] = {}  # [batch pos d_model]
        self.seen: dict[str, Any] = {}

    def run(self, batch: TokenBatch) -> None:
        attention = attention_layers(self.model)
        handles = []
        hooks = []
        for layer in self.by_layer:
            original: Any = attention[layer].original_component
            handles.append(original.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append((f"blocks.{layer}.hook_in", self._residual))
        ids = batch.ids.to(next(self.model.parameters()).device)
        try:
            with AttentionEngine(self.model, observers=[self]), self.model.hooks(fwd_hooks=hooks):
                self.model(ids, return_type=None)
        finally:
            for handle in handles:
                handle.remove()

    def _residual(self, hidden: Tensor, hook: Any) -> None:
        self.seen["hidden"] = hidden

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        normed = kwargs.get("hidden_states")
        self.seen["normed"] = args[0] if normed is None else normed
        self.seen["rotary"] = kwargs.get("position_embeddings")

    def observe(self, call: AttentionCall) -> None:
        """Take one layer apart; the engine calls this before the layer's output is known."""
        wanted = self.by_layer.get(call.layer)
        if wanted is None:
            return
        if call.bias is not None:
            raise UnsupportedArchitectureError(
                f"Scores of {self.model.cfg.architecture} have a bias by distance, which no part of the streams made."
            )
        block = self.model.blocks[call.layer]
        hidden, normed = self.seen.pop("hidden"), self.seen.pop("normed")
        norm = freeze_exactly(block._modules.get("ln1"), hidden, normed)
        attention, rotary = attention_layers(self.model)[call.layer], self.seen.pop("rotary")
        query, key = (project(attention, side, normed, norm, call, rotary) for side in ("query", "key"))
        window = window_of(self.model, call.layer)
        for head in wanted:
            self._head(call, head, query, key, hidden.double(), norm, window, rotary)

    def _head(
        self,
        call: AttentionCall,
        head: int,
        query: Projection,
        key: Projection,
        hidden: Tensor,
        norm: FrozenNorm | None,
        window: int | None,
        rotary: Any,
    ) -> None:
        kv_head = head * key.state.shape[1] // query.state.shape[1]
        q, k = query.state[:, head] * call.scaling, key.state[:, kv_head]
        to_key, to_query = margin_directions(q, k, self.position, window)
        margin = (to_key * k).sum((1, 2))
        channels, bias = {}, {}
        for side, projection, number, direction in (
            ("key", key, kv_head, to_key),
            ("query", query, head, to_query * call.scaling),
        ):
            read, constant = projection.pull_back(number, direction)
            channels[side] = (read * hidden).sum(1).cpu().numpy()
            bias[side] = constant.cpu().numpy()
            self.reads[(call.layer, head), side] = read
        at = self.reads[(call.layer, head), "key"][:, self.position]
        own = (at * hidden[:, self.position]).sum(-1)
        others = [p for p in range(hidden.shape[1]) if p != self.position]
        scale = 1.0 if norm is None else norm.scale[:, self.position, 0] / norm.scale[:, others, 0].median(1).values
        named = self.named.get((call.layer, head))
        parts = [] if named is None else query_parts(query, head, hidden, named)
        toward = [margin_directions(part * call.scaling, k, self.position, window)[0] for part in parts]
        pairs = [key_parts(key, kv_head, hidden, direction, named or ()) for direction in toward]
        shares, wavelengths = band_shares(q, k, to_key, query.rotate, rotary)
        self.found[call.layer, head] = HeadMargin(
            margin.cpu().numpy(),
            channels,
            bias,
            shares.cpu().numpy(),
            wavelengths,
            (margin - own + own * scale).cpu().numpy(),
            masses=self._masses(call, head, kv_head, key, hidden),
            pairs=torch.stack(pairs, 1).cpu().numpy() if pairs else None,
        )

    def _masses(
        self, call: AttentionCall, head: int, kv_head: int, key: Projection, hidden: Tensor
    ) -> dict[str, np.ndarray]:
        found = {}
        for name, removed in {"": (), **self.removals.get((call.layer, head), {})}.items():
            k = key.state[:, kv_head]
            if len(removed):
                k = k - key.part(kv_head, hidden, torch.as_tensor([*removed], device=k.device))
            k = k[:, None].to(call.key.dtype)
            one = AttentionCall(
                call.layer, call.query[:, head : head + 1], k, call.value[:, :1], call.scaling, call.mask, call.causal,
                call.soft_cap, None if call.sink_logits is None else call.sink_logits[head : head + 1],
            )  # fmt: skip
            received = ReceivedMass(one.shape)
            attend(one, [received])
            numbers = received.compute()
            mass = numbers["mass"][:, 0, self.position] / numbers["queries"][:, self.position]
            found[name] = mass.double().cpu().numpy()
        return found
