"""The margin of a sink before the softmax, split exactly: by residual channel, by who wrote it, by rotary band."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, ReceivedMass, plan_for
from sinklens.attention.kernel import AttentionCall, attend
from sinklens.detectors.direct_logit import FrozenNorm
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.interventions.heads import Head, head_name
from sinklens.models.architecture import attention_layers, output_weights, window_of
from sinklens.models.tokens import TokenBatch
from sinklens.passes.qk_projection import Projection, freeze_exactly, project

SIDES = ("key", "query")


@dataclass
class HeadMargin:
    """One head's margin on some sequences and its parts; every kind of part adds up to the margin.

    Attributes:
        margin: ``mean_t (s_t,k - mean_{j != k} s_tj)`` of the sink's key k, by sequence; over queries that see k and
            another key. In logits, before a soft cap.
        channels: By side, ``[sequence d_model]``: the share of each residual channel of the keys (with whole queries),
            or of the queries (with whole keys).
        bias: By side, ``[sequence]``: what biases of projection and norms add.
        bands: ``[sequence band]``, one for each pair of rotated dims; the last one is all dims that do not turn.
        wavelengths: Of the bands, in tokens; infinite for the last.
        components: By side and by who wrote to the residual stream, ``[sequence]``; with ``bias`` they add up.
        common_scale: The margin if the norm divided the sink's state as it divides the median of the other tokens'.
        masses: Mean attention to the sink of the head as it is (``""``), and with the key shares of some channels gone.
        pairs: ``[sequence part part]``, query parts by key parts: each named channel, all others, biases.
    """

    margin: Float[np.ndarray, " sequence"]
    channels: dict[str, Float[np.ndarray, "sequence d_model"]]
    bias: dict[str, Float[np.ndarray, " sequence"]]
    bands: Float[np.ndarray, "sequence band"]
    wavelengths: Float[np.ndarray, " band"]
    common_scale: Float[np.ndarray, " sequence"]
    components: dict[str, dict[str, Float[np.ndarray, " sequence"]]] = field(default_factory=dict)
    masses: dict[str, Float[np.ndarray, " sequence"]] = field(default_factory=dict)
    pairs: Float[np.ndarray, "sequence part part"] | None = None

    def joined(self, other: "HeadMargin") -> "HeadMargin":
        """Both, one sequence after the other."""

        def join(a: Any, b: Any) -> Any:
            if a is None:
                return None
            if isinstance(a, dict):
                return {key: join(a[key], b[key]) for key in a}
            return np.concatenate([a, b])

        names = ("margin", "channels", "bias", "bands", "common_scale", "components", "masses", "pairs")
        both = {name: join(getattr(self, name), getattr(other, name)) for name in names}
        return HeadMargin(wavelengths=self.wavelengths, **both)

    def ordered(self, place: np.ndarray) -> "HeadMargin":
        """The same with its sequences in another order."""

        def order(a: Any) -> Any:
            return a if a is None else {key: order(b) for key, b in a.items()} if isinstance(a, dict) else a[place]

        names = ("margin", "channels", "bias", "bands", "common_scale", "components", "masses", "pairs")
        return HeadMargin(wavelengths=self.wavelengths, **{name: order(getattr(self, name)) for name in names})

    @property
    def gap(self) -> float:
        """Largest difference between the margin and the sum of any kind of part."""
        sums = [self.bands.sum(1)] + ([] if self.pairs is None else [self.pairs.sum((1, 2))])
        for side in SIDES:
            sums.append(self.channels[side].sum(1) + self.bias[side])
            if self.components:
                sums.append(np.sum([*self.components[side].values()], axis=0) + self.bias[side])
        return float(max(np.abs(each - self.margin).max() for each in sums))


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
        _Writers(model, reader).run(batch)
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
        shares, wavelengths = _bands(q, k, to_key, query.rotate, rotary)
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


def margin_directions(
    query: Float[Tensor, "batch pos d_head"],
    key: Float[Tensor, "batch pos d_head"],
    position: int,
    window: int | None = None,
) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
    """Directions whose products with the keys, and with the queries, are both the mean margin of one key.

    Args:
        query: Queries times the scaling.
        key: Keys.
        position: The key whose margin it is.
        window: How many keys a query sees, itself included; ``None`` for all before it.

    Cost: O(pos d_head): sums over keys are differences of running sums.

    Example:
        >>> q, k = torch.randn(1, 6, 4).double(), torch.randn(1, 6, 4).double()
        >>> to_key, to_query = margin_directions(q, k, 0)
        >>> scores = (q @ k.mT)[0]
        >>> margin = torch.stack([scores[t, 0] - scores[t, 1 : t + 1].mean() for t in range(1, 6)]).mean()
        >>> bool(torch.isclose((to_key * k).sum(), margin) & torch.isclose((to_query * q).sum(), margin))
        True
    """
    width = query.shape[1]
    window = width if window is None else min(window, width)
    index = torch.arange(width, device=query.device)
    others = (index + 1).clamp(max=window) - 1
    rows = (index >= position) & (index - position < window) & (others > 0)
    count = rows.sum().clamp(min=1)
    weighted = torch.where(rows[:, None], query, 0) / count
    per_other = weighted / others.clamp(min=1)[:, None]
    ahead = torch.nn.functional.pad(per_other.flip(1).cumsum(1).flip(1), (0, 0, 0, window))
    to_key = -(ahead[:, :width] - ahead[:, window : window + width])  # queries j <= t < j + window
    to_key[:, position] = weighted.sum(1)
    sums = torch.nn.functional.pad(key.cumsum(1), (0, 0, window, 0))
    seen = sums[:, window:] - sums[:, :width]
    mean = (seen - key[:, position : position + 1]) / others.clamp(min=1)[:, None]
    to_query = torch.where(rows[:, None], key[:, position : position + 1] - mean, 0) / count
    return to_key, to_query


def query_parts(query: Projection, head: int, hidden: Tensor, named: Sequence[int]) -> list[Tensor]:
    """A head's queries in parts: from each named channel, from all others, from biases."""
    each = [query.part(head, hidden, torch.tensor([channel], device=hidden.device)) for channel in named]
    whole = query.part(head, hidden, torch.arange(hidden.shape[-1], device=hidden.device))
    rest = whole - sum(each) if each else whole
    return [*each, rest, query.state[:, head] - whole]


