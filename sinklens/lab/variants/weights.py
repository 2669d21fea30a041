"""How scores become weights: softmax, where every row is a distribution, and what papers put in its place.

Mass that nothing deserves has to go somewhere under the softmax: to a sink. The others give it a place of its own
(K-bias, sink logit, off-by-one), let weights be exactly 0 (clipped softmax, ReLU), or drop the sum of 1 (sigmoid).

Everywhere ``scores`` are ``q . k / sqrt(d_head)``, with position bias if there is one, ``query`` and ``key`` stand
after rotary encoding, and ``visible`` says which keys a query sees; each sees at least one. The result is
``[batch head q_pos k_pos]``, 0 where a key is hidden.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import elu, logsigmoid, normalize, softplus

Scores = Float[Tensor, "batch head q_pos k_pos"]
Weights = Float[Tensor, "batch head q_pos k_pos"]
Queries = Float[Tensor, "batch head q_pos d_head"]
Keys = Float[Tensor, "batch head k_pos d_head"]
Visible = Bool[Tensor, "q_pos k_pos"]
EARLY_ROWS = 3
"""Queries that see at most this many keys keep every key: their offset is 0 (:func:`softplus_reweighted`)."""


def softmax(scores: Scores, visible: Visible) -> Weights:
    """Return ``A_ij = exp(s_ij) / sum_j' exp(s_ij')`` over the visible keys, 0 elsewhere.

    Rows sum to one. A constant added to a row changes nothing.

    Example:
        >>> softmax(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return scores.masked_fill(~visible, -math.inf).softmax(-1)


def k_bias(
    scores: Scores, visible: Visible, bias_scores: Float[Tensor, "batch head q_pos"]
) -> Float[Tensor, "batch head q_pos extra_k_pos"]:
    """Return the softmax over ``[s_i*, s_i0, ..., s_ii]`` with ``s_i* = q_i . k* / sqrt(d_head)``, column 0 for ``k*``.

    The learned key ``k*`` stands outside the sequence (no position encoding) and its value is zero, so column 0
    is dropped before the weights meet the values. Rows sum to one with column 0 and to at most one without it.
    ``s* -> -inf`` is the plain softmax; ``s* = 0`` is :func:`softmax_off_by_one`. A constant added to a
    row of ``scores`` moves mass between the bias and the tokens.

    ``bias_scores``: ``s*`` of every query.

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv 2410.10781), section 7; their metric
    reads column 0 as ``Sink_*`` and column 1 as ``Sink_1``.

    Example:
        >>> k_bias(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool(), torch.zeros(1, 1, 1)).tolist()
        [[[[0.5, 0.5]]]]
    """
    return torch.cat([bias_scores[..., None], scores.masked_fill(~visible, -math.inf)], -1).softmax(-1)


def softmax_off_by_one(scores: Scores, visible: Visible) -> Weights:
    """Return ``A_ij = exp(s_ij) / (1 + sum_j' exp(s_ij'))`` ("softmax1").

    Rows sum to at most one; the rest goes nowhere. The same as a token before the sequence whose key and value are
    zero. Scores that all go to ``-inf`` give weights of zero, where the softmax stays a distribution.

    Source: Miller, "Attention Is Off By One" (2023); the zero sink of Xiao et al. (arXiv 2309.17453).

    Example:
        >>> softmax_off_by_one(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool()).item()
        0.5
    """
    return k_bias(scores, visible, scores.new_zeros(scores.shape[:3]))[..., 1:]


def sink_logit(scores: Scores, visible: Visible, logit: Float[Tensor, " head"]) -> Weights:
    """Return ``A_ij = exp(s_ij) / (exp(b) + sum_j' exp(s_ij'))`` with a learned ``b`` per head.

    Rows sum to at most one; the rest, ``exp(b) / (...)``, goes nowhere. ``b = 0`` is :func:`softmax_off_by_one`,
    ``b -> -inf`` the plain softmax. Unlike a K-bias the logit does not depend on the query.

    ``logit``: ``b``.

    Source: the gpt-oss models, as in ``transformers``' modeling_gpt_oss.

    Example:
        >>> sink_logit(torch.zeros(1, 1, 1, 1), torch.ones(1, 1).bool(), torch.zeros(1)).item()
        0.5
    """
    return k_bias(scores, visible, logit[:, None].expand(scores.shape[:3]))[..., 1:]


def clipped_softmax(
    scores: Scores,
    visible: Visible,
    zeta: float = 1.0,
    gamma: float = -0.03,
) -> Weights:
    """Return ``A = clip((zeta - gamma) softmax(s) + gamma, 0, 1)`` at the visible keys.

    With ``gamma < 0`` a head can do nothing without pushing its scores to infinity. Rows sum to at most one when
    ``zeta <= 1``; with 34 or more equal keys and the defaults they sum to zero. Shift-invariant. A clipped weight
    passes no gradient.

    ``zeta``: upper end of the stretched softmax.
    ``gamma``: its lower end.

    Source: Bondarenko et al., "Quantizable Transformers" (arXiv 2306.12929).

    Example:
        >>> clipped_softmax(torch.zeros(1, 1, 40, 40), torch.ones(40, 40).tril().bool())[0, 0, [0, 39], 0]
        tensor([1., 0.])
    """
    return ((zeta - gamma) * softmax(scores, visible) + gamma).clamp(0, 1) * visible


def sigmoid_normalised(scores: Scores, visible: Visible) -> Weights:
    """Return ``A_ij = sigma(s_ij) / sum_j' sigma(s_ij')`` over the visible keys.

    Rows sum to one. Not shift-invariant: all scores at ``+inf`` give equal weights. Computed as the softmax of
    ``log sigma(s)``, so a row of very negative scores stays a distribution.

    Source: Gu et al. (arXiv 2410.10781), section 7.

    Example:
        >>> sigmoid_normalised(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    return softmax(logsigmoid(scores), visible)


def sigmoid(scores: Scores, visible: Visible) -> Weights:
    """Return ``A_ij = 1 / (1 + exp(-s_ij))`` at the visible keys.

    Row sums are free, between 0 and the number of visible keys. Not shift-invariant.

    Source: Gu et al. (arXiv 2410.10781), section 7, "sigmoid attention without normalisation"; no bias.

    Example:
        >>> sigmoid(torch.zeros(1, 1, 2, 2), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[0.5000, 0.0000],
                [0.5000, 0.5000]])
    """
    return scores.sigmoid() * visible


def relu(scores: Scores, visible: Visible) -> Weights:
    """Return ``A_ij = max(s_ij, 0) / n_i`` with ``n_i`` keys visible to query i.

    Row sums are free: zero when no score is positive, and without an upper bound. Not shift-invariant.

    Source: Guo et al., "Active-Dormant Attention Heads" (arXiv 2410.13835); Wortsman et al. (arXiv 2309.08586).

    Example:
        >>> relu(torch.tensor([[[[3.0, 9.0], [-1.0, 4.0]]]]), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[3., 0.],
                [0., 2.]])
    """
    return scores.relu() * (visible / visible.sum(-1, keepdim=True))


def power_softmax(scores: Scores, visible: Visible, power: int = 4) -> Weights:
    """Return ``A_ij = s_ij^p / sum_j' s_ij'^p`` over the visible keys, for an even ``p``.

    Rows sum to one (to zero where every score is exactly 0). Large negative scores count as much as large positive
    ones. Not shift-invariant, but scale-invariant: ``A(c s) = A(s)``.

    ``power``: an even number; the paper leaves it open, 4 is a choice made here.

    Source: Zimerman et al., "Power-Softmax" (arXiv 2410.09457). Deviation: rows are divided by their largest
    absolute score first, which changes nothing but keeps the powers in range.

    Example:
        >>> power_softmax(torch.tensor([[[[1.0, 0.0], [-1.0, 1.0]]]]), torch.ones(2, 2).tril().bool())[0, 0]
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    shown = scores * visible
    raised = (shown / shown.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12)) ** power
    return raised / raised.sum(-1, keepdim=True).clamp(min=1e-12)


