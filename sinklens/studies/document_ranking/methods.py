"""Rules that rank documents by what the tokens of a question attend to, and three that never ask the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PHRASE = 8
"""Tokens that InfiniRetri sums a phrase over."""


@dataclass(frozen=True)
class Seen:
    """What a prompt of documents and a question shows; sums are over layers and heads, fp64.

    Attributes:
        question: Attention of a token of the question, mean over them, to each position.
        blank: The same for the content-free question in its place.
        last: Attention of the prompt's last token.
        final: Attention of each token of the question in the last attention layer, to every position of the prompt.
        asked: Positions of the question.
        spans: Positions of each document.
        words: The question's different words, or ids.
        documents: Those of each document.
        seed: Of the random rule.
    """

    question: Float[Tensor, " pos"]
    blank: Float[Tensor, " pos"]
    last: Float[Tensor, " pos"]
    final: Float[Tensor, "row prompt_pos"]
    asked: slice
    spans: Sequence[slice]
    words: frozenset[object]
    documents: Sequence[frozenset[object]]
    seed: int


def icr(seen: Seen) -> list[float]:
    """In-context re-ranking: calibrated by a content-free question, without tokens far below their document's mean.

    ``c_j = s_j(question) - s_j(blank)``; the score is the sum of the ``c_j`` above ``mean - 2 sd`` of their document. A
    document of one token has no deviation and keeps it (the released code keeps nothing).
    """
    scores = []
    for span in seen.spans:
        c = seen.question[span] - seen.blank[span]
        kept = c > c.mean() - 2 * c.std() if len(c) > 1 else torch.ones_like(c, dtype=torch.bool)
        scores.append(float(c[kept].sum()))
    return scores


def calibrated(seen: Seen) -> list[float]:
    """The same with every token."""
    return [float((seen.question[span] - seen.blank[span]).sum()) for span in seen.spans]


def query_attention(seen: Seen) -> list[float]:
    """Attention of the question, without calibration (``query_last`` of the released code)."""
    return [float(seen.question[span].sum()) for span in seen.spans]


def last_token(seen: Seen) -> list[float]:
    """Attention of the last token alone (``attention_sorting``): a negative control."""
    return [float(seen.last[span].sum()) for span in seen.spans]


def infini(seen: Seen, weighted: bool = False) -> list[float]:
    """InfiniRetri: the best phrase of a document in the last layer; the order in which documents are kept as k grows.

    ``tok = conv1d(mean over the question's tokens, sum over heads, ones(8), "same")``; a document is kept when it holds
    one of the top k, so its score is its largest ``tok``. Position 0 gives nothing: as a sink it would always keep its
    own.
    """
    start, stop = min(span.start for span in seen.spans), max(span.stop for span in seen.spans)
    weights = seen.final[:, seen.asked].sum(-1) ** 2 if weighted else torch.ones(len(seen.final), dtype=torch.float64)
    mass = weights @ seen.final[:, start:stop] / len(weights)
    if start == 0:
        mass[0] = 0
    before = (PHRASE - 1) // 2  # as torch pads for "same"
    tok = torch.nn.functional.pad(mass, (before, PHRASE - 1 - before)).unfold(0, PHRASE, 1).sum(-1)
    return [float(tok[span.start - start : span.stop - start].max()) for span in seen.spans]


def infini_weighted(seen: Seen) -> list[float]:
    """The same with each of the question's tokens weighted by the square of its attention to the question itself.

    ``tok = conv1d(sum_t w_t^2 A[t]), w_t = sum_{j in question} A[t, j]``: what the package does by default.
    """
    return infini(seen, weighted=True)


def overlap(seen: Seen) -> list[float]:
    """Share of the question's different words that stand in the document: no model."""
    return [len(seen.words & each) / len(seen.words) for each in seen.documents]


def place(seen: Seen) -> list[float]:
    """Documents as they stand in the prompt: what a rule finds that looks at its beginning alone."""
    return [-float(span.start) for span in seen.spans]


def random(seen: Seen) -> list[float]:
    """A random order."""
    drawn: list[float] = np.random.default_rng(seen.seed).permutation(len(seen.spans)).astype(float).tolist()
    return drawn


METHODS: dict[str, Callable[[Seen], list[float]]] = {
    "icr": icr,
    "calibrated": calibrated,
    "query_attention": query_attention,
    "infini": infini,
    "infini_weighted": infini_weighted,
    "last_token": last_token,
    "overlap": overlap,
    "place": place,
    "random": random,
}
"""Rules by name; the last three are controls."""
