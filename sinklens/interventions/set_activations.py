"""SetActivations: single entries of the residual stream set to zero, to their mean, or to a number."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import AttentionShape
from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.entries import (
    MassiveRule,
    Where,
    check_where,
    hook_name,
    layers_of,
    parse_number,
    parse_where,
)
from sinklens.interventions.positions import Positions
from sinklens.interventions.residual import residual_streams
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.wording import several

Mean = tuple[float | None, float | None]
"""Mean of a channel at position 0 and at all other positions; ``None`` where the reference had no such entry."""


@dataclass(frozen=True)
class SetActivations(Intervention):
    """Sets entries ``h_td`` of the residual stream as it leaves a layer, for instance its massive activations.

    Only these numbers change at that place; the layers after it work with what they make of it. Two ways to say which
    entries are meant:

    - named ones, ``[(layer, position, dim), ...]``: the same position in every sequence;
    - a :class:`~sinklens.interventions.entries.MassiveRule`: every entry of some channels above a bound, whichever
      token it sits at, decided anew in every forward pass.

    Massive activations are set where they appear, which :func:`~sinklens.interventions.massive_entries` finds; setting
    them later leaves what earlier layers made of them. Setting them to zero destroys many models and setting them to
    their mean hardly any: then they carry no information about the text but cannot be missed. Compare with as many
    entries of median size at the same tokens (:func:`~sinklens.interventions.control_entries`).

    Means come in two buckets per channel, position 0 and everything else, each with its sign: the two kinds of massive
    tokens differ by a factor of three in Llama-2-7B, and one pooled mean would be right for neither.

    Works in generation with a KV cache and on models without attention. Layer -1 is the embedding's output.

    Args:
        where: Named entries, or a rule.
        to: ``"zero"``, ``"mean"``, one number, or a number for each named entry (for a rule: for each channel).
        means: For ``"mean"``: by channel name such as ``"L1D2533"`` the means at position 0 and elsewhere, from
            :func:`mean_activations`. ``None`` stands where the reference had no such entry; needing it is an error.

    Source: Sun et al. (2024), arXiv 2402.17762, section 3 (they hard-code two models and one sequence at a time);
    buckets as in Owen et al. (2025), arXiv 2503.22329.
    """

    where: Where
    to: Literal["zero", "mean"] | float | tuple[float, ...] = "zero"
    means: Mapping[str, Mean] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", parse_where(self.where))
        object.__setattr__(self, "to", self._parse_to())
        if (self.to == "mean") != (self.means is not None):
            raise InputError('to="mean" needs means=mean_activations(model, batch, where); nothing else takes means.')
        if self.means is not None:
            object.__setattr__(self, "means", _parse_means(self.means))
            self._check_means()

    def check(self, model: TransformerBridge) -> None:
        """The model has these layers and channels."""
        check_where(model, self.where)

    def edits(self, positions: Positions) -> Sequence[Any]:
        """None: attention itself stays as it is."""
        return []

    def hooks(self, positions: Positions) -> Sequence[tuple[str, Any]]:
        """One hook on the residual stream for each layer."""
        return [(hook_name(layer), _Setter(self, layer, positions)) for layer in layers_of(self.where)]

    def value_of(self, index: int, layer: int, dim: int) -> Mean:
        """What entry (or channel of the rule) number ``index`` is set to, at position 0 and elsewhere."""
        if self.means is not None:
            return self.means[channel_name(layer, dim)]
        number = self.to[index] if isinstance(self.to, tuple) else 0.0 if self.to == "zero" else float(self.to)
        return number, number

    def _parse_to(self) -> Any:
        to: Any = self.to
        to = to.tolist() if hasattr(to, "tolist") else to  # tensors and arrays
        if isinstance(to, str) and to in ("zero", "mean"):
            return to
        if isinstance(to, str) or not isinstance(to, Iterable):
            return parse_number(to, 'to ("zero", "mean" or a number)')
        numbers = tuple(parse_number(number, "every number of to") for number in to)
        count = len(self.where.targets if isinstance(self.where, MassiveRule) else self.where)
        if len(numbers) != count:
            raise InputError(
                f"to has {several(len(numbers), 'number')} for {several(count, 'entry')} of where; give one each, or "
                f"one."
            )
        return numbers

    def _check_means(self) -> None:
        """Every named entry has the mean of its bucket; a rule has at least one of the two for each channel."""
        where = self.where
        needed: list[tuple[int, int, int | None]]
        if isinstance(where, MassiveRule):
            needed = [(where.layer, dim, None) for dim in where.targets]
        else:
            needed = [(layer, dim, min(position, 1)) for layer, position, dim in where]
        for layer, dim, bucket in needed:
            mean = (self.means or {}).get(channel_name(layer, dim), (None, None))
            if mean == (None, None) or (bucket is not None and mean[bucket] is None):
                raise _no_mean(layer, dim, bucket)


class _Setter:
    """The hook of one layer: ``[batch pos d_model]`` with the entries set."""

    def __init__(self, method: SetActivations, layer: int, positions: Positions) -> None:
        self.method, self.layer, self.positions = method, layer, positions

    def __call__(self, hidden: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        batch, pos = hidden.shape[:2]
        shape = AttentionShape(self.layer, batch, 0, pos, pos, pos, 1, hidden.device)
        rows = self.positions.row_positions(shape).expand(batch, pos)
        changed = hidden.clone()
        for index, dim, chosen in chosen_entries(self.method.where, self.layer, hidden, rows):
            values = self._values(index, dim, chosen, rows)
            changed[..., dim] = torch.where(chosen, values.to(hidden.dtype), changed[..., dim])
        return changed

    def _values(
        self, index: int, dim: int, chosen: Bool[Tensor, "batch pos"], rows: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos"]:
        mean = self.method.value_of(index, self.layer, dim)
        for bucket, value in enumerate(mean):
            if value is None and bool((chosen & ((rows == 0) if bucket == 0 else (rows > 0))).any()):
                raise _no_mean(self.layer, dim, bucket)
        start, others = (torch.tensor(0.0 if x is None else x, dtype=torch.float64, device=rows.device) for x in mean)
        return torch.where(rows == 0, start, others)


def chosen_entries(
    where: Where, layer: int, hidden: Float[Tensor, "batch pos d_model"], positions: Int[Tensor, "batch pos"]
) -> list[tuple[int, int, Bool[Tensor, "batch pos"]]]:
    """Number within ``where``, channel, and at which tokens: what ``where`` means in a layer's residual stream.

    Args:
        where: Named entries, or a rule.
        layer: Layer in hand; entries of others are left out.
        hidden: Its residual stream, which a rule is applied to.
        positions: Position of every token; padding has negative ones and is never chosen.
    """
    if isinstance(where, MassiveRule):
        large = where.large(hidden, positions)
        return [(n, dim, large[..., n]) for n, dim in enumerate(where.targets)]
    return [(n, dim, positions == position) for n, (at, position, dim) in enumerate(where) if at == layer]


@checked
@torch.no_grad()
def mean_activations(model: TransformerBridge, batch: TokenBatch | Ids, where: Any) -> dict[str, Mean]:
    """How large some entries of the residual stream are in a text on average, by channel, at position 0 and elsewhere.

    Signed, and over the chosen entries alone: for a rule over the tokens that are large in that channel (or whose
    partner is, under ``instead``), for named entries over the sequences that are long enough. Summed in fp64. Where a
    rule finds no entry in a bucket, the mean is over the channel's entries at all tokens of it, large or not: a later
    text may have a large one there (Gemma's channel 163 has one at the BOS alone, as a rule), and an ordinary size is
    the only one that is known. A bucket without any token is ``None``.

    Args:
        model: The bridge.
        batch: Reference tokens from :func:`sinklens.tokenize`.
        where: As for :class:`SetActivations`, or several rules, such as ``massive_entries(...).rules``.

    Returns:
        By channel name such as ``"L1D2533"``: the mean at position 0 and the mean elsewhere.

    Raises:
        InputError: The model has no such layer or channel.

    Cost: one forward pass of the batch.

    Source: Owen et al. (2025), arXiv 2503.22329: start token and other tokens apart, per channel.
    """
    batch = as_batch(model, batch)
    several = isinstance(where, Sequence) and bool(where) and all(isinstance(part, MassiveRule) for part in where)
    wheres = [parse_where(part) for part in (where if several else [where])]
    for part in wheres:
        check_where(model, part)
    layers = sorted({layer for part in wheres for layer in layers_of(part)})
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, 2, dtype=torch.float64))  # [bucket, (sum, count)]
    everywhere: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, 2, dtype=torch.float64))
    streams = residual_streams(model, batch, layers)
    for stream, part in ((stream, part) for stream in streams for part in wheres if stream.layer in layers_of(part)):
        for _, dim, chosen in chosen_entries(part, stream.layer, stream.hidden, stream.positions):
            name = channel_name(stream.layer, dim)
            for bucket, members in enumerate((stream.positions == 0, stream.positions > 0)):
                values = stream.hidden[..., dim]
                sums[name][bucket] += _sum_and_count(values[chosen & members])
                if isinstance(part, MassiveRule):
                    everywhere[name][bucket] += _sum_and_count(values[members])
    for name, held in everywhere.items():
        sums[name] = torch.where(sums[name][:, 1:] > 0, sums[name], held)
    means = {name: [float(total / n) if n else None for total, n in held] for name, held in sums.items()}
    return {name: (start, others) for name, (start, others) in means.items()}


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.stack([values.double().sum(), values.new_tensor(len(values), dtype=torch.float64)]).cpu()


def channel_name(layer: int, dim: int) -> str:
    """How a channel of one layer is called in ``means``.

    >>> channel_name(1, 2533), channel_name(-1, 7)
    ('L1D2533', 'L-1D7')
    """
    return f"L{layer}D{dim}"


def _no_mean(layer: int, dim: int, bucket: int | None) -> InputError:
    place = {None: "anywhere", 0: "at position 0", 1: "after position 0"}[bucket]
    return InputError(
        f"means has no mean of channel {channel_name(layer, dim)} {place}; take it with mean_activations from a "
        "reference in which such entries occur."
    )


def _parse_means(means: Any) -> dict[str, Mean]:
    found = {}
    try:
        for name, (start, others) in means.items():
            if not re.fullmatch(r"L(-1|\d+)D\d+", name, re.ASCII):
                raise InputError(f"{name!r} is no channel")
            numbers = [None if x is None else float(x) for x in (start, others)]
            if not all(x is None or math.isfinite(x) for x in numbers):
                raise InputError(f"the mean of {name} is not finite")
            found[name] = (numbers[0], numbers[1])
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'means must map channels such as "L1D2533" to their mean at position 0 and elsewhere ({error}).'
        ) from None
    return found
