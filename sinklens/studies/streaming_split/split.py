"""Gates made into a decision: which KV heads keep their whole cache and which only stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sinklens.arguments import checked
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError
from sinklens.interventions.heads import Head, head_name
from sinklens.wording import several

if TYPE_CHECKING:
    from sinklens.interventions import CompensatedWindow, SlidingWindow

JITTER = 1e-6
"""Largest random number added to a gate, so that equal gates have an order; as the released code does."""


@dataclass(frozen=True)
class Split:
    """KV heads divided into retrieval heads (full attention) and streaming heads (first and recent tokens).

    Attributes:
        retrieval_kv: KV heads that keep everything, as ``(layer, kv_head)``.
        streaming_kv: All others.
        group: Query heads that read one KV head.
        cut: Gates from here on belong to retrieval heads.
        asked_sparsity: Share of streaming heads that was asked for, ``None`` for a threshold.
        tied: KV heads that the jitter alone put on their side of the cut: their gates differ from it by no more than
            the jitter, and heads of both sides do.
        statement: The rule and its outcome in a sentence.
    """

    retrieval_kv: tuple[Head, ...]
    streaming_kv: tuple[Head, ...]
    group: int
    cut: float
    asked_sparsity: float | None
    tied: tuple[Head, ...]
    statement: str

    @property
    def sparsity(self) -> float:
        """Share of KV heads that stream."""
        return len(self.streaming_kv) / (len(self.retrieval_kv) + len(self.streaming_kv))

    @property
    def retrieval_heads(self) -> tuple[Head, ...]:
        """Query heads that read a retrieval KV head."""
        return _query_heads(self.retrieval_kv, self.group)

    @property
    def streaming_heads(self) -> tuple[Head, ...]:
        """Query heads that read a streaming KV head."""
        return _query_heads(self.streaming_kv, self.group)

    def window(self, recent: int, sinks: int) -> "SlidingWindow":
        """The intervention that lets the streaming heads see ``sinks`` + ``recent`` tokens (the query included).

        Raises:
            InputError: No head streams.
        """
        from sinklens.interventions import SlidingWindow

        return SlidingWindow(recent, sinks, self._streaming())

    def compensated_window(self, recent: int, sinks: int, *, counted: bool = True) -> "CompensatedWindow":
        """As :meth:`window`, with what they drop kept as one compensation token (RazorAttention).

        Raises:
            InputError: No head streams.
        """
        from sinklens.interventions import CompensatedWindow

        return CompensatedWindow(recent, sinks, self._streaming(), counted)

    def _streaming(self) -> tuple[Head, ...]:
        if not self.streaming_kv:
            raise InputError("No head streams in this split, so there is nothing to change; ask for a higher sparsity.")
        return self.streaming_heads


def split_gates(
    gates: Mapping[Head, float],
    group: int,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    seed: int = 0,
) -> Split:
    """Retrieval heads are those with the largest gates: a share ``1 - sparsity`` of them, or all from ``threshold`` on.

    By share, as in the released code: the cut is the ``sparsity`` quantile of the gates (linear between two of them)
    after random numbers up to 1e-6 were added, so that ties fall at random; the statement says how many did.

    Args:
        gates: alpha of every KV head.
        group: Query heads of a KV head.
        sparsity: Share of KV heads that stream, from 0 (none) to 1 (all).
        threshold: Smallest gate of a retrieval head (the paper's tau).
        seed: Of the random numbers.

    Raises:
        InputError: Both or neither of the two, a number out of range, or no gate.

    >>> split = split_gates({(0, 0): 0.1, (0, 1): 0.9, (1, 0): 1.0, (1, 1): 0.0}, 2, sparsity=0.5)
    >>> split.retrieval_kv, split.streaming_heads
    (((0, 1), (1, 0)), ((0, 0), (0, 1), (1, 2), (1, 3)))
    """
    if (sparsity is None) == (threshold is None):
        raise InputError("Name either a sparsity (share of streaming heads) or a threshold for the gates.")
    heads = sorted(head for head, alpha in gates.items() if not np.isnan(alpha))
    if not heads:
        raise InputError("There is no gate to split by.")
    alphas = np.array([gates[head] for head in heads], dtype=np.float64)
    tied: list[Head] = []
    if threshold is not None:
        if not np.isfinite(threshold):
            raise InputError(f"threshold must be a finite number, got {threshold!r}.")
        keep, cut = alphas >= threshold, float(threshold)
        how = f"gate >= {threshold:g}"
    else:
        if sparsity is None or not 0 <= sparsity <= 1:
            raise InputError(f"sparsity must be a share from 0 to 1, got {sparsity!r}.")
        jittered = alphas + np.random.default_rng(seed).uniform(0, JITTER, len(alphas))
        cut = float(np.quantile(jittered, sparsity)) if sparsity < 1 else np.inf  # all stream, as in the released code
        keep = jittered >= cut
        near = np.abs(alphas - cut) <= JITTER
        if keep[near].any() and not keep[near].all():
            tied = [head for head, is_near in zip(heads, near, strict=True) if is_near]
        how = f"gate >= {cut:.3g}, the {sparsity:.0%} quantile of {len(heads)} gates"
    retrieval = tuple(head for head, kept in zip(heads, keep, strict=True) if kept)
    streaming = tuple(head for head, kept in zip(heads, keep, strict=True) if not kept)
    some = "is a retrieval head" if len(retrieval) == 1 else "are retrieval heads"
    statement = f"{len(retrieval)} of {several(len(heads), 'KV head')} {some} ({how})."
    if tied:
        chosen = sum(head in retrieval for head in tied)
        statement += f" {len(tied)} gates tie at the cut and {chosen} of them were chosen at random (seed {seed})."
    elif threshold is None:
        statement += " No gates tie at the cut."
    return Split(retrieval, streaming, group, cut, sparsity, tuple(tied), statement)


def _query_heads(kv_heads: tuple[Head, ...], group: int) -> tuple[Head, ...]:
    return tuple((layer, kv * group + place) for layer, kv in kv_heads for place in range(group))


def kv_name(head: Head) -> str:
    """How a KV head is written.

    >>> kv_name((5, 1))
    'L5KV1'
    """
    return head_name(head).replace("H", "KV")


@checked
def razor_split(scores: HeadScores, column: str = "razor") -> Split:
    """The split that a selection of heads gives: a KV head is kept whole when any of its query heads is selected.

    ::

        split = razor_split(pattern_scores(model))
        window = razor_window(n_tokens, shortest=64)
        with torch.no_grad(), split.compensated_window(recent=window, sinks=4)(model):
            ...

    Args:
        scores: With the columns ``layer``, ``head``, ``kv_head`` and the selection, such as
            :func:`~sinklens.studies.head_scores.pattern_scores` gives them.
        column: The selection: empty, missing or False for heads that are not selected.

    Raises:
        InputError: A column is missing.

    Source: Tang et al. (2025), RazorAttention, arXiv 2407.15891.
    """
    frame = scores.frame
    missing = [name for name in ("kv_head", column) if name not in frame]
    if missing:
        raise InputError(
            f"A split needs the columns kv_head and {column}, and {', '.join(missing)} is not there; "
            "take the scores from pattern_scores."
        )
    selected = frame[column].fillna("").astype(bool)
    keys = [(int(layer), int(kv_head)) for layer, kv_head in zip(frame["layer"], frame["kv_head"], strict=True)]
    kept = {key for key, chosen in zip(keys, selected, strict=True) if chosen}
    everyone = sorted(set(keys))
    group = len(frame) // len(everyone)
    retrieval = tuple(key for key in everyone if key in kept)
    streaming = tuple(key for key in everyone if key not in kept)
    statement = (
        f"{len(retrieval)} of {len(everyone)} KV heads are kept whole, because {int(selected.sum())} query heads are "
        f"selected ({column})."
    )
    return Split(retrieval, streaming, group, float("nan"), None, (), statement)
