"""The attention variants by name: formula, source, whether rows sum to one, and what they learn besides q, k, v."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinklens.errors import InputError
from sinklens.lab.variants.weights import (
    clipped_softmax,
    elu_linear,
    k_bias,
    power_softmax,
    relu,
    sigmoid,
    sigmoid_normalised,
    sink_logit,
    softmax,
    softmax_off_by_one,
    softplus_reweighted,
)


@dataclass(frozen=True)
class AttentionInputs:
    """One layer's attention before the scores become weights.

    Attributes:
        query: ``[batch head q_pos d_head]``, after rotary encoding.
        key: ``[batch head k_pos d_head]``, after rotary encoding.
        visible: which keys a query sees, ``[q_pos k_pos]``.
        bias: added to the scores (ALiBi), ``[head q_pos k_pos]``.
        learned: further parameters of the layer, by the names in ``Variant.learns``.
    """

    query: Float[Tensor, "batch head q_pos d_head"]
    key: Float[Tensor, "batch head k_pos d_head"]
    visible: Bool[Tensor, "q_pos k_pos"]
    bias: Float[Tensor, "head q_pos k_pos"] | None = None
    learned: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Float[Tensor, "batch head q_pos k_pos"]:
        """``q_i . k_j / sqrt(d_head)`` plus the bias; also where the query does not see the key."""
        scores = self.query @ self.key.transpose(-1, -2) / math.sqrt(self.query.shape[-1])
        return scores if self.bias is None else scores + self.bias

    @property
    def bias_scores(self) -> Float[Tensor, "batch head q_pos"]:
        """Scores of the learned key, ``q_i . k* / sqrt(d_head)``; it has no position."""
        key = self.learned["bias_key"]
        return torch.einsum("bhqd,hd->bhq", self.query, key) / math.sqrt(key.shape[-1])


RowSum = Literal["one", "at most one", "free"]
Learned = Literal["sink_logit", "bias_key", "bias_value", "head_gate", "element_gate"]
Weights = Callable[[AttentionInputs], Float[Tensor, "batch head q_pos extra_k_pos"]]


@dataclass(frozen=True)
class Variant:
    """One way for a head to read the sequence.

    Attributes:
        name: what the command line and the tables call it.
        formula: weight ``A_ij`` of key j for query i, or the output where that is what changes.
        source: paper.
        row_sum: what the weights on real keys sum to: "one", "at most one" (the rest goes to a learned key or to
            nothing), or "free". Where it is "free", attention metrics read proxy scores.
        weights: the function; with a learned key, its column comes first.
        learns: parameters of the layer besides the projections.
        from_scores: whether weights follow from ``q . k / sqrt(d_head)``; otherwise position biases cannot be
            added and logit margins are not applicable.
    """

    name: str
    formula: str
    source: str
    row_sum: RowSum
    weights: Weights
    learns: tuple[Learned, ...] = ()
    from_scores: bool = True


_BIAS: Weights = lambda x: k_bias(x.scores, x.visible, x.bias_scores)  # noqa: E731
_GU = "Gu et al., arXiv 2410.10781"
_QIU = "Qiu et al., arXiv 2505.06708"

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "softmax", "exp(s_ij) / sum_j exp(s_ij)", "the standard", "one", lambda x: softmax(x.scores, x.visible)
        ),
        Variant(
            "softmax1",
            "exp(s_ij) / (1 + sum_j exp(s_ij))",
            "Miller 2023; Xiao et al., arXiv 2309.17453",
            "at most one",
            lambda x: softmax_off_by_one(x.scores, x.visible),
        ),
        Variant(
            "sink-logit",
            "exp(s_ij) / (exp(b) + sum_j exp(s_ij))",
            "gpt-oss",
            "at most one",
            lambda x: sink_logit(x.scores, x.visible, x.learned["sink_logit"]),
            ("sink_logit",),
        ),
        Variant("k-bias", "softmax over [q_i.k*, s_ij], v* = 0", _GU, "at most one", _BIAS, ("bias_key",)),
        Variant(
            "kv-bias",
            "softmax over [q_i.k*, s_ij], v* learned",
            f"{_GU}; Sun et al., arXiv 2402.17762",
            "at most one",
            _BIAS,
            ("bias_key", "bias_value"),
        ),
        Variant(
            "relu",
            "max(s_ij, 0) / n_i",
            "Guo et al., arXiv 2410.13835",
            "free",
            lambda x: relu(x.scores, x.visible),
        ),
        Variant("sigmoid", "sigma(s_ij)", _GU, "free", lambda x: sigmoid(x.scores, x.visible)),
        Variant(
            "sigmoid-norm",
            "sigma(s_ij) / sum_j sigma(s_ij)",
            _GU,
            "one",
            lambda x: sigmoid_normalised(x.scores, x.visible),
        ),
        Variant(
            "softplus-reweighted",
            "norm(relu(n_i norm(softplus(log d log n_i cos(q_i, k_j))) - 1)^3)",
            "Gao and Spratling, arXiv 2501.13428",
            "one",
            lambda x: softplus_reweighted(x.query, x.key, x.visible),
            from_scores=False,
        ),
        Variant(
            "power-softmax",
            "s_ij^4 / sum_j s_ij^4",
            "Zimerman et al., arXiv 2410.09457",
            "one",
            lambda x: power_softmax(x.scores, x.visible),
        ),
        Variant(
            "elu-linear",
            "phi(q_i).phi(k_j) / sum_j phi(q_i).phi(k_j), phi = elu + 1",
            "Katharopoulos et al., arXiv 2006.16236",
            "one",
            lambda x: elu_linear(x.query, x.key, x.visible),
            from_scores=False,
        ),
        Variant(
            "elu-linear-free",
            "phi(q_i).phi(k_j) / sqrt(d), phi = elu + 1",
            _GU,
            "free",
            lambda x: elu_linear(x.query, x.key, x.visible, normalise=False),
            from_scores=False,
        ),
        Variant(
            "clipped-softmax",
            "clip(1.03 softmax(s)_ij - 0.03, 0, 1)",
            "Bondarenko et al., arXiv 2306.12929",
            "at most one",
            lambda x: clipped_softmax(x.scores, x.visible),
        ),
        Variant(
            "head-gate",
            "softmax; output of a head times sigma(w_g.x_i)",
            _QIU,
            "one",
            lambda x: softmax(x.scores, x.visible),
            ("head_gate",),
        ),
        Variant(
            "element-gate",
            "softmax; each channel of the output times sigma(w_gc.x_i)",
            _QIU,
            "one",
            lambda x: softmax(x.scores, x.visible),
            ("element_gate",),
        ),
    )
}
"""Every variant; scores ``s_ij = q_i . k_j / sqrt(d)`` (plus position bias), sums over the keys that i sees."""


def find_variant(name: str) -> Variant:
    """Return the variant of that name.

    Raises:
        InputError: if there is none.

    Example:
        >>> find_variant("relu").row_sum
        'free'
    """
    if name not in VARIANTS:
        raise InputError(f"There is no attention variant {name!r}; known are {', '.join(VARIANTS)}.")
    return VARIANTS[name]
