"""What a path may end at, as it is written."""

from sinklens.errors import InputError
from sinklens.interventions.heads import parse_head

LOGITS = "logits"

Receiver = tuple[int, int, str]
"""Layer, query head and which of its inputs: ``"q"``, ``"k"`` or ``"v"``."""


def receiver_parts(name: str) -> Receiver | None:
    """The receiver of a name such as ``"L5H1.k"``; None for the logits.

    Raises:
        InputError: It is written otherwise.

    >>> receiver_parts("L5H1.k"), receiver_parts("logits")
    ((5, 1, 'k'), None)
    """
    if name == LOGITS:
        return None
    head, _, side = name.rpartition(".")
    if side not in ("q", "k", "v"):
        raise InputError(f'A receiver is "logits" or a head with .q, .k or .v such as "L5H1.k"; got {name!r}.')
    layer, number = parse_head(head)
    return layer, number, side