def elu_linear(
    query: Queries,
    key: Keys,
    visible: Visible,
    *,
    normalise: bool = True,
) -> Weights:
    """Return ``A_ij = phi(q_i) . phi(k_j) / Z_i`` with ``phi(x) = elu(x) + 1 > 0``.

    With ``normalise`` ``Z_i`` is the row's sum over the visible keys and rows sum to one; without,
    ``Z_i = sqrt(d_head)`` and row sums are free. There is no score before a nonlinearity, so logit margins are not
    applicable. Written out as weights (quadratic in the length), so that they can be measured.

    ``normalise``: divide by the row's sum.

    Source: Katharopoulos et al., "Transformers are RNNs" (arXiv 2006.16236); both forms in Gu et al. (arXiv
    2410.10781), section 7. The scale of the second form is a choice made here.

    Example:
        >>> x = torch.zeros(1, 1, 2, 4)
        >>> elu_linear(x, x, torch.ones(2, 2).tril().bool(), normalise=False)[0, 0]
        tensor([[2., 0.],
                [2., 2.]])
    """
    products = (elu(query) + 1) @ (elu(key) + 1).transpose(-1, -2) * visible
    return products / (products.sum(-1, keepdim=True) if normalise else math.sqrt(query.shape[-1]))


def softplus_reweighted(
    query: Queries,
    key: Keys,
    visible: Visible,
    power: int = 3,
) -> Weights:
    """Return ``A = norm_1(relu(n_i B_ij - o_i)^p)`` with ``B = norm_1(softplus(log(d) log(n_i) cos(q_i, k_j)))``.

    ``n_i`` is the number of keys that query i sees, ``norm_1`` divides a row by its sum and ``o_i`` is 1, except 0
    where ``n_i <= 3``: keys that get less than the uniform share of the first stage are cut off. Rows sum to one,
    or to zero where all keys of a row are exactly equal. Scores have no scale of their own: only directions count.

    ``power``: ``p``; the paper finds 3 best at the training length and 15 for extrapolation.

    Source: Gao and Spratling, "Softplus Attention with Re-weighting" (arXiv 2501.13428), read second-hand in two
    summaries and one re-implementation that agree. Deviation: the row is divided by its largest entry before the
    power, so that nothing has to be added to the denominator.

    Example:
        >>> x = torch.eye(4)[None, None]
        >>> softplus_reweighted(x, x, torch.ones(4, 4).tril().bool())[0, 0, 3]
        tensor([0., 0., 0., 1.])
    """
    seen = visible.sum(-1, keepdim=True).to(query.dtype)
    cosine = normalize(query, dim=-1) @ normalize(key, dim=-1).transpose(-1, -2)
    first = softplus(math.log(query.shape[-1]) * seen.log() * cosine) * visible
    first = first / first.sum(-1, keepdim=True)
    kept = (first * seen - (seen > EARLY_ROWS).to(query.dtype)).relu()
    sharp = (kept / kept.detach().amax(-1, keepdim=True).clamp(min=1e-12)) ** power
    return sharp / sharp.sum(-1, keepdim=True).clamp(min=1e-12)


EPSILON = 1e-8


def proxy(
    weights: Float[Tensor, "batch head q_pos k_pos"],
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """Return ``|A_ij| / (sum_j' |A_ij'| + 1e-8)``; a row of zeros stays one.

    A share of the row, not an amount: a head that writes almost nothing can have large proxy scores. Wherever a
    figure comes from these, it is labelled ``proxy`` (the papers mark it with an asterisk).

    Source: Gu et al. (arXiv 2410.10781), section 7 and their released code.

    Example:
        >>> import torch
        >>> proxy(torch.tensor([[[[0.0, 0.0], [-1.0, 3.0]]]]))[0, 0]
        tensor([[0.0000, 0.0000],
                [0.2500, 0.7500]])
    """
    size = weights.abs()
    return size / (size.sum(-1, keepdim=True) + EPSILON)
