"""Find the super experts of a mixture of experts, and prune them beside random ones."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens.arguments import checked
from sinklens.capture import capture
from sinklens.detectors.super_experts import METRIC, formation_layers, sink_decay, super_experts, thresholds
from sinklens.errors import InputError
from sinklens.evidence.bootstrap import paired_interval
from sinklens.interventions import ZeroWeights
from sinklens.models.as_bridge import AnyModel, as_bridge
from sinklens.models.tokens import BosChoice, Ids, TokenBatch
from sinklens.models.torch_state import usual_torch
from sinklens.passes.batches import equal_lengths
from sinklens.passes.sequences import choose_sequences
from sinklens.results.header import header
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.effects.run import measure_effects
from sinklens.studies.super_experts.measure import Peaks, down_weight, watch_experts
from sinklens.studies.super_experts.result import SuperExperts

DRAWS = 5
EFFECT_COLUMNS = (
    "kind", "draw", "experts", "delta_loss", "delta_loss_low", "delta_loss_high", "max_abs", "max_abs_kept",
    "sink_decay", "n_left_out",
)  # fmt: skip
Expert = tuple[int, int]


@checked
@usual_torch()
@torch.no_grad()
def find_super_experts(
    model: AnyModel,
    texts: str | Sequence[str] | None = None,
    *,
    tokens: TokenBatch | Ids | None = None,
    attention_mask: Any = None,
    effects: bool = True,
    controls: int = DRAWS,
    bos: BosChoice = "auto",
    max_tokens: int | None = None,
    max_sequences: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> SuperExperts:
    """Say which experts of a mixture make its massive activations, by the paper's rule and its code's, and prune them.

    Pruned is an expert that adds nothing where the router chooses it, the weights of the others as they were. Beside
    the super experts stand as many random ones of any layer, and as many of the same layers.

    Args:
        model: What :func:`~sinklens.models.as_bridge` takes. It is the same afterwards.
        texts: One or several texts; default: a built-in corpus that fits the model.
        tokens: Instead of texts: a :class:`TokenBatch`, a tokenizer's output, a tensor ``[batch pos]`` or lists of ids.
        attention_mask: For ids: 1 at real tokens.
        effects: Also prune.
        controls: Random sets of each kind.
        bos: As for :func:`sinklens.tokenize`.
        max_tokens: Longest sequence.
        max_sequences: Draw at most this many sequences from all over the texts.
        batch_size: Sequences in one forward pass.
        seed: Of texts, random sets and intervals.
        progress: Told in forward passes of a sequence.

    Raises:
        InputError: Texts that cannot be used.
        UnsupportedArchitectureError: The model has no experts.

    Source: Su et al. 2025, arXiv 2507.23279; their controls are five random sets of each kind as well.

    Cost: a forward pass whose experts run twice, and with effects two for every pruned set.
    """
    model = as_bridge(model)
    if controls < 0:
        raise InputError(f"controls must be 0 or more, got {controls}.")
    batch, source = choose_sequences(
        model, texts, tokens, bos, max_tokens, True, seed, None, max_sequences, attention_mask
    )
    progress.begin("Finding super experts", len(batch))
    experts, peaks = watch_experts(model, batch, batch_size)
    progress.advance(len(batch))
    n_layers, formation = len(model.blocks), formation_layers(peaks.largest, peaks.ratios)
    found = super_experts(experts, "paper", formation=formation)
    everywhere = super_experts(experts, "paper", formation=range(n_layers))
    code = super_experts(experts, "code", n_layers=n_layers)
    keys = [*zip(experts["layer"].tolist(), experts["expert"].tolist(), strict=True)]
    experts = experts.assign(
        forms=experts["layer"].isin(formation),
        is_super=[key in found for key in keys],
        is_super_code=[key in code for key in keys],
        outlier=[key in everywhere and key not in found for key in keys],
    ).sort_values("a", ascending=False, kind="stable", ignore_index=True)
    layers = pd.DataFrame(sorted(peaks.largest.items()), columns=["layer", "max_abs"])
    prunable = [(layer, expert) for layer, expert in found if expert >= 0]
    rows: list[dict[str, Any]] = []
    if effects and prunable:
        pool = [key for key in keys if key[1] >= 0]
        rows = _prune(model, batch, prunable, pool, peaks, controls, batch_size, seed, progress)
    a = experts["a"].to_numpy(float)
    meta = header(
        model,
        batch,
        source,
        settings={"controls": controls, "seed": seed, "batch_size": batch_size},
        metrics={METRIC.name: METRIC.as_dict()},
        formation=formation,
        thresholds={"paper": thresholds(a, "paper"), "code": thresholds(a, "code")},
        warnings=[batch.unused.sentence(len(batch))] if batch.unused else [],
    )
    tables = {"experts": experts, "layers": layers.assign(forms=layers["layer"].isin(formation))}
    return SuperExperts(meta, tables | {"effects": pd.DataFrame(rows, columns=[*EFFECT_COLUMNS])})


def draw_sets(
    pool: Sequence[Expert], tested: Sequence[Expert], controls: int, seed: int
) -> list[tuple[str, int, list[Expert]]]:
    """Random sets of untested experts: of any layer, and as many of each layer as were tested there."""
    rng = np.random.default_rng(seed)
    free = [key for key in pool if key not in tested]
    found: list[tuple[str, int, list[Expert]]] = []
    for draw in range(controls):
        if len(free) >= len(tested):
            chosen = sorted(rng.choice(len(free), len(tested), replace=False).tolist())
            found.append(("random", draw, [free[i] for i in chosen]))
        mine: list[Expert] = []
        for layer in sorted({layer for layer, _ in tested}):
            there = [key for key in free if key[0] == layer]
            count = sum(at == layer for at, _ in tested)
            if len(there) < count:
                break
            mine += [there[i] for i in sorted(rng.choice(len(there), count, replace=False).tolist())]
        if len(mine) == len(tested):
            found.append(("layer", draw, mine))
    return found


def _prune(
    model: TransformerBridge,
    batch: TokenBatch,
    tested: list[Expert],
    pool: list[Expert],
    clean: Peaks,
    controls: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    sets: list[tuple[str, int | None, list[Expert]]] = [("super", None, tested)]
    sets += draw_sets(pool, tested, controls, seed)
    changes = {
        f"{kind} {draw}": ZeroWeights(tuple(down_weight(model, *key) for key in chosen)) for kind, draw, chosen in sets
    }
    progress.begin("Pruning experts", (1 + 2 * len(sets)) * len(batch))
    effects = measure_effects(model, changes, batch, batch_size=batch_size, seed=seed).table
    progress.advance((1 + len(sets)) * len(batch))
    top = max(clean.largest.values())
    rows = []
    for (kind, draw, chosen), (name, change) in zip(sets, changes.items(), strict=True):
        peaks = Peaks()
        for indices in equal_lengths(batch, batch_size):
            capture(model, batch.rows(indices), [peaks], batch_size=batch_size, top_k=1, intervention=change)
        decays = [sink_decay(p.numpy(), peaks.received[at].numpy()) for at, p in clean.received.items()]
        known = [decay for decay, _ in decays if not math.isnan(decay)]
        losses = effects[effects["intervention"] == name]["delta_loss"].to_numpy(float)
        interval = paired_interval(losses, seed=seed)
        row: dict[str, Any] = {"kind": kind, "draw": draw, "experts": ", ".join(f"L{a}E{b}" for a, b in chosen)}
        row |= {"delta_loss": interval.value, "delta_loss_low": interval.low, "delta_loss_high": interval.high}
        highest = max(peaks.largest.values())
        row |= {"max_abs": highest, "max_abs_kept": highest / top}
        row |= {"sink_decay": float(np.mean(known)) if known else math.nan}
        rows.append(row | {"n_left_out": sum(left for _, left in decays)})
        progress.advance(len(batch))
    return rows
