"""Rotary embedding turned further: what a query would look like at another position."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import text_config

HALVES = ("llama", "mistral", "mixtral", "qwen", "gemma", "phi", "olmo", "gpt_neox", "falcon", "stablelm", "smollm")
"""Model types (by beginning) that turn the first half of the rotary channels against the second."""


def frequencies(model: TransformerBridge, layer: int) -> Float[Tensor, " half"]:
    """Angle per position of each rotary channel pair in a layer.

    Raises:
        UnsupportedArchitectureError: The model has no rotary embedding, or pairs channels in another way.
    """
    config = text_config(model)
    kind = str(getattr(config, "model_type", ""))
    types = getattr(config, "layer_types", None)
    names = [f"{types[layer]}_inv_freq"] if types else []
    for module in model.original_model.modules():
        for name in (*names, "inv_freq"):
            found = module._buffers.get(name)
            if isinstance(found, Tensor) and kind.startswith(HALVES):
                return found.float()
    raise UnsupportedArchitectureError(
        f"Keys of {model.cfg.architecture} cannot be given other positions: that needs a rotary embedding in halves, "
        "as Llama, Qwen, Gemma, GPT-NeoX and their kin have it."
    )


def turned(x: Float[Tensor, "... pos d_head"], by: Float[Tensor, " pos"], freq: Float[Tensor, " half"]) -> Tensor:
    """Rotated queries or keys, turned by a number of positions more; channels that are not rotary stay.

    >>> x, freq = torch.tensor([[1.0, 0.0]]), torch.tensor([torch.pi / 2])
    >>> turned(x, torch.tensor([1.0]), freq).round().abs()
    tensor([[0., 1.]])
    """
    half = len(freq)
    angle = by[:, None] * freq
    cos, sin = angle.cos(), angle.sin()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
