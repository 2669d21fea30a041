"""The same intervention on many sets of heads: exact, and much faster than a forward pass for each."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import plan_for
from sinklens.capture.run import Consumer
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.effects import Answers, token_losses
from sinklens.interventions import Intervention
from sinklens.interventions.by_sequence import by_sequence
from sinklens.interventions.heads import Head
from sinklens.interventions.positions import Positions
from sinklens.models.tokens import Ids, TokenBatch, as_batch
from sinklens.passes.clean_pass import going_on, writing
from sinklens.passes.clean_start import CleanStart, SharedStart, changes_heads_alone
from sinklens.results.progress import SILENT, Progress
from sinklens.wording import several

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 1 << 16}
"""Tokens of one forward pass, all copies together, unless the caller says otherwise."""

LOGITS_BYTES = 2 << 30
"""Most bytes of a pass's logits on a GPU: 65,536 tokens of a vocabulary of 128k hold 16.8 GB in fp16."""


def tokens_per_pass(device: str, d_vocab: int, item: int) -> int:
    """Most tokens of a forward pass that computes logits of all of them, at least one.

    Args:
        device: Its type.
        d_vocab: Logits of a token.
        item: Bytes of a logit.
    """
    most = TOKENS_PER_PASS.get(device, TOKENS_PER_PASS["cpu"])
    return max(1, min(most, LOGITS_BYTES // (d_vocab * item))) if device == "cuda" else most


@dataclass(frozen=True)
class Measured:
    """What :func:`run_head_sets` found, in the terms of :class:`~sinklens.evidence.effects.Reference`.

    Attributes:
        clean: Metrics of the unchanged model, each ``[batch]``.
        changed: Metrics under the intervention, each ``[head_set batch]``.
        shared: Whether the passes went on from a clean pass; otherwise each set had a forward pass of its own.
    """

    clean: dict[str, Tensor]
    changed: dict[str, Tensor]
    shared: bool


@torch.no_grad()
def run_head_sets(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    intervention: Intervention,
    head_sets: Sequence[Sequence[Head]],
    *,
    answers: Answers | None = None,
    max_rows: int | None = None,
    shared: SharedStart | None = None,
    progress: Progress = SILENT,
) -> Measured:
    """The intervention restricted to each set of heads in turn, all on one batch.

    Equal to ``with intervention.on(heads)(model)`` for every set. The network before a set's first layer
    runs once for all sets, so does that layer's attention, and several sets share a forward pass. Where that would not
    be exact (hooks of your own on the model, layers that use each other's keys, an intervention that reads the
    residual stream or changes weights) each set gets a forward pass of its own.

    Args:
        model: The bridge.
        batch: Sequences to measure on.
        intervention: Any that goes by heads, or a sum in which a part does (the other parts then hold with every set);
            its own heads do not matter.
        head_sets: Sets of ``(layer, head)``, none empty.
        answers: For logit differences.
        max_rows: Sequences in one forward pass, copies included; default: by the number of tokens and, on
            a GPU, the size of their logits.
        shared: The clean pass, where other calls on these sequences go on from it as well.
        progress: Told of every finished set, in layers that ran for it.

    Raises:
        InputError: The intervention has no heads, a set is empty, or the model has no such head.

    Cost: one clean pass, then for a set with first layer l the layers from there on without the first one's attention,
    and the logits; memory of three hidden states for every first layer, and logits of ``max_rows`` sequences.
    """
    batch = as_batch(model, batch)
    run, copies = _prepare(model, batch, intervention, head_sets, max_rows, shared=shared)
    progress.begin("Changing heads", run.work(range(len(run.sets))))
    reference = run.start.reference(answers)
    parts: dict[int, dict[str, Tensor]] = {}
    for numbers, logits in run.passes(copies):
        measured = reference.compare(logits)
        for place, number in enumerate(numbers):
            parts[number] = {name: values[place] for name, values in measured.items()}
        progress.advance(run.work(numbers))
    changed = {name: torch.stack([parts[number][name] for number in range(len(parts))]) for name in parts[0]}
    return Measured(reference.clean, changed, run.shared)


@torch.no_grad()
def head_set_losses(
    model: TransformerBridge,
    batch: TokenBatch | Ids,
    intervention: Intervention,
    head_sets: Sequence[Sequence[Head]],
    *,
    max_rows: int | None = None,
    consumers: Sequence[Consumer] = (),
    first_sequence: int = 0,
    progress: Progress = SILENT,
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "head_set batch pos"]]:
    """Loss by token of the clean model and under the intervention on each set, as :func:`run_head_sets` runs them.

    See :func:`~sinklens.evidence.effects.token_losses` for what stands at which row. Arguments and errors are those
    of :func:`run_head_sets`; besides, ``consumers`` look at the clean pass (detectors do), as
    :func:`~sinklens.capture.capture` hands it to them, with ``first_sequence`` as the number of the first sequence.

    Returns:
        Clean and changed losses in nats, NaN where nothing is predicted.
    """
    batch = as_batch(model, batch)
    run, copies = _prepare(model, batch, intervention, head_sets, max_rows, consumers, first_sequence)
    progress.begin("Changing heads", run.work(range(len(run.sets))))
    clean = token_losses(run.start.clean.logits, batch)
    changed = clean.new_empty(len(run.sets), *clean.shape)
    for numbers, logits in run.passes(copies):
        for number, each in zip(numbers, logits.split(len(batch)), strict=True):
            changed[number] = token_losses(each, batch)
        progress.advance(run.work(numbers))
    return clean, changed


def _prepare(
    model: TransformerBridge,
    batch: TokenBatch,
    intervention: Intervention,
    head_sets: Sequence[Sequence[Head]],
    max_rows: int | None,
    consumers: Sequence[Consumer] = (),
    first_sequence: int = 0,
    shared: SharedStart | None = None,
) -> tuple["_Run", int]:
    """The clean pass, and how many sets fit one forward pass."""
    sets = [tuple(heads) for heads in head_sets]
    everywhere = _on_all(model, intervention, sets)
    if shared is None:
        layers = {_first_layer(heads) for heads in sets}
        start = CleanStart(model, batch, [everywhere], layers, consumers, first_sequence)
    else:
        start = shared.take(model, batch)
    width, device = batch.ids.shape[1], start.clean.ids.device.type
    item = next(model.parameters()).element_size()
    rows = max_rows or tokens_per_pass(device, int(model.cfg.d_vocab), item) // width
    return _Run(start, everywhere, sets), max(1, rows // len(batch))


def _on_all(model: TransformerBridge, intervention: Intervention, sets: Sequence[tuple[Head, ...]]) -> Intervention:
    """The intervention on every head of any set, checked."""
    if not sets or not all(sets):
        raise InputError(
            f"Expected sets of at least one head each, got {several(len(sets), 'set')}, one of them empty."
        )
    changed = intervention.on(sorted({head for heads in sets for head in heads}))
    changed.check(model)
    if plan_for(model).path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to change.")
    return changed


def _first_layer(heads: Sequence[Head]) -> int:
    return min(layer for layer, _ in heads)


class Depth:
    """How much of a forward pass is left from a layer on.

    Args:
        blocks: What each layer takes, in any unit.
        logits: What the logits take.

    >>> Depth([1, 1, 1], 1).left(1)
    0.75
    """

    def __init__(self, blocks: Sequence[float], logits: float = 0) -> None:
        whole = [*blocks, logits]
        self._left = [sum(whole[layer:]) / sum(whole) for layer in range(len(whole))]

    @classmethod
    def of(cls, model: TransformerBridge) -> "Depth":
        """Of a model, by the weights that it multiplies with."""
        original: Any = model.original_model
        last: Any = original.get_output_embeddings()
        blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
        return cls(blocks, 0 if last is None else sum(p.numel() for p in last.parameters()))

    def left(self, layer: int) -> float:
        """Share of a forward pass that layers from ``layer`` on and the logits take."""
        return self._left[layer]


class _Run:
    """The forward passes for all sets; they share what they can."""

    def __init__(self, start: CleanStart, intervention: Intervention, sets: Sequence[tuple[Head, ...]]) -> None:
        self.start, self.model, self.ids = start, start.model, start.clean.ids
        self.intervention, self.sets = intervention, sets
        self.first = {number: _first_layer(heads) for number, heads in enumerate(sets)}
        self.shared = start.resumes and changes_heads_alone(intervention)
        self.depth = Depth.of(self.model)

    def work(self, numbers: Iterable[int]) -> float:
        """Forward passes that these sets take."""
        return sum(self.depth.left(self.first[number] if self.shared else 0) for number in numbers)

    def passes(self, copies: int) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of some sets and their logits ``[set*batch pos d_vocab]``, until all sets were run."""
        if not self.shared:
            for number, heads in enumerate(self.sets):
                with self.intervention.on(heads)(self.model):
                    yield [number], self.model(self.ids)
            return
        # sets that start in one layer share passes, because a pass goes on from one residual stream
        for layer in sorted(set(self.first.values())):
            numbers = [number for number, first in self.first.items() if first == layer]
            edited = self._edited(layer)
            for begin in range(0, len(numbers), copies):
                some = numbers[begin : begin + copies]
                yield some, self._from(layer, some, edited)

    def _edited(self, layer: int) -> Tensor | None:
        """Outputs of all heads of a layer under the intervention, where its attention is written down from them."""
        if self.start.constants[layer] is None:
            return None
        positions = Positions()
        edits = list(self.intervention.edits(positions))
        with positions.watch(self.model):
            return self.start.clean.edited(layer, edits, self.start.name_of(self.intervention))

    def _from(self, layer: int, numbers: list[int], written: Tensor | None) -> Tensor:
        """Logits of sets whose first layer is ``layer``."""
        chosen = torch.zeros(len(numbers), len(self.model.blocks), int(self.model.cfg.n_heads), dtype=torch.bool)
        for row, number in enumerate(numbers):
            for place in self.sets[number]:
                chosen[row, place[0], place[1]] = True
        # where the bias of W_O is known, this layer's attention is not run but written down from the clean pass
        constant, clean = self.start.constants[layer], self.start.clean
        begun = layer if written is None else layer + 1  # the first layer whose attention runs
        later = bool(chosen[:, begun:].any())  # else no edit has anything left to do
        positions = Positions()
        # all sequences of the first set come first, then all of the second: as `going_on` repeats the residual stream
        edits = by_sequence(self.intervention.edits(positions), chosen.repeat_interleave(len(self.ids), 0))
        with ExitStack() as stack:
            stack.enter_context(self.intervention.around(self.model, positions))
            stack.enter_context(self.start.open(edits if later else [], range(begun)))
            stack.enter_context(going_on(self.model, clean, layer, len(numbers)))
            if written is not None and constant is not None:
                stack.enter_context(writing(self.model, clean, layer, constant, chosen[:, layer], written))
            logits: Tensor = self.model(self.ids.repeat(len(numbers), 1))
        return logits
