"""ZeroWeights: single weights of a model set to zero: a super weight, a neuron's row, an expert."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import InputError
from sinklens.interventions.base import Intervention
from sinklens.interventions.heads import as_index
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers

Weight = tuple[str, tuple[int, ...]]
"""A parameter's name, and where in it: fewer numbers than it has axes mean everything below them."""


@dataclass(frozen=True)
class ZeroWeights(Intervention):
    """Sets weights to zero while it is open, and puts them back to the bit.

    ::

        ZeroWeights(["model.layers.2.mlp.down_proj.weight[507, 1081]"])

    A whole number for the first axis only takes a row, or of a mixture of experts whose weights stand in one tensor an
    expert: ``model.layers.1.mlp.experts.down_proj[3]`` makes expert 3 add nothing where the router chooses it, the
    weights of the others as they were.

    Names are those of the Hugging Face model. Parameters that are shared between modules (tied embeddings) change in
    all of them.

    Args:
        weights: Names with places in square brackets, or pairs such as ``("model....weight", (507, 1081))``.

    Source: super weights, Yu et al. 2024 (arXiv 2411.07191); experts, Su et al. 2025 (arXiv 2507.23279).
    """

    weights: tuple[Weight, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", parse_weights(self.weights))

    def edits(self, positions: Positions) -> Sequence[Any]:
        """None: attention itself stays as it is."""
        return []

    def check(self, model: TransformerBridge) -> None:
        """The model has these parameters, they are numbers and not codes, and they are that large."""
        known = parameters_by_name(model)
        for name, place in self.weights:
            if name not in known:
                near = sorted(each for each in known if each.split(".")[-2:] == name.split(".")[-2:])[:1]
                hint = f", for example {near[0]}" if near else ""
                raise InputError(f"This model has no parameter {name!r}{hint}; names are those of the checkpoint.")
            shape = tuple(known[name].shape)
            if len(place) > len(shape) or any(at >= size for at, size in zip(place, shape, strict=False)):
                raise InputError(f"{weight_name((name, place))} does not exist: the parameter's shape is {shape}.")
            if not known[name].is_floating_point():
                raise InputError(f"{name} is quantised: its entries are codes and not weights.")

    @contextmanager
    def changing(self, model: TransformerBridge) -> Iterator[None]:
        """Zeros inside, the old numbers afterwards, whatever happens."""
        known = parameters_by_name(model)
        held: list[tuple[nn.Parameter, tuple[int, ...], Tensor]] = []
        try:
            with torch.no_grad():
                for name, place in self.weights:
                    held.append((known[name], place, known[name].data[place].clone()))
                for parameter, place, _ in held:
                    parameter.data[place] = 0
                for copy, anew in _fused_copies(model, {id(parameter) for parameter, *_ in held}):
                    held.append((copy, (), copy.data.clone()))
                    copy.data[()] = anew
            yield
        finally:
            with torch.no_grad():
                for parameter, place, old in reversed(held):
                    parameter.data[place] = old


def _fused_copies(model: TransformerBridge, changed: Collection[int]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The bridge's own copies of fused query-key-value weights among those changed, and what they are to hold now."""
    for attention in attention_layers(model).values():
        split: Any = getattr(attention, "split_qkv_matrix", None)
        original: Any = attention.original_component
        if split is None or not any(id(each) in changed for each in original.parameters()):
            continue
        for part, anew in zip((attention.q, attention.k, attention.v), split(original), strict=True):
            for copy, now in zip(part.original_component.parameters(), anew.parameters(), strict=True):
                yield copy, now.data


def parameters_by_name(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """Parameters by the names of the Hugging Face model, without those of the bridge between them."""
    original: Any = model.original_model
    return {
        name.replace("_original_component.", ""): p for name, p in original.named_parameters(remove_duplicate=False)
    }


def weight_name(weight: Weight) -> str:
    """How a weight is written.

    >>> weight_name(("h.0.mlp.c_proj.weight", (3, 12)))
    'h.0.mlp.c_proj.weight[3, 12]'
    """
    return f"{weight[0]}[{', '.join(map(str, weight[1]))}]"


def parse_weights(weights: Any) -> tuple[Weight, ...]:
    """Weights from their names or pairs, each once.

    Raises:
        InputError: None at all, or one that cannot be read.

    >>> parse_weights("a.weight[3, 12]"), parse_weights([("b", [0])])
    ((('a.weight', (3, 12)),), (('b', (0,)),))
    """
    if isinstance(weights, str):
        weights = [weights]
    if not isinstance(weights, Iterable):
        raise InputError(
            f'weights must be a list such as ["model.layers.2.mlp.down_proj.weight[3, 12]"], got {weights!r}.'
        )
    found: dict[Weight, None] = {}
    for weight in weights:
        found[_parse(weight)] = None
    if not found:
        raise InputError("weights is empty; name at least one.")
    return tuple(found)


def _parse(weight: Any) -> Weight:
    if isinstance(weight, str):
        match = re.fullmatch(r"\s*([^\[\]\s]+)\s*\[\s*(\d+(?:\s*,\s*\d+)*)\s*\]\s*", weight, re.ASCII)
        if match:
            return match[1], tuple(int(each) for each in match[2].split(","))
    elif isinstance(weight, tuple | list) and len(weight) == 2 and isinstance(weight[0], str):
        place = weight[1] if isinstance(weight[1], tuple | list) else [weight[1]]
        numbers = tuple(as_index(each) for each in place)
        if numbers and all(number >= 0 for number in numbers):
            return weight[0], numbers
    raise InputError(
        f'A weight is written like "model.layers.2.mlp.down_proj.weight[3, 12]", places from 0; got {weight!r}.'
    )
