"""How a sweep is cut into parts of some seconds that fit the memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture.memory import free_memory
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_sets import Depth, tokens_per_pass
from sinklens.studies.ablation.parts import HeadSet, Part


@dataclass(frozen=True)
class Layout:
    """How a sweep is cut. It is fixed when the sweep starts: other sizes would change the last digits.

    Attributes:
        chunk: Most sequences in a part.
        rows: Most sequences in one forward pass, copies for several head sets included.
        passes: Forward passes of a part's sequences that make it large enough.
        memory: Estimated bytes beyond the weights.
    """

    chunk: int
    rows: int
    passes: int
    memory: int


NOMINAL = {"cpu": 1e11, "cuda": 3e13}
"""Floating-point operations per second that sizes are chosen for; the real speed only changes how long a part takes."""

PART_SECONDS, CLEAN_PASSES = 20.0, 12
"""A part takes about this long, but at least so many forward passes, because each part begins with a clean one."""


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a number of sequences below 1; ``None`` leaves the choice to :func:`choose_layout`.

    Raises:
        InputError: One sentence.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")


def choose_layout(
    model: TransformerBridge,
    n_sequences: int,
    length: int,
    *,
    batch_size: int | None = None,
    backward: bool = False,
    device: str | None = None,
    workers: int = 1,
) -> Layout:
    """Sizes that fit the memory and make parts of some seconds.

    Args:
        model: The bridge.
        n_sequences: How many there are.
        length: Tokens of the longest.
        batch_size: Sequences in a part, if the caller wants a certain number.
        backward: Whether there will be backward passes, which keep all activations.
        device: Type of device that the parts will run on; default: the model's own.
        workers: How many parts run on this machine at once, sharing its memory (or that of its GPUs).

    Raises:
        InputError: ``batch_size`` below 1.
    """
    check_batch_size(batch_size)
    device = device or next(model.parameters()).device.type
    kind = device if device in NOMINAL else "cpu"
    n_parameters = sum(p.numel() for p in model.original_model.parameters())
    pass_seconds = 2 * n_parameters * length / NOMINAL[kind]  # of one sequence
    budget = _budget(model, kind, workers)
    item = next(model.parameters()).element_size()
    per_pass = max(1, tokens_per_pass(kind, int(model.cfg.d_vocab), item) // length)
    chunk = batch_size or max(1, min(n_sequences, per_pass, int(PART_SECONDS / CLEAN_PASSES / pass_seconds)))
    rows = max(chunk, per_pass)
    while rows > (batch_size or 1) and _memory(model, chunk, rows, length, backward) > budget:
        rows = max(batch_size or 1, rows // 2)
        chunk = min(chunk, rows)
    passes = max(CLEAN_PASSES, int(PART_SECONDS / (pass_seconds * chunk)))
    return Layout(chunk, rows, passes, _memory(model, chunk, rows, length, backward))


def _budget(model: TransformerBridge, kind: str, workers: int) -> int:
    """Half of the memory that is free for each worker, the weights it has yet to load taken off."""
    here = next(model.parameters()).device
    if kind == "cuda" and torch.cuda.is_available():
        free = torch.cuda.mem_get_info(here if here.type == "cuda" else None)[0]
        workers = -(-workers // torch.cuda.device_count())
    else:
        free = free_memory(model)
    if workers > 1 or kind != here.type:
        free = free // workers - sum(p.numel() * p.element_size() for p in model.original_model.parameters())
    return max(0, free // 2)


def _memory(model: TransformerBridge, chunk: int, rows: int, length: int, backward: bool) -> int:
    """Bytes of the clean pass that is kept with its logits and probabilities, and of one forward pass."""
    cfg, item = model.cfg, next(model.parameters()).element_size()
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    layer = 6 * cfg.d_model + 3 * d_mlp
    kept = len(model.blocks) * (layer if backward else 4 * cfg.d_model) * item + cfg.d_vocab * (item + 4)
    run = layer * item + cfg.d_vocab * item
    return int(length * (chunk * kept + rows * run))


def cut(
    intervention: str,
    head_sets: Sequence[HeadSet],
    batch: TokenBatch,
    layout: Layout,
    *,
    depth: Depth,
    first: int = 0,
    estimate: bool = False,
    begun: set[tuple[int, ...]] | None = None,
) -> list[Part]:
    """Parts that together hold every head set on every sequence once.

    Head sets are sorted by their first layer, because those share the clean pass up to it.

    Args:
        intervention: Its label.
        head_sets: The sets.
        batch: All sequences.
        layout: How they are cut.
        depth: What a set with some first layer takes.
        first: Number of the first part.
        estimate: Whether the sets are estimated.
        begun: Sequences whose clean pass is counted in another part, which makes it for all; those of these parts are
            added. None: every part makes its own.
    """
    parts: list[Part] = []
    ordered = sorted(head_sets, key=lambda heads: min(layer for layer, _ in heads))
    for sequences in equal_lengths(batch, layout.chunk):
        if estimate:
            groups = [(ordered, 3.0)] if ordered else []
        else:
            groups = list(_groups(ordered, layout.passes, depth))
        for heads, passes in groups:
            clean = not estimate and (begun is None or tuple(sequences) not in begun)
            if clean and begun is not None:
                begun.add(tuple(sequences))
            work = (passes + clean) * len(sequences)
            parts.append(Part(first + len(parts), intervention, tuple(sequences), tuple(heads), estimate, work))
    return parts


def _groups(ordered: Sequence[HeadSet], passes: int, depth: Depth) -> Iterator[tuple[list[HeadSet], float]]:
    """Runs of head sets that take at least ``passes`` forward passes, with what they take."""
    group: list[HeadSet] = []
    work = 0.0
    for heads in ordered:
        if work >= passes:
            yield group, work
            group, work = [], 0.0
        group.append(heads)
        work += depth.left(min(layer for layer, _ in heads))
    if group:
        yield group, work
