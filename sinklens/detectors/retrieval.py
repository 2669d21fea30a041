"""Retrieval heads: heads whose strongest key is the token that the model is about to copy from a needle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinklens.attention import StatisticFactory, TopKey
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector
from sinklens.detectors.metric import Metric
from sinklens.detectors.registry import register
from sinklens.detectors.retrieval_bands import band
from sinklens.errors import InputError
from sinklens.models.tokens import TokenBatch

SOURCE = "Wu et al. 2025 (ICLR), Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv 2404.15574"

_COPY = (
    "A head copies at a step when its strongest key lies in the needle's answer span and holds the very token that the "
    "step produces (the most likely next token)."
)
RETRIEVAL = Metric(
    "retrieval",
    1,
    f"{_COPY} Set form: different token ids copied over different token ids in the span, at most 1; mean over the "
    "instances that the model answers. Null: one key drawn evenly from all that each step can see.",
    f"{SOURCE}, Eq. 1",
)
EVENT = Metric(
    "retrieval_event",
    1,
    f"{_COPY} Event form: copying steps over the length of the span; a token copied twice counts twice, so it can "
    "exceed 1; mean over the instances that the model answers.",
    f"{SOURCE}; released code nightdessert/Retrieval_Head @3ac171a, retrieval_calculate",
)
FREQUENCY = Metric(
    "activation_frequency",
    1,
    f"{_COPY} Share of the answered instances in which the head copies at least once.",
    f"{SOURCE}, section 3",
)
UNFILTERED = Metric(
    "retrieval_unfiltered",
    1,
    f"{_COPY} Set form as `retrieval`, but the mean over all instances, answered or not.",
    f"{SOURCE}; without its success filter",
)
METRICS = (RETRIEVAL, EVENT, FREQUENCY, UNFILTERED)

COLUMNS = (
    "layer", "head", "retrieval", "retrieval_event", "retrieval_null", "activation_frequency", "retrieval_band",
    "retrieval_sd", "retrieval_unfiltered", "retrieval_event_unfiltered", "n_kept", "n_instances",
)  # fmt: skip


def copied(
    top_key: Int[Tensor, "*head step"],
    produced: Int[Tensor, " step"],
    ids: Int[Tensor, " pos"],
    span: tuple[int, int],
) -> Bool[Tensor, "*head step"]:
    """Which steps copy: the strongest key is in the span and holds the produced token.

    Args:
        top_key: Position of the strongest key of the query that predicts each step's token; -1 without one.
        produced: Token that each step produces.
        ids: The prompt.
        span: First position of the answer's copy in the prompt, and one past its last.

    Raises:
        InputError: Steps that do not belong together, or a span that does not lie in the prompt.

    Example:
        >>> ids = torch.tensor([9, 5, 6, 7, 9])
        >>> copied(torch.tensor([1, 3, 0]), torch.tensor([5, 6, 9]), ids, (1, 4)).tolist()
        [True, False, False]
    """
    start, stop = span
    if top_key.shape[-1:] != produced.shape or ids.ndim != 1:
        raise InputError(
            f"Expected top keys [.. step] with produced tokens [step] and a prompt [pos], got {tuple(top_key.shape)}, "
            f"{tuple(produced.shape)} and {tuple(ids.shape)}."
        )
    if not 0 <= start < stop <= len(ids):
        raise InputError(f"The span {start} to {stop} does not lie in a prompt of {len(ids)} tokens.")
    inside = (top_key >= start) & (top_key < stop)
    return inside & (ids[top_key.clamp(start, stop - 1)] == produced)


def event_score(copies: Bool[Tensor, "*head step"], span: tuple[int, int]) -> Float[Tensor, "*head"]:
    """Copying steps over the length of the span (released code); beyond 1 when something is copied again.

    Example:
        >>> event_score(torch.tensor([True, True, True]), (4, 6)).item()
        1.5
    """
    return copies.sum(-1) / (span[1] - span[0])


def set_score(
    copies: Bool[Tensor, "*head step"],
    produced: Int[Tensor, " step"],
    ids: Int[Tensor, " pos"],
    span: tuple[int, int],
) -> Float[Tensor, "*head"]:
    """``|g_h ∩ k| / |k|`` (paper): different token ids that the head copied over different ids in the span.

    Example:
        >>> ids = torch.tensor([5, 6])
        >>> set_score(torch.tensor([True, True, True]), torch.tensor([5, 5, 5]), ids, (0, 2)).item()
        0.5
    """
    needle = ids[span[0] : span[1]].unique()
    found = (produced == needle[:, None]) & copies[..., None, :]
    score: Tensor = found.any(-1).sum(-1) / len(needle)
    return score


def uniform_score(
    produced: Int[Tensor, " step"], ids: Int[Tensor, " pos"], span: tuple[int, int], visible: Int[Tensor, " step"]
) -> float:
    """Expected event score of a head whose strongest key is drawn evenly from those each step sees: the null.

    Args:
        produced: Token of each step.
        ids: The prompt.
        span: Where the answer's copy lies.
        visible: Keys that the step's query sees (its position + 1; a sliding window is not taken into account).

    Example:
        >>> uniform_score(torch.tensor([5, 6]), torch.tensor([1, 5, 6, 1]), (1, 3), torch.tensor([4, 5]))
        0.225
    """
    matches = (ids[span[0] : span[1]] == produced[:, None]).sum(-1).double()
    return round(float((matches / visible).sum() / (span[1] - span[0])), 12)


@dataclass(frozen=True)
class CopyScores:
    """What one instance says about every head.

    Attributes:
        event: Event form, ``[layer head]``.
        set: Set form, ``[layer head]``.
        null: Expected score of an even draw, the same for all heads.
    """

    event: Float[Tensor, "layer head"]
    set: Float[Tensor, "layer head"]
    null: float


def copy_scores(
    top_key: Int[Tensor, "layer head step"],
    produced: Int[Tensor, " step"],
    ids: Int[Tensor, " pos"],
    span: tuple[int, int],
) -> CopyScores:
    """Both scores of one instance, whose step 0 is predicted by the prompt's last token. See :func:`copied`."""
    top_key, produced, ids = top_key.cpu(), produced.cpu(), ids.cpu()
    copies = copied(top_key, produced, ids, span)
    visible = torch.arange(len(produced)) + len(ids)
    null = uniform_score(produced, ids, span, visible)
    return CopyScores(event_score(copies, span), set_score(copies, produced, ids, span), null)


