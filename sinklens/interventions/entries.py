"""Which entries of the residual stream are meant: named ones, or every large one of some channels."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.heads import as_index

Entry = tuple[int, int, int]
"""Layer (-1 = the embedding's output), token position from 0, channel of the residual stream."""


@dataclass(frozen=True)
class MassiveRule(Mapping[str, Any]):
    """Every entry of some channels that is large: ``|h_td| > above`` after layer ``layer``, whatever token t is.

    Massive activations sit at position 0 and at the first delimiter of a text, which is elsewhere in every text; the
    rule finds them while the model runs, token by token, so it means the same in cached generation. It uses a fixed
    bound and not the ratio to the median, because the median of a text is not known before its end.
    :func:`~sinklens.interventions.massive_entries` finds layer, channels and bound for a model.

    Args:
        layer: Layer after which the stream is looked at; -1 is the embedding's output.
        dims: Channels looked at.
        above: Bound on the magnitude; an entry equal to it is not large. At least 0.
        instead: Channels to set in their place: where channel ``dims[n]`` is large, ``instead[n]`` of the same token
            is meant. This makes a control with exactly as many entries at the same tokens, see
            :func:`~sinklens.interventions.control_entries`.
    """

    layer: int
    dims: tuple[int, ...]
    above: float
    instead: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", _parse_layer(self.layer))
        object.__setattr__(self, "dims", _parse_dims(self.dims))
        object.__setattr__(self, "above", parse_number(self.above, "above"))
        if self.above < 0:
            raise InputError(f"above must be a bound of at least 0, got {self.above!r}.")
        if self.instead is not None:
            object.__setattr__(self, "instead", _parse_dims(self.instead))
            if len(self.instead) != len(self.dims) or set(self.instead) & set(self.dims):
                raise InputError(
                    f"instead must name one other channel for each of the {len(self.dims)} in dims, got {self.instead}."
                )

    @property
    def targets(self) -> tuple[int, ...]:
        """The channels that are set, one for each of ``dims``."""
        return self.dims if self.instead is None else self.instead

    def large(
        self, hidden: Float[Tensor, "batch pos d_model"], positions: Int[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos dim"]:
        """Where the channels ``dims`` are large; never at left padding (positions below 0)."""
        return (hidden[..., list(self.dims)].double().abs() > self.above) & (positions >= 0)[..., None]

    # a mapping of its fields: that is how an intervention writes it to JSON
    def __getitem__(self, name: str) -> Any:
        if name not in tuple(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))


Where = tuple[Entry, ...] | MassiveRule
"""Named entries, or a rule."""


def parse_where(where: object) -> Where:
    """A rule, or named entries in the order given.

    Raises:
        InputError: No entry at all, one named twice, or something that is no entry.

    >>> parse_where([(0, 0, 7), [1, 0, 7]])
    ((0, 0, 7), (1, 0, 7))
    >>> parse_where({"layer": 1, "dims": [7], "above": 100})
    MassiveRule(layer=1, dims=(7,), above=100.0, instead=None)
    """
    if isinstance(where, MassiveRule):
        return where
    if isinstance(where, Mapping):
        try:
            return MassiveRule(**where)
        except TypeError:
            names = ", ".join(map(str, where)) or "none"
            raise InputError(f"A MassiveRule has the fields layer, dims, above, instead; got {names}.") from None
    if not isinstance(where, Iterable) or isinstance(where, str):
        raise InputError(f"where must be a MassiveRule or a list of (layer, position, dim), got {where!r}.")
    found = tuple(_parse_entry(entry) for entry in where)
    if not found or len(set(found)) < len(found):
        raise InputError(f"where must name at least one (layer, position, dim), each once, got {list(found)!r}.")
    return found


def layers_of(where: Where) -> list[int]:
    """The layers that are touched, in order."""
    return [where.layer] if isinstance(where, MassiveRule) else sorted({layer for layer, _, _ in where})


def check_where(model: TransformerBridge, where: Where) -> None:
    """Refuse layers and channels that the model does not have.

    Raises:
        InputError: The first layer or channel that is missing.
    """
    dims = {*where.dims, *where.targets} if isinstance(where, MassiveRule) else {dim for _, _, dim in where}
    last, width = len(model.blocks) - 1, int(model.cfg.d_model)
    if layers_of(where)[-1] > last:
        raise InputError(
            f"Layer {layers_of(where)[-1]} does not exist in this model, which has L0 to L{last} (-1 = embedding)."
        )
    if max(dims) >= width:
        raise InputError(
            f"Channel {max(dims)} does not exist in this model: d_model is {width}, channels count from 0."
        )


def hook_name(layer: int) -> str:
    """Where TransformerLens shows the residual stream after a layer; -1 is the stream before the first.

    >>> hook_name(3), hook_name(-1)
    ('blocks.3.hook_out', 'blocks.0.hook_in')
    """
    return "blocks.0.hook_in" if layer < 0 else f"blocks.{layer}.hook_out"


def parse_number(number: Any, name: str) -> float:
    """``number`` as a finite float.

    Raises:
        InputError: Something else; the sentence calls it ``name``.

    >>> parse_number(3, "above")
    3.0
    """
    try:
        value = math.nan if isinstance(number, str | bool) else float(number)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {number!r}.")
    return value


def _parse_entry(entry: object) -> Entry:
    if isinstance(entry, tuple | list) and len(entry) == 3:
        position, dim = as_index(entry[1]), as_index(entry[2])
        if position >= 0 and dim >= 0:
            return _parse_layer(entry[0]), position, dim
    raise InputError(f"An entry is (layer, position, dim) such as (1, 0, 2533), counted from 0; got {entry!r}.")


def _parse_layer(layer: Any) -> int:
    found = as_index(layer)
    # as_index says -1 for everything that is no layer, and only one of those is meant
    if found < 0 and (isinstance(layer, bool) or layer != -1):
        raise InputError(f"A layer is an integer from 0, or -1 for the embedding's output; got {layer!r}.")
    return found


def _parse_dims(dims: Any) -> tuple[int, ...]:
    listed: Sequence[Any] = list(dims) if isinstance(dims, Iterable) and not isinstance(dims, str) else [dims]
    found = tuple(as_index(dim) for dim in listed)
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise InputError(f"Channels are integers from 0, each once, such as (2533, 1415); got {dims!r}.")
    return found
