"""What the emergence table trains: one condition a row, each a small change of one setting."""

from dataclasses import dataclass, field
from typing import Any

from sinklens.errors import InputError
from sinklens.lab.variants.catalogue import VARIANTS
from sinklens.lab.variants.settings import VariantSettings

_SHORT = {"batch": 32, "steps": 800}
# For what 800 steps do not teach.
_LONG = {"batch": 32, "steps": 2400}
# Without BOS a learned key takes over between 800 and 1,000 steps: the short budget would end in between.
_NO_BOS = {"batch": 32, "steps": 1600, "bos": False}
_DEEP = {"layers": 3, "batch": 32, "steps": 4000, "lr": 1e-3}


@dataclass(frozen=True)
class Condition:
    """One training of the emergence table: a variant of attention, of the training or of the data.

    Attributes:
        name: what it is called.
        group: rows that belong together.
        changes: settings that differ from ``VariantSettings``' own.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)

    def settings(self, seed: int) -> VariantSettings:
        """Return the settings of one cell."""
        return VariantSettings(**self.changes, seed=seed)


CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        *(Condition(name, "attention", _SHORT | {"attention": name}) for name in VARIANTS),
        *(
            Condition(f"{name}, no BOS", "no BOS", _NO_BOS | {"attention": name})
            for name in ("softmax", "softmax1", "sink-logit", "k-bias", "kv-bias", "sigmoid", "head-gate")
        ),
        Condition("SGD, 2,400 steps", "training", _LONG | {"optimizer": "sgd", "lr": 3e-2}),
        Condition("learning rate 3e-4", "training", _SHORT | {"lr": 3e-4}),
        *(
            Condition(f"{name}, 2,400 steps", "training", _LONG | {"attention": name})
            for name in ("softmax", "softmax1", "k-bias")
        ),
        Condition("window 16", "mask", _SHORT | {"window": 16}),
        Condition("prefix 5", "mask", _SHORT | {"prefix": 5}),
        Condition("RoPE", "positions", _SHORT | {"positions": "rope"}),
        Condition("ALiBi, 2 layers", "positions", _LONG | {"positions": "alibi", "layers": 2}),
        Condition("no positions, 2 layers", "positions", _LONG | {"positions": "none", "layers": 2}),
        Condition("no MLP", "shape", _SHORT | {"mlp": False}),
        Condition("3 layers", "3 layers", _DEEP),
        Condition("3 layers, SGD", "3 layers", _DEEP | {"optimizer": "sgd", "lr": 3e-2}),
        Condition("3 layers, relu", "3 layers", _DEEP | {"attention": "relu"}),
    )
}
"""All rows, in the table's order."""


def choose_conditions(names: list[str] | None = None, groups: list[str] | None = None) -> list[Condition]:
    """Return the conditions of these names or groups, all if neither is given.

    Raises:
        InputError: for an unknown name or group.

    Example:
        >>> [condition.name for condition in choose_conditions(groups=["mask"])]
        ['window 16', 'prefix 5']
    """
    known_groups = list(dict.fromkeys(condition.group for condition in CONDITIONS.values()))
    for given, known in ((names or [], [*CONDITIONS]), (groups or [], known_groups)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"Unknown: {', '.join(unknown)}; known are {'; '.join(known)}.")
    if names is None and groups is None:
        return [*CONDITIONS.values()]
    return [c for c in CONDITIONS.values() if c.name in (names or []) or c.group in (groups or [])]