def similarity(left: pd.DataFrame, right: pd.DataFrame, score: str = "retrieval") -> float:
    """Pearson correlation of two models' scores over all heads; NaN where one of them is constant or missing.

    Args:
        left: Columns layer, head and the score.
        right: Likewise, of a model with the same heads.
        score: Column to compare.

    Raises:
        InputError: The tables do not have the same heads, or no such column.

    Example:
        >>> heads = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "retrieval": [0.0, 0.1, 0.9]})
        >>> round(similarity(heads, heads), 6)
        1.0
    """
    missing = [name for name in ("layer", "head", score) if name not in left or name not in right]
    if missing:
        raise InputError(f"Both tables need the columns layer, head and {score}; {', '.join(missing)} is not in both.")
    joined = left[["layer", "head", score]].merge(right[["layer", "head", score]], on=["layer", "head"])
    if not len(joined) == len(left) == len(right):
        raise InputError(
            f"Similarity compares models with the same heads; {len(left)} and {len(right)} heads were given and "
            f"{len(joined)} are in both."
        )
    a, b = (joined[f"{score}_{side}"].to_numpy(dtype=float) for side in ("x", "y"))
    if len(a) < 2 or np.isnan(a).any() or np.isnan(b).any() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


class Answer(NamedTuple):
    """What the model makes of one prompt.

    Attributes:
        span: First position of the answer's copy in the prompt, and one past its last.
        produced: Tokens that the model produces after the prompt.
        answered: Whether it answers the question; others count in the unfiltered scores alone.
    """

    span: tuple[int, int]
    produced: Int[Tensor, " step"]
    answered: bool = True


