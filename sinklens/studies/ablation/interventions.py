"""The interventions of a sweep: their labels, and ways of ablation completed from the swept texts."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions import AblateHeads, Intervention, mean_outputs
from sinklens.interventions.ablate_heads import HOW
from sinklens.interventions.head_outputs import prompt_outputs
from sinklens.interventions.heads import Head, head_name
from sinklens.models.tokens import TokenBatch

Interventions = Intervention | str | Sequence[Intervention | str] | Mapping[str, Intervention | str]


def named_interventions(interventions: Interventions | None) -> dict[str, Intervention | str]:
    """Interventions by label; a way of ablation (``"mean"``) stands for itself until the tokens are known.

    Raises:
        InputError: None at all, one without heads, an unknown way, or a label twice.
    """
    if interventions is None:
        interventions = "zero"
    listed: list[tuple[str, Any]]
    if isinstance(interventions, Mapping):
        listed = list(interventions.items())
    elif isinstance(interventions, Intervention | str):
        listed = [("", interventions)]
    else:
        listed = [("", each) for each in interventions]
    found: dict[str, Intervention | str] = {}
    for name, each in listed:
        if isinstance(each, str):
            if each not in HOW:
                raise InputError(f"A way of ablation is one of {', '.join(HOW)}; got {each!r}.")
        elif not isinstance(each, Intervention) or not hasattr(each, "heads"):
            kind = type(each).__name__
            raise InputError(
                f"{kind} cannot be restricted to heads; sweep interventions with heads, such as AblateHeads, ScaleKeys "
                "or MaskKeys, one at a time."
            )
        label = name or (each if isinstance(each, str) else label_of(each))
        if label in found:
            raise InputError(f"Two interventions are called {label!r}; pass them by name, as a dictionary.")
        found[label] = each
    if not found:
        raise InputError("Expected at least one intervention, got none.")
    return found


def label_of(intervention: Intervention) -> str:
    """A short name: the way of an ablation, else the class with the fields that matter.

    >>> from sinklens.interventions import ScaleKeys
    >>> label_of(AblateHeads("all", "uniform")), label_of(ScaleKeys(0, 0.5))
    ('uniform', 'ScaleKeys(keys=0, gamma=0.5)')
    """
    if isinstance(intervention, AblateHeads):
        return intervention.how
    shown = []
    for field in fields(intervention):
        value = getattr(intervention, field.name)
        default = field.default if field.default is not MISSING else None
        if field.name == "heads" or isinstance(value, Mapping) or value == default:
            continue
        short = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        shown.append(f"{field.name}={short!r}")
    return f"{type(intervention).__name__}({', '.join(shown)})"


def make_ablations(
    asked: Mapping[str, Intervention | str], model: TransformerBridge, batch: TokenBatch, reference: int | None
) -> dict[str, Intervention]:
    """Interventions in full: ways of ablation get the outputs they put in.

    ``"mean"`` takes each head's mean output over all real tokens of the batch, ``"resample"`` its outputs on the
    sequence ``reference``.
    """
    made: dict[str, Intervention] = {}
    for label, each in asked.items():
        if isinstance(each, Intervention):
            made[label] = each
        elif each == "mean":
            made[label] = AblateHeads("all", "mean", mean_outputs(model, batch))
        elif each == "resample" and reference is not None:
            made[label] = AblateHeads("all", "resample", prompt_outputs(model, batch.rows([reference])))
        else:
            made[label] = AblateHeads("all", each)  # type: ignore[arg-type]
    return made


def set_aside(asked: Mapping[str, Intervention | str], batch: TokenBatch, seed: int) -> int | None:
    """Which sequence ``"resample"`` takes outputs from: one of the longest; it is not measured itself.

    Raises:
        InputError: There is only one sequence.
    """
    if "resample" not in asked.values():
        return None
    longest = (batch.lengths == batch.lengths.max()).nonzero().flatten().tolist()
    if len(batch) < 2:
        raise InputError("Resampling takes outputs from another text; give at least two sequences.")
    return int(np.random.default_rng(seed).choice(longest))


def for_heads(intervention: Intervention, heads: set[Head]) -> Intervention:
    """The intervention without outputs of other heads, which would only weigh down what is sent to workers."""
    outputs = getattr(intervention, "outputs", None)
    if not isinstance(outputs, Mapping):
        return intervention
    kept = {head_name(head): outputs[head_name(head)] for head in sorted(heads)}
    return replace(intervention, heads=tuple(sorted(heads)), outputs=kept)  # type: ignore[call-arg]
