"""One attention layer with any variant, which hands out what it did."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinklens.lab.variants.catalogue import AttentionInputs, Variant
from sinklens.lab.variants.outputs import element_gate, head_gate, kv_bias


@dataclass(frozen=True)
class Attended:
    """What one attention layer did with one batch.

    Attributes:
        output: what it adds to the residual stream, ``[batch pos d_model]``.
        weights: weights on the real keys ``[batch head q_pos k_pos]``, before any gate; a learned key's column is
            dropped.
        scores: scores before the weights' nonlinearity, ``None`` where the variant has none.
        value: ``[batch head k_pos d_head]``.
        gate: mean over channels of the output gate ``[batch head q_pos]``, ``None`` without one.
    """

    output: Float[Tensor, "batch pos d_model"]
    weights: Float[Tensor, "batch head q_pos k_pos"]
    scores: Float[Tensor, "batch head q_pos k_pos"] | None
    value: Float[Tensor, "batch head k_pos d_head"]
    gate: Float[Tensor, "batch head q_pos"] | None


class VariantAttention(nn.Module):
    """Multi-head attention without biases in its projections.

    What a variant learns besides starts as follows: a sink logit, a learned key and a learned value at zero, gates
    like any other linear layer, without a bias.

    Args:
        variant: how scores become weights, and what is learned.
        d_model: width; a multiple of ``heads``.
        heads: number of heads.
        rope: rotate queries and keys by their position.
    """

    def __init__(self, variant: Variant, d_model: int, heads: int, *, rope: bool = False) -> None:
        super().__init__()
        self.variant, self.heads, self.rope = variant, heads, rope
        self.d_head = d_model // heads
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        if "sink_logit" in variant.learns:
            self.sink_logit = nn.Parameter(torch.zeros(heads))
        for name in ("bias_key", "bias_value"):
            if name in variant.learns:
                self.register_parameter(name, nn.Parameter(torch.zeros(heads, self.d_head)))
        gates = {"head_gate": heads, "element_gate": d_model}
        self.gate = next((nn.Linear(d_model, gates[n], bias=False) for n in variant.learns if n in gates), None)

    @property
    def output_weights(self) -> Float[Tensor, "head d_head d_model"]:
        """``W_O`` by head."""
        weights: Tensor = self.out.weight.T.unflatten(0, (self.heads, self.d_head))
        return weights

    def forward(
        self,
        hidden: Float[Tensor, "batch pos d_model"],
        visible: Bool[Tensor, "q_pos k_pos"],
        bias: Float[Tensor, "head q_pos k_pos"] | None = None,
    ) -> Attended:
        """Attend.

        Args:
            hidden: the block's normalised input.
            visible: which keys a query sees.
            bias: added to the scores.
        """
        query, key, value = (self._by_head(layer(hidden)) for layer in (self.query, self.key, self.value))
        if self.rope:
            query, key = rotate(query), rotate(key)
        names = [name for name in self.variant.learns if not name.endswith("gate")]
        learned: dict[str, Tensor] = {name: getattr(self, name) for name in names}
        inputs = AttentionInputs(query, key, visible, bias, learned)
        weights = self.variant.weights(inputs)
        if "bias_value" in learned:
            output = kv_bias(weights, value, learned["bias_value"])
        weights = weights[..., -value.shape[2] :]
        if "bias_value" not in learned:
            output = weights @ value
        output, gate = self._gated(output, hidden)
        merged = self.out(output.transpose(1, 2).flatten(2))
        return Attended(merged, weights, inputs.scores if self.variant.from_scores else None, value, gate)

    def _by_head(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)

    def _gated(self, output: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.gate is None:
            return output, None
        logits = self._by_head(self.gate(hidden))
        opened = logits.sigmoid().mean(-1)
        if "head_gate" in self.variant.learns:
            return head_gate(output, logits.squeeze(-1)), opened
        return element_gate(output, logits), opened


def rotate(x: Float[Tensor, "batch head pos d_head"], base: float = 10_000.0) -> Float[Tensor, "batch head pos d_head"]:
    """Return ``x`` with channel pairs ``(c, c + d_head/2)`` turned by ``pos * base^(-2c/d_head)`` (RoPE).

    Norms stay; dot products of two rotated vectors depend on the distance of their positions alone.

    Source: Su et al. (arXiv 2104.09864), in the half-split layout of Llama.

    Example:
        >>> x = torch.ones(1, 1, 3, 2)
        >>> [round(v, 3) for v in rotate(x)[0, 0, 1].tolist()]
        [-0.301, 1.382]
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def alibi(heads: int, length: int) -> Float[Tensor, "head q_pos k_pos"]:
    """Return ALiBi's bias ``-m_h |i - j|`` with slopes ``m_h = 2^(-8 h / heads)``, h from 1.

    Source: Press et al. (arXiv 2108.12409).

    Example:
        >>> alibi(8, 3)[0].tolist()
        [[-0.0, -0.5, -1.0], [-0.5, -0.0, -0.5], [-1.0, -0.5, -0.0]]
    """
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    pos = torch.arange(length)
    return -slopes[:, None, None] * (pos[:, None] - pos).abs()


def visible_keys(length: int, window: int | None = None, prefix: int = 0) -> Bool[Tensor, "q_pos k_pos"]:
    """Return which keys a query sees: ``j <= i`` and ``i - j < window``, and the prefix ``j < prefix`` always.

    Args:
        length: positions.
        window: keys in the sliding window, the query's own included; None for all before it.
        prefix: positions that every query sees, also the ones before it.

    Source: the masks of Gu et al. (arXiv 2410.10781), section 6.

    Example:
        >>> visible_keys(3, window=2, prefix=1).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    pos = torch.arange(length)
    distance = pos[:, None] - pos
    visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return visible | (pos < prefix)
