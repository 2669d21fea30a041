"""One attention layer with any variant, which hands out what it did."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinklens.lab.variants.catalogue import Variant
from sinklens.lab.variants.inputs import AttentionInputs
from sinklens.lab.variants.outputs import element_gate, head_gate, kv_bias
from sinklens.lab.variants.positions import rotate


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
