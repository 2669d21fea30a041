"""Attention-Gate: a small network looks at the whole text and flags the tokens that stay."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sinklens.interventions.fields import parse_number
from sinklens.policies.learned import Learned
from sinklens.policies.view import View


@dataclass(frozen=True)
class AttentionGate(Learned):
    """Keeps, per head, the tokens that a gate before the layer flags, and the query's own.

    The gate is one head of attention over all tokens, later ones included (scope global), a linear map to one number
    a head, and a sigmoid: kept above ``tau``. It is trained with the model: without ``weights`` it is random, and what
    it keeps means nothing. Deviation: it reads the layer's keys, all KV heads side by side, not the hidden state.

    Args:
        tau: Threshold; 0 keeps everything.
        width: Channels of the gate's attention.
        weights: File of trained weights (query, key, value, out by layer).
        seed: Of random ones.
    """

    tau: float = 0.5
    width: int = 16

    name: ClassVar[str] = "attention_gate"
    scope: ClassVar = "global"
    evicts: ClassVar[bool] = True
    positive: ClassVar = ("width",)
    source: ClassVar[str] = "Zeng et al. 2024, arXiv 2410.12876 (from notes, no code; trained)"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_number(self.tau, "tau", 0, 1)

    def keep(self, view: View) -> Bool[Tensor, "head q_pos k_pos"]:
        """Flagged tokens and the own one."""
        if self.tau == 0:
            return view.visible
        whole = view.whole
        real = whole.is_text
        x = whole.by_group(whole.key)[:, 0].transpose(0, 1).flatten(1)
        shapes = dict.fromkeys(("query", "key", "value"), (x.shape[1], self.width))
        w = self.trained(view.layer, shapes | {"out": (self.width, view.n_heads)}, x)
        scores = ((x @ w["query"]) @ (x @ w["key"]).T / self.width**0.5).masked_fill(~real, -torch.inf)
        flags: Tensor = torch.sigmoid(scores.softmax(-1) @ (x @ w["value"]) @ w["out"]).T
        kept = flags[list(view.heads), : len(view.keys)] > self.tau
        return kept[:, None] | (view.distance == 0)
