"""A small decoder for any attention variant, in plain torch.

Why not a Hugging Face model whose variant is registered through ``transformers.AttentionInterface``: sinklens' engine
registers its own function there and computes the softmax itself, so a variant's own function would never run while it
is being measured, and gates, learned keys and learned logits would each need a model class of their own. Here the
decoder hands out the weights it really used; :func:`sinklens.lab.variants.capture.capture_variant` cuts them into the
engine's blocks and layer records, which every statistic and every detector takes as it takes those of a bridge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sinklens.errors import InputError
from sinklens.lab.checks import at_least, one_of
from sinklens.lab.variants.attention import Attended, VariantAttention, alibi, visible_keys
from sinklens.lab.variants.catalogue import find_variant

Positions = Literal["learned", "rope", "alibi", "none"]
Norm = Literal["layer", "rms"]
Listener = Callable[[int, Attended | None, Tensor], None]
"""Called with -1, None and the embeddings, then with each layer's index, attention and residual stream after it."""


@dataclass(frozen=True)
class DecoderSettings:
    """The shape of a decoder.

    Attributes:
        d_vocab: token ids.
        context: longest sequence.
        attention: name of the variant.
        layers: number of layers.
        heads: heads per layer.
        d_model: width, a multiple of ``heads``; the MLP is four times as wide.
        mlp: whether layers have an MLP (ReLU).
        norm: "layer" (LayerNorm) or "rms" (RMSNorm), before each sub-layer and before the unembedding.
        positions: "learned", "rope", "alibi" or "none".
        window: keys that a query sees, its own included; None for all before it.
        prefix: positions that every query sees.

    Raises:
        InputError: if a number is out of range, a name is unknown, or the variant takes no position bias.
    """

    d_vocab: int
    context: int
    attention: str = "softmax"
    layers: int = 1
    heads: int = 1
    d_model: int = 64
    mlp: bool = True
    norm: Norm = "layer"
    positions: Positions = "learned"
    window: int | None = None
    prefix: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        variant = find_variant(self.attention)
        at_least(self, d_vocab=1, context=1, layers=1, heads=1, d_model=1)
        if self.d_model % self.heads:
            raise InputError(f"d_model must be a multiple of the {self.heads} heads, not {self.d_model}.")
        one_of(self, positions=get_args(Positions), norm=get_args(Norm))
        if self.positions == "rope" and self.d_model // self.heads % 2:
            raise InputError(f"RoPE turns pairs of channels; {self.d_model // self.heads} per head is odd.")
        if self.positions == "alibi" and not variant.from_scores:
            raise InputError(f"ALiBi is added to scores, and {variant.name} has none; choose other positions.")
        if self.window is not None and self.window < 1:
            raise InputError(f"A window holds at least 1 key, not {self.window}.")
        if not 0 <= self.prefix <= self.context:
            raise InputError(f"The prefix must be from 0 to the context of {self.context}, not {self.prefix}.")


class Decoder(nn.Module):
    """Pre-norm decoder: ``h += attention(norm(h)); h += mlp(norm(h))``, a final norm and an untied unembedding.

    No biases except in LayerNorm. Every module keeps torch's default initialisation (embeddings N(0, 1), linear
    layers uniform in ``+-1/sqrt(d_in)``), as in the Bigram-Backcopy study; with softmax, one head, learned positions
    and LayerNorm this is that study's model.

    Args:
        settings: its shape.
    """

    visible: Tensor
    bias: Tensor | None

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        self.settings = settings
        d_model, variant = settings.d_model, find_variant(settings.attention)
        self.embed = nn.Embedding(settings.d_vocab, d_model)
        learned = settings.positions == "learned"
        self.positions = nn.Embedding(settings.context, d_model) if learned else None
        rope = settings.positions == "rope"
        attentions = [VariantAttention(variant, d_model, settings.heads, rope=rope) for _ in range(settings.layers)]
        self.blocks = nn.ModuleList(_Block(settings, attention) for attention in attentions)
        self.norm = _norm(settings)
        self.unembed = nn.Linear(d_model, settings.d_vocab, bias=False)
        visible = visible_keys(settings.context, settings.window, settings.prefix)
        self.register_buffer("visible", visible, persistent=False)
        bias = alibi(settings.heads, settings.context) if settings.positions == "alibi" else None
        self.register_buffer("bias", bias, persistent=False)

    @property
    def attentions(self) -> list[VariantAttention]:
        """The attention of every layer."""
        return [block.attention for block in self.blocks if isinstance(block, _Block)]

    def forward(
        self, ids: Int[Tensor, "batch pos"], listener: Listener | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Return the logits.

        Args:
            ids: tokens.
            listener: receives what each layer did.

        Raises:
            InputError: if the sequences are longer than the context.
        """
        length = ids.shape[1]
        if length > self.settings.context:
            raise InputError(f"The decoder knows {self.settings.context} positions, and {length} tokens came.")
        hidden = self.embed(ids)
        if self.positions is not None:
            hidden = hidden + self.positions.weight[:length]
        if listener is not None:
            listener(-1, None, hidden)
        visible = self.visible[:length, :length]
        bias = None if self.bias is None else self.bias[:, :length, :length]
        for layer, block in enumerate(self.blocks):
            attended, hidden = block(hidden, visible, bias)
            if listener is not None:
                listener(layer, attended, hidden)
        logits: Tensor = self.unembed(self.norm(hidden))
        return logits


class _Block(nn.Module):
    def __init__(self, settings: DecoderSettings, attention: VariantAttention) -> None:
        super().__init__()
        d_model = settings.d_model
        self.attention, self.attention_norm = attention, _norm(settings)
        if settings.mlp:
            self.mlp_norm = _norm(settings)
            self.up = nn.Linear(d_model, 4 * d_model, bias=False)
            self.down = nn.Linear(4 * d_model, d_model, bias=False)
        self.has_mlp = settings.mlp

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor | None) -> tuple[Attended, Tensor]:
        attended: Attended = self.attention(self.attention_norm(hidden), visible, bias)
        hidden = hidden + attended.output
        if self.has_mlp:
            hidden = hidden + self.down(torch.relu(self.up(self.mlp_norm(hidden))))
        return attended, hidden


def _norm(settings: DecoderSettings) -> nn.Module:
    return nn.LayerNorm(settings.d_model) if settings.norm == "layer" else nn.RMSNorm(settings.d_model)
