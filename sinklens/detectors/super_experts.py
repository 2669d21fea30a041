"""Super experts: the few experts of a mixture whose outputs make its massive activations; both published rules."""

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinklens.detectors.metric import Metric
from sinklens.errors import InputError

PERCENTILE, FACTOR, LAYERS = 99.5, 10, 0.75
FLOOR = 1e-3
"""Attention to the sink below which a head's change of it says nothing."""

METRIC = Metric(
    "super_expert",
    1,
    "a_le = max over tokens routed to expert e of layer l and over channels of |down_proj output|, before the router's "
    "weight. Paper: a_le > the 99.5th percentile of all a (linear interpolation) and a_le > a_max / 10 and l a layer "
    "where massive activations form. Code: only layers below round(0.75 L) count, percentile and a_max are taken among "
    "them, and the second bound is a_max // 10. All strict. Formation, which the paper leaves to the eye: a layer "
    "after which some |h| exceeds 300 medians of its sequence and the largest |h| has grown by at least a tenth of its "
    "highest value.",
    "Su et al. 2025, arXiv 2507.23279, Eq. 6, and their code; formation sinklens'",
)

Rule = Literal["paper", "code"]


def super_experts(
    experts: pd.DataFrame,
    rule: Rule = "paper",
    *,
    formation: Collection[int] | None = None,
    n_layers: int | None = None,
) -> list[tuple[int, int]]:
    """The experts that a rule calls super, the largest first.

    Args:
        experts: One row per expert: ``layer``, ``expert``, ``a`` (0 where no token was routed to it).
        rule: ``"paper"`` or ``"code"``; see :data:`METRIC`.
        formation: For the paper's rule: layers where massive activations form.
        n_layers: For the code's rule: layers of the model.

    Raises:
        InputError: An unknown rule, or one without what it needs.

    Example:
        >>> table = pd.DataFrame({"layer": 0, "expert": range(400), "a": [105.0, 10.2, *[1.0] * 398]})
        >>> super_experts(table, formation=[0]), super_experts(table, "code", n_layers=2)
        ([(0, 0)], [(0, 0), (0, 1)])
    """
    if rule not in ("paper", "code"):
        raise InputError(f'rule must be "paper" or "code", got {rule!r}.')
    if rule == "paper" and formation is None:
        raise InputError("The paper's rule needs formation=, the layers where massive activations form.")
    if rule == "code" and n_layers is None:
        raise InputError("The code's rule needs n_layers=, the number of layers of the model.")
    if experts.empty:
        return []
    among = experts if rule == "paper" else experts[experts["layer"] < round(LAYERS * (n_layers or 0))]
    if among.empty:
        return []
    percentile, tenth = thresholds(among["a"].to_numpy(float), rule)
    found = among[(among["a"] > percentile) & (among["a"] > tenth)]
    if rule == "paper":
        found = found[found["layer"].isin([*(formation or ())])]
    ordered = found.sort_values(["a", "layer", "expert"], ascending=[False, True, True])
    return [(int(layer), int(expert)) for layer, expert in zip(ordered["layer"], ordered["expert"], strict=True)]


def thresholds(a: Float[np.ndarray, " expert"], rule: Rule = "paper") -> tuple[float, float]:
    """The 99.5th percentile, linear, and a tenth of the largest (the code: rounded down)."""
    largest = float(a.max())
    tenth = largest / FACTOR if rule == "paper" else float(largest // FACTOR)
    return float(np.percentile(a, PERCENTILE, method="linear")), tenth


def formation_layers(largest: Mapping[int, float], ratios: Mapping[int, float], around: float = 300.0) -> list[int]:
    """Layers where massive activations form.

    The largest ``|h|`` has grown by at least a tenth of its highest value, and there is a massive one: without, some
    expert is always the largest, and none is super.

    Args:
        largest: The largest ``|h|`` after each layer; -1 is the embedding's output.
        ratios: The same in medians of the sequence.
        around: Medians from which an entry is massive.

    >>> formation_layers({-1: 1.0, 0: 3.0, 1: 500.0, 2: 505.0, 3: 2.0}, {0: 5.0, 1: 900.0, 2: 800.0, 3: 3.0})
    [1]
    """
    top = max(largest.values(), default=math.nan)
    grown = [at for before, at in pairwise(sorted(largest)) if largest[at] - largest[before] >= top / FACTOR]
    return [at for at in grown if ratios.get(at, 0.0) > around]


def sink_decay(
    before: Float[np.ndarray, " head"], after: Float[np.ndarray, " head"], floor: float = FLOOR
) -> tuple[float, int]:
    """``1 - mean_h(p'_h / p_h)`` of heads' attention to the sink, and how many heads were left out.

    0: nothing changed; 1: the sink is gone; below 0: there is more of it. Heads with less than ``floor`` before are
    left out, because there the ratio means nothing.

    >>> sink_decay(np.array([0.5, 0.8, 0.0]), np.array([0.25, 0.0, 0.1]))
    (0.75, 1)
    """
    known = before >= floor
    if not known.any():
        return math.nan, len(before)
    return float(1 - (after[known] / before[known]).mean()), int((~known).sum())
