"""How much each head matters by three measures: what it writes, what masking it costs, what it adds to the logits."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.attention import plan_for
from sinklens.detectors import attention_influence as influences
from sinklens.detectors import direct_logit, write_norm
from sinklens.detectors.base import Metric
from sinklens.detectors.head_scores import HeadScores
from sinklens.errors import InputError, UnsupportedArchitectureError
from sinklens.evidence.bootstrap import Interval, paired_interval
from sinklens.evidence.controls import all_heads
from sinklens.evidence.effects import Answers
from sinklens.interventions import AblateHeads
from sinklens.interventions.heads import Head, parse_heads
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.head_sets import run_head_sets
from sinklens.passes.sequences import choose_sequences
from sinklens.passes.write_pass import measure_writes
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress, Share

MEASURES: dict[str, Metric] = {
    "write_norm": write_norm.METRIC,
    "attention_influence": influences.METRIC,
    "direct_logit": direct_logit.METRIC,
}
MASKED = AblateHeads("all", "uniform")


@checked
@usual_torch()
def head_importance(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    measures: Iterable[str] = tuple(MEASURES),
    answers: Answers | None = None,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    split: bool = True,
    max_sequences: int | None = 32,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> HeadScores:
    """Score how much every head matters: what it writes, what masking it costs, what it adds to the logits.

    The three answer different questions and need not agree: a head may write much and change nothing, and a head that
    writes little to the logits itself may be what later heads build on (previous-token heads).

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: the built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        measures: Which of ``write_norm``, ``attention_influence``, ``direct_logit``.
        answers: For ``direct_logit``: read these logit differences instead of the next token's logit above the mean.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence; default: the model's context (64 for the built-in corpus).
        split: Cut long texts into sequences of ``max_tokens``.
        max_sequences: Draw at most this many sequences from all over the texts (all of them where there are answers).
        batch_size: Sequences in one forward pass.
        seed: Of corpus and bootstrap.
        progress: Told how it goes on, in sequences.

    Returns:
        Columns ``layer``, ``head``, ``kv_head``, the measures, each with a 95 % bootstrap interval over sequences
        (``_low``, ``_high``), and ``n_sequences``. NaN where a measure does not apply; ``meta["warnings"]`` says why.
        ``meta["direct_logit"]`` holds what everything but heads adds, and how far the sum of all parts is from what the
        model gives.

    Raises:
        InputError: An unknown measure, or texts that cannot be used.
        UnsupportedArchitectureError: The model has no attention.

    Cost: one forward pass for write norms, a second one for logits; for AttentionInfluence half a forward pass for
    every head.
    """
    wanted = tuple(dict.fromkeys(measures))
    if not wanted or not set(wanted) <= set(MEASURES):
        raise InputError(
            f"measures must be some of {', '.join(MEASURES)}; got {', '.join(map(str, wanted)) or 'none'}."
        )
    model = as_bridge(model)
    if plan_for(model).path == "none":
        raise UnsupportedArchitectureError(f"{model.cfg.architecture} has no attention heads to score.")
    if answers is not None and texts is not None:  # one for each text, in their order
        split, max_sequences = False, sys.maxsize
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, split, seed, None, max_sequences, attention_mask
    )
    if answers is not None:
        answers.check(batch, int(model.cfg.d_vocab))
    heads = all_heads(model)
    values = {name: np.full((len(heads), len(batch)), np.nan) for name in wanted}
    warnings: dict[str, None] = {}
    sums = _Sums()
    progress.begin("Scoring heads", len(batch))
    for indices in equal_lengths(batch, batch_size):
        here = Share(progress, len(indices))
        part = batch.rows(indices)
        if {"write_norm", "direct_logit"} & set(wanted):
            chosen = None if answers is None else answers.rows(indices)
            found = measure_writes(model, part, answers=chosen, direct="direct_logit" in wanted)
            warnings |= dict.fromkeys(p for p in found.problems if p.split(":")[0] in wanted)
            for name, layers in (("write_norm", found.norms), ("direct_logit", found.logits)):
                for row, (layer, head) in enumerate(heads):
                    if name in wanted and layer in layers:
                        values[name][row, indices] = layers[layer][:, head].numpy()
            if found.logits:
                sums.add(found.parts, found.read, found.gap)
        if "attention_influence" in wanted:
            try:
                values["attention_influence"][:, indices] = _influences(model, part, [(head,) for head in heads], here)
            except UnsupportedArchitectureError as error:
                warnings[f"attention_influence: {error}"] = None
        here.finish()
    frame = pd.DataFrame(heads, columns=["layer", "head"])
    frame["kv_head"] = frame["head"] // (int(model.cfg.n_heads) // kv_head_count(model))
    for name, table in values.items():
        intervals = [paired_interval(row, seed=seed) for row in table]
        frame[name] = [interval.value for interval in intervals]
        frame[f"{name}_low"] = [interval.low for interval in intervals]
        frame[f"{name}_high"] = [interval.high for interval in intervals]
    frame["n_sequences"] = len(batch)
    facts = header(model, batch, source)
    meta = {
        **facts,
        "settings": {"measures": list(wanted), "answers": answers is not None, "batch_size": batch_size, "seed": seed},
        "metrics": {name: MEASURES[name].as_dict() for name in wanted},
        "warnings": [*warnings, *([batch.unused.sentence(len(batch))] if batch.unused else [])],
        "direct_logit": sums.as_dict() if "direct_logit" in wanted else None,
    }
    return HeadScores(frame, {name: MEASURES[name] for name in wanted}, meta)


@dataclass(frozen=True)
class Influence:
    """AttentionInfluence of a set of heads on some texts.

    Attributes:
        heads: The masked heads.
        score: Mean of ``(L_masked - L_base) / L_base`` over sequences, with its bootstrap interval.
        by_sequence: The score of every sequence; NaN where nothing is predicted.
        base: Loss of every sequence in nats per token.
        masked: The same with the heads attending equally to everything.
    """

    heads: tuple[Head, ...]
    score: Interval
    by_sequence: Float[np.ndarray, " sequence"]
    base: Float[np.ndarray, " sequence"]
    masked: Float[np.ndarray, " sequence"]


@checked
def attention_influence(
    model: TransformerBridge,
    heads: Iterable[object] | str,
    batch: TokenBatch,
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> Influence:
    """How much worse each sequence is predicted when a set of heads attends equally to every key it may see.

    The authors mask the 5 % of heads with the highest retrieval score, and select the texts with the highest scores.
    Compare with :func:`~sinklens.evidence.random_head_sets` before reading anything into a set.

    Args:
        model: The bridge.
        heads: The set, such as ``["L5H1", (5, 2)]`` or ``"all"``.
        batch: Tokens from :func:`sinklens.tokenize`.
        batch_size: Sequences in one forward pass.
        seed: Of the bootstrap.

    Raises:
        InputError: The model has no such head, or there is none.
    """
    parsed = parse_heads(heads)
    chosen: tuple[Head, ...] = all_heads(model) if isinstance(parsed, str) else parsed
    base, masked = np.full(len(batch), np.nan), np.full(len(batch), np.nan)
    for indices in equal_lengths(batch, batch_size):
        measured = run_head_sets(model, batch.rows(indices), MASKED, [chosen])
        base[indices] = measured.clean["loss"].double().cpu().numpy()
        masked[indices] = measured.changed["loss"][0].double().cpu().numpy()
    scores = influences.influence(torch.from_numpy(base), torch.from_numpy(masked)).numpy()
    return Influence(chosen, paired_interval(scores, seed=seed), scores, base, masked)


def _influences(
    model: TransformerBridge, batch: TokenBatch, head_sets: Sequence[Sequence[Head]], progress: Progress = SILENT
) -> Float[np.ndarray, "head_set sequence"]:
    measured = run_head_sets(model, batch, MASKED, head_sets, progress=progress)
    scores = influences.influence(measured.clean["loss"].double(), measured.changed["loss"].double())
    return scores.cpu().numpy()


class _Sums:
    """Means over sequences of what is not a head, and the largest gap."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}
        self.gap = 0.0

    def add(self, parts: dict[str, Tensor], read: Tensor, gap: float) -> None:
        for name, values in {**parts, "read": read}.items():
            self.parts.setdefault(name, []).append(values)
        self.gap = max(self.gap, gap)

    def as_dict(self) -> dict[str, Any] | None:
        if not self.parts:
            return None
        means = {name: _number(torch.cat(values).nanmean()) for name, values in self.parts.items()}
        return {"read": means.pop("read"), "parts": means, "gap": self.gap}


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if np.isnan(number) else number
