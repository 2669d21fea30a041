"""Absolute token positions of a block's rows and keys: with a KV cache, a cropped cache, and left padding."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionShape, Block
from sinklens.errors import InputError
from sinklens.interventions.heads import as_index


class Positions:
    """Knows where the forward pass in hand stands in its text.

    Position 0 is the first real token of each sequence: left padding that the attention mask names is not counted
    (its positions are negative). A sliding-window cache that dropped its oldest keys is taken into account too, which
    ``block.shape.offset`` alone cannot do.

    Attributes:
        cached: Tokens before the pass, as many as the KV cache has seen.
        first_real: Left padding of each sequence, ``None`` without any.
        behind: Padding behind each text of a pass that begins it, ``None`` without any.
        n_layers: Layers of the watched model, ``None`` before :meth:`watch`.
        kv_heads: Key-value heads of a layer, as far as the model says.
        model: The watched model.
        passes: Forward passes begun so far.
        new: Tokens of the pass in hand, padding included.
        notes: What an intervention's hooks leave for its edits about the pass in hand.
    """

    def __init__(self) -> None:
        self.cached = 0
        self._lengths: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.first_real: list[int] | None = None
        self.behind: list[int] | None = None
        self.n_layers: int | None = None
        self.kv_heads: int | None = None
        self.model: TransformerBridge | None = None
        self.passes = 0
        self.new = 0
        self.notes: dict[Any, Any] = {}

    @contextmanager
    def watch(self, model: TransformerBridge) -> Iterator[None]:
        """Note cache length and padding at the start of every forward pass of ``model``."""
        self.model = model
        self.n_layers = len(model.blocks)
        self.kv_heads = getattr(model.cfg, "n_key_value_heads", None)
        root = model.original_model
        handles = [
            root.register_forward_pre_hook(self._begin, with_kwargs=True),
            root.register_forward_hook(self._end, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache, mask = kwargs.get("past_key_values", kwargs.get("cache_params")), kwargs.get("attention_mask")
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        self.passes += 1
        self.new = 0 if tokens is None else int(tokens.shape[1])
        self.cached = 0 if cache is None else self._length(cache)
        self.first_real = self.behind = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            if not bool(mask[:, 0].all()):
                self.first_real = mask.to(torch.uint8).argmax(-1).tolist()
            if self.cached == 0 and not bool(mask[:, -1].all()):
                self.behind = mask.to(torch.uint8).flip(-1).argmax(-1).tolist()

    def _end(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = getattr(output, "cache_params", None)
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if cache is not None and tokens is not None:
            self._lengths[cache] = self.cached + tokens.shape[1]

    def _length(self, cache: Any) -> int:
        """Tokens in a cache; one of state-space layers alone knows no length, so its tokens are counted here."""
        try:
            return int(cache.get_seq_length())
        except ValueError:
            started = any(any(layer.has_previous_state.values()) for layer in cache.layers)
            if started and cache not in self._lengths:
                raise InputError(
                    "This cache was started outside of the intervention and does not say how many tokens it has seen; "
                    "begin the text inside."
                ) from None
            return self._lengths.get(cache, 0)

    def rows(self, block: Block) -> Int[Tensor, " q_pos"]:
        """Position of each query row of the block."""
        return self.row_positions(block.shape)[block.sequence, block.rows]

    def keys(self, block: Block) -> Int[Tensor, " k_pos"]:
        """Position of each key of the block.

        Raises:
            InputError: A preallocated (static) cache, whose unfilled keys cannot be told from real ones here.
        """
        keys = torch.arange(block.keys.start, block.keys.stop, device=block.scores.device)
        return keys + self._before_keys(block.shape)[block.sequence]

    def row_positions(self, shape: AttentionShape) -> Int[Tensor, "batch q_pos"]:
        """Position of every query row of a layer's call."""
        return torch.arange(shape.q_pos, device=shape.device) + (self.cached - self._padding(shape))[:, None]

    def key_positions(self, shape: AttentionShape) -> Int[Tensor, "batch k_pos"]:
        """Position of every key of a layer's call.

        Raises:
            InputError: A preallocated (static) cache.
        """
        return torch.arange(shape.k_pos, device=shape.device) + self._before_keys(shape)[:, None]

    def is_text(self, shape: AttentionShape) -> Bool[Tensor, "batch k_pos"]:
        """Which keys of a layer's call are no padding, before the text or behind it."""
        positions = self.key_positions(shape)
        if self.behind is None:
            return positions >= 0
        after = torch.arange(shape.k_pos - 1, -1, -1, device=shape.device)
        return (positions >= 0) & (after >= torch.tensor(self.behind, device=shape.device)[:, None])

    def _before_keys(self, shape: AttentionShape) -> Int[Tensor, " batch"]:
        dropped = self.cached - shape.offset
        if dropped < 0:
            raise InputError("Interventions need a growing KV cache (DynamicCache); this one is preallocated.")
        return dropped - self._padding(shape)

    def _padding(self, shape: AttentionShape) -> Int[Tensor, " batch"]:
        first = [0] * shape.batch if self.first_real is None else self.first_real
        return torch.tensor(first, device=shape.device)


def parse_keys(keys: object) -> tuple[int, ...]:
    """Key positions in order and each once; one number stands for itself.

    Raises:
        InputError: None at all, or something that is not an integer from 0.

    >>> parse_keys([3, 0, 3]), parse_keys(0)
    ((0, 3), (0,))
    """
    found = tuple(as_index(key) for key in keys) if isinstance(keys, Iterable) else (as_index(keys),)
    if not found or min(found) < 0:
        raise InputError(f"keys must be token positions counted from 0, such as (0,) or (0, 5); got {keys!r}.")
    return tuple(sorted(set(found)))
