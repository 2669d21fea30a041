"""What one checkpoint shows: sink, logit margin, value drain, residual peak and loss, by head, layer and domain."""

import math
from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sinklens.capture.memory import plan_memory
from sinklens.detectors.measure import Measurement, measure
from sinklens.detectors.registry import choose_detectors
from sinklens.detectors.sinks import SINK_HEAD_RATE, SINK_HEAD_RATIO
from sinklens.evidence.bootstrap import paired_interval
from sinklens.evidence.effects import token_losses
from sinklens.models.tokens import TokenBatch
from sinklens.results.progress import SILENT, Progress, Share
from sinklens.studies.ablation.layout import choose_layout
from sinklens.studies.census.domains import Domains
from sinklens.studies.dynamics.result import ALL

DETECTORS = ("sinks", "value_drains", "residual_peaks", "massive_activations")
HEAD_COLUMNS = (
    "domain", "layer", "head", "importance_first", "null_first", "sink_rate_first", "is_sink_first", "delta_logit",
    "value_norm", "drain", "output_norm", "drain_wo",
)  # fmt: skip
LAYER_COLUMNS = (
    "domain", "layer", "sink_rate_first", "importance_first", "n_sink_heads", "resid_norm_first", "resid_norm_others",
    "resid_ratio", "max_abs", "median_abs", "max_over_median", "top_position",
)  # fmt: skip
HEAD_MEANS = ("sink_rate_first", "importance_first", "null_first", "delta_logit", "drain", "drain_wo")


def _heads(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per head: what it does with position 0."""
    key = ["layer", "head"]
    table, drains = tables["sinks"], tables["value_drains"]
    if table.empty:
        return pd.DataFrame(columns=[*HEAD_COLUMNS])
    names = {"importance": "importance_first", "null": "null_first", "sink_rate": "sink_rate_first"}
    first = table[table["position"] == 0].rename(columns=names)
    wanted = drains[drains["position"] == 0][[*key, "value_norm", "drain", "output_norm", "drain_wo"]]
    first = first.merge(wanted, on=key, how="left")
    ratio = first["ratio"] >= SINK_HEAD_RATIO
    return first.assign(is_sink_first=(first["sink_rate_first"] >= SINK_HEAD_RATE) & ratio)


def _layers(table: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """One row per layer, -1 before the first layer."""
    if len(heads):
        grouped = heads.groupby("layer")
        means = grouped[["sink_rate_first", "importance_first"]].mean()
        means["n_sink_heads"] = grouped["is_sink_first"].sum()
        return table.merge(means.reset_index(), on="layer", how="left")
    return table.assign(sink_rate_first=math.nan, importance_first=math.nan, n_sink_heads=math.nan)


@torch.no_grad()
def measure_checkpoint(
    model: TransformerBridge,
    domains: Domains,
    *,
    eps: float,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, pd.DataFrame]:
    """The tables of one checkpoint.

    Args:
        model: The bridge; it is the same afterwards.
        domains: Sequences with the domain of each.
        eps: Threshold of the sink rate.
        batch_size: Sequences in one forward pass; default: what fits the memory.
        seed: Of the bootstrap.
        progress: Told how it goes on.

    Returns:
        ``steps`` (one row per domain), ``heads`` and ``layers`` of every domain; several domains have rows named
        ``"all"`` besides, of all sequences together. See :class:`~sinklens.studies.dynamics.result.Dynamics`.

    Cost: one forward pass, its attention about twice as slow as fused attention, with the logits of all tokens.
    """
    length = int(domains.batch.lengths.max())
    size = batch_size or min(
        plan_memory(model, len(domains.batch), length).batch_size,
        choose_layout(model, len(domains.batch), length).rows,  # the pass holds the logits of all tokens
    )
    progress.begin("Measuring a checkpoint", len(domains.batch))
    detectors = choose_detectors(DETECTORS, eps=eps)  # looked up once, copied for every domain
    measured: dict[str, Measurement] = {}
    losses: dict[str, Float[np.ndarray, " sequence"]] = {}
    for name in domains.names:
        index = [number for number, of in enumerate(domains.of) if of == name]
        here: list[np.ndarray] = []
        measured[name] = measure(
            model,
            domains.batch.rows(index),
            detectors,
            batch_size=size,
            first_sequence=index[0],
            progress=Share(progress, len(index)),
            logits=partial(_keep_losses, here),
        )
        losses[name] = np.concatenate(here)
    if len(measured) > 1:
        measured = {ALL: reduce(Measurement.merge, measured.values())} | measured
        losses[ALL] = np.concatenate([*losses.values()])
    heads, layers = [], []
    steps: list[dict[str, Any]] = []
    for name, each in measured.items():
        by_head = _heads(each.tables)
        by_layer = _layers(each.tables["layers"], by_head)
        row = _summary(by_head, by_layer) | _loss(losses[name], int(model.cfg.d_vocab), seed)
        steps.append({"domain": name, **row})
        heads.append(by_head.assign(domain=name))
        layers.append(by_layer.assign(domain=name))
    return {
        "steps": pd.DataFrame(steps),
        "heads": pd.concat(heads, ignore_index=True)[[*HEAD_COLUMNS]],
        "layers": pd.concat(layers, ignore_index=True)[[*LAYER_COLUMNS]],
    }


def _keep_losses(losses: list[np.ndarray], rows: TokenBatch, logits: Tensor) -> None:
    """Mean loss of every sequence in nats per predicted token, see :func:`token_losses`; NaN where nothing is."""
    losses.append(token_losses(logits, rows).double().nanmean(1).cpu().numpy())


def _summary(heads: pd.DataFrame, layers: pd.DataFrame) -> dict[str, float]:
    """Means over heads, and the highest peak of any layer."""
    row: dict[str, float] = {name: float(heads[name].astype(float).mean()) for name in HEAD_MEANS}
    row["n_heads"] = len(heads)
    row["n_sink_heads"] = int(heads["is_sink_first"].sum())
    row["sink_head_share"] = row["n_sink_heads"] / len(heads) if len(heads) else math.nan
    row["importance_first_max"] = float(heads["importance_first"].astype(float).max())
    blocks = layers[layers["layer"] >= 0]
    for name in ("resid_ratio", "max_over_median"):
        row[name] = float(blocks[name].astype(float).max())
        highest = blocks[blocks[name] == row[name]]
        row[f"{name}_layer"] = float(highest["layer"].iloc[0]) if len(highest) else math.nan
    return row


def _loss(losses: Float[np.ndarray, " sequence"], d_vocab: int, seed: int) -> dict[str, float]:
    interval = paired_interval(losses, seed=seed)
    ends = {"loss": interval.value, "loss_low": interval.low, "loss_high": interval.high}
    return ends | {"loss_uniform": math.log(d_vocab), "n_sequences": len(losses)}
