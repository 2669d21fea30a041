"""Task-KV's heterogeneous heads of a model, in head-private coordinates and in those of the residual stream."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.attention import AttentionEngine, AttentionShape, plan_for
from sinklens.detectors import heterogeneity
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.heterogeneity import (
    heterogeneous,
    heterogeneous_count,
    offsets,
    semantic_vectors,
    written_vectors,
)
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress

FORMS = {"semantic": heterogeneity.RAW, "written": heterogeneity.WRITTEN}


@usual_torch()
@torch.no_grad()
def heterogeneous_heads(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    beta: float = 0.25,
    least: int | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = 32,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> HeadScores:
    """Find the heads whose mean output differs most from that of the other heads of their layer (Task-KV).

    A head's semantic vector is its mean output over a prompt, ``v_j = mean_i z_j[i]``. The paper compares ``v_j`` as it
    is, in coordinates private to the head: turning the values of one head (and ``W_O`` back) leaves the model the same
    and changes these distances. The written form compares ``v_j W_O,j`` in the residual stream and does not change.
    Heterogeneous are the ``f(r)`` farthest heads of layer r and the single closest one, decided per KV head: the vector
    of a group is the mean (written: the sum) of its query heads' vectors, and all of them get its score and label.

    Scores depend on the prompt. With several texts they are means, and the labels follow from the means; the share of
    texts that would give the label stands beside it. Two KV heads are always equally far from their mean, so there the
    labels say nothing.

    Left out is the paper's cheap form (32 last queries, 256 strongest tokens), which approximates this one.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        beta: Share of far heads in layer 0.
        least: Far heads in the last layer, m; default: an eighth of the KV heads, the paper's share for 32 heads.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        split: Cut long texts into sequences of ``max_tokens``.
        max_sequences: Draw at most this many sequences from all over the texts; None: 100, and all of given tokens.
        batch_size: Sequences in one forward pass.
        seed: Which sequences are drawn.
        progress: Told after each forward pass, in sequences.

    Returns:
        Columns ``layer``, ``head``, ``kv_head``; ``semantic_offset`` and ``written_offset``; for each form
        ``.._heterogeneous`` and ``.._share``. NaN for the written form where W_O cannot be read or a gate follows.

    Raises:
        InputError: Texts or numbers that cannot be used.
        UnsupportedArchitectureError: The model has no attention.

    Source: He, Liu and Chen (2025), Task-KV, arXiv 2501.15113; the written form is sinklens'.

    Cost: one forward pass.
    """
    model = as_bridge(model)
    plan = plan_for(model)
    if plan.path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to compare.")
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, split, seed, None, max_sequences, attention_mask
    )
    kv_heads, layers = kv_head_count(model), sorted(attention_layers(model))
    group = int(model.cfg.n_heads) // kv_heads
    least = max(1, round(kv_heads / 8)) if least is None else least
    counts = {
        layer: heterogeneous_count(place, len(layers), kv_heads, beta=beta, least=least)
        for place, layer in enumerate(layers)
    }
    distances = {name: np.full((len(layers), kv_heads, len(batch)), np.nan) for name in FORMS}
    progress.begin("Comparing heads' outputs", len(batch))
    for indices in equal_lengths(batch, batch_size):
        watcher = _Watcher(model, batch.rows(indices), group)
        edits: list[Any] = [watcher]
        with AttentionEngine(model, path=plan.path, edits=edits):
            model(batch.rows(indices).ids.to(next(model.parameters()).device))
        for (name, layer), found in watcher.found.items():
            distances[name][layers.index(layer)][:, indices] = found.T
        progress.advance(len(indices))
    rows = []
    for place, layer in enumerate(layers):
        labels = {name: _labels(distances[name][place], counts[layer]) for name in FORMS}
        for head in range(kv_heads * group):
            row: dict[str, Any] = {"layer": layer, "head": head, "kv_head": head // group}
            for name, metric in FORMS.items():
                row[metric.name] = float(distances[name][place, head // group].mean())
                label, share = labels[name]
                row |= {f"{name}_heterogeneous": label[head // group], f"{name}_share": share[head // group]}
            rows.append(row)
    facts = header(model, batch, source)
    missing = bool(np.isnan(distances["written"]).any())
    meta = {
        **facts,
        "settings": {"beta": beta, "least": least, "counts": {str(layer): count for layer, count in counts.items()}},
        "metrics": {metric.name: metric.as_dict() for metric in FORMS.values()},
        "warnings": [
            *(["What heads write cannot be told in some layers (gate, or W_O not readable)."] if missing else []),
            *([batch.unused.sentence(len(batch))] if batch.unused else []),
        ],
    }
    return HeadScores(pd.DataFrame(rows), {metric.name: metric for metric in FORMS.values()}, meta)


class _Watcher:
    """Offsets of all KV heads of every layer, by form and layer, each ``[batch kv_head]``."""

    def __init__(self, model: TransformerBridge, batch: TokenBatch, group: int) -> None:
        self.model, self.batch, self.group = model, batch, group
        self.gated = bool(getattr(model.cfg, "gated_q_proj", False))
        self.found: dict[tuple[str, int], Float[np.ndarray, "batch kv_head"]] = {}

    def edit_output(self, shape: AttentionShape, output: Float[Tensor, "batch head q_pos d_value"]) -> None:
        """Look at what the heads of a layer hand on; the engine calls this as it would an edit."""
        vectors = semantic_vectors(output, self.batch.real.to(output.device))
        grouped = vectors.unflatten(1, (-1, self.group))
        self.found["semantic", shape.layer] = offsets(grouped.mean(2)).cpu().numpy()
        weights = output_weights(self.model, shape.layer)
        if weights is not None and not self.gated and weights.shape[:2] == (output.shape[1], output.shape[3]):
            written = written_vectors(vectors, weights.double()).unflatten(1, (-1, self.group))
            self.found["written", shape.layer] = offsets(written.sum(2)).cpu().numpy()


def _labels(distances: Float[np.ndarray, "kv_head sequence"], count: int) -> tuple[list[Any], list[float]]:
    """Label by mean distance, and share of sequences with it; None and NaN where there is no distance."""
    if np.isnan(distances).any():
        return [None] * len(distances), [float("nan")] * len(distances)
    by_mean = heterogeneous(torch.from_numpy(distances.mean(1)), count).tolist()
    each = torch.stack([heterogeneous(torch.from_numpy(column), count) for column in distances.T])
    return by_mean, each.double().mean(0).tolist()
