"""The causal test of what a sink does: its value exchanged for nothing, for an ordinary one, for another text's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from sinklens.evidence.bootstrap import paired_interval
from sinklens.interventions import EditValues, Intervention, mean_values
from sinklens.interventions.edit_values import donor_values
from sinklens.interventions.heads import Head, head_name
from sinklens.interventions.kv_groups import kv_head_count
from sinklens.models.tokens import TokenBatch
from sinklens.passes.sequences import first_sequences
from sinklens.results.progress import SILENT, Progress
from sinklens.studies.effects.run import measure_effects

SEQUENCES, CONTROLS = 8, 1
DONOR_COLUMNS = (
    "layer", "kv_head", "heads", "edit", "place", "position", "delta_loss", "delta_loss_low", "delta_loss_high", "kl",
    "n_sequences",
)  # fmt: skip


def measure_donors(
    model: TransformerBridge,
    batch: TokenBatch,
    heads: Sequence[Head],
    position: int,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[pd.DataFrame, list[str]]:
    """What each exchange of one KV head's value at the sink costs, and the same at other positions.

    Args:
        model: The bridge.
        batch: The first 8 sequences are used.
        heads: Query heads; each of their KV heads is edited by itself.
        position: The sink.
        batch_size: Sequences in one forward pass.
        seed: Of the other positions and the intervals.
        progress: Told in sequences.

    Returns:
        The table, and notes. Where every text begins alike a causal model has the same value there in all of them, so
        there is no donor: that is noted, not measured as an effect of 0.
    """
    rows = first_sequences(batch, SEQUENCES)
    group = int(model.cfg.n_heads) // kv_head_count(model)
    readers: dict[Head, list[str]] = {}
    for layer, head in heads:
        readers.setdefault((layer, head // group), []).append(head_name((layer, head)))
    means: dict[str, Any] = {"ordinary": mean_values(model, rows)}
    notes = []
    prefix = batch.ids[:, : position + 1]
    other = next((i for i in range(len(batch)) if not bool((prefix[i] == rows.ids[0, : position + 1]).all())), None)
    if other is None:
        notes.append(
            f"All texts begin alike up to position {position}, and a causal model has one value there for all of them: "
            "there is no donor from another text."
        )
    else:
        means["donor"] = donor_values(model, batch.rows([other]), position=position)
    shortest = int(rows.lengths.min())
    free = [p for p in range(1, shortest - 1) if p != position]
    places = np.random.default_rng(seed).choice(free, min(CONTROLS, len(free)), replace=False).tolist() if free else []
    edits: dict[str, Intervention] = {}
    facts: dict[str, dict[str, Any]] = {}
    for (layer, kv_head), names in readers.items():
        for place in (position, *places):
            for edit in ("zero", *means) if place == position else ("zero", "ordinary"):
                name = f"L{layer}KV{kv_head} {edit} {place}"
                edits[name] = _edit(f"L{layer}KV{kv_head}", edit, place, means)
                facts[name] = {"layer": layer, "kv_head": kv_head, "heads": ", ".join(names), "edit": edit}
                facts[name] |= {"place": "sink" if place == position else "control", "position": place}
    effects = measure_effects(model, edits, rows, batch_size=batch_size, seed=seed, progress=progress)
    found = []
    for key, group_rows in effects.table.groupby("intervention", sort=False):
        loss = paired_interval(group_rows["delta_loss"].to_numpy(float), seed=seed)
        row = facts[str(key)] | {"delta_loss": loss.value, "delta_loss_low": loss.low, "delta_loss_high": loss.high}
        found.append(row | {"kl": float(group_rows["kl"].mean()), "n_sequences": loss.n})
    return pd.DataFrame(found, columns=[*DONOR_COLUMNS]), notes


def _edit(kv_head: str, edit: str, place: int, means: dict[str, Any]) -> EditValues:
    if edit == "zero":
        return EditValues((place,), "zero", kv_heads=(kv_head,))
    return EditValues(
        (place,), "donor" if edit == "donor" else "mean", kv_heads=(kv_head,), means={kv_head: means[edit][kv_head]}
    )
