"""Random controls of equal size for any intervention: other heads, other positions, other channels, other keys."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.evidence.controls import all_heads, random_head_sets
from sinklens.interventions import (
    AblateHeads,
    CompensatedWindow,
    EditValues,
    MaskKeys,
    ScaleKeys,
    SetActivations,
    SlidingWindow,
    control_entries,
    mean_activations,
)
from sinklens.interventions.base import Intervention
from sinklens.models.tokens import TokenBatch
from sinklens.policies.base import Policy
from sinklens.policies.head_split import HeadSplit
from sinklens.policies.matched_random import MatchedRandom
from sinklens.policies.sink_window import SinkWindow

_KEYS = {MaskKeys: "keys", ScaleKeys: "keys", EditValues: "keys"}


@dataclass(frozen=True)
class MatchedControls:
    """Controls of an intervention.

    Attributes:
        interventions: Each as large as the tested one; no two are equal.
        kind: Of what they are random choices, in words: ``"heads of the same layers"``, ``"positions"``; empty without
            any.
        note: What a reader should know, such as why there is none.
    """

    interventions: tuple[Intervention, ...] = ()
    kind: str = ""
    note: str = ""


def matched_controls(
    model: TransformerBridge,
    batch: TokenBatch,
    intervention: Intervention,
    *,
    draws: int = 5,
    seed: int = 0,
    outputs: Callable[[tuple[tuple[int, int], ...]], Any] | None = None,
) -> MatchedControls:
    """What an intervention is to be compared with: the same thing done to as many others, chosen at random.

    ======================================  ================================================================
    tested                                  controls
    ======================================  ================================================================
    keys (MaskKeys, ScaleKeys, EditValues)  as many other positions, within the shortest text
    entries (SetActivations)                as many entries of median size at the same tokens
    windows and policies                    as many keys in every row and head, random ones
    any other with named heads              as many other heads, of the same layers where possible
    ======================================  ================================================================

    Args:
        model: The bridge.
        batch: The tokens on which it is tried.
        intervention: What is tested.
        draws: How many; fewer where fewer differ.
        seed: Which ones.
        outputs: For ``AblateHeads`` with outputs: gives those of other heads.

    Returns:
        None of equal size for what touches all heads and no keys, for what only changes numbers of a cache, and for
        compositions; ``note`` says so.

    Cost: none, but for entries a forward pass each and for outputs what ``outputs`` costs.
    """
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}.")
    if type(intervention) in _KEYS:
        return _other_keys(intervention, int(batch.lengths.min()), draws, seed)
    if isinstance(intervention, SetActivations):
        return _other_entries(model, batch, intervention, draws)
    if isinstance(intervention, Policy | SlidingWindow | CompensatedWindow):
        rule = intervention if isinstance(intervention, Policy) else _as_policy(model, intervention)
        if type(rule).change_call is not Policy.change_call:
            return MatchedControls(note="No control: this rule changes keys and values and drops none.")
        chosen = tuple(MatchedRandom(rule, seed + n) for n in range(draws))
        return MatchedControls(chosen, "keys in every row and head", "")
    heads: Any = getattr(intervention, "heads", None)
    if heads is None:
        return MatchedControls(note=f"No control of equal size is known for {type(intervention).__name__}.")
    if isinstance(heads, str):
        return MatchedControls(note="No control of equal size: all heads are meant, and none is left to compare with.")
    sets = random_head_sets(all_heads(model), heads, draws=draws, seed=seed)
    controls = []
    for others in sets.sets:
        changes: dict[str, Any] = {"heads": others}
        if isinstance(intervention, AblateHeads) and intervention.outputs is not None:
            if outputs is None:
                return MatchedControls(note="No control: the outputs of other heads were not given.")
            changes["outputs"] = outputs(others)
        controls.append(replace(intervention, **changes))
    return MatchedControls(
        tuple(controls), "heads" if sets.moved or sets.widened else "heads of the same layers", " ".join(sets.notes)
    )


def _other_keys(intervention: Any, length: int, draws: int, seed: int) -> MatchedControls:
    draw = random.Random(seed)
    free = sorted({*range(length)} - {*intervention.keys})
    size = len(intervention.keys)
    sets: dict[tuple[int, ...], None] = {}
    for _ in range(20 * draws if len(free) >= size else 0):
        sets[tuple(sorted(draw.sample(free, size)))] = None
        if len(sets) == draws:
            break
    controls = tuple(replace(intervention, keys=keys) for keys in sets)
    note = "" if controls else "No control: there are not enough other positions for a random set of equal size."
    return MatchedControls(controls, "positions" if controls else "", note)


def _other_entries(
    model: TransformerBridge, batch: TokenBatch, intervention: SetActivations, draws: int
) -> MatchedControls:
    controls: list[Intervention] = []
    for draw in range(draws):
        try:
            where = control_entries(model, batch, intervention.where, draw=draw)
        except InputError as error:
            if not controls:
                return MatchedControls(note=f"No control: {error}")
            break
        means = mean_activations(model, batch, where) if intervention.to == "mean" else None
        controls.append(replace(intervention, where=where, means=means))
    return MatchedControls(tuple(controls), "entries of median size at the same tokens")


def _as_policy(model: TransformerBridge, window: Any) -> Policy:
    """The policy that keeps what a window keeps."""
    if isinstance(window.heads, str):
        return SinkWindow(sinks=window.sinks, recent=window.window)
    others = tuple(head for head in all_heads(model) if head not in window.heads)
    return HeadSplit(full=others, sinks=window.sinks, recent=window.window)
