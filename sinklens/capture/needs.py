"""What consumers ask of a pass: fields of its records, and statistics of attention, each taken once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from sinklens.attention import AttentionCall, AttentionShape, StatisticFactory
from sinklens.attention.plan import AttentionPlan
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.tokens import TokenBatch

FIELDS: Final = ("hidden", "keys", "outputs", "z", "halves")
"""What a record carries only for those who ask: see :class:`~sinklens.capture.LayerRecord`."""


def fields_lacking(plan: AttentionPlan, *, gated: bool, readable: bool) -> dict[str, str]:
    """The optional fields that a model cannot give, with the reason.

    Args:
        plan: How the model's layers are measured.
        gated: Whether an output gate follows the heads, which ``|W_O z|`` does not know of.
        readable: Whether every layer's ``W_O`` can be read.
    """
    lacking: dict[str, str] = {}
    if any(layer.path == "fallback" for layer in plan.layers):
        lacking["keys"] = "its attention is measured through hooks that do not show keys as attention uses them"
    if gated:
        lacking["outputs"] = "a gate follows its heads"
    elif not readable:
        lacking["outputs"] = "the weights of its output projection cannot be read"
    return lacking


def fields_asked(consumers: Iterable[Any], lacking: Mapping[str, str]) -> set[str]:
    """The optional fields to fill in.

    Args:
        consumers: Each may name fields in ``needs`` (without them it cannot work) and ``wants`` (it does without).
        lacking: Fields that this model cannot give, with the reason.

    Raises:
        InputError: A field that no record has.
        UnsupportedArchitectureError: A needed field that this model cannot give.
    """
    asked: set[str] = set()
    for consumer in consumers:
        name = type(consumer).__name__
        needs, wants = tuple(getattr(consumer, "needs", ())), tuple(getattr(consumer, "wants", ()))
        for field in (*needs, *wants):
            if field not in FIELDS:
                raise InputError(f"{name} asks for {field!r}; a layer record can carry {', '.join(FIELDS)}.")
        for field in needs:
            if field in lacking:
                raise UnsupportedArchitectureError(
                    f"{name} needs the {field} of every layer, and this model cannot give them: {lacking[field]}."
                )
        asked |= {*needs, *wants} - lacking.keys()
    return asked


def statistics_asked(
    consumers: Sequence[Any], rows: TokenBatch, standard: Callable[[TokenBatch], Sequence[StatisticFactory]]
) -> list[StatisticFactory]:
    """The union of what the consumers want measured, each statistic once.

    A consumer says it with a method ``statistics(batch)``; one without gets the standard statistics.
    """
    wanted: list[StatisticFactory] = []
    for consumer in consumers:
        declared = getattr(consumer, "statistics", None)
        wanted += standard(rows) if declared is None else declared(rows)
    return joined(wanted)


def joined(wanted: Sequence[StatisticFactory]) -> list[StatisticFactory]:
    """The same statistics without repetition; those that take one mapping (key sets, targets) become a single one.

    Raises:
        InputError: Two of them use one name for different things.
    """
    out: list[StatisticFactory] = []
    mappings: dict[tuple[Any, str], dict[str, Any]] = {}
    for factory in wanted:
        keywords = factory.keywords if isinstance(factory, partial) and not factory.args else {}
        argument = next(iter(keywords)) if len(keywords) == 1 else ""
        if isinstance(factory, partial) and argument and isinstance(keywords[argument], dict):
            group = mappings.setdefault((factory.func, argument), {})
            for name, value in keywords[argument].items():
                if name in group and not torch.equal(group[name], value):
                    raise InputError(f"Two detectors of one pass use the name {name!r} for different tokens.")
                group[name] = value
        elif not any(_same(factory, other) for other in out):
            out.append(factory)
    return out + [partial(func, **{argument: group}) for (func, argument), group in mappings.items()]


def _same(one: StatisticFactory, other: StatisticFactory) -> bool:
    if not (isinstance(one, partial) and isinstance(other, partial)):
        return one is other
    if one.func is not other.func or one.args != other.args or one.keywords.keys() != other.keywords.keys():
        return False
    pairs = [(value, other.keywords[name]) for name, value in one.keywords.items()]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


class KeepKeys:
    """Observer that holds a layer's keys until its record is made."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}

    def observe(self, call: AttentionCall) -> None:
        """Hold the layer's keys ``[batch kv_head pos d_head]``."""
        self.by_layer[call.layer] = call.key


class KeepOutputs:
    """Observer that holds what ``measure`` makes of a layer's head outputs until its record is made."""

    def __init__(self, measure: Callable[[int, Tensor], Tensor | None]) -> None:
        self.measure = measure
        self.by_layer: dict[int, Tensor | None] = {}

    def observe_output(self, shape: AttentionShape, output: Tensor) -> None:
        """Measure at once; what is not measured but held as it is goes with the layer's record."""
        self.by_layer[shape.layer] = self.measure(shape.layer, output)
