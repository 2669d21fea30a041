"""Massive activations to their source: which layer wrote them, and by which weight, in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.interventions.heads import head_name
from sinklens.interventions.zero_weights import Weight, parameters_by_name
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.rope import forward_passes
from sinklens.models.tokens import TokenBatch
from sinklens.passes.qk_projection import freeze_exactly

ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Entry:
    """One channel at some tokens, after one layer.

    Attributes:
        channel: Of the residual stream.
        layer: Layer after which it is looked at.
        tokens: ``(sequence, position)``.
    """

    channel: int
    layer: int
    tokens: tuple[tuple[int, int], ...]


@dataclass
class Sources:
    """Who wrote an entry.

    Attributes:
        value: Of the entry, by token.
        writers: Share of each writer, by token: ``embedding``, heads such as ``L2H1``, ``attention 2 bias``,
            ``MLP 2`` (``layer 2`` where the layer has no softmax attention); they add up to the value.
        neurons: By layer of an MLP, each neuron's share, mean over tokens: ``W_down[channel, n] a_n``.
        activations: By layer, mean ``a_n`` over tokens.
        weights: By layer, the parameter of ``W_down`` and whether its axes are ``[d_mlp d_model]``.
    """

    value: Float[np.ndarray, " token"]
    writers: dict[str, Float[np.ndarray, " token"]] = field(default_factory=dict)
    neurons: dict[int, Float[np.ndarray, " d_mlp"]] = field(default_factory=dict)
    activations: dict[int, Float[np.ndarray, " d_mlp"]] = field(default_factory=dict)
    weights: dict[int, tuple[str, bool]] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Largest difference between the value and the sum over its writers."""
        return float(np.abs(np.sum([*self.writers.values()], axis=0) - self.value).max())

    def weight(self, layer: int, channel: int, neuron: int) -> Weight:
        """The weight by which a neuron writes the channel."""
        name, transposed = self.weights[layer]
        return name, (neuron, channel) if transposed else (channel, neuron)


@torch.no_grad()
def massive_sources(model: TransformerBridge, batch: TokenBatch, entries: Sequence[Entry]) -> list[Sources]:
    """Split entries of the residual stream exactly among those who wrote to it, and MLPs among their weights.

    A layer adds to the stream, so an entry is the sum of what embedding, heads and MLPs wrote to its channel at its
    token. What an MLP writes to one channel is the sum over its neurons of one weight each times the neuron's
    activation; a super weight is a weight that makes most of it. A norm after the MLP (Gemma) counts with its
    scale held.

    Args:
        model: The bridge.
        batch: The sequences.
        entries: What to split.

    Cost: one forward pass; for each entry O(tokens d_mlp) a layer.
    """
    watcher = _Watcher(model, batch, entries)
    for chosen in forward_passes(model, batch, ROWS_AT_ONCE):
        watcher.run(chosen)
    return watcher.finished()


