"""Random sets of heads that harm plain text as much as the tested set: controls of equal own harm."""

import math
from collections.abc import Sequence

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from sinklens.evidence.bootstrap import Interval
from sinklens.interventions.heads import Head
from sinklens.models.architecture import attention_layers, output_weights

NEAR = 0.25
"""Own harms within this share of the tested set's count as equal, also where its interval is shorter."""

POOL = 5
"""Candidates for each control of equal own harm; only plain text is run for them."""

RULE = (
    "A random set has equal own harm when its rise of the loss on plain text, under the same mask, is within "
    f"{NEAR:.0%} of the tested set's rise or inside the tested rise's 95 % interval over texts, whichever is wider; of "
    f"up to {POOL} times as many candidates as controls the nearest are taken."
)


def equal_harm(tested: Interval, candidates: Sequence[float], count: int) -> list[int]:
    """Which candidates harm plain text as much as the tested set, the nearest first, at most ``count`` of them.

    Sets of equal size are no fair controls when they break the model: what a broken model does to a needle says nothing
    about retrieval. Nor are sets that do nothing, when the tested mask breaks the model.

    Args:
        tested: Rise of the loss on plain text under the tested set's mask, over texts.
        candidates: The same of each candidate (means over the same texts); NaN is never taken.
        count: How many are wanted.

    Returns:
        Their numbers; equal distances in the order in which the sets were drawn, which is random.

    Example:
        >>> equal_harm(Interval(0.4, 0.35, 0.45, 20, "BCa"), [0.1, 0.48, 0.39, 0.7], 2)
        [2, 1]
    """
    half = 0.0 if math.isnan(tested.low) else max(tested.high - tested.value, tested.value - tested.low)
    distance = np.abs(np.asarray(candidates, dtype=np.float64) - tested.value)
    near = np.flatnonzero(distance <= max(half, NEAR * abs(tested.value)))
    order = near[np.argsort(distance[near], kind="stable")]
    return [int(number) for number in order[:count]]


def idle_heads(model: TransformerBridge) -> tuple[Head, ...]:
    """Heads whose ``W_O`` is 0 throughout, as ``(layer, head)``.

    Masking them changes no logit, whatever the way of masking, so they are random heads that are known to be harmless.
    Trained models have none; they are appended on purpose. A layer whose weights cannot be read (quantised) has none.

    >>> from sinklens import load
    >>> idle_heads(load("bb-3l"))
    ()
    """
    found: list[Head] = []
    for layer in sorted(attention_layers(model)):
        weights = output_weights(model, layer)
        if weights is not None:
            found += [(layer, head) for head, each in enumerate(weights) if not bool(each.any())]
    return tuple(found)
