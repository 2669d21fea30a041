"""Weights of rules that are trained: from a checkpoint, or random so that their algebra can run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sinklens.errors import InputError
from sinklens.policies.base import Policy


@dataclass(frozen=True)
class Learned(Policy):
    """A rule with parameters that are trained with the model: without a file of them what it chooses means nothing.

    Args:
        weights: File of trained weights, see :func:`layer_weights`.
        seed: Of random ones.
    """

    weights: str | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "untrained", self.weights is None)

    def trained(self, layer: int, shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> dict[str, Tensor]:
        """The named tensors of one layer."""
        return layer_weights(self.weights, self.seed, layer, shapes, like)


def layer_weights(
    file: str | None, seed: int, layer: int, shapes: Mapping[str, tuple[int, ...]], like: Tensor
) -> dict[str, Tensor]:
    """Named tensors of one layer.

    Args:
        file: A safetensors file with tensors ``layers.N.NAME``; ``None``: normal random numbers, scaled by the square
            root of the first axis, which are good for testing and mean nothing.
        seed: Of the random numbers.
        layer: N.
        shapes: What is needed.
        like: Where they go, and as what dtype.

    Raises:
        InputError: No such file, or a tensor that is missing or of another shape.
    """
    if file is None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
        return {
            name: (torch.randn(shape, generator=generator) / shape[0] ** 0.5).to(like) for name, shape in shapes.items()
        }
    if not Path(file).is_file():
        raise InputError(f"There is no file {file} with weights of this rule.")
    held = load_file(file)
    found = {}
    for name, shape in shapes.items():
        tensor = held.get(f"layers.{layer}.{name}")
        if tensor is None or tuple(tensor.shape) != shape:
            have = "nothing" if tensor is None else str(tuple(tensor.shape))
            raise InputError(f"{file}: expected layers.{layer}.{name} of shape {shape}, got {have}.")
        found[name] = tensor.to(like)
    return found
