"""Compare poolings by whether a question finds its document."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sinklens.arguments import checked
from sinklens.errors import InputError
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.builtin import data_dir
from sinklens.models.tokens import BosChoice, to_batch
from sinklens.models.torch_state import usual_torch
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.document_ranking.prompts import Words
from sinklens.studies.pooling.result import RANK_COLUMNS, PoolingComparison
from sinklens.studies.pooling.vectors import POOLINGS, SINK_SHARE, cosines, pooled, read_states


@checked
@usual_torch()
@torch.no_grad()
def compare_pooling(
    model: AnyModel,
    pairs: Sequence[tuple[Words, Words]] | None = None,
    *,
    layers: Sequence[int] | None = None,
    poolings: Sequence[str] = POOLINGS,
    sink_share: float = SINK_SHARE,
    draws: int = 10,
    bos: BosChoice = "auto",
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> PoolingComparison:
    """Make a vector of each text in several ways and see how often a question is nearest to its own document.

    ::

        found = compare_pooling("tiny-llama", layers=[1, 3])
        found.summary()

    A mean over positions holds the sink: where its state is massive it outweighs all other tokens and is alike in
    all texts. Leaving it out is compared with leaving out as many random positions.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        pairs: Questions with their documents, texts or ids, at least two; every document is a candidate for every
            question. Default: twenty built-in ones that share no content word.
        layers: Layers after which states are averaged; default: after a quarter, half, three quarters and the last.
        poolings: Of ``mean``, ``last``, ``no_first`` (mean without position 0), ``sink_free`` (without positions that
            are sinks in at least ``sink_share`` of the heads or massive) and ``random`` (without as many others).
        sink_share: Share of all heads.
        draws: Of random positions.
        bos: As for :func:`sinklens.tokenize`.
        batch_size: Texts in one forward pass.
        seed: Of random positions and intervals.
        progress: Told in layers.

    Raises:
        InputError: Fewer than two pairs, an unknown pooling or layer.

    Cost: one forward pass of all texts with attention measured; their states of the chosen layers are held.
    """
    model = as_bridge(model)
    unknown = [name for name in poolings if name not in POOLINGS]
    if unknown or not poolings or draws < 1 or not 0 < sink_share <= 1:
        raise InputError(
            f"Expected poolings of {', '.join(POOLINGS)}, draws from 1 and sink_share above 0, at most 1; got "
            f"{[*poolings]}, {draws} and {sink_share}."
        )
    n_layers = len(model.blocks)
    if layers is None:
        layers = sorted({round(n_layers * part / 4) - 1 for part in (1, 2, 3, 4)} - {-1})
    if not layers or not all(0 <= each < n_layers for each in layers):
        raise InputError(f"layers must be numbers from 0 to {n_layers - 1}, got {[*layers]}.")
    given = builtin_pairs() if pairs is None else list(pairs)
    if len(given) < 2:
        raise InputError(f"Expected two pairs of a question and its document or more, got {len(given)}.")
    texts: list[Any] = [each for pair in given for each in pair]
    batch = to_batch(model, texts, bos=bos)
    progress.begin("Comparing poolings", 1 + len(layers))
    states = read_states(model, batch, layers, share=sink_share, batch_size=batch_size)
    progress.advance(1)
    rows: list[tuple[Any, ...]] = []
    for layer in layers:
        for name in poolings:
            for draw in range(draws if name == "random" else 1):
                rng = np.random.default_rng([seed, draw])
                vectors = np.stack(
                    [
                        pooled(each, out, name, rng)
                        for each, out in zip(states.layers[layer], states.extreme, strict=True)
                    ]
                )
                scores = cosines(vectors[::2], vectors[1::2])
                rows += [(layer, name, draw, *row) for row in _ranked(scores)]
        progress.advance(1)
    sizes = batch.lengths.tolist()
    settings = {"layers": [*layers], "poolings": [*poolings], "sink_share": sink_share, "draws": draws, "seed": seed}
    source = "built-in questions and answers" if pairs is None else "questions and documents"
    meta = header(model, batch, source, settings=settings, n_tokens=int(sum(sizes)))
    return PoolingComparison(meta, {"ranks": pd.DataFrame(rows, columns=[*RANK_COLUMNS]), "left_out": states.tokens})


def builtin_pairs() -> list[tuple[str, str]]:
    """Twenty questions and the sentences that answer them, without a content word in common."""
    facts = json.loads((data_dir() / "needles" / "paraphrased.json").read_text("utf-8"))["facts"]
    return [(fact["question"], fact["document"]) for fact in facts]


def _ranked(scores: np.ndarray) -> list[tuple[int, float, float, float, int]]:
    """Of each question: own cosine, mean of the others, rank (ties in the middle), candidates."""
    rows = []
    for number, row in enumerate(scores):
        own, others = float(row[number]), np.delete(row, number)
        rank = float("nan")
        if not np.isnan(row).any():
            rank = 1 + float((others > own).sum()) + 0.5 * float((others == own).sum())
        rows.append((number, own, float(others.mean()), rank, len(row)))
    return rows
