"""A clean pass over some sequences that any number of calls go on from, instead of running it once each."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, plan_for
from sinklens.capture.run import Consumer
from sinklens.evidence.effects import Answers, Reference
from sinklens.interventions import Intervention
from sinklens.interventions.heads import Head
from sinklens.interventions.positions import Positions
from sinklens.models.architecture import attention_layers
from sinklens.models.tokens import TokenBatch
from sinklens.passes.clean_pass import CleanPass, going_on, parity, reweights, run_clean


class CleanStart:
    """What the unchanged model did on some sequences, kept for passes that change heads.

    Args:
        model: The bridge.
        batch: The sequences.
        interventions: What those passes will do, each with a field ``heads`` whose value does not matter.
        layers: First layers of the sets of heads that they will change.
        consumers: Look at the clean pass, as :func:`~sinklens.capture.capture` hands it to them.
        first_sequence: Number of the first sequence in their records.

    Attributes:
        clean: The clean pass.
        constants: What the attention of each of ``layers`` writes besides ``z W_O``; None where that is not known.
        resumes: Whether passes may go on from the middle: nobody listens to blocks that would not run, and going on
            gives the clean logits again.

    Cost: one forward pass, see :func:`~sinklens.passes.clean_pass.run_clean`.
    """

    def __init__(
        self,
        model: TransformerBridge,
        batch: TokenBatch,
        interventions: Sequence[Intervention],
        layers: Collection[int],
        consumers: Sequence[Consumer] = (),
        first_sequence: int = 0,
    ) -> None:
        self.model, self.batch = model, batch
        self._heads: tuple[Head, ...] = tuple((layer, head) for layer in layers for head in range(model.cfg.n_heads))
        ways = [each.on(self._heads) for each in interventions if changes_heads_alone(each)]
        path = plan_for(model).path
        able = path == "fast" and bool(ways) and not _listened(model)
        starts = set(layers) if able else set()
        positions = Positions()
        edits = {str(number): list(way.edits(positions)) for number, way in enumerate(ways)}
        self._weighted = [(way, name) for way, name in zip(ways, edits, strict=True) if reweights(edits[name])]
        with positions.watch(model):
            told = edits if able else {}
            self.clean: CleanPass = run_clean(model, batch, path, starts, told, consumers, first_sequence)
        self.constants = {layer: self.clean.constant_part(model, layer) for layer in starts}
        # tried once, at the deepest start, which skips the most blocks
        self.resumes = able and self._gives_the_same(max(starts))
        self._reference: Reference | None = None

    def reference(self, answers: Answers | None = None) -> Reference:
        """The clean predictions, to compare changed ones with; made once, in the place of the logits."""
        if self._reference is None:
            self._reference = Reference(self.clean.logits, self.batch, answers)
            self.clean.logits = self.clean.logits[:0]
        return self._reference

    def name_of(self, intervention: Intervention) -> str:
        """Under which name the clean pass knows the intervention's edits of scores or pattern."""
        same = intervention.on(self._heads)
        return next((name for way, name in self._weighted if way == same), "")

    def open(self, edits: Sequence[Any], skipped: Sequence[int]) -> AttentionEngine:
        """The engine of a pass that goes on, in the kernel of the clean one: skipped layers run no attention."""
        present = [layer for layer in skipped if layer in attention_layers(self.model)]
        return AttentionEngine(self.model, edits=edits, edited=self.clean.edited_layers, skipped=present)

    def _gives_the_same(self, layer: int) -> bool:
        """Whether going on from ``layer`` gives the clean logits again (it does not where layers share keys)."""
        if layer == 0:
            return True
        one = self.clean.first_sequence()
        try:
            with self.open([], range(layer)), going_on(self.model, one, layer, 1):
                again: Tensor = self.model(one.ids)
        except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError):
            return False  # a block that wants more of the skipped ones than they returned fails in its own way
        scale, real = 1 + one.logits.abs().max(), self.batch.real[:1].to(again.device)
        return bool((again - one.logits)[real].abs().max() <= parity(again) * scale)


class SharedStart:
    """One :class:`CleanStart` for several calls on the same sequences, made by the first and let go after the last.

    Args:
        uses: How many calls there will be.
        interventions: What all of them together do.
        layers: First layers of all their sets of heads.
    """

    def __init__(self, uses: int, interventions: Sequence[Intervention], layers: Collection[int]) -> None:
        self.left, self.interventions, self.layers = uses, tuple(interventions), frozenset(layers)
        self._start: CleanStart | None = None

    @torch.no_grad()
    def take(self, model: TransformerBridge, batch: TokenBatch) -> CleanStart:
        """The clean pass for the next call."""
        start = self._start or CleanStart(model, batch, self.interventions, self.layers)
        self.left -= 1
        self._start = start if self.left > 0 else None
        return start


def changes_heads_alone(intervention: Intervention) -> bool:
    """Whether it changes nothing but head outputs, so that what lies before a set's first layer stays as it was."""
    return intervention.by_head_alone(intervention.edits(Positions()))


def _listened(model: TransformerBridge) -> bool:
    return any(isinstance(point, HookPoint) and point.fwd_hooks for block in model.blocks for point in block.modules())
