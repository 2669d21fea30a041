"""Exact measurement through the bridge's own hooks, for architectures that never reach AttentionInterface.

The bridge computes one layer's T x T pattern and shows it at ``hook_pattern``; it is cut into the same blocks
that the kernel makes, so all statistics are shared. Memory is that of one layer's pattern. Edits go in
through ``hook_attn_scores`` and ``hook_pattern`` where the bridge lets them reach the output, and through
``hook_v`` and ``hook_z`` where it shows values and ``pattern @ value`` by head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.mla_attention import MLAAttentionBridge

from sinklens.attention.block import AttentionShape, Block
from sinklens.attention.kernel import Edit, make_shape
from sinklens.attention.masks import real_rows
from sinklens.attention.statistics import Statistic, StatisticFactory
from sinklens.attention.survey import surveys
from sinklens.attention.visibility import hidden_below
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.models.architecture import attention_layers, has_learned_sink

ROWS_PER_BLOCK = 128


@contextmanager
def hook_layers(
    model: TransformerBridge,
    factories: Sequence[StatisticFactory],
    edits: Sequence[Edit],
    observers: Sequence[Any],
    real: Bool[Tensor, "batch pos"] | None,
    finish: Callable[[int, Tensor, list[Statistic]], None],
) -> Iterator[None]:
    """Attach the measuring hooks to every attention layer; they are removed on exit.

    Raises:
        UnsupportedArchitectureError: ``edits`` were asked for, but the bridge delegates this attention to a
            Hugging Face module that has consumed scores and pattern before any hook sees them; or head outputs
            are edited or observed, but ``hook_z`` shows them gated or cut into the wrong heads; or an observer wants
            queries and keys, which no hook shows as attention uses them.
    """
    layers = attention_layers(model)
    if layers and any(hasattr(observer, "observe") for observer in observers):
        raise UnsupportedArchitectureError(
            f"Queries and keys of {model.cfg.architecture} cannot be observed: its attention is measured through the "
            "bridge's hooks, which do not show them as attention uses them."
        )
    pattern_edits = [edit for edit in edits if hasattr(edit, "edit_scores") or hasattr(edit, "edit_pattern")]
    output_edits = [edit for edit in edits if hasattr(edit, "edit_output")]
    watching = [observer for observer in observers if hasattr(observer, "observe_output")]
    hooks: list[tuple[str, Any]] = []
    for layer, attention in layers.items():
        delegates = type(attention).forward is AttentionBridge.forward
        if delegates and pattern_edits:
            raise UnsupportedArchitectureError(
                f"Attention of {model.cfg.architecture} can be measured but not edited: the bridge shows "
                "scores and pattern only after they were used. Edit its values or head outputs instead."
            )
        gated = getattr(model.cfg, "gated_q_proj", False)
        if (output_edits or watching) and (gated or isinstance(attention, MLAAttentionBridge)):
            raise UnsupportedArchitectureError(
                f"Head outputs of {model.cfg.architecture} can only be seen and edited on the fast path: hook_z shows "
                "them after a gate or cut into the wrong heads. plan_for(model) chooses the path."
            )
        watcher = _LayerWatcher(
            layer,
            attention,
            factories,
            pattern_edits,
            real,
            finish,
            value_edits=[edit for edit in edits if hasattr(edit, "edit_values")],
            row_sums_vary=delegates or bool(pattern_edits) or has_learned_sink(model, layer),
            threshold=hidden_below(next(model.parameters()).dtype),
        )
        hooks.append((f"blocks.{layer}.attn.hook_v", watcher.on_values))
        if not delegates:
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", watcher.on_scores))
        hooks.append((f"blocks.{layer}.attn.hook_pattern", watcher.on_pattern))
        if output_edits:
            hooks.append((f"blocks.{layer}.attn.hook_z", partial(_edit_output, layer=layer, edits=output_edits)))
        if watching:  # after the edits
            hooks.append((f"blocks.{layer}.attn.hook_z", partial(_show_output, layer=layer, observers=watching)))
    with model.hooks(fwd_hooks=hooks):
        yield


def _edit_output(z: Tensor, hook: Any, layer: int, edits: Sequence[Any]) -> Tensor:
    """``hook_z [batch q_pos head d_value]`` after ``edits``; with a cache, ``k_pos`` is unknown here: ``q_pos``."""
    if torch.is_grad_enabled() and z.requires_grad:
        raise InputError("The attention engine keeps no gradients under edits; run it under torch.no_grad().")
    output = z.transpose(1, 2).clone()
    shape = make_shape(layer, output.shape[:3], output.shape[2], output.device)
    for edit in edits:
        edit.edit_output(shape, output)
    return output.transpose(1, 2)


def _show_output(z: Tensor, hook: Any, layer: int, observers: Sequence[Any]) -> None:
    """``hook_z`` as head outputs, to look at."""
    output = z.detach().transpose(1, 2)
    shape = make_shape(layer, output.shape[:3], output.shape[2], output.device)
    for observer in observers:
        observer.observe_output(shape, output)


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
        *,
        value_edits: Sequence[Any],
        row_sums_vary: bool,
        threshold: float,
    ) -> None:
        self.layer, self.attention, self.factories = layer, attention, factories
        self.edits, self.real, self.finish = edits, real, finish
        self.value_edits = value_edits
        self.row_sums_vary, self.threshold = row_sums_vary, threshold
        self.values: Tensor | None = None
        self.scores: Tensor | None = None
        self.seen: Tensor | None = None

    def on_values(self, values: Tensor, hook: Any) -> Tensor | None:
        """``hook_v [batch pos kv_head d_head]``, or heads before positions (latent attention); edits go in here."""
        heads_first = isinstance(self.attention, MLAAttentionBridge)
        self.values = values.detach() if heads_first else values.detach().transpose(1, 2)
        if not self.value_edits:
            return None
        if torch.is_grad_enabled() and values.requires_grad:
            raise InputError("The attention engine keeps no gradients under edits; run it under torch.no_grad().")
        self.values = self.values.clone()
        shape = make_shape(self.layer, self.values.shape[:3], self.values.shape[2], self.values.device)
        for edit in self.value_edits:
            edit.edit_values(shape, self.values)
        return self.values if heads_first else self.values.transpose(1, 2)

    def on_scores(self, scores: Tensor, hook: Any) -> Tensor | None:
        """``hook_attn_scores`` before the softmax; edits go in here."""
        hidden = scores <= self.threshold
        self.seen = ~hidden[:, 0]  # masks are the same for all heads; edits, which are not, come after this
        score_edits = [edit for edit in self.edits if hasattr(edit, "edit_scores")]
        self.scores = scores
        if not score_edits:
            return None
        edited = scores.masked_fill(hidden, -math.inf)
        shape = make_shape(self.layer, edited.shape[:3], edited.shape[3], edited.device)
        for block in self._blocks(shape, edited, torch.zeros_like(edited), self.seen, hidden_score=-math.inf):
            for edit in score_edits:
                edit.edit_scores(block)
        # the bridge's own softmax follows, and of a row of -inf alone it would make NaN
        self.scores = edited.masked_fill_(edited == -math.inf, torch.finfo(edited.dtype).min)
        return self.scores

    def on_pattern(self, pattern: Tensor, hook: Any) -> Tensor | None:
        """``hook_pattern`` after the softmax; statistics read it here."""
        if self.edits and torch.is_grad_enabled() and pattern.requires_grad:
            raise InputError("The attention engine keeps no gradients under edits; run it under torch.no_grad().")
        edited = pattern.detach().float()
        visible = self._visible(edited)
        pattern_edits = [edit for edit in self.edits if hasattr(edit, "edit_pattern")]
        if self.scores is None or self.seen is None:
            scores = edited.log()  # differs from the scores by a constant per row, which margins do not see
            hidden = ~visible[:, None]
            incomplete = bool(((scores == -math.inf) & visible[:, None]).any())
        else:
            scores = self.scores.detach().float()
            hidden = scores <= self.threshold
            incomplete = bool((hidden == self.seen[:, None]).any())  # an edit hid a key that the mask shows
        scores = scores.masked_fill(~visible[:, None] | (scores <= self.threshold), 0)
        edited = edited.masked_fill(hidden, 0)
        shape = make_shape(self.layer, edited.shape[:3], edited.shape[3], edited.device)
        statistics = [make(shape) for make in self.factories]
        for look, others in surveys(pattern_edits, shape):
            for block in self._blocks(shape, scores, edited.clone(), visible):  # a copy: this pass only looks
                for edit in others:
                    if hasattr(edit, "edit_pattern"):  # scores are edited already
                        edit.edit_pattern(block)
                        block.changed()
                look.see(block)
        for block in self._blocks(shape, scores, edited, visible):
            block.pattern_edited = self.row_sums_vary
            block.scores_incomplete = incomplete
            for edit in pattern_edits:
                edit.edit_pattern(block)
                block.changed()
            for statistic in statistics:
                statistic.see(block)
        # nothing of a layer outlives it, so that one layer's T x T is all the memory there is
        values, self.values, self.scores, self.seen = self.values, None, None, None
        if values is None:
            raise UnsupportedArchitectureError(f"hook_v of layer {self.layer} did not fire; values are unknown.")
        self.finish(self.layer, values, statistics)
        # after an edit of scores too: the bridge spreads a row without any key over all of them
        return edited.to(pattern.dtype) if self.edits else None

    def _visible(self, pattern: Tensor) -> Bool[Tensor, "batch q_pos k_pos"]:
        """The layer's mask: read from the scores, or known where the bridge delegates (causal, windows)."""
        if self.seen is not None:
            visible = self.seen
        else:
            batch, _, q_pos, k_pos = pattern.shape
            visible = torch.ones(q_pos, k_pos, dtype=torch.bool, device=pattern.device).tril(k_pos - q_pos)
            # older architectures (GPT-Neo and kin) keep their causal or local mask as a buffer of this name
            buffer = getattr(self.attention.original_component, "bias", None)
            if isinstance(buffer, Tensor) and buffer.ndim == 4:
                visible = visible & buffer[0, 0, k_pos - q_pos : k_pos, :k_pos].bool().to(visible.device)
            visible = visible.expand(batch, -1, -1)
        if self.real is not None and self.real.shape == visible[:, 0].shape:
            visible = visible & self.real.to(device=visible.device, dtype=torch.bool)[:, None]
        return visible

    def _blocks(
        self,
        shape: AttentionShape,
        scores: Tensor,
        pattern: Tensor,
        visible: Tensor,
        hidden_score: float = 0,
    ) -> Iterator[Block]:
        """Views of whole-layer tensors, so that edits in place reach them; keys are padded to whole cells."""
        real = real_rows(self.real, shape.batch, shape.q_pos, shape.device)
        extra = shape.k_padded - shape.k_pos
        step = -(-ROWS_PER_BLOCK // shape.cell) * shape.cell
        for sequence in range(shape.batch):
            for start in range(0, shape.q_pos, step):
                rows = slice(start, min(start + step, shape.q_pos))
                seen = visible[sequence, rows]
                n_visible = seen.sum(-1).float()
                weight = (n_visible > 0).float()
                if real is not None:
                    weight = weight * real[sequence, rows]
                cut_scores, cut_pattern = scores[sequence, :, rows], pattern[sequence, :, rows]
                if extra:
                    cut_scores = pad(cut_scores, (0, extra), value=hidden_score)
                    cut_pattern, seen = pad(cut_pattern, (0, extra)), pad(seen, (0, extra))
                heads, keys = slice(0, shape.heads), slice(0, shape.k_padded)
                block = Block(shape, sequence, heads, rows, keys, cut_scores, cut_pattern, seen, weight, n_visible)
                yield block
                if extra:  # the padded copies may have been edited in place
                    scores[sequence, :, rows] = block.scores[..., : shape.k_pos]
                    pattern[sequence, :, rows] = block.pattern[..., : shape.k_pos]
