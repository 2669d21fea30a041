"""What one forward pass says about one layer of some sequences."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.models.tokens import TokenBatch


@dataclass(frozen=True)
class ValueNorms:
    """Norms of the value states of one layer, per token.

    Attributes:
        value: ``|v|`` per KV head, ``[batch kv_head pos]``.
        output: ``|W_O v|`` per query head: the size of what the head writes when it attends to that token
            alone, ``[batch head pos]``; ``None`` when W_O cannot be read.
    """

    value: Float[Tensor, "batch kv_head pos"]
    output: Float[Tensor, "batch head pos"] | None


@dataclass(frozen=True)
class ResidualNorms:
    """The residual stream after one layer (or before the first), per token and per sequence.

    Attributes:
        norm: L2 norm per token, ``[batch pos]``; NaN at padding.
        token_max: Largest absolute entry per token, ``[batch pos]``; NaN at padding.
        median: Median absolute entry over the sequence's real tokens and all channels, ``[batch]`` (the lower
            middle for an even count, as torch.median).
        top_value: The k entries of largest magnitude with their sign, ``[batch k]``.
        top_position: Their token positions, ``[batch k]``.
        top_channel: Their channels, ``[batch k]``.
    """

    norm: Float[Tensor, "batch pos"]
    token_max: Float[Tensor, "batch pos"]
    median: Float[Tensor, " batch"]
    top_value: Float[Tensor, "batch k"]
    top_position: Int[Tensor, "batch k"]
    top_channel: Int[Tensor, "batch k"]


@dataclass(frozen=True)
class LayerRecord:
    """One layer of one batch; detectors take these one by one, so no more than one layer is held.

    Attributes:
        layer: Layer index; -1 is the residual stream before the first layer.
        batch: The tokens of these sequences (right-padded).
        first_sequence: Index of row 0 among all sequences of the run.
        path: ``"fast"``, ``"fallback"`` or ``"none"`` (this layer has no softmax attention: not applicable).
        attention: Computed statistics by name; empty when not applicable. Positions beyond a sequence's
            length hold no meaning in per-key tensors.
        values: Norms of the value states, ``None`` when not applicable.
        residual: The residual stream after this layer, ``None`` if it was not captured.
        hidden: The residual stream itself, not a copy; only for consumers that ask for it, and only while they are
            updated.
        outputs: ``|W_O z|`` per query head and query, the size of what the head writes, also under an intervention;
            only for consumers that ask for it, ``None`` where W_O cannot be read or an output gate follows.
        z: What the heads hand on to ``W_O``, not a copy; only for consumers that ask for it, and only while they are
            updated.
        keys: Keys as attention uses them, after rotation and norms; only for consumers that ask for them, and only
            while they are updated; ``None`` in layers without attention and on the fallback path.
        halves: What enters the layer (``before``) and what its two halves add (``attention``, ``mlp``, each where the
            layer has one); only for consumers that ask for them, and only while they are updated.
    """

    layer: int
    batch: TokenBatch
    first_sequence: int
    path: str
    attention: dict[str, Tensor] = field(default_factory=dict)
    values: ValueNorms | None = None
    residual: ResidualNorms | None = None
    hidden: Float[Tensor, "batch pos d_model"] | None = None
    outputs: Float[Tensor, "batch head pos"] | None = None
    z: Float[Tensor, "batch head pos d_value"] | None = None
    keys: Float[Tensor, "batch kv_head pos d_head"] | None = None
    halves: dict[str, Float[Tensor, "batch pos d_model"]] | None = None

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """Which positions are real tokens."""
        return self.batch.real
