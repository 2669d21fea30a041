"""Task-KV's heterogeneous heads of a model, in head-private coordinates and in those of the residual stream."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.capture.record import LayerRecord
from sinklens.detectors.base import Detector
from sinklens.detectors.head_scores import HeadScores
from sinklens.detectors.heterogeneity import (
    RAW,
    WRITTEN,
    heterogeneous,
    heterogeneous_count,
    offsets,
    semantic_vectors,
    written_vectors,
)
from sinklens.detectors.measure import Measurement
from sinklens.errors import UnsupportedArchitectureError
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.architecture import attention_layers, output_weights
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.head_scores.scoring_pass import ScoringPass, run_passes

FORMS = {"semantic": RAW, "written": WRITTEN}


@checked
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
        progress: Told after every layer, in sequences times layers.

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
    planned = offsets_pass(model, batch, source, beta=beta, least=least)
    (found,) = run_passes(model, [planned], batch_size=batch_size, progress=progress)
    return found


def offsets_pass(
    model: TransformerBridge, batch: TokenBatch, source: str, *, beta: float = 0.25, least: int | None = None
) -> ScoringPass:
    """The pass of :func:`heterogeneous_heads` over chosen sequences, to be run beside others.

    Args:
        model: The bridge.
        batch: The sequences.
        source: What they are called.
        beta: As for :func:`heterogeneous_heads`, like ``least``.
        least: Far heads in the last layer.
    """
    kv_heads, layers = kv_head_count(model), sorted(attention_layers(model))
    least = max(1, round(kv_heads / 8)) if least is None else least
    counts = {
        layer: heterogeneous_count(place, len(layers), kv_heads, beta=beta, least=least)
        for place, layer in enumerate(layers)
    }
    settings = {"beta": beta, "least": least, "counts": {str(layer): count for layer, count in counts.items()}}

    def score(found: Measurement) -> HeadScores:
        frame = found.tables["heterogeneity"]
        missing = bool(frame[WRITTEN.name].isna().any())
        meta = {
            **header(model, batch, source),
            "settings": settings,
            "metrics": {metric.name: metric.as_dict() for metric in FORMS.values()},
            "warnings": [
                *(["What heads write cannot be told in some layers (gate, or W_O not readable)."] if missing else []),
                *([batch.unused.sentence(len(batch))] if batch.unused else []),
            ],
        }
        return HeadScores(frame, {metric.name: metric for metric in FORMS.values()}, meta)

    return ScoringPass(batch, [_Offsets(model, counts)], score)


class _Offsets(Detector):
    """Offsets of all KV heads of every layer, by form and layer, each ``[sequence kv_head]`` in the order of passes.

    Args:
        model: The bridge.
        counts: Far heads of each layer.
    """

    name = "heterogeneity"
    metrics = (RAW, WRITTEN)
    needs = ("z",)

    def __init__(self, model: TransformerBridge, counts: Mapping[int, int]) -> None:
        self.model, self.counts = model, counts
        self.group = int(model.cfg.n_heads) // kv_head_count(model)
        self.gated = bool(getattr(model.cfg, "gated_q_proj", False))
        self.found: dict[tuple[str, int], list[Float[np.ndarray, "batch kv_head"]]] = defaultdict(list)

    def update(self, record: LayerRecord) -> None:
        """Take the head outputs of a layer; one without attention has none."""
        if record.z is None:
            return
        vectors = semantic_vectors(record.z, record.real.to(record.z.device))
        grouped = vectors.unflatten(1, (-1, self.group))
        self.found["semantic", record.layer].append(offsets(grouped.mean(2)).cpu().numpy())
        weights = output_weights(self.model, record.layer)
        if weights is not None and not self.gated and weights.shape[:2] == (record.z.shape[1], record.z.shape[3]):
            written = written_vectors(vectors, weights.double()).unflatten(1, (-1, self.group))
            self.found["written", record.layer].append(offsets(written.sum(2)).cpu().numpy())

    def tables(self) -> dict[str, pd.DataFrame]:
        """``heterogeneity``: one row per head, its offsets as means over sequences, and the labels."""
        rows = []
        for layer, count in self.counts.items():
            forms = {form: self._distances(form, layer) for form in FORMS}
            labels = {form: _labels(distances, count) for form, distances in forms.items()}
            for head in range(len(forms["semantic"]) * self.group):
                kv_head = head // self.group
                row: dict[str, Any] = {"layer": layer, "head": head, "kv_head": kv_head}
                for form, metric in FORMS.items():
                    row[metric.name] = float(forms[form][kv_head].mean())
                    label, share = labels[form]
                    row |= {f"{form}_heterogeneous": label[kv_head], f"{form}_share": share[kv_head]}
                rows.append(row)
        return {"heterogeneity": pd.DataFrame(rows)}

    def _distances(self, form: str, layer: int) -> Float[np.ndarray, "kv_head sequence"]:
        """NaN for the written form where it is not known."""
        parts = self.found.get((form, layer))
        if parts is None:
            parts = [np.full_like(part, np.nan) for part in self.found["semantic", layer]]
        return np.concatenate(parts).T


def _labels(distances: Float[np.ndarray, "kv_head sequence"], count: int) -> tuple[list[Any], list[float]]:
    """Label by mean distance, and share of sequences with it; None and NaN where there is no distance."""
    if np.isnan(distances).any():
        return [None] * len(distances), [float("nan")] * len(distances)
    by_mean = heterogeneous(torch.from_numpy(distances.mean(1)), count).tolist()
    each = torch.stack([heterogeneous(torch.from_numpy(column), count) for column in distances.T])
    return by_mean, each.double().mean(0).tolist()
