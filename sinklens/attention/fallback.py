"""Exact measurement through the bridge's own hooks, for architectures that never reach AttentionInterface.

The bridge computes one layer's T x T pattern and shows it at ``hook_pattern``; it is cut into the same blocks that the
kernel makes, so all statistics are shared. Memory is that of one layer's pattern. Edits go in through
``hook_attn_scores`` and ``hook_pattern`` where the bridge lets them reach the output.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.kernel import HIDDEN_BELOW, Edit, make_shape
from sinklens.attention.statistics import Statistic, StatisticFactory
from sinklens.errors import UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers

ROWS_PER_BLOCK = 128


@contextmanager
def hook_layers(
    model: TransformerBridge,
    factories: Sequence[StatisticFactory],
    edits: Sequence[Edit],
    real: Bool[Tensor, "batch pos"] | None,
    finish: Callable[[int, Tensor, list[Statistic]], None],
) -> Iterator[None]:
    """Attach the measuring hooks to every attention layer; they are removed on exit.

    Raises:
        UnsupportedArchitectureError: ``edits`` were asked for, but the bridge delegates this attention to a Hugging
            Face module that has consumed scores and pattern before any hook sees them.
    """
    layers = attention_layers(model)
    hooks: list[tuple[str, Any]] = []
    for layer, attention in layers.items():
        delegates = type(attention).forward is AttentionBridge.forward
        if delegates and edits:
            raise UnsupportedArchitectureError(
                f"Attention of {model.cfg.architecture} can be measured but not edited: the bridge shows scores and "
                "pattern only after they were used. Edit its values or head outputs instead."
            )
        watcher = _LayerWatcher(layer, attention, factories, edits, real, finish, delegates)
        hooks.append((f"blocks.{layer}.attn.hook_v", watcher.on_values))
        if not delegates:
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", watcher.on_scores))
        hooks.append((f"blocks.{layer}.attn.hook_pattern", watcher.on_pattern))
    with model.hooks(fwd_hooks=hooks):
        yield


class _LayerWatcher:
    """Collects values, scores and pattern of one layer and cuts them into blocks."""

    def __init__(
        self,
        layer: int,
        attention: AttentionBridge,
        factories: Sequence[StatisticFactory],
        edits: Sequence[Edit],
        real: Tensor | None,
        finish: Callable[[int, Tensor, list[Statistic]], None],
        delegates: bool,
    ) -> None:
        self.layer, self.attention, self.factories = layer, attention, factories
        self.edits, self.real, self.finish, self.delegates = edits, real, finish, delegates
        self.values: Tensor | None = None
        self.scores: Tensor | None = None

    def on_values(self, values: Tensor, hook: Any) -> None:
        """``hook_v [batch pos kv_head d_head]``."""
        self.values = values.detach().transpose(1, 2)

    def on_scores(self, scores: Tensor, hook: Any) -> Tensor | None:
        """``hook_attn_scores`` before the softmax; edits go in here."""
        if any(hasattr(edit, "edit_scores") for edit in self.edits):
            edited = scores.clone()
            hidden = edited <= HIDDEN_BELOW
            edited[hidden] = -math.inf
            for block in self._blocks(edited, torch.zeros_like(edited), ~hidden[:, 0]):
                for edit in self.edits:
                    if hasattr(edit, "edit_scores"):
                        edit.edit_scores(block)
            scores = edited.masked_fill(edited == -math.inf, torch.finfo(edited.dtype).min)
            self.scores = scores
            return scores
        self.scores = scores
        return None

    def on_pattern(self, pattern: Tensor, hook: Any) -> Tensor | None:
        """``hook_pattern`` after the softmax; statistics read it here."""
        edited = pattern.detach().float()
        visible = self._visible(edited)
        pattern_edits = [edit for edit in self.edits if hasattr(edit, "edit_pattern")]
        if self.scores is not None:
            scores = self.scores.detach().float()
            incomplete = bool(((scores <= HIDDEN_BELOW) & visible[:, None]).any())
            scores = scores.masked_fill(~visible[:, None] | (scores <= HIDDEN_BELOW), 0)
        else:  # log weights differ from the scores by a constant per row, which margins do not see
            scores = edited.log().masked_fill(~visible[:, None], 0)
            incomplete = bool(torch.isinf(scores).any())
        edited = edited * visible[:, None]
        shape = make_shape(self.layer, edited.shape[:3], edited.shape[3], edited.device)
        statistics = [make(shape) for make in self.factories]
        for block in self._blocks(scores, edited, visible, shape):
            block.pattern_edited = self.delegates or bool(pattern_edits)
            block.scores_incomplete = incomplete
            for edit in pattern_edits:
                edit.edit_pattern(block)
            for statistic in statistics:
                statistic.see(block)
        values, self.values, self.scores = self.values, None, None
        if values is None:
            raise UnsupportedArchitectureError(f"hook_v of layer {self.layer} did not fire; values are unknown.")
        self.finish(self.layer, values, statistics)
        return edited.to(pattern.dtype) if pattern_edits else None

    def _visible(self, pattern: Tensor) -> Bool[Tensor, "batch q_pos k_pos"]:
        """The layer's mask: read from the scores, or known for the delegated families (causal, GPT-Neo windows)."""
        if self.scores is not None:
            visible = (self.scores > HIDDEN_BELOW).any(1)  # over heads: an edit may hide a key from some of them
        else:
            batch, _, q_pos, k_pos = pattern.shape
            visible = torch.ones(q_pos, k_pos, dtype=torch.bool, device=pattern.device).tril(k_pos - q_pos)
            buffer = getattr(self.attention.original_component, "bias", None)
            if isinstance(buffer, Tensor) and buffer.ndim == 4:
                visible = visible & buffer[0, 0, k_pos - q_pos : k_pos, :k_pos].bool().to(visible.device)
            visible = visible.expand(batch, -1, -1)
        if self.real is not None and self.real.shape[1] == visible.shape[2]:
            visible = visible & self.real.to(visible.device)[:, None]
        return visible

    def _blocks(
        self, scores: Tensor, pattern: Tensor, visible: Tensor, shape: AttentionShape | None = None
    ) -> Iterator[Block]:
        """Views of whole-layer tensors, so that edits in place reach them; keys are padded to whole cells."""
        if shape is None:
            shape = make_shape(self.layer, pattern.shape[:3], pattern.shape[3], pattern.device)
        extra = shape.k_padded - shape.k_pos
        step = -(-ROWS_PER_BLOCK // shape.cell) * shape.cell
        for sequence in range(shape.batch):
            for start in range(0, shape.q_pos, step):
                rows = slice(start, min(start + step, shape.q_pos))
                seen = visible[sequence, rows]
                n_visible = seen.sum(-1).float()
                weight = (n_visible > 0).float()
                if self.real is not None:
                    weight = weight * self.real[sequence, -shape.q_pos :][rows].to(weight)
                cut = [scores[sequence, :, rows], pattern[sequence, :, rows], seen]
                if extra:
                    cut = [torch.nn.functional.pad(x, (0, extra)) for x in cut]
                block = Block(
                    shape,
                    sequence,
                    slice(0, shape.heads),
                    rows,
                    slice(0, shape.k_padded),
                    *cut,
                    weight,
                    n_visible,
                )
                yield block
                if extra:  # the padded copies may have been edited in place
                    scores[sequence, :, rows] = block.scores[..., : shape.k_pos]
                    pattern[sequence, :, rows] = block.pattern[..., : shape.k_pos]