class _Watcher:
    def __init__(self, model: TransformerBridge, batch: TokenBatch, entries: Sequence[Entry]) -> None:
        self.model, self.batch, self.entries = model, batch, entries
        self.values: list[list[tuple[int, Tensor]]] = [[] for _ in entries]
        self.shares: list[dict[str, list[Tensor]]] = [{} for _ in entries]
        self.neurons: list[dict[int, Tensor]] = [{} for _ in entries]
        self.activations: list[dict[int, Tensor]] = [{} for _ in entries]
        self.down = {layer: _down(model, layer) for layer in range(len(model.blocks))}
        self.seen: dict[str, Tensor] = {}
        self.last = max((entry.layer for entry in entries), default=-1)

    def run(self, chosen: slice) -> None:
        """The sequences of one forward pass."""
        rows = self.batch.rows(chosen)
        self.places: list[tuple[Tensor, Tensor]] = []
        self.order: list[list[int]] = []
        for entry in self.entries:
            mine = [i for i, (sequence, _) in enumerate(entry.tokens) if chosen.start <= sequence < chosen.stop]
            where = [(entry.tokens[i][0] - chosen.start, entry.tokens[i][1]) for i in mine]
            pairs = torch.tensor(where, dtype=torch.long).reshape(-1, 2)
            self.places.append((pairs[:, 0], pairs[:, 1]))
            self.order.append(mine)
        hooks: list[tuple[str, Any]] = []
        for layer in range(self.last + 1):
            block = f"blocks.{layer}"
            hooks.append((f"{block}.hook_in", partial(self._keep, what="before")))
            if layer in attention_layers(self.model):
                hooks.append((f"{block}.attn.hook_out", partial(self._keep, what="attention")))
            for name in ("ln1_post", "ln2_post"):
                if name in self.model.blocks[layer]._modules:
                    hooks.append((f"{block}.{name}.hook_out", partial(self._keep, what=name)))
            if self.down[layer] is not None:
                hooks.append((f"{block}.mlp.out.hook_in", partial(self._keep, what="neurons")))
                hooks.append((f"{block}.mlp.hook_out", partial(self._keep, what="mlp")))
            hooks.append((f"{block}.hook_out", partial(self._block, layer=layer)))
        engine = AttentionEngine(self.model, path=plan_for(self.model).path, observers=[self])
        with engine, self.model.hooks(fwd_hooks=hooks):
            self.model(rows.ids.to(next(self.model.parameters()).device), return_type=None)

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        """Keep what the heads of a layer hand on."""
        self.seen["z"] = output

    def _keep(self, x: Any, hook: Any, what: str) -> None:
        self.seen[what] = x[0] if isinstance(x, tuple) else x

    def _block(self, after: Any, hook: Any, layer: int) -> None:
        after = after[0] if isinstance(after, tuple) else after
        for index, entry in enumerate(self.entries):
            rows, places = (each.to(after.device) for each in self.places[index])
            if layer > entry.layer or not len(rows):
                continue
            before = self.seen["before"][rows, places, entry.channel].double()
            if layer == 0:
                self._share(index, "embedding", before)
            added = after[rows, places, entry.channel].double() - before
            if "z" in self.seen:
                added = added - self._heads(index, layer, entry.channel, rows, places)
            self._share(index, f"{'MLP' if 'z' in self.seen else 'layer'} {layer}", added)
            self._neurons(index, layer, entry.channel, rows, places)
            if layer == entry.layer:
                value = after[rows, places, entry.channel].double().cpu()
                self.values[index] += zip(self.order[index], value, strict=True)
        self.seen = {}

    def _heads(self, index: int, layer: int, channel: int, rows: Tensor, places: Tensor) -> Tensor:
        """What attention adds to the channel; its heads' shares are noted where they can be told."""
        whole = self.seen["attention"]
        factor: Any = 1.0
        if "ln1_post" in self.seen:
            norm = freeze_exactly(self.model.blocks[layer].ln1_post, whole, self.seen["ln1_post"])
            if norm is not None:
                factor = norm.weight[channel] / norm.scale[rows, places, 0]
            whole = self.seen["ln1_post"]
        total = whole[rows, places, channel].double()
        if self.model.cfg.architecture == "BloomForCausalLM":  # whose attention output holds the residual stream
            total = total - self.seen["before"][rows, places, channel].double()
        weights = output_weights(self.model, layer)
        z = self.seen["z"]
        gated = bool(getattr(self.model.cfg, "gated_q_proj", False))
        if weights is None or gated or weights.shape[:2] != (z.shape[1], z.shape[3]):
            self._share(index, f"attention {layer}", total)
            return total
        shares = torch.einsum("nhv,hv->nh", z[rows, :, places].double(), weights[..., channel].double())
        shares = shares * (factor if isinstance(factor, float) else factor[:, None])
        for head in range(shares.shape[1]):
            self._share(index, head_name((layer, head)), shares[:, head])
        self._share(index, f"attention {layer} bias", total - shares.sum(1))
        return total

    def _neurons(self, index: int, layer: int, channel: int, rows: Tensor, places: Tensor) -> None:
        found = self.down[layer]
        if found is None or "neurons" not in self.seen:
            return
        weight, _, transposed = found
        active = self.seen["neurons"][rows, places].double()
        row = (weight[:, channel] if transposed else weight[channel]).double()
        shares = active * row
        if "ln2_post" in self.seen and "mlp" in self.seen:
            norm = freeze_exactly(self.model.blocks[layer].ln2_post, self.seen["mlp"], self.seen["ln2_post"])
            if norm is not None:
                shares = shares * (norm.weight[channel] / norm.scale[rows, places, 0])[:, None]
        for held, value in ((self.neurons[index], shares), (self.activations[index], active)):
            held[layer] = held.get(layer, 0) + value.sum(0).cpu()

    def _share(self, index: int, name: str, value: Tensor) -> None:
        self.shares[index].setdefault(name, []).append(value.cpu())

    def finished(self) -> list[Sources]:
        """Of every entry, its tokens in their order."""
        found = []
        for index, entry in enumerate(self.entries):
            order = np.argsort([i for i, _ in self.values[index]])
            value = np.array([float(v) for _, v in self.values[index]])[order]
            writers = {name: torch.cat(parts).numpy()[order] for name, parts in self.shares[index].items()}
            count = len(entry.tokens)
            down = {layer: self.down[layer] for layer in self.neurons[index]}
            found.append(
                Sources(
                    value,
                    writers,
                    {layer: (total / count).numpy() for layer, total in self.neurons[index].items()},
                    {layer: (total / count).numpy() for layer, total in self.activations[index].items()},
                    {layer: (held[1], held[2]) for layer, held in down.items() if held is not None},
                )
            )
        return found


def _down(model: TransformerBridge, layer: int) -> tuple[Tensor, str, bool] | None:
    """The weight of a layer's last MLP matrix, its name, and whether its axes are ``[d_mlp d_model]``."""
    mlp = model.blocks[layer]._modules.get("mlp")
    out = None if mlp is None else mlp._modules.get("out")
    module: Any = getattr(out, "original_component", None)
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    names = [name for name, parameter in parameters_by_name(model).items() if parameter is weight]
    if not names:
        return None
    return weight, names[0], type(module).__name__ == "Conv1D"
