"""What every part of a network writes at the last token of prompts, read towards some tokens; and a layer left out."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.detectors.direct_logit import freeze_norm
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.tokens import TokenBatch
from sinklens.passes.clean_pass import parity


@dataclass
class Written:
    """What parts add to the logits of some tokens at the last token of each prompt, the final norm frozen there.

    Attributes:
        heads: By layer ``[batch head token]``; a layer whose heads cannot be read by themselves is missing.
        attention: What a layer's attention adds, by layer ``[batch token]``; missing where it cannot be told apart.
        total: What a layer adds, by layer ``[batch token]``.
        total_mean: The same to the mean of all logits, by layer ``[batch]``.
        lens: Log-probability of each token if the network ended after the layer, by layer ``[batch token]``.
        logits: The model's own, of the tokens, ``[batch token]``.
        problems: Why heads are missing.
    """

    heads: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    total: dict[int, Tensor] = field(default_factory=dict)
    total_mean: dict[int, Tensor] = field(default_factory=dict)
    lens: dict[int, Tensor] = field(default_factory=dict)
    logits: Float[Tensor, "batch token"] = field(default_factory=lambda: torch.empty(0))
    problems: list[str] = field(default_factory=list)


class _Watch:
    """The last rows of what passes by."""

    def __init__(self, batch: TokenBatch) -> None:
        self.last = batch.lengths.cpu() - 1
        self.seen: dict[tuple[str, int], Tensor] = {}

    def row(self, x: Any) -> Tensor:
        """``[batch d_model]`` of the last real tokens."""
        stream = _stream(x)
        return stream[torch.arange(len(stream)), self.last.to(stream.device)].float()

    def keep(self, x: Any, hook: Any, what: str, layer: int) -> None:
        self.seen[what, layer] = self.row(x)

    def observe_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        self.seen["z", shape.layer] = self.row(output.transpose(1, 2))


def _stream(x: Any) -> Tensor:
    stream: Tensor = x[0] if isinstance(x, tuple) else x
    return stream


@torch.no_grad()
def read_writes(model: TransformerBridge, batch: TokenBatch, tokens: Int[Tensor, " token"]) -> Written:
    """One forward pass, everything at the last token kept and read towards ``tokens``.

    A head's part is ``z_h W_O N u_token``; where a norm stands between the heads and the residual stream (Gemma) it is
    frozen as the final one is. The parts of a layer are checked to add up to what its attention adds.

    Cost: a forward pass; memory of the last rows of every layer.
    """
    original: Any = model.original_model
    weights = original.get_output_embeddings().weight.float()
    watch: Any = _Watch(batch)
    hooks: list[tuple[str, Any]] = []
    for what in ("in", "out"):
        hooks.append((f"ln_final.hook_{what}", partial(watch.keep, what=f"final {what}", layer=-1)))
        hooks += [
            (f"blocks.{layer}.hook_{what}", partial(watch.keep, what=what, layer=layer))
            for layer in range(len(model.blocks))
        ]
    layers = attention_layers(model)
    for layer in layers:
        hooks.append((f"blocks.{layer}.attn.hook_out", partial(watch.keep, what="written", layer=layer)))
        if "ln1_post" in model.blocks[layer]._modules:
            hooks.append((f"blocks.{layer}.ln1_post.hook_out", partial(watch.keep, what="normed", layer=layer)))
    with AttentionEngine(model, path=plan_for(model).path, observers=[watch]), model.hooks(fwd_hooks=hooks):
        logits = model(batch.ids.to(weights.device))
    seen = watch.seen
    norm: Any = model.ln_final
    norm = getattr(norm, "original_component", None) or norm
    frozen = freeze_norm(norm, seen["final in", -1][:, None], seen["final out", -1][:, None])
    read = torch.cat((weights[tokens.to(weights.device)], weights.mean(0)[None]))
    towards = frozen.pull_back(read.expand(len(batch), -1, -1))
    found = Written(logits=watch.row(logits)[:, tokens].cpu())
    for layer in range(len(model.blocks)):
        before, after = seen["in", layer], seen["out", layer]
        total = torch.einsum("bm,bnm->bn", after - before, towards).cpu()
        found.total[layer], found.total_mean[layer] = total[:, :-1], total[:, -1]
        chances = (norm(after[:, None].to(logits.dtype))[:, 0].float() @ weights.T).log_softmax(-1)
        found.lens[layer] = chances[:, tokens].cpu()
        if layer in layers:
            _heads(model, layer, seen, towards[:, :-1], found)
    return found


def _heads(
    model: TransformerBridge, layer: int, seen: dict[tuple[str, int], Tensor], towards: Tensor, found: Written
) -> None:
    """What a layer's heads add, if they add up to its attention."""
    z, written, weights = seen["z", layer], seen["written", layer], output_weights(model, layer)
    added = seen.get(("normed", layer), written)
    found.attention[layer] = torch.einsum("bm,bnm->bn", added, towards).cpu()
    if weights is None or weights.shape[:2] != z.shape[1:]:
        found.problems.append(f"Layer {layer} of {model.cfg.architecture} does not show its output weights.")
        return
    parts = torch.einsum("bhv,hvm->bhm", z, weights.float())
    rest = written - parts.sum(1)
    if float((rest - rest.mean(0)).abs().max()) > parity(z) * (1e-6 + float(written.abs().max())):
        found.problems.append(f"What the heads of layer {layer} of {model.cfg.architecture} write does not add up.")
        return
    if ("normed", layer) in seen:
        post: Any = model.blocks[layer].ln1_post
        post = getattr(post, "original_component", None) or post
        towards = freeze_norm(post, written[:, None], added[:, None]).pull_back(towards)
    found.heads[layer] = torch.einsum("bhm,bnm->bhn", parts, towards).cpu()


@torch.no_grad()
def without_layer(
    model: TransformerBridge, batch: TokenBatch, layer: int, tokens: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Log-probability of a token at the end of each prompt when a layer adds nothing there; -1: none is left out."""
    last = batch.lengths.cpu() - 1
    rows = torch.arange(len(batch))
    entered: list[Tensor] = []

    def note(x: Any, hook: Any) -> None:
        entered[:] = [_stream(x)]

    def leave(x: Any, hook: Any) -> Any:
        stream = _stream(x).clone()
        stream[rows, last] = entered[0][rows, last]
        return (stream, *x[1:]) if isinstance(x, tuple) else stream

    hooks = [] if layer < 0 else [(f"blocks.{layer}.hook_in", note), (f"blocks.{layer}.hook_out", leave)]
    with model.hooks(fwd_hooks=hooks):
        logits = model(batch.ids.to(next(model.parameters()).device))[rows, last].float().log_softmax(-1).cpu()
    found: Tensor = logits.gather(-1, tokens[:, None])[:, 0]
    return found


def every_head(model: TransformerBridge, found: Written) -> Float[Tensor, "batch layer head token"] | None:
    """The heads of all attention layers in one; None where some layer's heads cannot be read."""
    layers = sorted(attention_layers(model))
    if not layers:
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads.")
    return torch.stack([found.heads[layer] for layer in layers], 1) if len(found.heads) == len(layers) else None