@register
class RetrievalDetector(Detector):
    """How often a head looks at the very token in the context that the model copies next: 0 never, 1 at all of them.

    A sequence is a prompt and what the model produced after it but for the last token, so that its last rows are the
    queries that predict those tokens. Where the model's answers are not known yet, see
    :func:`~sinklens.studies.needles.retrieval_scores.retrieval_scores`, which hands them to :meth:`add`.

    Table ``retrieval``, one row per head: ``layer, head, retrieval`` (set form), ``retrieval_event``,
    ``retrieval_null``, ``activation_frequency``, ``retrieval_band``, ``retrieval_sd`` (of the set form over kept
    instances), ``retrieval_unfiltered``, ``retrieval_event_unfiltered``, ``n_kept``, ``n_instances``. Filtered scores
    are NaN while no instance was answered.

    Args:
        answers: One for each sequence of the pass.

    Cost: twelve numbers per head.
    """

    name = "retrieval"
    metrics = METRICS

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers
        self._sums: dict[int, Float[Tensor, "2 6 head"]] = {}  # of all instances, and of those that were answered

    def statistics(self, batch: TokenBatch) -> list[StatisticFactory]:
        """The strongest key of every query."""
        return [TopKey]

    def update(self, record: LayerRecord) -> None:
        """Take one layer; layers without attention are left out.

        Raises:
            InputError: A sequence without an answer, or whose answer is longer than it.
        """
        if "top_key" not in record.attention:
            return
        last = record.first_sequence + len(record.batch)
        if last > len(self._answers):
            raise InputError(f"Retrieval scores need an answer for each sequence: {len(self._answers)} for {last}.")
        for row, length in enumerate(record.batch.lengths.tolist()):
            span, produced, answered = self._answers[record.first_sequence + row]
            start = length - len(produced)
            if start < 0:
                raise InputError(f"An answer of {len(produced)} tokens does not end a sequence of {length}.")
            top = record.attention["top_key"][None, row, :, start:length]
            ids = record.batch.ids[row, : start + 1]
            self.add([record.layer], copy_scores(top, produced, ids, span), answered)

    def add(self, layers: Sequence[int], scores: CopyScores, answered: bool) -> None:
        """Take one instance.

        Args:
            layers: Layer index of each row of the scores.
            scores: From :func:`copy_scores`.
            answered: See :class:`Answer`.

        Raises:
            InputError: Scores of another number of layers.
        """
        if len(scores.event) != len(layers):
            raise InputError(f"Expected scores of {len(layers)} layers, got {len(scores.event)}.")
        event, unique = scores.event.double(), scores.set.double()
        one = torch.ones_like(event)
        numbers = torch.stack([event, unique, unique**2, (event > 0).double(), scores.null * one, one], 1)
        both = torch.stack([numbers, answered * numbers], 1)
        self._add(dict(zip(layers, both, strict=True)))

    def merge(self, other: Self) -> None:
        """Add what another detector saw of other instances.

        Raises:
            InputError: It saw a model with other layers.
        """
        if self._sums and other._sums and self._sums.keys() != other._sums.keys():
            raise InputError(f"Detectors of layers {[*self._sums]} and {[*other._sums]} cannot be merged.")
        self._add(other._sums)

    def _add(self, sums: Mapping[int, Tensor]) -> None:
        self._sums |= {layer: self._sums[layer] + new if layer in self._sums else new for layer, new in sums.items()}

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table."""
        frames = []
        for layer, sums in sorted(self._sums.items()):
            (event, unique, squared, active, null, _), (event_all, unique_all, *_) = (sums / sums[:, -1:]).flip(0)
            n_all, n_kept = (int(each) for each in sums[:, -1, 0])
            spread = ((squared - unique**2).clamp(min=0) * n_kept / (n_kept - 1 or math.nan)).sqrt()
            scores = (unique, event, null, active, spread, unique_all, event_all)
            names = [name for name in COLUMNS[2:-2] if name != "retrieval_band"]
            found = {name: score.numpy() for name, score in zip(names, scores, strict=True)}
            frames.append(pd.DataFrame({"layer": layer, "head": range(len(event)), **found}))
            frames[-1] = frames[-1].assign(n_kept=n_kept, n_instances=n_all)
        if not frames:
            return {"retrieval": pd.DataFrame(columns=[*COLUMNS])}
        table = pd.concat(frames, ignore_index=True)
        table["retrieval_band"] = pd.Series([band(score) for score in table["retrieval"]], dtype="str")
        return {"retrieval": table[[*COLUMNS]]}
