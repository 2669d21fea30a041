"""Who wrote what heads read: every component's write to the residual stream, along the directions that heads read."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape
from sinklens.interventions.heads import Head, head_name
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.tokens import TokenBatch
from sinklens.passes.head_margin import SIDES, HeadMargin
from sinklens.passes.qk_projection import freeze_exactly


class MarginWriters:
    """The second pass of :func:`~sinklens.passes.qk_attribution.qk_attribution`, which fills in the components.

    Args:
        model: The bridge.
        found: Margins to fill in, by head.
        reads: By head and side, what it reads of the stream at every token ``[batch pos d_model]``.
    """

    def __init__(
        self, model: TransformerBridge, found: dict[Head, HeadMargin], reads: Mapping[tuple[Head, str], Tensor]
    ) -> None:
        self.model, self.found, self.reads = model, found, reads
        self.last = max(layer for layer, _ in found)
        self.seen: dict[str, Tensor] = {}
        for each in found.values():
            each.components = {side: {} for side in SIDES}

    def run(self, batch: TokenBatch) -> None:
        """Fill in the components of every head's margin."""
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
        for head, found in self.found.items():
            if head[0] >= first:
                for side in SIDES:
                    share = (write * self.reads[head, side]).sum((1, 2)).cpu().numpy()
                    mine = found.components[side]
                    mine[name] = mine.get(name, 0) + share