def key_parts(
    key: Projection, head: int, hidden: Tensor, direction: Tensor, named: Sequence[int]
) -> Float[Tensor, "batch part"]:
    """The product of a direction with a head's keys, in the same parts of the keys."""
    read, bias = key.pull_back(head, direction)
    by_channel = (read * hidden).sum(1)
    own = by_channel[:, [*named]]
    return torch.cat((own, (by_channel.sum(1) - own.sum(1))[:, None], bias[:, None]), 1)


def _bands(q: Tensor, k: Tensor, to_key: Tensor, rotate: Any, rotary: Any) -> tuple[Tensor, np.ndarray]:
    """The margin by pair of rotated dims, and how many tokens each takes for a turn."""
    by_dim = (to_key * k).sum(1)
    paired, width = getattr(rotate, "pairs", ("none", 0))
    if not width:
        return by_dim.sum(1, keepdim=True), np.array([math.inf])
    turned, still = by_dim[:, :width], by_dim[:, width:].sum(1, keepdim=True)
    pairs = turned.unflatten(1, (2, -1)).sum(1) if paired == "halves" else turned.unflatten(1, (-1, 2)).sum(2)
    cos, sin = (each.double().reshape(-1, each.shape[-2], each.shape[-1])[0] for each in rotary)
    step = torch.atan2(sin[1] * cos[0] - cos[1] * sin[0], cos[1] * cos[0] + sin[1] * sin[0]).abs()
    if cos.shape[-1] == width:
        step = step[: width // 2] if paired == "halves" else step[::2]
    waves = (2 * math.pi / step.clamp(min=1e-12)).cpu().numpy()
    return torch.cat((pairs, still), 1), np.append(waves, math.inf)


class _Writers:
    """The second pass: every component's write, read along the heads' directions."""

    def __init__(self, model: TransformerBridge, reader: _Reader) -> None:
        self.model, self.reader = model, reader
        self.last = max(reader.by_layer)
        self.seen: dict[str, Tensor] = {}
        for each in reader.found.values():
            each.components = {side: {} for side in SIDES}

    def run(self, batch: TokenBatch) -> None:
        hooks: list[tuple[str, Any]] = []
        for layer in range(self.last):
            for name, what in (("hook_in", "before"), ("hook_out", "after")):
                hooks.append((f"blocks.{layer}.{name}", partial(self._keep, what=what, layer=layer)))
            if layer in attention_layers(self.model):
                hooks.append((f"blocks.{layer}.attn.hook_out", partial(self._keep, what="attention", layer=layer)))
            if "ln1_post" in self.model.blocks[layer]._modules:
                hooks.append((f"blocks.{layer}.ln1_post.hook_out", partial(self._keep, what="normed", layer=layer)))
        hooks.append(("blocks.0.hook_in", self._embedding))
        if "pos_embed" in self.model._modules:
            hooks.append(("pos_embed.hook_out", partial(self._keep, what="positions", layer=-1)))
        ids = batch.ids.to(next(self.model.parameters()).device)
        with AttentionEngine(self.model, observers=[self]), self.model.hooks(fwd_hooks=hooks):
            self.model(ids, return_type=None)

    def observe_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """Keep what the heads of a layer hand on."""
        self.seen["z"] = output

    def _embedding(self, hidden: Tensor, hook: Any) -> None:
        positions = self.seen.pop("positions", None)
        if positions is not None and positions.shape[-2:] == hidden.shape[-2:]:
            positions = positions.expand_as(hidden).double()
            self._add("position embedding", positions, 0)
            self._add("embedding", hidden.double() - positions, 0)
        else:
            self._add("embedding", hidden.double(), 0)

    def _keep(self, x: Any, hook: Any, what: str, layer: int) -> None:
        self.seen[what] = x[0] if isinstance(x, tuple) else x
        if what == "after":
            self._block(layer)
            self.seen = {}

    def _block(self, layer: int) -> None:
        """Heads, the rest of attention (its bias), and all else that the layer adds (its MLP)."""
        before, after = self.seen["before"].double(), self.seen["after"].double()
        rest = after - before
        if "z" in self.seen:
            z, weights = self.seen["z"].double(), output_weights(self.model, layer)
            attention = self.seen["attention"].double()
            norm = None
            if "normed" in self.seen:
                norm = freeze_exactly(self.model.blocks[layer].ln1_post, attention, self.seen["normed"])
                attention = self.seen["normed"].double()
            if getattr(self.model.cfg, "gated_q_proj", False):
                weights = None  # a gate stands between z and W_O
            written = torch.zeros_like(before)
            if weights is not None and weights.shape[:2] == (z.shape[1], z.shape[3]):
                for head in range(z.shape[1]):
                    write = z[:, head] @ weights[head].double()
                    write = write if norm is None else norm(write)
                    self._add(head_name((layer, head)), write, layer + 1)
                    written += write
                self._add(f"attention {layer} bias", attention - written, layer + 1)
            else:
                self._add(f"attention {layer}", attention, layer + 1)
            rest = rest - attention
        self._add(f"{'MLP' if 'z' in self.seen else 'layer'} {layer}", rest, layer + 1)

    def _add(self, name: str, write: Float[Tensor, "batch pos d_model"], first: int) -> None:
        """What the heads of layer ``first`` and later read of it."""
        for head, found in self.reader.found.items():
            if head[0] >= first:
                for side in SIDES:
                    share = (write * self.reader.reads[head, side]).sum((1, 2)).cpu().numpy()
                    mine = found.components[side]
                    mine[name] = mine.get(name, 0) + share
