"""The heads that an intervention may be tried on, and the same intervention on others."""

from dataclasses import fields
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.evidence.controls import all_heads
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head, Heads


def candidate_heads(model: TransformerBridge, intervention: Any, *needed: str) -> list[Head]:
    """The heads that an intervention names, each of them when it says ``"all"``.

    Args:
        model: The bridge.
        intervention: Whose heads are to be chosen.
        needed: Further fields it must have.

    Raises:
        InputError: It lacks a field, or the model lacks a head (or has none).
    """
    has = {each.name for each in fields(intervention)} if isinstance(intervention, Intervention) else set()
    for name in ("heads", *needed):
        if name not in has:
            raise InputError(
                f"Expected an intervention with a field {name!r} to choose, such as ScaleKeys(keys=0, gamma=2.0); got "
                f"{type(intervention).__name__}."
            )
    intervention.check(model)
    named: Heads = intervention.heads
    found = list(all_heads(model)) if isinstance(named, str) else list(named)
    if not found:
        raise InputError(f"{model.cfg.architecture} has no attention heads to choose from.")
    return found
