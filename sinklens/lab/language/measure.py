"""Does a language model have a sink? Measured with plain torch hooks on the Hugging Face model, apart from the engine.

So these figures can check the rest of sinklens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

EPSILON = 0.3


@dataclass(frozen=True)
class SinkFigures:
    """What the BOS attracts, by sequence.

    Attributes:
        alpha: importance `alpha_0 = mean over all queries i of A[i, 0]`, the first query included, of the first
            token (Gu et al., arXiv 2410.10781), `[batch, layer, head]`.
        peak: largest `|h|` at BOS over the median `|h|` of the sequence's residual stream after each layer (Sun et
            al., arXiv 2402.17762), `[batch, layer]`.
        value: norm of the value state at BOS, `[batch, layer, kv_head]`.
        values: mean norm of the other value states, of the same shape.
    """

    alpha: Float[Tensor, "batch layer head"]
    peak: Float[Tensor, "batch layer"]
    value: Float[Tensor, "batch layer kv_head"]
    values: Float[Tensor, "batch layer kv_head"]

    @property
    def rate(self) -> Float[Tensor, "layer head"]:
        """Share of the sequences whose alpha_0 exceeds 0.3."""
        return (self.alpha > EPSILON).double().mean(0)

    @property
    def drain(self) -> Float[Tensor, "layer kv_head"]:
        """Mean value norm at BOS over the mean of the others (Guo et al., arXiv 2410.13835): small is drained."""
        return self.value.double().mean(0) / self.values.double().mean(0)

    @property
    def ratio(self) -> float:
        """The highest mean peak of any layer."""
        return float(self.peak.mean(0).max())


@torch.no_grad()
def sink_figures(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos"], batch: int = 16) -> SinkFigures:
    """Measure the sink at position 0.

    Args:
        model: the model; left as it was.
        ids: sequences of equal length that begin with the BOS.
        batch: sequences at a time; one layer's patterns of so many are held at once.
    """
    alphas: list[Tensor] = []
    peaks: list[Tensor] = []
    norms: list[Tensor] = []

    def keep_attention(_module: object, _args: object, output: tuple[Tensor, Tensor]) -> None:
        alphas.append(output[1][..., 0].float().mean(-1))

    def keep_values(_module: object, _args: object, output: Tensor) -> None:
        norms.append(output.float().unflatten(-1, (model.config.num_key_value_heads, -1)).norm(dim=-1))

    def keep_peak(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        size = (output[0] if isinstance(output, tuple) else output).float().abs()
        peaks.append(size[:, 0].amax(-1) / size.flatten(1).median(1).values)

    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    handles = []
    for layer in model.model.layers:
        handles += [
            layer.self_attn.register_forward_hook(keep_attention),
            layer.self_attn.v_proj.register_forward_hook(keep_values),
            layer.register_forward_hook(keep_peak),
        ]
    try:
        with _evaluating(model, "eager"):
            for part in ids.split(batch):
                for kept in (alphas, peaks, norms):
                    kept.clear()
                model(input_ids=part.to(model.device), use_cache=False)
                value = torch.stack(norms, 1)
                found = (torch.stack(alphas, 1), torch.stack(peaks, 1), value[:, :, 0], value[:, :, 1:].mean(2))
                for column, figure in zip(columns, found, strict=True):
                    column.append(figure.cpu())
    finally:
        for handle in handles:
            handle.remove()
    return SinkFigures(*map(torch.cat, columns))


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos_plus_1"], batch: int = 32) -> float:
    """Mean cross-entropy over all targets, in nats per token; `ids[:, 0]` is the BOS, which is no target."""
    total = 0.0
    with _evaluating(model, "sdpa"):
        for part in ids.split(batch):
            part = part.to(model.device)
            logits = model(input_ids=part[:, :-1], use_cache=False).logits.float()
            total += cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total / ids[:, 1:].numel()


@contextmanager
def _evaluating(model: LlamaForCausalLM, attention: str) -> Iterator[None]:
    was_training, before = model.training, model.config._attn_implementation
    model.eval()
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
